//! tcpclose, in the order that data flows.
//!
//! * [`names`]: phase, side, role, outcome, diagnosis: each an enum with one table of words.
//! * [`probe`]: loads the eBPF programs, attaches them, reads their ring buffer.
//! * [`linux`]: every other interface of Linux: socket dumps, network namespaces, /proc.
//! * [`tracker`]: follows each socket, from records and dumps to events. Pure.
//! * [`metrics`]: counters, gauges and histograms of those events, bounded. Pure.
//! * [`report`]: documents: stuck sockets, ports, exhaustion, verification. Pure.
//! * [`collect`]: asks the kernel for what documents need: owners, peers.
//! * [`kill`]: destroys stuck sockets, one at a time.
//! * [`agent`]: the long-running process; [`agent::server`] answers its requests.
//! * [`client`]: asks an agent, or takes a snapshot without one.
//! * [`commands`]: the command line, one file a command.
//! * [`ui`]: tables, drawings, durations, progress.
//! * [`failure`]: the one line that reports an error.

pub mod agent;
pub mod client;
pub mod collect;
pub mod commands;
pub mod failure;
pub mod kill;
pub mod linux;
pub mod metrics;
pub mod names;
pub mod probe;
pub mod report;
pub mod tracker;
pub mod ui;
