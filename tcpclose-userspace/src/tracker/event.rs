//! What the tracker tells: each a plain fact about one connection, in the order it came to be known.

use tcpclose_common::state::TcpState;

use crate::names::{Correction, Outcome, Phase, PortKey, Role, TimeWaitEnd, UnmeasuredReason};
use crate::tracker::transition::Transition;

/// One fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackerEvent {
    /// A step of the life. The hand-over from socket to minisocket is none.
    Transition { from: TcpState, to: TcpState },
    /// A phase was left after `ns` nanoseconds.
    StateDuration { phase: Phase, pair: PortKey, ns: u64 },
    /// A phase was left, and for how long it lasted is not known.
    Unmeasured { phase: Phase, why: UnmeasuredReason },
    /// The connection is over for both programs.
    Closed { pair: PortKey, role: Role, outcome: Outcome },
    /// A TIME-WAIT is gone.
    TimeWaitEnded { how: TimeWaitEnd },
    /// A TIME-WAIT was skipped: the kernel's table was full, or it had no memory.
    TimeWaitOverflow,
    /// A reconcile mended something.
    Corrected { what: Correction },
}

/// Where facts go.
pub trait EventSink {
    /// `at_ns`: CLOCK_MONOTONIC of the fact, not of its discovery.
    fn fact(&mut self, at_ns: u64, fact: TrackerEvent);

    /// Whether [`Self::transition`] is of use to anybody now.
    fn is_watched(&self) -> bool {
        false
    }

    /// A step with all that is known of its socket, besides its [`TrackerEvent::Transition`].
    fn transition(&mut self, _transition: Transition) {}
}

impl EventSink for Vec<TrackerEvent> {
    fn fact(&mut self, _at_ns: u64, fact: TrackerEvent) {
        self.push(fact);
    }
}
