//! TODO: module docs.

pub mod drawing;
pub mod durations;
pub mod progress;
pub mod table;
pub mod watch_columns;
