//! libFuzzer around one target, which `TCPCLOSE_FUZZ_TARGET` names: one program for all of them, since each would take
//! a minute to link. `cargo xtask fuzz` builds it with coverage, and starts it.

#![no_main]

use std::sync::OnceLock;

use tcpclose_fuzz::{TARGETS, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

/// # Panics
/// When no target is named.
fn target() -> Target {
    let name = std::env::var("TCPCLOSE_FUZZ_TARGET").unwrap_or_default();
    match TARGETS.iter().find(|(known, _)| *known == name) {
        Some((_, target)) => *target,
        None => panic!("TCPCLOSE_FUZZ_TARGET names no target: {name:?}"),
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET.get_or_init(target)(bytes));
