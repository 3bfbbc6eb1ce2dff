//! TODO: module docs.

pub mod exhaustion;
pub mod kill;
pub mod metrics;
pub mod page;
pub mod ports;
pub mod reconcile;
pub mod sockets;
pub mod watch;
