//! What a dump of the kernel's sockets adds: the minisockets, which no record reports, the sockets that were there
//! first, and what lost records left wrong.
//!
//! A dump is no snapshot: it resumes by position in a hash bucket, so that it can skip or repeat, and what it saw may
//! have changed since. So the ring is drained between the dump and [`Tracker::dump`]; a life with a record after the
//! dump's start (less a margin) is left to the next one; and an absence is only a suspicion until an exact lookup
//! confirms it, but for a minisocket whose timer was due.

use std::collections::{HashMap, HashSet};

use tcpclose_common::state::TcpState;

use crate::terms::{Age, Flow, Outcome, Phase, Side};

use super::Tracker;
use super::fact::{Fact, Mended, Sink, Why};
use super::life::{Birth, Body, Life, Since};
use super::opening::role_proven_by;
use super::transition::Told;

/// The margin around a dump's start: the tracepoint precedes the state change that the dump sees.
pub(super) const MARGIN_NS: u64 = 100_000_000;

/// How far off an instant may be that is read off a timer: jiffies and the time between a step and its timer make up some
/// 10 ms. A measured length of TIME-WAIT is taken for a new one when it differs by more.
pub(super) const TIMER_TOLERANCE_NS: u64 = 50_000_000;

/// A measurement this close to a whole number of seconds means that number.
const WHOLE_TOLERANCE_NS: u64 = 250_000_000;

/// The length of TIME-WAIT that a measurement means. It is a whole number of seconds wherever it is known
/// (TCP_TIMEWAIT_LEN is 60 * HZ; tcp_tw_timeout, the sysctl of some vendors, counts seconds). What a measurement has
/// besides is how long a busy machine let it wait, and how late a busy machine's jiffies were: on two emulated CPUs with
/// other work 90 ms, by which every age would be wrong that is told from a timer.
pub(super) fn meant_length(measured_ns: u64) -> u64 {
    const SECOND_NS: u64 = 1_000_000_000;
    let whole = (measured_ns + SECOND_NS / 2) / SECOND_NS * SECOND_NS;
    if whole != 0 && whole.abs_diff(measured_ns) <= WHOLE_TOLERANCE_NS { whole } else { measured_ns }
}

/// One socket or minisocket, as a dump saw it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub state: TcpState,
    pub body: Body,
    pub flow: Flow,
    pub cookie: u64,
    /// What identifies its network namespace.
    pub netns: u32,
    /// The interface that it is bound to; 0 for none.
    pub interface: u32,
    /// CLOCK_MONOTONIC of the sighting.
    pub seen_ns: u64,
    /// What is left on the timer of a minisocket.
    pub expires_ns: u64,
    /// What the kernel proves of the time a full socket has spent in its state.
    pub age: Age,
    /// When the program last wrote to it, where the dump told.
    pub sent_ns: Option<u64>,
}

/// Dumps of some network namespaces, made one after the other.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Which namespaces they are of.
    pub covers: &'a Covers,
    /// What it saw; listeners too, if it asked for them.
    pub seen: &'a [Seen],
    /// The states it asked for, a mask of `1 << state`.
    pub states: u32,
    /// CLOCK_MONOTONIC before its first request.
    pub started_ns: u64,
    /// It is the first: what it finds was there before the agent.
    pub first: bool,
}

/// Namespaces that a [`View`] has looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Covers {
    /// What identifies each, and its inode.
    pub netns: HashMap<u32, u32>,
    /// They are all that dumps can look at: a life of which no record told the namespace (without BTF) is in one.
    pub all: bool,
}

impl Covers {
    /// Whether a life should have been seen.
    fn should_show(&self, life: &Life) -> bool {
        match life.netns {
            // A full socket may be where dumps cannot look.
            0 => self.all && life.body == Body::Minisocket,
            netns => self.netns.contains_key(&netns),
        }
    }
}

