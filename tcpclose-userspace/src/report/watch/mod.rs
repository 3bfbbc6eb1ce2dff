//! What is told to who watches: each step of the close phase as a line, and finished connections as drawings. Pure.
//!
//! * [`line`]: the JSON that the agent's stream and `tcpclose watch --json` consist of.
//! * [`filter`]: which lines are wanted.
//! * [`crate::ui::watch_columns`]: a line for people. [`crate::ui::durations`]: how long, and how well that is known.
//! * [`handshake`]: the lines of one connection, put together. [`crate::ui::drawing`]: that as the textbook draws it.

pub mod filter;
pub mod handshake;
pub mod line;
