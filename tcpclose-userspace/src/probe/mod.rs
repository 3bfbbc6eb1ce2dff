//! Loads the eBPF programs, attaches them and reads their ring buffer.
//!
//! * [`requirements`]: what is checked before anything is loaded.
//! * [`builder`]: loads and attaches, the best backend of each hook first; [`running`]: the attached probe.
//! * [`backend`]: the backends; [`declined`]: the better ones that are not in use, and why.
//! * [`offsets`]: field offsets from BTF. [`tracefs`], [`record_format`]: for the classic tracepoint.
//! * [`ring`]: drains the ring buffer, through a window that `ring_window` maps.
//! * [`prog_stats`]: how often the programs ran. `pinned_links`: links that the kernel closes after the process.

pub mod backend;
pub mod builder;
pub mod declined;
mod errors;
mod object;
pub mod offsets;
mod pinned_links;
pub mod prog_stats;
pub mod record_format;
pub mod requirements;
pub mod ring;
mod ring_window;
pub mod running;
pub mod support;
pub mod tracefs;

pub use crate::probe::backend::{OwnersHook, StateHook, TimeWaitHook};
pub use crate::probe::builder::Builder;
pub use crate::probe::declined::Hook;
pub use crate::probe::requirements::require;
pub use crate::probe::running::Probe;
