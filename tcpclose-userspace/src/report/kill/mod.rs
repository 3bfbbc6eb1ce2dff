//! What a kill destroys, and the result. Pure.
//!
//! * [`plan`]: the sockets to destroy, and why the others are left alone; [`pace`]: when the next one may go.
//! * [`outcome`]: the result of one; [`summary`]: the document of all.

pub mod outcome;
pub mod pace;
pub mod plan;
pub mod summary;
