//! A document from the agent, or from a snapshot where no agent answers.

use std::io;
use std::path::{Path, PathBuf};

use crate::client::reply::{Alone, Reply, denied, no_agent};
use crate::client::{Client, PATIENCE};
use crate::failure::Failure;
use crate::report::sockets::Versioned;

/// Which agent to ask, and whether a snapshot may take its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentAddress {
    pub socket: PathBuf,
    /// The user named the socket: without an agent there the command fails.
    pub is_explicit: bool,
    /// Take a snapshot without asking an agent.
    pub no_agent: bool,
}

/// A document, and its source.
pub struct Fetched<T> {
    pub document: T,
    /// The source, in words.
    pub source: String,
    /// Why a running agent was not asked, for the document's `incomplete`.
    pub remark: Option<String>,
}

/// Gets a document from the agent at `address` by `ask`; where none answers, by `snapshot`. `alone`: what the command does then.
pub fn fetch<T>(
    address: &AgentAddress,
    alone: Alone,
    ask: impl FnOnce(&Path) -> Result<Reply<T>, Failure>,
    snapshot: impl FnOnce() -> io::Result<T>,
) -> Result<Fetched<T>, Failure> {
    let path = address.socket.display();
    let (source, remark) = match address.no_agent {
        true => ("snapshot".to_owned(), None),
        false => match ask(&address.socket)? {
            Reply::Answer(document) => {
                return Ok(Fetched { document, source: "agent".to_owned(), remark: None });
            }
            Reply::NoAgent if address.is_explicit => {
                return Err(no_agent(&address.socket, alone));
            }
            Reply::Denied if address.is_explicit => return Err(denied(&address.socket)),
            Reply::NoAgent => (format!("snapshot (no agent at {path})"), None),
            Reply::Denied => {
                let remark = format!("no agent was asked: this user has no access to {path}");
                ("snapshot".to_owned(), Some(remark))
            }
        },
    };
    let document = snapshot().map_err(|error| {
        Failure::new("snapshot of the TCP sockets", error, "load the modules inet_diag and tcp_diag")
    })?;
    Ok(Fetched { document, source, remark })
}

/// Like [`fetch`], for the document at `target` of the version `schema`.
pub fn fetch_document<T: Versioned>(
    address: &AgentAddress,
    (target, schema): (&str, u32),
    snapshot: impl FnOnce() -> io::Result<T>,
) -> Result<Fetched<T>, Failure> {
    let ask =
        |socket: &Path| Client::for_command(socket, PATIENCE, Alone::Snapshot)?.document(target, schema);
    fetch(address, Alone::Snapshot, ask, snapshot)
}
