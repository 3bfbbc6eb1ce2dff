//! The watch stream: a line per transition of the close phase, and drawings of finished connections. Pure.
//!
//! * [`mod@line`]: the JSON of the agent's stream and of `tcpclose watch --json`.
//! * [`filter`]: selects lines.
//! * [`handshake`]: collects the lines of one connection.
//!
//! [`crate::ui::watch_columns`] shows lines as text, [`crate::ui::drawing`] draws connections.

pub mod filter;
pub mod handshake;
pub mod line;
