//! Everything that needs a kernel.
//!
//! * [`layout`]: field offsets from BTF.
//! * [`tracefs`]: tracefs, for the classic door.
//! * [`probe`]: load and attach the eBPF programs, best door first.
//! * [`hooks`]: fentry and fexit on the minisocket's functions.
//! * [`ring`]: drain the ring buffer; `positions`: how full it is.
//! * [`runs`]: how often the programs ran.
//! * [`sock_diag`]: dump and look up TCP sockets; [`age`]: what their fields prove of their age.
//! * [`time_wait`]: how long TIME-WAIT lasts on this host.
//! * [`owners`]: which processes hold a socket.
//! * [`host`]: names, clocks, limits.

pub mod age;
pub mod hooks;
pub mod host;
pub mod layout;
pub mod owners;
mod positions;
pub mod probe;
pub mod ring;
pub mod runs;
pub mod sock_diag;
pub mod time_wait;
pub mod tracefs;
