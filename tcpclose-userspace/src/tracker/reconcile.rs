//! Reconciliation with a dump of the kernel's sockets: the minisockets, which no record reports, the sockets that were
//! there first, and what lost records left wrong.
//!
//! A dump is no snapshot: it resumes by position in a hash bucket, so that it can skip or repeat, and what it saw may
//! have changed since. It is taken in as it comes, some sockets at a time, and the ring is drained before each
//! [`Tracker::dump_chunk`]; a socket with a record after the dump's start (less a margin) is left to the next one. The
//! [`absent`](crate::tracker::vanished) ones are looked for when all of the dump is in.

use std::collections::HashSet;

use tcpclose_common::state::TcpState;

use crate::names::{Correction, Outcome, Phase, Role, Side, UnmeasuredReason};
use crate::tracker::dump::{
    DumpChunk, DumpProgress, DumpScope, DumpedSocket, MARGIN_NS, TIMER_TICKS_NS, TIMER_TOLERANCE_NS,
    meant_length,
};
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::socket::{AddressOrExpiry, AtFin, EnteredAt, MinisocketState, SocketKind, TrackedSocket};
use crate::tracker::table::Tracker;
use crate::tracker::transition::Evidence;
use crate::tracker::vanished::{DumpCoverage, Suspect};

impl Tracker {
    /// A dump begins. What ends before [`Self::dump_chunk`] takes a sighting of it stays ended.
    pub fn dump_started(&mut self) {
        self.ended_during_dump = Some(HashSet::new());
        self.dump = DumpProgress::default();
    }

    /// The dump failed.
    pub fn dump_failed(&mut self) {
        self.ended_during_dump = None;
        self.dump = DumpProgress::default();
    }

    /// Takes a chunk of a dump, after every record that was in the ring when the dump made it.
    pub fn dump_chunk(&mut self, asked: &DumpScope, chunk: &DumpChunk<'_>, out: &mut impl EventSink) {
        // What the dump itself ends is not among what ended meanwhile.
        let ended = self.ended_during_dump.take();
        for &(netns, inum) in chunk.entered {
            self.set_inum(netns, inum);
        }
        if asked.states & TcpState::Listen.bit() != 0 && !chunk.entered.is_empty() {
            let entered: HashSet<u32> = chunk.entered.iter().map(|(netns, _)| *netns).collect();
            self.forget_listeners(|netns| entered.contains(&netns));
        }
        for seen in chunk.seen.iter().filter(|seen| seen.state == TcpState::Listen) {
            self.add_listener(seen);
        }
        self.measure_time_wait(chunk.seen);
        for seen in chunk.seen {
            self.dump.last_ns = self.dump.last_ns.max(seen.seen_ns);
            let Some(phase) = Phase::of(seen.state) else { continue };
            let is_over = || {
                let identity = self.identity(seen.netns, seen.cookie, &seen.flow);
                ended.as_ref().is_some_and(|ended| ended.contains(&identity))
            };
            match self.slot_of(seen.netns, seen.cookie, &seen.flow) {
                Some(at) => {
                    self.merge_unnamed(at, seen.cookie);
                    self.sighting(at, seen, phase, asked, out);
                }
                None if is_over() => {}
                // A minisocket whose timer is due was ended by an earlier dump that missed it.
                None if !asked.first && seen.kind == SocketKind::Minisocket && seen.expires_ns == 0 => {}
                None => {
                    let at = self.adopt(seen, phase, asked, out);
                    if let Some(complete_ns) = self.complete_ns.filter(|_| !asked.first) {
                        let (entered, attached_ns) = (self.sockets[at].since, self.hooks.since_ns);
                        self.silence.sighting(seen, entered, attached_ns, complete_ns);
                    }
                }
            }
        }
        self.ended_during_dump = ended;
    }

