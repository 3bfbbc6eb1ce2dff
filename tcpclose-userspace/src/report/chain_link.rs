//! A chain through proxies, as documents have it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Sockets whose chains are the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chain {
    /// How many sockets in CLOSE-WAIT it is of.
    pub count: usize,
    /// The program at the other end of the first connection, if it is on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Link>,
    /// The programs that hold the sockets in CLOSE-WAIT, from the first one on.
    pub links: Vec<Link>,
    #[serde(flatten)]
    pub end: ChainEnd,
}

/// A program in a chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Link {
    pub pid: u32,
    /// May hold control characters: escape it for a terminal.
    pub comm: String,
    /// The service port of its socket.
    pub port: u16,
}

/// Where a chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum ChainEnd {
    /// The last program has passed the end on to nobody: it has not closed.
    NotClosed,
    /// The last program may have passed it on by so many connections, to several programs or on behalf of others.
    NotProven { candidates: usize },
    /// The last program has passed it on to a peer that is not on this host, or not to be seen.
    Elsewhere { peer: SocketAddr },
    /// The owner of the last socket is not known.
    UnknownOwner,
}
