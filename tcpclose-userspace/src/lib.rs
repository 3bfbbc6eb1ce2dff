//! tcpclose, in the order that data flows.
//!
//! * [`terms`]: the words of the field: phase, side, role, outcome, flow, age, diagnosis.
//! * [`kernel`]: everything that needs a kernel: the probe, the ring, dumps, owners.
//! * [`tracker`]: one socket's life, from records and dumps to facts. Pure.
//! * [`ledger`]: bounded counters and histograms of those facts. Pure.
//! * [`exhaustion`]: how many of the ports that connect() may take are in use. Pure.
//! * [`query`]: which sockets are stuck, since when, whose they are, and why.
//! * [`kill`]: destroys stuck sockets, one at a time.
//! * [`verify`]: what the agent says beside what the kernel says. Pure.
//! * [`web`]: who may scrape, and over what: TLS, certificates, passwords.
//! * [`agent`]: the run loop, `/metrics`, the query API.
//! * [`cli`]: the command line.
//! * [`watch`]: each step as a line, finished connections as drawings. Pure.
//! * [`progress`]: how far long work is, on a terminal.
//! * [`failure`]: the one line that a person reads when something cannot be done.

pub mod agent;
pub mod cli;
pub mod exhaustion;
pub mod failure;
pub mod kernel;
pub mod kill;
pub mod ledger;
pub mod progress;
pub mod query;
pub mod terms;
pub mod tracker;
pub mod verify;
pub mod watch;
pub mod web;