    /// The dump has looked at all that `covers`, and all its chunks are in. Returns the absent sockets, at most `most`:
    /// those that an exact lookup does not find either go to [`Self::gone`].
    pub fn dump_finished(
        &mut self,
        asked: &DumpScope,
        covers: &DumpCoverage,
        most: usize,
        out: &mut impl EventSink,
    ) -> Vec<Suspect> {
        self.ended_during_dump = None;
        let DumpProgress { last_ns, .. } = std::mem::take(&mut self.dump);
        self.complete_ns.get_or_insert(last_ns.max(asked.started_ns) + MARGIN_NS);
        self.silence.dumped(asked, covers.netns.keys().copied());
        let suspects = self.absent(asked, covers, most, out);
        self.give_back();
        suspects
    }

    /// At the classic tracepoint, when the record of a minisocket's birth was lost, its later hook records have a cookie that
    /// no socket has, and a socket without a flow was inserted for it. The dump shows where it belongs.
    fn merge_unnamed(&mut self, at: usize, cookie: u64) {
        let Some(other) = self.slot_of_key(!cookie) else { return };
        if self.by_cookie || other == at || self.sockets[other].flow.hash64() != 0 {
            return;
        }
        let TrackedSocket { phase, since, counted, event_ns, .. } = self.remove(other);
        self.changed(at);
        let socket = &mut self.sockets[at];
        (socket.phase, socket.since) = (phase, since);
        socket.counted |= counted;
        socket.event_ns = socket.event_ns.max(event_ns);
    }

    /// A tracked socket in a dump.
    fn sighting(
        &mut self,
        at: usize,
        seen: &DumpedSocket,
        phase: Phase,
        asked: &DumpScope,
        out: &mut impl EventSink,
    ) {
        let socket = &self.sockets[at];
        if !self.by_cookie && socket.event_ns >= asked.started_ns {
            // Flows are used again within milliseconds: what was seen may be the connection before this one, and its
            // cookie not this one's.
            return;
        }
        if is_another(socket, seen, phase) {
            // The record of the later connection was lost.
            if socket.event_ns + MARGIN_NS <= asked.started_ns {
                self.end_minisocket(at, seen.seen_ns, Evidence::BY_DUMP, out);
                self.adopt(seen, phase, asked, out);
            }
            return;
        }
        // It belongs to the namespace in which it was found.
        let netns = if socket.netns == 0 { seen.netns } else { socket.netns };
        let flow = if socket.flow.has_addresses() { socket.flow } else { seen.flow };
        if (socket.netns, socket.flow, socket.cookie) != (netns, flow, seen.cookie) {
            self.change(at, |socket| (socket.netns, socket.flow, socket.cookie) = (netns, flow, seen.cookie));
        }
        self.set_interface(seen.cookie, seen.interface);
        if self.sockets[at].side == Side::Unknown {
            self.learn_side(at, self.dumped_side(seen));
        }
        let TrackedSocket { side, port, .. } = self.sockets[at];
        // By the range of its namespace as it is now: a record may have come before the first dump of that.
        let service_port = self.service_port(netns, side, flow.local_port, flow.remote_port);
        if side == Side::Unknown && port != service_port {
            self.changed(at);
            self.sockets[at].port = service_port;
        }
        let socket = &mut self.sockets[at];
        socket.missed = false;
        match (socket.kind, seen.kind) {
            (SocketKind::Minisocket, SocketKind::Minisocket) => self.minisocket(at, seen, phase, out),
            _ if socket.event_ns + MARGIN_NS > asked.started_ns => {}
            (SocketKind::Socket, SocketKind::Socket) if socket.phase == phase => {
                socket.seen_ns = seen.seen_ns;
                self.note_write(seen, phase);
            }
            // Records were lost between the tracked state and the present one.
            _ => {
                out.event(seen.seen_ns, TrackerEvent::Corrected { what: Correction::State });
                out.event(
                    seen.seen_ns,
                    TrackerEvent::Unmeasured { phase: socket.phase, why: UnmeasuredReason::Lost },
                );
                let (counted, role, pair) = (socket.counted, socket.role, (socket.side, socket.port));
                // It was in another phase then.
                let floor = socket.event_ns.max(socket.seen_ns);
                let floor = if socket.phase == phase { 0 } else { floor };
                self.remove(at);
                let at = self.place(seen, phase, asked);
                let socket = &mut self.sockets[at];
                let since = &mut socket.since;
                since.earliest_ns = since.earliest_ns.max(floor).min(since.latest_ns);
                (socket.side, socket.port) = pair;
                (socket.counted, socket.role) = (counted, role);
                if socket.phase == Phase::TimeWait {
                    self.count(at, seen.seen_ns, Outcome::Graceful, out);
                }
            }
        }
    }