/// A tracked socket that a dump should have seen and did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// What identifies its network namespace; 0 where nobody told.
    pub netns: u32,
    pub flow: Flow,
    pub cookie: u64,
    pub interface: u32,
    /// May be stale when it comes back: [`Tracker::gone`] compares the rest.
    slot: usize,
    event_ns: u64,
    seen_ns: u64,
}

impl Tracker {
    /// Says that a dump begins. What ends before [`Self::dump`] takes it stays ended.
    pub fn dump_started(&mut self) {
        self.ended_meanwhile = Some(HashSet::new());
    }

    /// Says that the dump failed.
    pub fn dump_failed(&mut self) {
        self.ended_meanwhile = None;
    }

    /// Takes a dump, after every record that was in the ring when it finished. Returns the absent lives, at most
    /// `most`: those that an exact lookup does not find either go to [`Self::gone`].
    pub fn dump(&mut self, view: &View<'_>, most: usize, out: &mut impl Sink) -> Vec<Suspect> {
        let ended = self.ended_meanwhile.take().unwrap_or_default();
        for (&netns, &inum) in &view.covers.netns {
            self.told_inum(netns, inum);
        }
        if view.states & TcpState::Listen.bit() != 0 {
            self.listening.retain(|(netns, ..)| !view.covers.netns.contains_key(netns));
        }
        for seen in view.seen.iter().filter(|seen| seen.state == TcpState::Listen) {
            self.listening.insert((seen.netns, seen.flow.local, seen.flow.local_port));
        }
        self.measure_time_wait(view);
        for seen in view.seen {
            let Some(phase) = Phase::of(seen.state) else { continue };
            match self.slot_of(seen.netns, seen.cookie, &seen.flow) {
                Some(at) => {
                    self.join_nameless(at, seen.cookie);
                    self.sighting(at, seen, phase, view, out);
                }
                None if ended.contains(&self.identity(seen.netns, seen.cookie, &seen.flow)) => {}
                // A minisocket whose timer is due was ended by an earlier dump that missed it.
                None if !view.first && seen.body == Body::Minisocket && seen.expires_ns == 0 => {}
                None => self.adopt(seen, phase, view, out),
            }
        }
        let last_ns = view.seen.iter().map(|seen| seen.seen_ns).max().unwrap_or(view.started_ns);
        self.complete_ns.get_or_insert(last_ns + MARGIN_NS);
        let suspects = self.absent(view, most, out);
        self.give_back();
        suspects
    }

    /// An exact lookup has confirmed, at `now_ns`, that `suspect` is no longer in the kernel.
    pub fn gone(&mut self, suspect: &Suspect, now_ns: u64, out: &mut impl Sink) {
        let Some(life) = self.lives.get(suspect.slot) else { return };
        let same = life.flow == suspect.flow
            && life.cookie == suspect.cookie
            && life.event_ns == suspect.event_ns
            && life.seen_ns == suspect.seen_ns;
        if !same {
            return;
        }
        self.end_absent(suspect.slot, now_ns, out);
    }

    /// Ends a life that is no longer in the kernel, found out at `now_ns`.
    fn end_absent(&mut self, at: usize, now_ns: u64, out: &mut impl Sink) {
        let body = self.lives[at].body;
        // The end of a minisocket is told by hooks only.
        if body == Body::Socket || self.told.lives {
            out.fact(now_ns, Fact::Mended { what: Mended::Vanished });
        }
        match body {
            Body::Minisocket => self.end_minisocket(at, now_ns, Told::BY_DUMP, out),
            Body::Socket => self.vanish(at, now_ns, out),
        }
    }

    /// At the classic door, where the record of its birth was lost, hooks speak of a minisocket by a cookie that no life has,
    /// and a life of its own was made for it. The dump shows whose it is.
    fn join_nameless(&mut self, at: usize, cookie: u64) {
        let Some(other) = self.at(!cookie) else { return };
        if self.by_cookie || other == at || self.lives[other].flow.hash64() != 0 {
            return;
        }
        let Life { phase, since, counted, event_ns, .. } = self.remove(other);
        self.changed(at);
        let life = &mut self.lives[at];
        (life.phase, life.since) = (phase, since);
        life.counted |= counted;
        life.event_ns = life.event_ns.max(event_ns);
    }

