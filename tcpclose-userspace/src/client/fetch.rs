//! A document of the agent's, or the same without an agent, as far as that goes.

use std::io;

use crate::client::{Asked, Client, PATIENCE};
use crate::commands::filter::AgentAddress;
use crate::failure::{Failure, printable};
use crate::report::sockets::Versioned;
use crate::ui::table;

/// A document, and where it comes from.
pub struct Fetched<T> {
    pub document: T,
    /// In words.
    pub source: String,
    /// Why an agent that is there was not asked; for the document's `incomplete`.
    pub remark: Option<String>,
}

/// Asks the agent at `place` for the document at `target`, of the version `schema`; where none answers, looks by itself.
pub fn ask_or_look<T: Versioned>(
    place: &AgentAddress,
    (target, schema): (&str, u32),
    look: impl FnOnce() -> io::Result<T>,
) -> Result<Fetched<T>, Failure> {
    let path = place.socket.display();
    let asked = match place.no_agent {
        true => None,
        false => Some(Client::new(&place.socket, PATIENCE)?.document(target, schema)?),
    };
    let (source, remark) = match asked {
        Some(Asked::Document(document)) => {
            return Ok(Fetched { document, source: "agent".to_owned(), remark: None });
        }
        None => ("snapshot".to_owned(), None),
        Some(Asked::NoAgent) => (format!("snapshot (no agent at {path})"), None),
        Some(Asked::Denied) => {
            let remark = format!("the agent at {path} was not asked: this user may not connect to it");
            (format!("snapshot (no access to {path})"), Some(remark))
        }
    };
    let document = look().map_err(|error| {
        Failure::new("snapshot of the TCP sockets", error, "load the modules inet_diag and tcp_diag")
    })?;
    Ok(Fetched { document, source, remark })
}

/// The last lines of every text: the source, and what could not be seen.
pub fn ending(source: &str, incomplete: &[String], width: Option<u16>) -> String {
    let remarks = incomplete.iter().map(|remark| format!("incomplete: {}", printable(remark)));
    let lines = std::iter::once(format!("source: {}", printable(source))).chain(remarks);
    lines.map(|line| table::wrap(&line, width) + "\n").collect()
}