    /// A tracked minisocket in a dump: in the phase it was in, or flipped from FIN-WAIT-2 to TIME-WAIT since.
    fn minisocket(&mut self, at: usize, seen: &DumpedSocket, phase: Phase, out: &mut impl EventSink) {
        let socket = self.sockets[at];
        let flipped = socket.phase == Phase::FinWait2 && phase == Phase::TimeWait;
        if flipped && self.hooks.ends {
            // A hook reports this, so its record was lost.
            out.event(seen.seen_ns, TrackerEvent::Corrected { what: Correction::State });
        }
        if flipped {
            // Not before the last sighting in FIN-WAIT-2, nor before the hand-over, nor after this sighting.
            let floor = socket.event_ns.max(socket.seen_ns).max(socket.since.earliest_ns);
            let since = self.time_wait_since(seen, floor);
            // The end of FIN-WAIT-2 is read off the timer. If that was set anew since, it is late by no more than the time since the
            // dump before this one.
            match self.time_wait_entry(seen) {
                Some(entry) => {
                    self.leave(at, Phase::FinWait2, entry.clamp(floor, floor.max(seen.seen_ns)), out);
                }
                None => {
                    out.event(
                        since.latest_ns,
                        TrackerEvent::Unmeasured {
                            phase: Phase::FinWait2,
                            why: UnmeasuredReason::BetweenDumps,
                        },
                    );
                }
            }
            self.enter_time_wait(at, Phase::FinWait2, since, Evidence::BY_DUMP, out);
            self.sockets[at].between_dumps = self.time_wait_ns.is_some();
        } else if socket.phase == Phase::TimeWait && !socket.counted {
            // Presumed since CLOSING→CLOSE, and here it is.
            self.enter_time_wait(at, Phase::Closing, socket.since, Evidence::BY_DUMP, out);
        }
        let socket = &mut self.sockets[at];
        socket.seen_ns = seen.seen_ns;
        // An expired timer that has not fired yet keeps the instant it was due at.
        if seen.expires_ns != 0 || socket.expires_ns() == 0 {
            socket.set_expires_ns(seen.seen_ns + seen.expires_ns);
        }
    }

    /// When a minisocket now in TIME-WAIT entered it, given that it did not before `floor`. Its timer proves only that it was no
    /// later than the timer was set: a segment that the peer sends again sets it anew, which shows if a dump saw it before.
    fn time_wait_since(&self, seen: &DumpedSocket, floor: u64) -> EnteredAt {
        let latest = self.time_wait_entry(seen).map_or(u64::MAX, |set| set.saturating_add(TIMER_TICKS_NS));
        let latest_ns = latest.min(seen.seen_ns).max(floor);
        EnteredAt { earliest_ns: floor.min(latest_ns), latest_ns }
    }

    /// When the timer of a minisocket in TIME-WAIT was set to run TIME-WAIT's length, at its entry or later
    /// (inet_twsk_schedule in tcp_time_wait, inet_twsk_reschedule in tcp_timewait_state_process; 5.8 to 6.18).
    fn time_wait_entry(&self, seen: &DumpedSocket) -> Option<u64> {
        let length = self.time_wait_ns?;
        (seen.expires_ns != 0)
            .then(|| (seen.seen_ns + seen.expires_ns).saturating_sub(length).min(seen.seen_ns))
    }

