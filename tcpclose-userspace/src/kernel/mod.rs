//! Everything that needs a kernel.
//!
//! * [`sock_diag`]: every TCP socket of a network namespace, and one socket by its addresses.
//! * [`age`]: what a dumped socket proves about the time it has spent in its state.
//! * [`owners`]: which processes hold which socket.
//! * [`host`]: names, clocks and limits of this host and this process.

pub mod age;
pub mod host;
pub mod owners;
pub mod sock_diag;
