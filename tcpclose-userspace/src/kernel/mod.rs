//! Everything that needs a kernel.
//!
//! * [`layout`]: field offsets from BTF.
//! * [`tracefs`]: tracefs, for the classic door.
//! * [`probe`]: load and attach the eBPF programs, best door first.
//! * [`hooks`]: fentry and fexit on the minisocket's functions.
//! * [`ring`]: drain the ring buffer.
//! * [`sock_diag`]: dump and look up TCP sockets; [`age`]: what their fields prove of their age.
//! * [`netns`]: finds network namespaces, and goes into them.
//! * [`survey`]: dumps of several network namespaces.
//! * [`time_wait`]: how long TIME-WAIT lasts on this host.
//! * [`owners`]: which processes hold a socket.
//! * [`host`]: names, clocks, limits.

pub mod age;
pub mod hooks;
pub mod host;
pub mod layout;
pub mod netns;
pub mod owners;
pub mod probe;
pub mod ring;
pub mod sock_diag;
pub mod survey;
pub mod time_wait;
pub mod tracefs;
