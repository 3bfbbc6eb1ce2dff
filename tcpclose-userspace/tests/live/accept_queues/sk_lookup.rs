//! A BPF program of the type sk_lookup: every TCP connection of one network namespace goes to one
//! listener.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use crate::common::bpf;
use crate::common::bpf::instruction;

// include/uapi/linux/bpf.h
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const SK_LOOKUP: u32 = 36;
const PSEUDO_MAP_FD: u8 = 1;
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// Steers connections until dropped.
pub struct SkLookup {
    _link: OwnedFd,
}

impl SkLookup {
    /// Sends the connections of the namespace at `netns`, which is this thread's, to `listener`.
    pub fn to(listener: &TcpListener, netns: &Path) -> Self {
        let map = bpf::sockmap(1);
        bpf::insert(&map, 0, listener);
        let program = bpf::program(PROG_TYPE_SK_LOOKUP, &instructions(map.as_raw_fd()), SK_LOOKUP);
        Self { _link: bpf::link(&program, &File::open(netns).unwrap(), SK_LOOKUP) }
    }
}

/// Looks the listener up in the map, chooses it and lets the connection pass.
fn instructions(map: RawFd) -> Vec<u64> {
    let copy = |to, from| instruction(0xbf, to, from, 0, 0);
    let set = |to, value| instruction(0xb7, to, 0, 0, value);
    let call = |helper| instruction(0x85, 0, 0, 0, helper);
    vec![
        copy(6, 1),
        // The key, 0, on the stack.
        instruction(0x62, 10, 0, -4, 0),
        copy(2, 10),
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x18, 1, PSEUDO_MAP_FD, 0, map),
        0,
        call(MAP_LOOKUP_ELEM),
        // Without a listener: to the end.
        instruction(0x15, 0, 0, 7, 0),
        copy(7, 0),
        copy(1, 6),
        copy(2, 7),
        set(3, 0),
        call(SK_ASSIGN),
        copy(1, 7),
        call(SK_RELEASE),
        // SK_PASS.
        set(0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ]
}
