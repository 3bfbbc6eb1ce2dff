//! What the tracker tells: each a plain fact about one connection, in the order it came to be known.

use tcpclose_common::state::TcpState;

use crate::names::{Outcome, Phase, Role, Side};
use crate::tracker::transition::Transition;

/// A side and its service port: the key of every aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    pub side: Side,
    /// The service port: local on the server side, remote on the client side.
    pub port: u16,
}

/// Why a phase makes no duration sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnmeasuredReason {
    /// It was entered before the agent looked, and when is known no better than 5 %.
    BeforeAgent,
    /// Records were lost: its entry or its end was not seen.
    Lost,
    /// It came and went between two dumps.
    BetweenDumps,
    /// Its minisocket is in a network namespace that is not dumped.
    Namespace,
}

impl UnmeasuredReason {
    pub const ALL: [Self; 4] = [Self::BeforeAgent, Self::Lost, Self::BetweenDumps, Self::Namespace];

    pub const fn name(self) -> &'static str {
        match self {
            Self::BeforeAgent => "before_agent",
            Self::Lost => "lost",
            Self::BetweenDumps => "between_dumps",
            Self::Namespace => "namespace",
        }
    }
}

/// How a TIME-WAIT ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TimeWaitEnd {
    /// Its timer ran out.
    Expired,
    /// connect() took its pair of addresses and ports.
    Reused,
    /// A SYN from the peer began a new connection.
    Recycled,
    /// The peer's RST.
    Reset,
    /// SOCK_DESTROY.
    Destroyed,
    /// Its network namespace went.
    Purged,
    /// Before its timer, and the backend cannot tell by what.
    Early,
    /// No dump has seen it: not even whether it ended early is known.
    Unknown,
}

impl TimeWaitEnd {
    pub const ALL: [Self; 8] = [
        Self::Expired,
        Self::Reused,
        Self::Recycled,
        Self::Reset,
        Self::Destroyed,
        Self::Purged,
        Self::Early,
        Self::Unknown,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Reused => "reused",
            Self::Recycled => "recycled",
            Self::Reset => "reset",
            Self::Destroyed => "destroyed",
            Self::Purged => "purged",
            Self::Early => "early",
            Self::Unknown => "unknown",
        }
    }
}

/// What a reconcile had to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Correction {
    /// The kernel has a socket that was not tracked.
    Missing,
    /// A tracked socket is no longer in the kernel.
    Vanished,
    /// A tracked socket is in another state.
    State,
}

impl Correction {
    pub const ALL: [Self; 3] = [Self::Missing, Self::Vanished, Self::State];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Vanished => "vanished",
            Self::State => "state",
        }
    }
}

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
