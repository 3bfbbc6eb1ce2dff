//! Collects what documents need from the kernel: owners, peers, names of processes.
//!
//! The agent and the client share it; [`crate::report`] turns the result into documents.

pub mod exhaustion;
pub mod idle;
pub mod sockets;

use crate::linux::host;
use crate::linux::host::Capability;
use crate::report::envelope::{DocumentSource, Envelope};
use crate::report::incomplete;

/// The capabilities that a search for owners lacks here.
pub fn missing_for_owners() -> Vec<Capability> {
    incomplete::NEEDED.into_iter().filter(|&capability| !host::has_cap(capability)).collect()
}

/// The envelope of a document about this host.
pub fn envelope(source: DocumentSource, at: String, incomplete: Vec<String>) -> Envelope {
    Envelope { host: host::hostname(), boot_id: host::boot_id(), at, source, incomplete }
}
