//! TODO: module docs.

pub mod activation;
pub mod notify;
