//! What a dump of the kernel's sockets adds: the minisockets, which no record reports, the sockets that were there
//! first, and what lost records left wrong.
//!
//! A dump is no snapshot: it resumes by position in a hash bucket, so that it can skip or repeat, and what it saw may
//! have changed since. It is taken in as it comes, some sockets at a time, and the ring is drained before each
//! [`Tracker::dump_chunk`]; a life with a record after the dump's start (less a margin) is left to the next one. What
//! is [`absent`](crate::tracker::vanished) is looked for when all of the dump is in.

use std::collections::HashSet;

use tcpclose_common::state::TcpState;

use crate::names::{Age, Correction, Flow, Outcome, Phase, Side, UnmeasuredReason};

use crate::tracker::Tracker;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::first_record::role_proven_by;
use crate::tracker::socket::{EnteredAt, MinisocketState, SocketKind, TrackedSocket};
use crate::tracker::transition::Evidence;
use crate::tracker::vanished::{DumpCoverage, Suspect};

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
pub struct DumpedSocket {
    pub state: TcpState,
    pub body: SocketKind,
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

/// What all of a dump has in common.
#[derive(Clone, Copy, Debug)]
pub struct DumpScope {
    /// The states it asks for, a mask of `1 << state`.
    pub states: u32,
    /// CLOCK_MONOTONIC before its first request.
    pub started_ns: u64,
    /// It is the first: what it finds was there before the agent.
    pub first: bool,
}

/// Some of what dumps of network namespaces, made one after the other, have met.
#[derive(Clone, Copy, Debug)]
pub struct DumpChunk<'a> {
    /// Namespaces whose dump begins here: what identifies each, and its inode. If the dump asks for listeners, all of theirs
    /// are in this chunk.
    pub entered: &'a [(u32, u32)],
    pub seen: &'a [DumpedSocket],
}

/// What the chunks of a dump have come to so far.
#[derive(Debug, Default)]
pub(super) struct DumpProgress {
    /// The shortest TIME-WAIT measured, and of how many.
    shortest: Option<u64>,
    samples: usize,
    /// The latest sighting.
    pub(super) last_ns: u64,
}

impl Tracker {
    /// Says that a dump begins. What ends before [`Self::dump_chunk`] takes a sighting of it stays ended.
    pub fn dump_started(&mut self) {
        self.ended_meanwhile = Some(HashSet::new());
        self.so_far = DumpProgress::default();
    }

    /// Says that the dump failed.
    pub fn dump_failed(&mut self) {
        self.ended_meanwhile = None;
        self.so_far = DumpProgress::default();
    }

    /// Takes some of what a dump has met, after every record that was in the ring when it met that.
    pub fn dump_chunk(&mut self, asked: &DumpScope, chunk: &DumpChunk<'_>, out: &mut impl EventSink) {
        // What the dump itself ends is no news that came meanwhile.
        let ended = self.ended_meanwhile.take();
        for &(netns, inum) in chunk.entered {
            self.told_inum(netns, inum);
        }
        if asked.states & TcpState::Listen.bit() != 0 && !chunk.entered.is_empty() {
            let entered: HashSet<u32> = chunk.entered.iter().map(|(netns, _)| *netns).collect();
            self.listening.retain(|(netns, ..)| !entered.contains(netns));
        }
        for seen in chunk.seen.iter().filter(|seen| seen.state == TcpState::Listen) {
            self.listening.insert((seen.netns, seen.flow.local, seen.flow.local_port));
        }
        self.measure_time_wait(chunk.seen);
        for seen in chunk.seen {
            self.so_far.last_ns = self.so_far.last_ns.max(seen.seen_ns);
            let Some(phase) = Phase::of(seen.state) else { continue };
            let is_over = || {
                let identity = self.identity(seen.netns, seen.cookie, &seen.flow);
                ended.as_ref().is_some_and(|ended| ended.contains(&identity))
            };
            match self.slot_of(seen.netns, seen.cookie, &seen.flow) {
                Some(at) => {
                    self.join_nameless(at, seen.cookie);
                    self.sighting(at, seen, phase, asked, out);
                }
                None if is_over() => {}
                // A minisocket whose timer is due was ended by an earlier dump that missed it.
                None if !asked.first && seen.body == SocketKind::Minisocket && seen.expires_ns == 0 => {}
                None => self.adopt(seen, phase, asked, out),
            }
        }
        self.ended_meanwhile = ended;
    }

