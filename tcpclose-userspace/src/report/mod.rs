//! Documents: close-phase sockets, ports, exhaustion, verification, kills. Pure: no descriptor, no clock.
//!
//! * [`envelope`]: the fields that all documents begin with; [`encoding`]: JSON and MessagePack.
//! * [`sockets`]: sockets in a close-phase state; [`assemble`]: describes them; [`owners`]: the processes that hold them;
//!   [`diagnosis`]: why a CLOSE-WAIT still exists; [`cause`]: why a socket that has sent its FIN does; [`incomplete`]: what is missing.
//! * [`chain`]: which program has to close behind a proxy; [`chain_link`]: as documents have it.
//! * [`accept_queues`]: the listeners in whose queues sockets wait that were not accepted.
//! * [`ports`]: the close phase by port. [`exhaustion`]: the ephemeral ports in use. [`idle`]: silent connections without keepalive.
//! * [`owner_counts`]: stuck sockets per owner; [`owner_series`]: which of them have a series. [`kill`]: what is destroyed, and the result.
//! * [`verdict`]: what a program's stuck sockets are, by how they developed; [`verdict_group`]: as documents have it.
//! * [`verify`]: the agent's numbers beside the kernel's. [`watch`]: lines of the watch stream.
//! * [`requests`]: what the command line and the agent agree on. [`query`]: the fields of a request.

pub mod accept_queues;
pub mod assemble;
pub mod cause;
pub mod chain;
pub mod chain_link;
pub mod diagnosis;
pub mod encoding;
pub mod envelope;
pub mod exhaustion;
#[cfg(test)]
pub mod fixtures;
pub mod idle;
pub mod incomplete;
pub mod kill;
pub mod owner_counts;
pub mod owner_series;
pub mod owners;
pub mod ports;
pub mod query;
pub mod reconcile;
pub mod requests;
pub mod sockets;
pub mod stack_indices;
pub mod stacks;
pub mod verdict;
pub mod verdict_group;
pub mod verify;
pub mod watch;
