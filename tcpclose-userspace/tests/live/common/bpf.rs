//! bpf(2) by the system call itself, for small programs: aya's would want an object.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// include/uapi/linux/bpf.h
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const LINK_CREATE: libc::c_int = 28;
const MAP_TYPE_SOCKMAP: u32 = 15;

/// bpf(2) with a union bpf_attr of these words.
fn call(command: libc::c_int, words: &[u32]) -> io::Result<libc::c_long> {
    let mut attributes = [0u32; 32];
    attributes[..words.len()].copy_from_slice(words);
    // SAFETY: the attributes live for the call and have that size; the memory that they point to is kept by their makers.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

/// For commands that make a descriptor.
fn make(command: libc::c_int, words: &[u32]) -> OwnedFd {
    let made = call(command, words).unwrap();
    // SAFETY: a descriptor that the kernel has just made, which is nobody else's.
    unsafe { OwnedFd::from_raw_fd(made as i32) }
}

fn pointer<T>(to: *const T) -> [u32; 2] {
    let at = to as u64;
    [at as u32, (at >> 32) as u32]
}

/// A map of `size` sockets, each with a u64 as its value.
pub fn sockmap(size: u32) -> OwnedFd {
    make(MAP_CREATE, &[MAP_TYPE_SOCKMAP, 4, 8, size])
}

/// Puts `socket` into a map.
pub fn insert(map: &OwnedFd, key: u32, socket: &impl AsRawFd) {
    let value = socket.as_raw_fd() as u64;
    let (at, what) = (pointer(&raw const key), pointer(&raw const value));
    call(MAP_UPDATE_ELEM, &[map.as_raw_fd() as u32, 0, at[0], at[1], what[0], what[1], 0, 0]).unwrap();
}

/// Loads a program of a type; `attach_type`: `expected_attach_type`.
pub fn program(kind: u32, instructions: &[u64], attach_type: u32) -> OwnedFd {
    let license = c"GPL";
    let (code, license) = (pointer(instructions.as_ptr()), pointer(license.as_ptr()));
    // prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name, prog_ifindex,
    // expected_attach_type.
    let mut load = [0; 18];
    load[..6].copy_from_slice(&[kind, instructions.len() as u32, code[0], code[1], license[0], license[1]]);
    load[17] = attach_type;
    make(PROG_LOAD, &load)
}

/// Attaches a program to a map.
pub fn attach(map: &OwnedFd, program: &OwnedFd, attach_type: u32) {
    call(PROG_ATTACH, &[map.as_raw_fd() as u32, program.as_raw_fd() as u32, attach_type, 0]).unwrap();
}

/// Attaches a program to `target` until the link is dropped.
pub fn link(program: &OwnedFd, target: &impl AsRawFd, attach_type: u32) -> OwnedFd {
    make(LINK_CREATE, &[program.as_raw_fd() as u32, target.as_raw_fd() as u32, attach_type, 0])
}

/// One instruction: its code, registers, offset and immediate value.
pub fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    u64::from(code)
        | u64::from(to | from << 4) << 8
        | u64::from(offset as u16) << 16
        | u64::from(value as u32) << 32
}
