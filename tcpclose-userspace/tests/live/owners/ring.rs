//! Rings of io_uring that hold files.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

/// `struct io_uring_params` as words of 32 bits: the numbers of entries, ten others, and the offsets of the two rings
/// (include/uapi/linux/io_uring.h, like all that follows).
const PARAMETERS: usize = 30;
const SQ_ENTRIES: usize = 0;
const CQ_ENTRIES: usize = 1;
const SQ_TAIL: usize = 11;
const SQ_ARRAY: usize = 16;
const CQES: usize = 25;
const SQE_BYTES: usize = 64;
const CQE_BYTES: usize = 16;
const IORING_OFF_SQ_RING: libc::off_t = 0;
const IORING_OFF_SQES: libc::off_t = 0x1000_0000;
const REGISTER_FILES: libc::c_uint = 2;
const IORING_OP_ACCEPT: u8 = 13;
const IORING_ENTER_GETEVENTS: libc::c_uint = 1;

/// Makes a ring and registers `file` with it.
pub fn with_file(file: impl AsFd) -> io::Result<OwnedFd> {
    let (ring, _) = ring()?;
    register(&ring, file.as_fd().as_raw_fd())?;
    Ok(ring)
}

/// Makes a ring with one empty place, and accepts a connection of `listener` into that.
pub fn accepting(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const EMPTY: RawFd = -1;
    let (ring, parameters) = ring()?;
    register(&ring, EMPTY)?;
    let of = |word: usize| parameters[word] as usize;
    let queues = (of(SQ_ARRAY) + of(SQ_ENTRIES) * 4).max(of(CQES) + of(CQ_ENTRIES) * CQE_BYTES);
    let queues = Mapping::of(&ring, IORING_OFF_SQ_RING, queues)?;
    let entries = Mapping::of(&ring, IORING_OFF_SQES, of(SQ_ENTRIES) * SQE_BYTES)?;
    entries.write(0, IORING_OP_ACCEPT);
    entries.write(4, listener.as_raw_fd());
    // `file_index`: the place, counted from 1.
    entries.write(44, 1_u32);
    queues.write(of(SQ_ARRAY), 0_u32);
    queues.write(of(SQ_TAIL), 1_u32);
    // SAFETY: no pointers that the kernel follows.
    let submitted = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            1_u32,
            1_u32,
            IORING_ENTER_GETEVENTS,
            ptr::null::<u8>(),
            0_usize,
        )
    };
    if submitted < 0 {
        return Err(io::Error::last_os_error());
    }
    // The first completion's result.
    match queues.read_i32(of(CQES) + 8) {
        0.. => Ok(ring),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

fn ring() -> io::Result<(OwnedFd, [u32; PARAMETERS])> {
    let mut parameters = [0; PARAMETERS];
    // SAFETY: the kernel reads and writes `struct io_uring_params`, which is as large as `parameters`.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 8, parameters.as_mut_ptr()) };
    if ring < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, which is nobody else's.
    Ok((unsafe { OwnedFd::from_raw_fd(ring as RawFd) }, parameters))
}

/// Registers one file, or an empty place.
fn register(ring: &OwnedFd, file: RawFd) -> io::Result<()> {
    let files = [file];
    // SAFETY: the kernel reads as many descriptors as are passed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_FILES,
            files.as_ptr(),
            files.len() as libc::c_uint,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A part of a ring that the kernel shares.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn of(ring: &OwnedFd, at: libc::off_t, length: usize) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), length, access, libc::MAP_SHARED, ring.as_raw_fd(), at) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { start, length })
    }

    fn write<T>(&self, at: usize, value: T) {
        assert!(at + size_of::<T>() <= self.length);
        // SAFETY: within the mapping, by the line above; the kernel reads nothing before io_uring_enter().
        unsafe { self.start.add(at).cast::<T>().write_unaligned(value) };
    }

    fn read_i32(&self, at: usize) -> i32 {
        assert!(at + size_of::<i32>() <= self.length);
        // SAFETY: within the mapping, by the line above; the kernel has written it.
        unsafe { self.start.add(at).cast::<i32>().read_volatile() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping and no other, made with this length; nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
