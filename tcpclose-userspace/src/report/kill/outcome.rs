//! The result of one order to destroy a socket.

use serde::{Deserialize, Serialize};

/// The version of an order and its outcome between command line and agent.
pub const SCHEMA: u32 = 1;

/// The result of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum KillOutcome {
    Destroyed,
    /// Left alone: it has changed since it was listed.
    Spared {
        why: String,
    },
    /// Could not be destroyed.
    Refused {
        errno: Option<i32>,
        why: String,
    },
}