    /// Says that the dump has looked at all that `covers`, and all its chunks are in. Returns the absent lives, at most
    /// `most`: those that an exact lookup does not find either go to [`Self::gone`].
    pub fn dump_finished(
        &mut self,
        asked: &DumpScope,
        covers: &DumpCoverage,
        most: usize,
        out: &mut impl EventSink,
    ) -> Vec<Suspect> {
        self.ended_meanwhile = None;
        let DumpProgress { last_ns, .. } = std::mem::take(&mut self.so_far);
        self.complete_ns.get_or_insert(last_ns.max(asked.started_ns) + MARGIN_NS);
        let suspects = self.absent(asked, covers, most, out);
        self.give_back();
        suspects
    }

    /// At the classic tracepoint, where the record of its birth was lost, hooks speak of a minisocket by a cookie that no life has,
    /// and a life of its own was made for it. The dump shows whose it is.
    fn join_nameless(&mut self, at: usize, cookie: u64) {
        let Some(other) = self.at(!cookie) else { return };
        if self.by_cookie || other == at || self.lives[other].flow.hash64() != 0 {
            return;
        }
        let TrackedSocket { phase, since, counted, event_ns, .. } = self.remove(other);
        self.changed(at);
        let life = &mut self.lives[at];
        (life.phase, life.since) = (phase, since);
        life.counted |= counted;
        life.event_ns = life.event_ns.max(event_ns);
    }

