//! How many TCP sockets a network namespace has.

use std::fs;

use crate::linux::proc_net;

/// The TCP sockets of a network namespace, as its sockstat counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Population {
    /// Full sockets that are listening, connecting, connected or closing, of both families.
    pub sockets: u64,
    /// Minisockets, of both families.
    pub minisockets: u64,
}

/// Counts the TCP sockets of the calling thread's network namespace; `None` where /proc lacks them.
pub fn population() -> Option<Population> {
    population_at("/proc/thread-self/net")
}

/// Counts those of the network namespace whose directory in /proc is `net`.
pub(super) fn population_at(net: &str) -> Option<Population> {
    let v4 = fs::read_to_string(format!("{net}/sockstat")).ok()?;
    // A kernel without IPv6 lacks this file.
    let v6 = fs::read_to_string(format!("{net}/sockstat6")).unwrap_or_default();
    let sockets = proc_net::stat(&v4, "TCP:", "inuse")? + proc_net::stat(&v6, "TCP6:", "inuse").unwrap_or(0);
    Some(Population { sockets, minisockets: proc_net::stat(&v4, "TCP:", "tw")? })
}
