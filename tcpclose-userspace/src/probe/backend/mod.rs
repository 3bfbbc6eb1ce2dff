//! TODO: module docs.

pub mod fentry;
pub mod task_file;