    /// Measures TIME-WAIT's length on minisockets whose entry is in a record: the time on their timer then. A
    /// retransmitted FIN re-arms the timer and so can only lengthen it: the shortest is right.
    fn measure_time_wait(&mut self, seen: &[DumpedSocket]) {
        for seen in seen {
            if seen.state != TcpState::TimeWait || seen.expires_ns == 0 {
                continue;
            }
            let Some(socket) = self.slot_of(seen.netns, seen.cookie, &seen.flow).map(|at| &self.sockets[at])
            else {
                continue;
            };
            let recorded = socket.phase == Phase::TimeWait
                && socket.counted
                && socket.seen_ns == 0
                && socket.event_ns == socket.since.latest_ns;
            if recorded {
                let length = (seen.seen_ns + seen.expires_ns).saturating_sub(socket.since.latest_ns);
                let dump = &mut self.dump;
                dump.shortest = Some(dump.shortest.map_or(length, |shortest| shortest.min(length)));
                dump.samples += 1;
            }
        }
        let DumpProgress { shortest, samples, .. } = self.dump;
        let Some(length) = shortest.map(meant_length) else { return };
        match self.time_wait_ns {
            Some(known) if length.abs_diff(known) <= TIMER_TOLERANCE_NS => {}
            // Longer, but only one: perhaps re-armed.
            Some(known) if length > known && samples < 3 => {}
            _ => self.time_wait_ns = Some(length),
        }
    }

    /// A socket that was not tracked.
    fn adopt(
        &mut self,
        seen: &DumpedSocket,
        phase: Phase,
        asked: &DumpScope,
        out: &mut impl EventSink,
    ) -> usize {
        if !asked.first {
            out.event(seen.seen_ns, TrackerEvent::Corrected { what: Correction::Missing });
        }
        let at = self.place(seen, phase, asked);
        self.take_up(at, seen);
        // A TIME-WAIT that was there at the start never counts: its close was before the agent.
        if phase == Phase::TimeWait {
            if asked.first {
                self.sockets[at].counted = true;
            } else {
                self.count(at, seen.seen_ns, Outcome::Graceful, out);
            }
        }
        at
    }

    /// Inserts a socket for what a dump saw.
    fn place(&mut self, seen: &DumpedSocket, phase: Phase, asked: &DumpScope) -> usize {
        let side = self.dumped_side(seen);
        let since = match (seen.kind, phase) {
            (SocketKind::Minisocket, Phase::TimeWait) => self.time_wait_since(seen, 0),
            // TCP_LINGER2 can shorten its timer, so that the timer proves nothing.
            (SocketKind::Minisocket, _) => EnteredAt { earliest_ns: 0, latest_ns: seen.seen_ns },
            (SocketKind::Socket, _) => EnteredAt::of_age(seen.age, seen.seen_ns),
        };
        self.set_interface(seen.cookie, seen.interface);
        self.note_write(seen, phase);
        self.insert(TrackedSocket {
            cookie: seen.cookie,
            address_or_expiry: match seen.kind {
                SocketKind::Socket => AddressOrExpiry::NONE,
                SocketKind::Minisocket => AddressOrExpiry::of_expiry(seen.seen_ns + seen.expires_ns),
            },
            flow: seen.flow,
            netns: seen.netns,
            port: self.service_port(seen.netns, side, seen.flow.local_port, seen.flow.remote_port),
            side,
            role: Role::proven_by(phase),
            phase,
            kind: seen.kind,
            minisocket: MinisocketState::Unknown,
            counted: false,
            since,
            event_ns: 0,
            missed: false,
            between_dumps: false,
            at_fin: AtFin::Unknown,
            seen_ns: if asked.states & phase.state().bit() != 0 { seen.seen_ns } else { 0 },
            closed_ns: 0,
            closer_pid: None,
        })
    }
}

/// Whether a minisocket in the flow of a tracked one is a later connection's: its cookie differs, or it is in FIN-WAIT-2,
/// to which no TIME-WAIT goes back.
fn is_another(socket: &TrackedSocket, seen: &DumpedSocket, phase: Phase) -> bool {
    let both = socket.kind == SocketKind::Minisocket && seen.kind == SocketKind::Minisocket;
    let cookie = socket.cookie != 0 && socket.cookie != seen.cookie;
    both && (cookie || (socket.phase, phase) == (Phase::TimeWait, Phase::FinWait2))
}
