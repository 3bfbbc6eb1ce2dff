//! TODO: module docs.

pub mod pace;
pub mod plan;
pub mod summary;
