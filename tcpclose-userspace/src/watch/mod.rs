//! What is told to who watches: each step of the close phase as a line, and finished connections as drawings. Pure.
//!
//! * [`line`]: the JSON that the agent's stream and `tcpclose watch --json` consist of.
//! * [`filter`]: which lines are wanted.
//! * [`columns`]: a line for people. [`span`]: how long, and how well that is known.
//! * [`handshake`]: the lines of one connection, put together. [`drawing`]: that as the textbook draws it.

pub mod columns;
pub mod drawing;
pub mod filter;
pub mod handshake;
pub mod line;
pub mod span;
