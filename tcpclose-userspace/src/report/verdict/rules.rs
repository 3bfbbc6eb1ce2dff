//! The rules: which verdict a group's history allows. Pure. The book's page on verdicts has them in words.

use crate::names::{Side, Verdict};
use crate::report::verdict::history::{Ends, History};

/// From so many sockets on, growth is that of a leak.
const MANY: u64 = 10;
/// So many sockets must have become stuck while the agent looked on.
const ARRIVALS: u64 = 5;

/// The times that verdicts wait for, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StuckBounds {
    /// The first `--stuck-after`.
    pub first_ns: u64,
    /// The second; of a single one ten times that.
    pub second_ns: u64,
}

impl StuckBounds {
    pub fn of(stuck_after_ns: &[u64]) -> Self {
        let first_ns = stuck_after_ns.first().copied().unwrap_or(60_000_000_000);
        let second_ns = stuck_after_ns.get(1).copied().unwrap_or(first_ns.saturating_mul(10));
        Self { first_ns, second_ns }
    }

    /// How long growth is looked at where a pool that runs idle looks the same.
    pub fn growth_ns(self) -> u64 {
        self.second_ns.saturating_add(self.second_ns / 2)
    }

    /// From what time in CLOSE-WAIT on its end is a late one.
    pub fn late_ns(self) -> u64 {
        self.first_ns / 4
    }
}

/// What a history allows, and for what it waits if that is nothing yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub waits: Option<WaitsFor>,
}

/// What decides an undecided group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// Another look.
    Looks,
    /// The local peers that wait for an answer have it, or the second bound is past.
    Answer,
    /// Whether its number grows on or stays: until this instant.
    Growth(u64),
    /// Whether the program acts on any connection, or new ones come.
    Activity,
}

const fn is(verdict: Verdict) -> Judgement {
    Judgement { verdict, waits: None }
}

const fn undecided(waits: WaitsFor) -> Judgement {
    Judgement { verdict: Verdict::Undecided, waits: Some(waits) }
}

/// Judges the sockets on this `side`.
pub fn judge(side: Side, history: &History, bounds: StuckBounds) -> Judgement {
    let present = &history.present;
    let most = |n: u64| 2 * n > present.stuck;
    let nearly_all = |n: u64| n > 0 && 5 * n >= 4 * present.stuck;
    if nearly_all(present.half_closed) && side != Side::Unknown {
        return is(Verdict::ProxyHalfClose);
    }
    if most(present.not_accepted) {
        return not_accepted(history, bounds);
    }
    if most(present.peer_waits) && present.oldest * 1e9 < bounds.second_ns as f64 {
        return undecided(WaitsFor::Answer);
    }
    match side {
        Side::Client if nearly_all(present.goodbyes) => idle_or_forgotten(history, bounds),
        Side::Server if most(present.not_read) => not_read(history, bounds),
        _ if most(present.not_read) && reads_on(history, bounds) => is(Verdict::SlowReader),
        _ => growth(history, bounds),
    }
}

fn not_accepted(history: &History, bounds: StuckBounds) -> Judgement {
    let is_old = history.present.oldest * 1e9 >= bounds.first_ns.saturating_mul(2) as f64;
    match history.ends.all() {
        0 if is_old || history.counts.len() >= 3 => is(Verdict::Hung),
        _ => undecided(WaitsFor::Looks),
    }
}

/// Connections of a client from which nobody has read since the server closed: kept for later, or forgotten.
fn idle_or_forgotten(history: &History, bounds: StuckBounds) -> Judgement {
    let Ends { closed, reset_after_write, .. } = history.ends;
    if reset_after_write > 0 || closed > 0 && closed * MANY >= history.arrivals {
        return is(Verdict::StalePool);
    }
    // A leak that is slow has pauses too: as long again as four of them so far.
    let pause_ns = history.watched_ns() / history.arrivals.max(1);
    let steady_ns = match history.arrivals {
        0 => bounds.second_ns / 2,
        _ => (bounds.second_ns / 2).max(pause_ns.saturating_mul(4)),
    };
    if history.counts.len() >= 3 && history.quiet_ns() >= steady_ns {
        return is(Verdict::StalePool);
    }
    let is_long = history.watched_ns() >= bounds.growth_ns();
    let grows = history.present.stuck >= MANY && history.arrivals >= ARRIVALS && history.ends.all() == 0;
    if is_long && grows && history.quiet_ns() < bounds.growth_ns() / 3 {
        return is(Verdict::Leak);
    }
    undecided(WaitsFor::Growth(history.first_ns.saturating_add(bounds.growth_ns()).max(history.last_ns)))
}

/// Connections of a server from which it has not read the end.
fn not_read(history: &History, bounds: StuckBounds) -> Judgement {
    if reads_on(history, bounds) {
        return is(Verdict::SlowReader);
    }
    let (arrived, idle_ns) = history.idle();
    let come = arrived >= 2 || !history.is_active() && history.present.stuck >= MANY;
    if come && history.present.stuck >= 2 && idle_ns >= bounds.first_ns {
        return is(Verdict::Hung);
    }
    if history.is_active() || history.ends.all() > 0 {
        // It serves others.
        return growth(history, bounds);
    }
    if history.quiet_ns() >= bounds.second_ns {
        return is(Verdict::OneOff);
    }
    undecided(WaitsFor::Activity)
}

/// Whether sockets that wait to be read from have been, lately.
fn reads_on(history: &History, bounds: StuckBounds) -> bool {
    history.last_used_ns.is_some_and(|used_ns| history.last_ns.saturating_sub(used_ns) < bounds.second_ns)
}

/// A leak by its growth alone: nothing else leaves sockets like these.
fn growth(history: &History, bounds: StuckBounds) -> Judgement {
    let ends = history.ends.all();
    let stuck = history.present.stuck;
    if stuck >= MANY && history.arrivals >= ARRIVALS && ends * MANY <= history.arrivals {
        return is(Verdict::Leak);
    }
    let is_long = history.watched_ns() >= bounds.growth_ns();
    let goes_on = history.quiet_ns() < bounds.second_ns && !history.has_closed_on();
    if is_long && history.arrivals >= 2 && ends == 0 && goes_on {
        return is(Verdict::Leak);
    }
    if history.quiet_ns() >= bounds.second_ns {
        return is(Verdict::OneOff);
    }
    undecided(WaitsFor::Growth(history.first_ns.saturating_add(bounds.growth_ns()).max(history.last_ns)))
}

/// Whether what has happened since a verdict allows another in its place, so that none flaps.
pub fn may_change(from: Verdict, to: Verdict, history: &History) -> bool {
    let (arrivals, ends) = history.at_verdict;
    let (came, ended) = (history.arrivals.saturating_sub(arrivals), history.ends.all().saturating_sub(ends));
    match (from, to) {
        (_, Verdict::Undecided) => false,
        (Verdict::Undecided, _) => true,
        (_, Verdict::ProxyHalfClose) => true,
        (_, Verdict::StalePool) => ended > 0,
        (Verdict::ProxyHalfClose, _) => history.present.half_closed == 0,
        (_, Verdict::Leak) => came >= MANY && ended * MANY <= came,
        (Verdict::Leak, _) => false,
        (_, Verdict::OneOff) => came == 0 && ended > 0,
        (_, Verdict::SlowReader) => history.last_used_ns.is_some_and(|used_ns| used_ns > history.verdict_ns),
        (_, Verdict::Hung) => came >= 2 && ended == 0,
    }
}