    /// A known life in a dump.
    fn sighting(
        &mut self,
        at: usize,
        seen: &DumpedSocket,
        phase: Phase,
        asked: &DumpScope,
        out: &mut impl EventSink,
    ) {
        let life = &self.lives[at];
        if !self.by_cookie && life.event_ns >= asked.started_ns {
            // Flows are used again within milliseconds: what was seen may be the connection before this one, and its
            // cookie not this one's.
            return;
        }
        if is_another(life, seen, phase) {
            // The record that would have told of the later connection was lost.
            if life.event_ns + MARGIN_NS <= asked.started_ns {
                self.end_minisocket(at, seen.seen_ns, Evidence::BY_DUMP, out);
                self.adopt(seen, phase, asked, out);
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
            (SocketKind::Minisocket, SocketKind::Minisocket) => self.minisocket(at, seen, phase, out),
            _ if life.event_ns + MARGIN_NS > asked.started_ns => {}
            (SocketKind::Socket, SocketKind::Socket) if life.phase == phase => {
                life.seen_ns = seen.seen_ns;
                life.set_sent_ns(seen.sent_ns.unwrap_or(life.sent_ns()));
            }
            // Records were lost on the way from what we knew to what is.
            _ => {
                out.fact(seen.seen_ns, TrackerEvent::Corrected { what: Correction::State });
                out.fact(
                    seen.seen_ns,
                    TrackerEvent::Unmeasured { phase: life.phase, why: UnmeasuredReason::Lost },
                );
                let (counted, role, pair) = (life.counted, life.role, (life.side, life.port));
                self.remove(at);
                let at = self.place(seen, phase, asked);
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
    fn minisocket(&mut self, at: usize, seen: &DumpedSocket, phase: Phase, out: &mut impl EventSink) {
        let life = self.lives[at];
        let flipped = life.phase == Phase::FinWait2 && phase == Phase::TimeWait;
        if flipped && self.told.ends {
            // A hook told of it, unless its record was lost.
            out.fact(seen.seen_ns, TrackerEvent::Corrected { what: Correction::State });
        }
        if flipped {
            // Not before the last sighting in FIN-WAIT-2, nor before the hand-over, nor after this sighting.
            let floor = life.event_ns.max(life.seen_ns).max(life.since.earliest_ns);
            let since = match self.time_wait_entry(seen) {
                Some(entry) => EnteredAt::exact(entry.clamp(floor, floor.max(seen.seen_ns))),
                None => EnteredAt { earliest_ns: floor, latest_ns: seen.seen_ns },
            };
            if since.earliest_ns == since.latest_ns {
                self.leave(at, Phase::FinWait2, since.latest_ns, out);
            } else {
                out.fact(
                    since.latest_ns,
                    TrackerEvent::Unmeasured { phase: Phase::FinWait2, why: UnmeasuredReason::BetweenDumps },
                );
            }
            self.enter_time_wait(at, Phase::FinWait2, since, Evidence::BY_DUMP, out);
        } else if life.phase == Phase::TimeWait && !life.counted {
            // Presumed since CLOSING→CLOSE, and here it is.
            self.enter_time_wait(at, Phase::Closing, life.since, Evidence::BY_DUMP, out);
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
    fn time_wait_entry(&self, seen: &DumpedSocket) -> Option<u64> {
        let length = self.time_wait_ns?;
        (seen.expires_ns != 0)
            .then(|| (seen.seen_ns + seen.expires_ns).saturating_sub(length).min(seen.seen_ns))
    }

    /// Measures TIME-WAIT's length on minisockets whose entry a record told: what was on their timer then. A
    /// retransmitted FIN re-arms the timer and so can only lengthen it: the shortest is the truth.
    fn measure_time_wait(&mut self, seen: &[DumpedSocket]) {
        for seen in seen {
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
                let so_far = &mut self.so_far;
                so_far.shortest = Some(so_far.shortest.map_or(length, |shortest| shortest.min(length)));
                so_far.samples += 1;
            }
        }
        let DumpProgress { shortest, samples, .. } = self.so_far;
        let Some(length) = shortest.map(meant_length) else { return };
        match self.time_wait_ns {
            Some(known) if length.abs_diff(known) <= TIMER_TOLERANCE_NS => {}
            // Longer, but only one: perhaps re-armed.
            Some(known) if length > known && samples < 3 => {}
            _ => self.time_wait_ns = Some(length),
        }
    }

    /// A socket that nobody knew.
    fn adopt(&mut self, seen: &DumpedSocket, phase: Phase, asked: &DumpScope, out: &mut impl EventSink) {
        if !asked.first {
            out.fact(seen.seen_ns, TrackerEvent::Corrected { what: Correction::Missing });
        }
        let at = self.place(seen, phase, asked);
        self.take_up(at, seen);
        // A TIME-WAIT that was there at the start never counts: its close was before the agent.
        if phase == Phase::TimeWait {
            if asked.first {
                self.lives[at].counted = true;
            } else {
                self.count(at, seen.seen_ns, Outcome::Graceful, out);
            }
        }
    }

    /// Puts a life in place for what a dump saw.
    fn place(&mut self, seen: &DumpedSocket, phase: Phase, asked: &DumpScope) -> usize {
        let server = self.is_listening(seen.netns, seen.flow.local, seen.flow.local_port);
        let side = if server { Side::Server } else { Side::Unknown };
        let since = match (seen.body, phase) {
            (SocketKind::Minisocket, Phase::TimeWait) => match self.time_wait_entry(seen) {
                Some(entry) => EnteredAt::exact(entry),
                None => EnteredAt { earliest_ns: 0, latest_ns: seen.seen_ns },
            },
            // TCP_LINGER2 can shorten its timer, so that the timer proves nothing.
            (SocketKind::Minisocket, _) => EnteredAt { earliest_ns: 0, latest_ns: seen.seen_ns },
            (SocketKind::Socket, _) => EnteredAt::of_age(seen.age, seen.seen_ns),
        };
        self.bound_to(seen.cookie, seen.interface);
        self.insert(TrackedSocket {
            cookie: seen.cookie,
            mark: if seen.body == SocketKind::Minisocket { seen.seen_ns + seen.expires_ns } else { 0 },
            flow: seen.flow,
            netns: seen.netns,
            port: self.port(side, seen.flow.local_port, seen.flow.remote_port),
            side,
            role: role_proven_by(phase),
            phase,
            body: seen.body,
            birth: MinisocketState::Untold,
            counted: false,
            since,
            event_ns: 0,
            missed: false,
            seen_ns: if asked.states & phase.state().bit() != 0 { seen.seen_ns } else { 0 },
            acted_ns: if phase == Phase::CloseWait { seen.sent_ns.unwrap_or(0) } else { 0 },
            closer_pid: None,
        })
    }
}

/// Whether a minisocket of a known life's flow is a later connection's: the cookie is another, or it is in FIN-WAIT-2,
/// to which no TIME-WAIT goes back.
fn is_another(life: &TrackedSocket, seen: &DumpedSocket, phase: Phase) -> bool {
    let both = life.body == SocketKind::Minisocket && seen.body == SocketKind::Minisocket;
    let cookie = life.cookie != 0 && life.cookie != seen.cookie;
    both && (cookie || (life.phase, phase) == (Phase::TimeWait, Phase::FinWait2))
}
