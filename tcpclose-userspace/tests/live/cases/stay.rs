//! The states that a case goes through, and who of them tells how long they lasted.

use std::fmt;

use super::backends::Truth;

/// A state that a kernel's socket or minisocket stays in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Stay {
    /// The value of the label `state`.
    pub state: &'static str,
    /// The row of docs/coverage.toml that says how exact each backend's duration is.
    pub time: Truth,
}

pub const FIN_WAIT_1: Stay = Stay { state: "fin_wait_1", time: Truth::Socket };
pub const CLOSING: Stay = Stay { state: "closing", time: Truth::Socket };
pub const CLOSE_WAIT: Stay = Stay { state: "close_wait", time: Truth::Socket };
pub const LAST_ACK: Stay = Stay { state: "last_ack", time: Truth::Socket };

/// FIN-WAIT-2 of a full socket, which the peer's FIN ends.
pub const FIN_WAIT_2: Stay = Stay { state: "fin_wait_2", time: Truth::FinWait2ByFin };
/// FIN-WAIT-2 of a full socket, which something else ends.
pub const FIN_WAIT_2_CUT: Stay = Stay { state: "fin_wait_2", time: Truth::FinWait2Cut };
/// FIN-WAIT-2 of a full socket that is over at once, without the peer's FIN or a minisocket.
pub const FIN_WAIT_2_BRIEF: Stay = Stay { state: "fin_wait_2", time: Truth::FinWait2Brief };
/// FIN-WAIT-2 that ends as a minisocket's, with the peer's FIN.
pub const ORPHAN: Stay = Stay { state: "fin_wait_2", time: Truth::MinisocketByFin };
/// FIN-WAIT-2 that ends as a minisocket's, with something else.
pub const ORPHAN_CUT: Stay = Stay { state: "fin_wait_2", time: Truth::MinisocketCut };
/// FIN-WAIT-2 for whose minisocket there was no room.
pub const ORPHAN_SKIPPED: Stay = Stay { state: "fin_wait_2", time: Truth::MinisocketSkipped };

pub const TIME_WAIT: Stay = Stay { state: "time_wait", time: Truth::TimeWait };
/// TIME-WAIT in a network namespace that the agent is not in.
pub const TIME_WAIT_ELSEWHERE: Stay = Stay { state: "time_wait", time: Truth::TimeWaitElsewhere };

/// Every value of the label `state`, and the kernel's number of it (include/net/tcp_states.h).
pub const STATES: [(&str, u8); 6] = [
    ("fin_wait_1", 4),
    ("fin_wait_2", 5),
    ("time_wait", 6),
    ("close_wait", 8),
    ("last_ack", 9),
    ("closing", 11),
];

impl Stay {
    /// The kernel's number of the state.
    pub fn number(&self) -> u8 {
        STATES.iter().find(|(name, _)| *name == self.state).expect("a state").1
    }
}

impl fmt::Debug for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.state, self.time)
    }
}