    /// A known life in a dump.
    fn sighting(&mut self, at: usize, seen: &Seen, phase: Phase, view: &View<'_>, out: &mut impl Sink) {
        let life = &self.lives[at];
        if !self.by_cookie && life.event_ns >= view.started_ns {
            // Flows are used again within milliseconds: what was seen may be the connection before this one, and its
            // cookie not this one's.
            return;
        }
        if is_another(life, seen, phase) {
            // The record that would have told of the later connection was lost.
            if life.event_ns + MARGIN_NS <= view.started_ns {
                self.end_minisocket(at, seen.seen_ns, Told::BY_DUMP, out);
                self.adopt(seen, phase, view, out);
            }
            return;
        }
        // Found in this namespace, it is of it.
        let netns = if life.netns == 0 { seen.netns } else { life.netns };
        let flow = if life.flow.has_addresses() { life.flow } else { seen.flow };
        if (life.netns, life.flow, life.cookie) != (netns, flow, seen.cookie) {
            self.change(at, |life| (life.netns, life.flow, life.cookie) = (netns, flow, seen.cookie));
        }
        self.bound_to(seen.cookie, seen.interface);
        let life = &mut self.lives[at];
        life.missed = false;
        match (life.body, seen.body) {
            (Body::Minisocket, Body::Minisocket) => self.minisocket(at, seen, phase, out),
            _ if life.event_ns + MARGIN_NS > view.started_ns => {}
            (Body::Socket, Body::Socket) if life.phase == phase => {
                life.seen_ns = seen.seen_ns;
                life.set_sent_ns(seen.sent_ns.unwrap_or(life.sent_ns()));
            }
            // Records were lost on the way from what we knew to what is.
            _ => {
                out.fact(seen.seen_ns, Fact::Mended { what: Mended::State });
                out.fact(seen.seen_ns, Fact::Unseen { phase: life.phase, why: Why::Lost });
                let (counted, role, pair) = (life.counted, life.role, (life.side, life.port));
                self.remove(at);
                let at = self.place(seen, phase, view);
                let life = &mut self.lives[at];
                (life.side, life.port) = pair;
                (life.counted, life.role) = (counted, role);
                if life.phase == Phase::TimeWait {
                    self.count(at, seen.seen_ns, Outcome::Graceful, out);
                }
            }
        }
    }

    /// A known minisocket in a dump: in the phase it was in, or flipped from FIN-WAIT-2 to TIME-WAIT since.
    fn minisocket(&mut self, at: usize, seen: &Seen, phase: Phase, out: &mut impl Sink) {
        let life = self.lives[at];
        let flipped = life.phase == Phase::FinWait2 && phase == Phase::TimeWait;
        if flipped && self.told.lives {
            // A hook told of it, unless its record was lost.
            out.fact(seen.seen_ns, Fact::Mended { what: Mended::State });
        }
        if flipped {
            // Not before the last sighting in FIN-WAIT-2, nor before the hand-over, nor after this sighting.
            let floor = life.event_ns.max(life.seen_ns).max(life.since.earliest_ns);
            let since = match self.time_wait_entry(seen) {
                Some(entry) => Since::exact(entry.clamp(floor, floor.max(seen.seen_ns))),
                None => Since { earliest_ns: floor, latest_ns: seen.seen_ns },
            };
            if since.earliest_ns == since.latest_ns {
                self.leave(at, Phase::FinWait2, since.latest_ns, out);
            } else {
                out.fact(since.latest_ns, Fact::Unseen { phase: Phase::FinWait2, why: Why::BetweenDumps });
            }
            self.enter_time_wait(at, Phase::FinWait2, since, Told::BY_DUMP, out);
        } else if life.phase == Phase::TimeWait && !life.counted {
            // Presumed since CLOSING→CLOSE, and here it is.
            self.enter_time_wait(at, Phase::Closing, life.since, Told::BY_DUMP, out);
        }
        let life = &mut self.lives[at];
        life.seen_ns = seen.seen_ns;
        // An expired timer that has not fired yet keeps the instant it was due at.
        if seen.expires_ns != 0 || life.expires_ns() == 0 {
            life.mark = seen.seen_ns + seen.expires_ns;
        }
    }

