//! The interface between the eBPF probe and the agent.
//!
//! * [`state`]: the kernel's TCP states, and which transitions belong to the close phase.
//! * [`event`]: the ring-buffer records.
//! * [`layout`]: field offsets of kernel structs, resolved by the agent, read-only to the probe.
//! * [`held`]: the output of the iterator over files.
//! * [`stack`]: user stacks by socket.
//! * [`control`]: the words that the agent and the probe share while both run.
//! * `toolchain`, a feature for build scripts: the compiler and linker that build the probe.
//! * `progress`, a feature for the agent's commands and xtask: one line on the terminal while something takes long.

#![cfg_attr(not(any(feature = "toolchain", feature = "progress")), no_std)]

pub mod control;
pub mod event;
pub mod held;
pub mod layout;
#[cfg(feature = "progress")]
pub mod progress;
pub mod stack;
pub mod state;
#[cfg(feature = "toolchain")]
pub mod toolchain;
