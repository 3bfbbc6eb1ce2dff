//! The live tests: real agents, real sockets, the running kernel. One program, since linking dozens takes longer than running
//! them; `cargo xtask test` runs its modules side by side, each in a process of its own.
//!
//! A test that needs root is `#[ignore]`d with that reason, so that a plain `cargo test` says what it has left out. One that takes
//! long has a name that begins with `long_`, and runs with `cargo xtask test --all`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy's leave for tests does not reach helpers of an integration test"
)]

mod accept_queues;
mod access;
mod accuracy;
mod agent_basics;
mod ages;
mod backpressure;
mod bad_input;
mod cardinality;
mod cases;
mod causes;
mod chain;
mod closes;
mod common;
mod config;
mod demo;
mod deploy;
mod diagnoses;
mod exhaustion;
mod flood;
mod guesses;
mod hangups;
mod idle;
mod kill;
mod kubernetes;
mod leak;
mod left_errors;
mod load;
mod losses;
mod many_namespaces;
mod mptcp;
mod namespaces;
mod netns_owner;
mod nginx;
mod opens;
mod owners;
mod page;
mod page_size;
mod peers;
mod port_names;
mod ports;
mod privileges;
mod prometheus;
mod rearmed;
mod resets;
mod restart;
mod reuse;
mod sides;
mod silent_hook;
mod stacks;
mod stale;
mod stale_writes;
mod start_stop;
mod stuck_snapshot;
mod systemd;
mod terminal;
mod time_wait_memory;
mod top;
mod torture;
mod vanished;
mod verdicts;
mod verify;
mod volume;
mod wakeup;
mod wall_clock;
mod watch;
mod web;