    /// When a minisocket now in TIME-WAIT entered it, by its timer: re-armed at entry to run TIME-WAIT's length
    /// (inet_twsk_schedule in tcp_time_wait, inet_twsk_reschedule in tcp_timewait_state_process; 5.8 to 6.18).
    fn time_wait_entry(&self, seen: &Seen) -> Option<u64> {
        let length = self.time_wait_ns?;
        (seen.expires_ns != 0)
            .then(|| (seen.seen_ns + seen.expires_ns).saturating_sub(length).min(seen.seen_ns))
    }

    /// Measures TIME-WAIT's length on minisockets whose entry a record told: what was on their timer then. A
    /// retransmitted FIN re-arms the timer and so can only lengthen it: the shortest is the truth.
    fn measure_time_wait(&mut self, view: &View<'_>) {
        let mut shortest: Option<u64> = None;
        let mut samples = 0;
        for seen in view.seen {
            if seen.state != TcpState::TimeWait || seen.expires_ns == 0 {
                continue;
            }
            let Some(life) = self.slot_of(seen.netns, seen.cookie, &seen.flow).map(|at| &self.lives[at])
            else {
                continue;
            };
            let told = life.phase == Phase::TimeWait
                && life.counted
                && life.seen_ns == 0
                && life.event_ns == life.since.latest_ns;
            if told {
                let length = (seen.seen_ns + seen.expires_ns).saturating_sub(life.since.latest_ns);
                shortest = Some(shortest.map_or(length, |s| s.min(length)));
                samples += 1;
            }
        }
        let Some(length) = shortest.map(meant_length) else { return };
        match self.time_wait_ns {
            Some(known) if length.abs_diff(known) <= TIMER_TOLERANCE_NS => {}
            // Longer, but only one: perhaps re-armed.
            Some(known) if length > known && samples < 3 => {}
            _ => self.time_wait_ns = Some(length),
        }
    }

    /// A socket that nobody knew.
    fn adopt(&mut self, seen: &Seen, phase: Phase, view: &View<'_>, out: &mut impl Sink) {
        if !view.first {
            out.fact(seen.seen_ns, Fact::Mended { what: Mended::Missing });
        }
        let at = self.place(seen, phase, view);
        self.take_up(at, seen);
        // A TIME-WAIT that was there at the start never counts: its close was before the agent.
        if phase == Phase::TimeWait {
            if view.first {
                self.lives[at].counted = true;
            } else {
                self.count(at, seen.seen_ns, Outcome::Graceful, out);
            }
        }
    }

    /// Puts a life in place for what a dump saw.
    fn place(&mut self, seen: &Seen, phase: Phase, view: &View<'_>) -> usize {
        let server = self.is_listening(seen.netns, seen.flow.local, seen.flow.local_port);
        let side = if server { Side::Server } else { Side::Unknown };
        let since = match (seen.body, phase) {
            (Body::Minisocket, Phase::TimeWait) => match self.time_wait_entry(seen) {
                Some(entry) => Since::exact(entry),
                None => Since { earliest_ns: 0, latest_ns: seen.seen_ns },
            },
            // TCP_LINGER2 can shorten its timer, so that the timer proves nothing.
            (Body::Minisocket, _) => Since { earliest_ns: 0, latest_ns: seen.seen_ns },
            (Body::Socket, _) => Since::of_age(seen.age, seen.seen_ns),
        };
        self.bound_to(seen.cookie, seen.interface);
        self.insert(Life {
            cookie: seen.cookie,
            mark: if seen.body == Body::Minisocket { seen.seen_ns + seen.expires_ns } else { 0 },
            flow: seen.flow,
            netns: seen.netns,
            port: self.port(side, seen.flow.local_port, seen.flow.remote_port),
            side,
            role: role_proven_by(phase),
            phase,
            body: seen.body,
            birth: Birth::Untold,
            counted: false,
            since,
            event_ns: 0,
            missed: false,
            seen_ns: if view.states & phase.state().bit() != 0 { seen.seen_ns } else { 0 },
            acted_ns: if phase == Phase::CloseWait { seen.sent_ns.unwrap_or(0) } else { 0 },
            closer_pid: None,
        })
    }

