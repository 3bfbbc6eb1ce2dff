//! tcpclose, in the order that data flows.
//!
//! * [`terms`]: the words of the field: phase, side, role, outcome, flow, age, diagnosis.
//! * [`kernel`]: everything that needs a kernel.

pub mod kernel;
pub mod terms;
