//! The verdict on a program's stuck sockets, as documents have it.

use serde::{Deserialize, Serialize};

use crate::names::words::named;
use crate::names::{Side, Verdict};

/// The stuck sockets of the same processes on one side of one port, and the verdict on them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerdictGroup {
    /// The processes that hold them, the one to look at first before the others; of a server that forks for each connection its one parent.
    pub pids: Vec<u32>,
    /// The sockets are those of children of the process.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_children: bool,
    /// The name of the first process. May hold control characters: escape it for a terminal.
    pub comm: String,
    #[serde(with = "named")]
    pub side: Side,
    pub port: u16,
    /// As of the last look.
    pub stuck: u64,
    #[serde(with = "named")]
    pub verdict: Verdict,
    /// For how long that has been the verdict.
    pub for_seconds: f64,
    /// What it follows from, one sentence each.
    pub evidence: Vec<String>,
    /// What an undecided group waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// For how long the agent has looked at them.
    pub watched_seconds: f64,
    /// How their number grows; `null` after one look.
    pub growth_per_hour: Option<f64>,
    /// Sockets that have become stuck since the first look.
    pub arrived: u64,
    /// Sockets that left CLOSE-WAIT late: closed by the program, reset by the peer because the program wrote or for another reason,
    /// destroyed by an operator, or in a way that was not seen.
    pub closed_late: u64,
    pub reset_after_write: u64,
    #[serde(default)]
    pub reset_by_peer: u64,
    #[serde(default)]
    pub destroyed: u64,
    pub ended_unseen: u64,
    /// For how long the median one had sent nothing when its peer closed: the peer's idle time-out, if it has one. `null` where it is not
    /// known.
    pub silent_seconds: Option<f64>,
}
