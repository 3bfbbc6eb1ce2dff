//! What the command line prints with.
//!
//! * [`table`]: columns, spans, rates. [`labels`]: names of processes, states and sockets. [`footer`]: the last lines.
//! * [`durations`], [`watch_columns`], [`drawing`]: the three layouts of `tcpclose watch`.

pub mod drawing;
pub mod durations;
pub mod footer;
#[cfg(test)]
pub mod golden;
pub mod labels;
pub mod table;
pub mod watch_columns;
