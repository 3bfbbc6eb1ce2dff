//! The account of phases: what is reported when a socket leaves one, enters one, or closes.

use tcpclose_common::state::TcpState;

use crate::names::{Age, Outcome, Phase, TimeWaitEnd, UnmeasuredReason};
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::socket::{AtFin, EnteredAt, TrackedSocket};
use crate::tracker::table::Tracker;
use crate::tracker::transition::{Evidence, PhaseChange, between};

impl Tracker {
    /// Reports a step to the counters and, while somebody watches, to the watchers.
    pub(super) fn report(&self, socket: &TrackedSocket, change: PhaseChange, out: &mut impl EventSink) {
        out.event(change.at_ns, TrackerEvent::Transition { from: change.from, to: change.to });
        if out.wants(change.from, change.to) {
            out.transition(change.of(socket, self.inum_of(socket.netns)));
        }
    }

    /// The time that the socket at `at` spent in `left`, which it left at `end`.
    pub(super) fn spent(&self, at: usize, left: Phase, end: EnteredAt) -> Age {
        let socket = &self.sockets[at];
        // Otherwise the record of the step into the phase that is left is missing.
        if socket.phase == left { between(socket.since, end) } else { Age::UNKNOWN }
    }

    /// Reports the duration of the phase `left`.
    pub(super) fn leave(&mut self, at: usize, left: Phase, now: u64, out: &mut impl EventSink) {
        let socket = &self.sockets[at];
        if left == Phase::CloseWait && socket.at_fin == AtFin::Subflow {
            return;
        }
        let kind = self.port_kind(socket);
        let event = match socket.since.until(now) {
            // The record of the step into the phase that is left is missing.
            _ if socket.phase != left => {
                TrackerEvent::Unmeasured { phase: left, why: UnmeasuredReason::Lost }
            }
            Some(ns) => TrackerEvent::StateDuration { phase: left, pair: socket.pair(), ns },
            None => TrackerEvent::Unmeasured { phase: left, why: self.unmeasured_reason(socket) },
        };
        out.event_of(now, event, kind);
    }

    pub(super) fn enter(&mut self, at: usize, phase: Phase, since: EnteredAt) {
        self.changed(at);
        self.forget_write(at);
        let socket = &mut self.sockets[at];
        socket.phase = phase;
        socket.since = since;
        socket.set_expires_ns(0);
        socket.between_dumps = false;
    }

    /// In TIME-WAIT a close is over for both programs.
    pub(super) fn enter_time_wait(
        &mut self,
        at: usize,
        left: Phase,
        since: EnteredAt,
        evidence: Evidence,
        out: &mut impl EventSink,
    ) {
        let spent = self.spent(at, left, since);
        self.enter(at, Phase::TimeWait, since);
        let (from, to) = (left.state(), TcpState::TimeWait);
        let change = PhaseChange { at_ns: since.latest_ns, from, to, spent, outcome: None, evidence };
        self.report(&self.sockets[at], change, out);
        self.count(at, since.latest_ns, Outcome::Graceful, out);
    }

    /// Ends the socket at `at`, whose last phase has been left: reports `change` with `outcome`, and `time_wait` if it was
    /// in TIME-WAIT; counts the connection; removes the socket.
    pub(super) fn close(
        &mut self,
        at: usize,
        change: PhaseChange,
        outcome: Outcome,
        time_wait: Option<TimeWaitEnd>,
        out: &mut impl EventSink,
    ) {
        let at_ns = change.at_ns;
        self.report(&self.sockets[at], PhaseChange { outcome: Some(outcome), ..change }, out);
        if let Some(how) = time_wait {
            out.event(at_ns, TrackerEvent::TimeWaitEnded { how });
        }
        self.count(at, at_ns, outcome, out);
        self.remove(at);
    }

    /// Counts the connection as closed, once.
    pub(super) fn count(&mut self, at: usize, now: u64, outcome: Outcome, out: &mut impl EventSink) {
        let kind = self.port_kind(&self.sockets[at]);
        let socket = &mut self.sockets[at];
        if !std::mem::replace(&mut socket.counted, true) {
            let event = TrackerEvent::Closed { pair: socket.pair(), role: socket.role, outcome };
            out.event_of(now, event, kind);
        }
    }

    /// Why the entry of `socket` into its phase is not known well enough. The first dump has met what was in the close
    /// phase in the agent's own namespace before the agent; of other namespaces dumps may know nothing.
    pub(super) fn unmeasured_reason(&self, socket: &TrackedSocket) -> UnmeasuredReason {
        let later = self.complete_ns.is_some_and(|ns| socket.since.latest_ns > ns);
        let later = later && socket.netns == self.host.netns;
        if self.ever_lost || later { UnmeasuredReason::Lost } else { UnmeasuredReason::BeforeAgent }
    }
}
