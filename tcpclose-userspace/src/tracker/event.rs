//! The tracker's output: events of single connections, in the order in which they became known.

use tcpclose_common::state::TcpState;

use crate::names::{Correction, Outcome, Phase, PortKey, PortKind, Role, TimeWaitEnd, UnmeasuredReason};
use crate::tracker::transition::Transition;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackerEvent {
    /// A step of a socket. The hand-over from socket to minisocket is none.
    Transition { from: TcpState, to: TcpState },
    /// A phase was left after `ns` nanoseconds.
    StateDuration { phase: Phase, pair: PortKey, ns: u64 },
    /// A phase was left, and its duration is unknown.
    Unmeasured { phase: Phase, why: UnmeasuredReason },
    /// The connection is over for both programs.
    Closed { pair: PortKey, role: Role, outcome: Outcome },
    /// A socket in CLOSE-WAIT was written to, and the peer reset it for that.
    StaleWrite { pair: PortKey },
    /// A socket sent a segment again after its FIN.
    FinRetransmit { pair: PortKey },
    /// A TIME-WAIT is gone.
    TimeWaitEnded { how: TimeWaitEnd },
    /// A TIME-WAIT was skipped: the kernel's table was full, or it had no memory.
    TimeWaitOverflow,
    /// A reconciliation corrected something.
    Corrected { what: Correction },
}

/// The consumer of events.
pub trait EventSink {
    /// `at_ns`: CLOCK_MONOTONIC of the event, not of its discovery.
    fn event(&mut self, at_ns: u64, event: TrackerEvent);

    /// The same for an event of a pair, whose port is of this `kind`.
    fn event_of(&mut self, at_ns: u64, event: TrackerEvent, _kind: PortKind) {
        self.event(at_ns, event);
    }

    /// Whether anybody wants [`Self::transition`] now.
    fn is_watched(&self) -> bool {
        false
    }

    /// Whether anybody wants [`Self::transition`] of such a step now.
    fn wants(&self, _from: TcpState, _to: TcpState) -> bool {
        self.is_watched()
    }

    /// A step with all that is known of its socket, besides its [`TrackerEvent::Transition`].
    fn transition(&mut self, _transition: Transition) {}
}

impl EventSink for Vec<TrackerEvent> {
    fn event(&mut self, _at_ns: u64, event: TrackerEvent) {
        self.push(event);
    }
}
