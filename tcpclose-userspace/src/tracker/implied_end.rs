//! Ends and hand-overs that no record reported: sockets that vanished, and minisockets that dumps, or another socket's
//! step, found gone.

use tcpclose_common::state::TcpState;

use crate::names::{Age, Outcome, Phase, TimeWaitEnd, UnmeasuredReason};
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::socket::{EnteredAt, SocketKind};
use crate::tracker::table::Tracker;
use crate::tracker::transition::{Evidence, PhaseChange, between};

impl Tracker {
    /// The full socket is gone, and no record has the reason.
    pub(super) fn vanish(&mut self, at: usize, now: u64, out: &mut impl EventSink) {
        let phase = self.sockets[at].phase;
        out.event(now, TrackerEvent::Unmeasured { phase, why: UnmeasuredReason::Lost });
        // No transition was seen; but watchers are to know that nothing more comes.
        if out.is_watched() {
            let socket = &self.sockets[at];
            let end = EnteredAt { earliest_ns: socket.event_ns.max(socket.seen_ns), latest_ns: now };
            let spent = self.spent(at, phase, end);
            let outcome = Some(Outcome::Unknown);
            let (from, to, evidence) = (phase.state(), TcpState::Close, Evidence::BY_DUMP);
            let change = PhaseChange { at_ns: now, from, to, spent, outcome, evidence };
            out.transition(change.of(socket, self.inum_of(socket.netns)));
        }
        self.count(at, now, Outcome::Unknown, out);
        self.remove(at);
    }

    /// The same at the classic tracepoint, where another socket has the address now: the side that closed first may go on
    /// as a minisocket, which only a dump can tell; until then it is not over.
    pub(super) fn displaced(&mut self, at: usize, now: u64, out: &mut impl EventSink) {
        let phase = self.sockets[at].phase;
        let next = match phase {
            Phase::FinWait1 | Phase::FinWait2 => Phase::FinWait2,
            Phase::Closing => Phase::TimeWait,
            Phase::CloseWait | Phase::LastAck | Phase::TimeWait => return self.vanish(at, now, out),
        };
        out.event(now, TrackerEvent::Unmeasured { phase, why: UnmeasuredReason::Lost });
        self.enter(at, next, EnteredAt { earliest_ns: 0, latest_ns: now });
        self.hand_over(at, now, out);
    }

    /// Only the minisocket of the socket at `at` is left.
    pub(super) fn become_minisocket(&mut self, at: usize) {
        self.forget_minisocket(at, self.sockets[at].cookie);
        self.change(at, |socket| {
            socket.set_kind(SocketKind::Minisocket);
            socket.seen_ns = 0;
        });
    }

    /// The full socket is gone; a minisocket goes on.
    pub(super) fn hand_over(&mut self, at: usize, now: u64, out: &mut impl EventSink) {
        if !self.by_cookie {
            let socket = &self.sockets[at];
            if self.slot_of_flow(socket.netns, socket.flow.hash64()).is_some_and(|taker| taker != at) {
                self.end_minisocket(at, now, Evidence::BY_ANOTHER, out);
                return;
            }
        }
        self.become_minisocket(at);
        if !self.is_dumped(self.sockets[at].netns) && !self.hooks.ends {
            self.end_unobserved(at, now, out);
        }
    }

    /// A minisocket where no dump looks and no hook reports.
    pub(super) fn end_unobserved(&mut self, at: usize, now: u64, out: &mut impl EventSink) {
        let phase = self.sockets[at].phase;
        out.event(now, TrackerEvent::Unmeasured { phase, why: UnmeasuredReason::Namespace });
        self.count(at, now, Outcome::Unknown, out);
        self.remove(at);
    }

    /// The minisocket is gone, found out at `now`. It ended when its timer was due, if it was; else at the last that is
    /// known of it: the last dump that saw it, or, if none did, the record of the hand-over, where the phase was longer
    /// before that than the unknown time after. (Without BTF a RST in FIN-WAIT-2 looks like a hand-over too.)
    pub(super) fn end_minisocket(
        &mut self,
        at: usize,
        now: u64,
        evidence: Evidence,
        out: &mut impl EventSink,
    ) {
        self.end_minisocket_by(at, now, TimeWaitEnd::Early, evidence, out);
    }

    /// The same; `early` is the cause if its timer was not.
    pub(super) fn end_minisocket_by(
        &mut self,
        at: usize,
        now: u64,
        early: TimeWaitEnd,
        evidence: Evidence,
        out: &mut impl EventSink,
    ) {
        let socket = &self.sockets[at];
        let seen = socket.seen_ns != 0;
        let expired = socket.expires_ns() != 0 && socket.expires_ns() <= now;
        let presumed = socket.phase == Phase::TimeWait && !socket.counted;
        let before = socket.event_ns.saturating_sub(socket.since.latest_ns);
        let last = match socket.seen_ns {
            0 if before > now.saturating_sub(socket.event_ns) => Some(socket.event_ns),
            0 => None,
            // It was seen after its timer was due: timers are late.
            seen_ns if expired => Some(seen_ns.max(socket.expires_ns())),
            seen_ns => Some(seen_ns),
        };
        let end = last.unwrap_or(now);
        if !presumed {
            let phase = socket.phase;
            let known = |last| {
                let by_dumps = socket.between_dumps.then(|| socket.since.age(last).min_ns);
                socket.since.until(last).or(by_dumps)
            };
            let event = match last.map(known) {
                Some(Some(ns)) => TrackerEvent::StateDuration { phase, pair: socket.pair(), ns },
                Some(None) => TrackerEvent::Unmeasured { phase, why: self.unmeasured_reason(socket) },
                None => TrackerEvent::Unmeasured { phase, why: UnmeasuredReason::BetweenDumps },
            };
            let kind = self.port_kind(socket);
            out.event_of(end, event, kind);
        }
        let was_time_wait = socket.phase == Phase::TimeWait && !presumed;
        // A presumed TIME-WAIT that was never found went from CLOSING straight to CLOSE.
        let from = if presumed { TcpState::Closing } else { socket.phase.state() };
        let ended = EnteredAt { earliest_ns: last.unwrap_or(socket.event_ns), latest_ns: now };
        let spent = if presumed { Age::UNKNOWN } else { between(socket.since, ended) };
        let outcome = match (was_time_wait, expired) {
            (true, _) => Outcome::Graceful,
            // FIN-WAIT-2 ran out of its timer: the peer's FIN never came.
            (false, true) => Outcome::Timeout,
            (false, false) => Outcome::Unknown,
        };
        let how = match (seen, expired) {
            (false, _) => TimeWaitEnd::Unknown,
            (true, true) => TimeWaitEnd::Expired,
            (true, false) => early,
        };
        let change = PhaseChange { at_ns: end, from, to: TcpState::Close, spent, outcome: None, evidence };
        self.close(at, change, outcome, was_time_wait.then_some(how), out);
    }
}
