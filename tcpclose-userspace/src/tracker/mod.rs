//! Tracked sockets, from the first close-phase step of each until nothing of it is left: a pure state machine.
//!
//! Records of the probe ([`Tracker::record`]) and dumps of the kernel's sockets ([`Tracker::dump_chunk`]) go in,
//! [`TrackerEvent`](event::TrackerEvent)s come out. No fd, no clock, no async: every instant is an argument.
//!
//! Data, from the bottom up:
//!
//! * [`socket`]: one tracked socket. [`dump`]: a dump. [`transition`] and [`event`]: the output.
//! * [`classify_close`]: what a →CLOSE of the tracepoint means.
//! * [`index`]: sockets by key. [`tombstones`], [`pending_reset`], [`loss`], [`changes`], [`saved`]: what the table holds
//!   besides sockets.
//! * [`table`]: the tracked sockets, and how one is found, inserted, changed and removed.
//!
//! What happens to them:
//!
//! * [`phases`]: the account of phases. [`implied_end`]: ends and hand-overs without a record.
//! * [`side`], [`first_record`], [`steps`]: records of steps. [`hooks`]: records of hooks.
//! * [`reconcile`]: dumps. [`vanished`]: sockets that should be in a dump and are not. [`netns_gone`]: namespaces that are
//!   gone, or that no dump reaches. [`silence`]: a state hook that reports nothing.
//! * [`persist`]: state across restarts of the agent. [`state_format`]: its file.

mod changes;
pub mod classify_close;
pub mod dump;
pub mod event;
mod first_record;
mod hooks;
mod implied_end;
mod index;
mod loss;
pub mod netns_gone;
mod pending_reset;
mod persist;
mod phases;
mod reconcile;
pub mod saved;
mod side;
pub mod silence;
pub mod socket;
pub mod state_format;
mod steps;
mod table;
mod tombstones;
pub mod transition;
pub mod vanished;

pub use table::{HostParameters, Tracker};

#[cfg(test)]
mod tests;
