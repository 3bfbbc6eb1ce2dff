//! A BPF program of the type sk_lookup, by the system call itself: every TCP connection of one network namespace goes to one
//! listener.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

// include/uapi/linux/bpf.h
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;
const BPF_PSEUDO_MAP_FD: u8 = 1;
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
        // union bpf_attr: type, key_size, value_size, max_entries.
        let map = bpf(BPF_MAP_CREATE, &words(&[BPF_MAP_TYPE_SOCKMAP, 4, 8, 1]));
        let (key, value) = (0_u32, listener.as_raw_fd() as u64);
        let mut update = words(&[map.as_raw_fd() as u32, 0]);
        update.extend(pointer(&raw const key));
        update.extend(pointer(&raw const value));
        update.extend([0; 8]);
        call(BPF_MAP_UPDATE_ELEM, &update).unwrap();

        let program = instructions(map.as_raw_fd());
        let license = c"GPL";
        // prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name, prog_ifindex,
        // expected_attach_type.
        let mut load = words(&[BPF_PROG_TYPE_SK_LOOKUP, program.len() as u32]);
        load.extend(pointer(program.as_ptr()));
        load.extend(pointer(license.as_ptr()));
        load.extend([0; 24 + 16 + 4]);
        load.extend(words(&[BPF_SK_LOOKUP]));
        let program = bpf(BPF_PROG_LOAD, &load);

        let netns = File::open(netns).unwrap();
        let (program, netns) = (program.as_raw_fd() as u32, netns.as_raw_fd() as u32);
        Self { _link: bpf(BPF_LINK_CREATE, &words(&[program, netns, BPF_SK_LOOKUP, 0])) }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn pointer<T>(to: *const T) -> [u8; 8] {
    (to as u64).to_ne_bytes()
}

fn call(command: libc::c_int, attributes: &[u8]) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads so many bytes of the attributes, and the memory that they point to, which their makers keep.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), attributes.len()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn bpf(command: libc::c_int, attributes: &[u8]) -> OwnedFd {
    let made = call(command, attributes).unwrap();
    // SAFETY: these commands return a new descriptor, which is nobody else's.
    unsafe { OwnedFd::from_raw_fd(made as RawFd) }
}

/// Looks the listener up in the map, chooses it and lets the connection pass.
fn instructions(map: RawFd) -> Vec<u64> {
    let instruction = |code: u8, to: u8, from: u8, offset: i16, value: i32| {
        u64::from(code)
            | u64::from(to | from << 4) << 8
            | u64::from(offset as u16) << 16
            | u64::from(value as u32) << 32
    };
    let copy = |to, from| instruction(0xbf, to, from, 0, 0);
    let set = |to, value| instruction(0xb7, to, 0, 0, value);
    let call = |helper| instruction(0x85, 0, 0, 0, helper);
    vec![
        copy(6, 1),
        // The key, 0, on the stack.
        instruction(0x62, 10, 0, -4, 0),
        copy(2, 10),
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x18, 1, BPF_PSEUDO_MAP_FD, 0, map),
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
