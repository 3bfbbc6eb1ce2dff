//! Everything that needs a kernel.
//!
//! * [`layout`]: field offsets from BTF.
//! * [`probe`]: load and attach the eBPF programs, best door first.
//! * [`ring`]: drain the ring buffer.

pub mod layout;
