//! Everything that needs a kernel.
//!
//! * [`layout`]: field offsets from BTF.
//! * [`tracefs`]: tracefs, for the classic door.
//! * [`probe`]: load and attach the eBPF programs, best door first.
//! * [`hooks`]: fentry and fexit on the minisocket's functions.
//! * [`ring`]: drain the ring buffer.
//! * [`sock_diag`]: dump and look up TCP sockets; [`age`]: what their fields prove of their age.
//! * [`destroy`]: end one socket by SOCK_DESTROY.
//! * [`mib`]: the kernel's own counters of TCP.
//! * [`time_wait`]: how long TIME-WAIT lasts on this host.
//! * [`owners`]: which processes hold a socket.
//! * [`host`]: names, clocks, limits.

pub mod age;
pub mod destroy;
pub mod hooks;
pub mod host;
pub mod layout;
pub mod mib;
pub mod owners;
pub mod probe;
pub mod ring;
pub mod sock_diag;
pub mod time_wait;
pub mod tracefs;