    /// Lives that this dump should have seen. A minisocket whose timer was due ends, and one whose flow has another
    /// socket now; the others are suspects. Of those that are too many to be looked up, or have no addresses to be found
    /// by, the ones that the dump before this one should have seen too are gone: what a dump skips is a chance of where
    /// its batches end, and does not strike twice. So a table of minisockets that is full, which leaves nothing of each
    /// close, and on the `diag` rung no word of that, cannot make us hold more than what closes within a few dumps.
    fn absent(&mut self, view: &View<'_>, most: usize, out: &mut impl Sink) -> Vec<Suspect> {
        let mut over = Vec::new();
        let mut gone = Vec::new();
        let mut suspects = Vec::new();
        // One flow, one socket. Where flows are reused fast, more minisockets end this way between two dumps than can
        // be looked up one by one. (At the classic door the later socket's first record has ended them. Where that was lost,
        // a look-up could not tell what has no cookie from the later socket.)
        let mut taken: Option<HashSet<(u32, Flow, u32)>> = None;
        let by_cookie = self.by_cookie;
        let interfaces = &self.interfaces;
        let interface_of = |life: &Life| interfaces.get(&life.cookie).copied().unwrap_or(0);
        let mut is_taken = |life: &Life| {
            let flows = || view.seen.iter().map(|seen| (seen.netns, seen.flow, seen.interface)).collect();
            let nameless = !by_cookie && life.cookie == 0;
            (nameless || by_cookie && life.body == Body::Minisocket)
                && taken.get_or_insert_with(flows).contains(&(life.netns, life.flow, interface_of(life)))
        };
        for (at, life) in &mut self.lives {
            if !view.covers.should_show(life)
                || view.states & life.phase.state().bit() == 0
                || life.seen_ns >= view.started_ns
                || life.event_ns + MARGIN_NS > view.started_ns
            {
                continue;
            }
            let due = life.expires_ns() != 0 && life.expires_ns() <= view.started_ns;
            if life.body == Body::Minisocket
                && (due && (!self.told.lives || self.loss.is_some()) || is_taken(life))
            {
                over.push(at);
            } else if life.body == Body::Socket && is_taken(life) {
                gone.push(at);
            } else if suspects.len() < most && life.flow.has_addresses() {
                suspects.push(Suspect {
                    netns: life.netns,
                    flow: life.flow,
                    cookie: life.cookie,
                    interface: interface_of(life),
                    slot: at,
                    event_ns: life.event_ns,
                    seen_ns: life.seen_ns,
                });
            } else if life.missed {
                gone.push(at);
            } else {
                self.unsettled = true;
            }
            life.missed = true;
        }
        for at in over {
            self.end_minisocket(at, view.started_ns, Told::BY_DUMP, out);
        }
        for at in gone {
            self.end_absent(at, view.started_ns, out);
        }
        suspects
    }
}

/// Whether a minisocket of a known life's flow is a later connection's: the cookie is another, or it is in FIN-WAIT-2,
/// to which no TIME-WAIT goes back.
fn is_another(life: &Life, seen: &Seen, phase: Phase) -> bool {
    let both = life.body == Body::Minisocket && seen.body == Body::Minisocket;
    let cookie = life.cookie != 0 && life.cookie != seen.cookie;
    both && (cookie || (life.phase, phase) == (Phase::TimeWait, Phase::FinWait2))
}
