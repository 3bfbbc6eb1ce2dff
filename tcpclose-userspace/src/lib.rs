//! tcpclose, in the order that data flows.
//!
//! * [`terms`]: the words of the field: phase, side, role, outcome, flow, age, diagnosis.

pub mod failure;
pub mod kernel;
pub mod ledger;
pub mod terms;
pub mod tracker;
