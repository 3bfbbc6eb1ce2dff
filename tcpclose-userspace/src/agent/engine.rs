//! The one owner of probe, tracker and ledger. Everything that the agent does is a call of this, on one thread.

use std::ops::RangeInclusive;

use tcpclose_common::control::Counters;
use tcpclose_common::state::{CLOSE_PHASE, TcpState};

use crate::kernel::age::proven_age;
use crate::kernel::host;
use crate::kernel::probe::Probe;
use crate::kernel::sock_diag::{Dump, Socket};
use crate::ledger::Ledger;
use crate::ledger::census::{Census, StuckAfter};
use crate::ledger::names::Names;
use crate::query::tally::Holder;
use crate::terms::{Flow, Phase};
use crate::tracker::join::{Seen, Suspect, View};
use crate::tracker::life::{Body, Life};
use crate::tracker::{Host, Tracker};

use super::config::Config;

/// Suspects of one dump that are looked up one by one; the rest wait for the next dump.
pub const MOST_SUSPECTS: usize = 1000;

/// What a dump asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A mask of `1 << state`.
    pub states: u32,
    /// With the times that full sockets remember.
    pub info: bool,
}

/// Every close-phase socket, and the listeners.
pub const EVERYTHING: Wanted =
    Wanted { states: CLOSE_PHASE | TcpState::TimeWait.bit() | TcpState::Listen.bit(), info: true };

/// How the dumps go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dumps {
    /// Wall time of the last one, nanoseconds.
    pub last_ns: u64,
    /// Between dumps at present, nanoseconds: stretched so that they take 1 % of a core at most.
    pub interval_ns: u64,
    /// Wall clock of the last whole reconcile, seconds since 1970; 0 before the first.
    pub reconciled_at: f64,
}

pub struct Engine {
    pub probe: Probe,
    pub tracker: Tracker,
    pub ledger: Ledger,
    pub stuck_after: StuckAfter,
    pub dumps: Dumps,
    /// How many stuck sockets each owner had when they were looked for last.
    pub stuck_owners: Vec<(Holder, u64)>,
    /// Records taken from the ring, sound or not.
    pub received: u64,
    /// Records that could not be decoded.
    pub malformed: u64,
    /// Records lost so far, as last looked.
    lost: u64,
    /// The network namespace that dumps see.
    pub netns: u32,
    pub ephemeral: RangeInclusive<u16>,
    /// The kernel's TCPTimeWaitOverflow when the agent began.
    overflows_before: u64,
    /// The first dump has been taken in.
    pub ready: bool,
    /// `tcpclose kill` may destroy through this agent.
    pub allow_kill: bool,
}

impl Engine {
    /// `time_wait_ns`: TIME-WAIT's length where it could be measured.
    pub fn new(probe: Probe, config: &Config, time_wait_ns: Option<u64>) -> Self {
        let netns = host::netns().unwrap_or_default();
        let ephemeral = host::ip_local_port_range();
        let by_cookie = probe.hook == crate::kernel::probe::StateHook::Btf;
        let mut tracker = Tracker::new(Host { netns, ephemeral: ephemeral.clone() }, by_cookie);
        if let Some(ns) = time_wait_ns {
            tracker.set_time_wait_ns(ns);
        }
        tracker.set_told(probe.told);
        Self {
            probe,
            tracker,
            ledger: Ledger::new(Names::new(config.max_ports, &config.name_ports, ephemeral.clone())),
            stuck_after: config.stuck_after.clone(),
            dumps: Dumps { interval_ns: config.dump_interval.as_nanos() as u64, ..Dumps::default() },
            stuck_owners: Vec::new(),
            received: 0,
            malformed: 0,
            lost: 0,
            netns,
            ephemeral,
            overflows_before: host::time_wait_overflows().unwrap_or(0),
            ready: false,
            allow_kill: config.allow_kill,
        }
    }

    /// Takes what is in the ring. Returns how many records that were, and whether there may be more.
    pub fn drain(&mut self) -> (u64, bool) {
        let before_ns = host::monotonic_ns();
        let Self { probe, tracker, ledger, .. } = self;
        let taken = probe.ring.drain(|record| tracker.record(record, ledger));
        // What is taken now was made before; what waits for a record that has not come by then waits no longer.
        if !taken.more {
            tracker.settle(before_ns, ledger);
        }
        self.received += taken.records;
        self.malformed += taken.malformed;
        (taken.records, taken.more)
    }

    /// Takes all that is in the ring now. Whether that was all.
    pub fn drain_all(&mut self) -> bool {
        /// More than the largest ring holds; what comes in the meantime is not waited for.
        const ROUNDS: usize = 100;
        (0..ROUNDS).any(|_| !self.drain().1)
    }

