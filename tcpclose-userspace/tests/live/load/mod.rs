//! Many connections in a network namespace of their own, agents on every backend beside them, and what the kernel says of
//! both: what the floods and the reuse of addresses have in common.

pub mod connections;
pub mod home;
use crate::cases::place;
pub use crate::common::left_out;
pub mod truth;
pub mod watch;

/// Whether this is a guest of `cargo xtask vm`.
pub fn emulated() -> bool {
    std::env::var_os("TCPCLOSE_EMULATED").is_some()
}

/// How much is played: `full` of it, or that much less on an emulated machine.
pub fn scaled(full: usize, less: usize) -> usize {
    if !emulated() {
        return full;
    }
    eprintln!("EMULATED: {} instead of {full}", full / less);
    full / less
}
