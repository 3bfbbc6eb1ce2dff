//! TCP sockets by NETLINK_SOCK_DIAG: dumps of a network namespace, exact lookups, SOCK_DESTROY.
//!
//! Answers are decoded here and not by `netlink-packet-sock-diag`: its `Timer::TimeWait` (0.5.0) drops
//! `idiag_expires`, the only field that shows how long a minisocket has existed; and its response owns several heap
//! allocations, which a hundred thousand sockets would feel.
//!
//! A connection is opened for each dump and each batch of lookups and closed with it: an open one would keep a deleted
//! network namespace and its interfaces alive.

mod connection;
mod destroy;
mod dump;
mod lookup;
mod mptcp;
mod request;
mod socket;

pub use crate::linux::sock_diag::connection::{NetlinkConnection, SEQUENCE, messages};
pub use crate::linux::sock_diag::destroy::{destroy, is_gone};
pub use crate::linux::sock_diag::dump::{Dump, dump, visit};
pub use crate::linux::sock_diag::lookup::{SocketLookup, lookup, lookups};
pub use crate::linux::sock_diag::mptcp::{mptcp_is_hidden, visit_mptcp};
pub use crate::linux::sock_diag::socket::{Mptcp, Retries, Sending, Socket, Timer, Times, decode};

#[cfg(test)]
mod tests;
