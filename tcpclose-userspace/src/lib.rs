//! tcpclose, in the order that data flows.
//!
//! * [`terms`]: the words of the field: phase, side, role, outcome, flow, age, diagnosis.
//! * [`kernel`]: everything that needs a kernel.
//! * [`query`]: which sockets are in a close-phase state, since when, whose they are, and why.
//! * [`cli`]: the command line.

pub mod cli;
pub mod kernel;
pub mod query;
pub mod terms;