    /// Takes all that is in the ring now, and returns the instant until when every step is known; 0 when records were
    /// lost.
    pub fn drain_for_save(&mut self) -> u64 {
        let now_ns = host::monotonic_ns();
        let complete = self.drain_all() && self.records_lost() == self.lost;
        if complete { now_ns } else { 0 }
    }

    fn records_lost(&self) -> u64 {
        self.counters().lost + self.probe.recursion_misses() + self.malformed
    }

    /// TIME-WAITs that the kernel skipped since the agent began: in every network namespace where hooks tell, else by
    /// the kernel's own counter, in this one.
    pub fn overflows(&self) -> u64 {
        if self.probe.told.births {
            return self.ledger.overflows();
        }
        host::time_wait_overflows().unwrap_or(0).saturating_sub(self.overflows_before)
    }

    /// Records made and lost by the probe; nothing known when the map cannot be read.
    pub fn counters(&self) -> Counters {
        self.probe.ring.counters().unwrap_or_default()
    }

    /// Whether records were lost since the last call: a reason to reconcile at once.
    pub fn has_lost(&mut self) -> bool {
        let lost = self.records_lost();
        let more = lost > self.lost;
        if more {
            log::warn!("{} records lost", lost - self.lost);
            self.tracker.records_lost();
        }
        self.lost = lost;
        more
    }

    /// What a dump is worth now, besides the reconcile: minisockets, where no hooks show their ends, and CLOSE-WAITs
    /// that are to be called stuck, since only a dump tells whether their programs still write to them.
    pub fn wanted(&self, now_ns: u64) -> Option<Wanted> {
        let first = self.stuck_after.first_ns();
        let (mut minisockets, mut close_waits) = (false, false);
        for life in self.tracker.lives() {
            minisockets |= life.body == Body::Minisocket && !self.probe.told.lives;
            close_waits |= life.phase == Phase::CloseWait && self.needs_look(life, now_ns, first);
            if minisockets && close_waits {
                break;
            }
        }
        let mut states = 0;
        if minisockets {
            states |= TcpState::FinWait2.bit() | TcpState::TimeWait.bit();
        }
        if close_waits {
            states |= TcpState::CloseWait.bit();
        }
        (states != 0).then_some(Wanted { states, info: close_waits })
    }

    /// Whether a CLOSE-WAIT that may be stuck has not been looked at since it, or its program's last known write, passed
    /// the bound, or not for half of it.
    fn needs_look(&self, life: &Life, now_ns: u64, first: u64) -> bool {
        let age = life.since.age(now_ns);
        let due_ns = life.since.latest_ns.max(life.sent_ns).saturating_add(first);
        life.netns == self.netns
            && (age.is_past(first) || age.may_be_past(first))
            && (life.seen_ns < due_ns && due_ns <= now_ns || now_ns.saturating_sub(life.seen_ns) > first / 2)
    }

    /// Takes a dump in. Returns those tracked sockets that it should have seen and did not.
    pub fn take_dump(&mut self, dump: &Dump, wanted: Wanted) -> Vec<Suspect> {
        self.drain_all();
        let uptime_ns = host::uptime_ns();
        let seen: Vec<Seen> = dump.sockets.iter().map(|socket| seen(socket, uptime_ns)).collect();
        let view =
            View { seen: &seen, states: wanted.states, started_ns: dump.started_ns, first: !self.ready };
        let suspects = self.tracker.dump(&view, MOST_SUSPECTS, &mut self.ledger);
        if dump.malformed > 0 {
            log::warn!("{} answers of sock_diag could not be decoded", dump.malformed);
        }
        self.ready = true;
        suspects
    }

    /// Takes in that an exact lookup did not find `gone` either.
    pub fn take_gone(&mut self, gone: &[Suspect]) {
        self.drain_all();
        let now_ns = host::monotonic_ns();
        for suspect in gone {
            self.tracker.gone(suspect, now_ns, &mut self.ledger);
        }
    }

    /// The gauges of this moment.
    pub fn census(&mut self, now_ns: u64) -> Census {
        self.ledger.census(self.tracker.lives(), &self.stuck_after, self.netns, now_ns)
    }

    /// What is known of a dumped socket.
    pub fn life_of(&self, cookie: u64, flow: &Flow) -> Option<&Life> {
        self.tracker.find(cookie, flow)
    }
}

/// A dumped socket as the tracker takes it.
fn seen(socket: &Socket, uptime_ns: u64) -> Seen {
    Seen {
        state: socket.state,
        body: if socket.minisocket { Body::Minisocket } else { Body::Socket },
        flow: socket.flow,
        cookie: socket.cookie,
        interface: socket.interface,
        seen_ns: socket.seen_ns,
        expires_ns: socket.expires_ns.unwrap_or(0),
        age: proven_age(socket, uptime_ns),
        sent_ns: socket.times.map(|times| socket.seen_ns.saturating_sub(times.last_sent_ns)),
    }
}
