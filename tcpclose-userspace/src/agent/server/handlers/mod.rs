//! The answers, one file an endpoint. A handler gets the parts of the agent that it needs.

pub mod exhaustion;
pub mod idle;
pub mod kill;
pub mod metrics;
pub mod page;
pub mod ports;
pub mod readiness;
pub mod reconcile;
pub mod sockets;
pub mod stacks;
pub mod watch;
