//! A ring of io_uring that holds a file.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Bytes of `struct io_uring_params`.
const PARAMETERS: usize = 120;
/// IORING_REGISTER_FILES (include/uapi/linux/io_uring.h).
const REGISTER_FILES: libc::c_uint = 2;

/// Makes a ring and registers `file` with it.
pub fn with_file(file: impl AsFd) -> io::Result<OwnedFd> {
    let mut parameters = [0u64; PARAMETERS / size_of::<u64>()];
    // SAFETY: the kernel reads and writes `struct io_uring_params`, which is as large as `parameters`.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 8, parameters.as_mut_ptr()) };
    if ring < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, which is nobody else's.
    let ring = unsafe { OwnedFd::from_raw_fd(ring as libc::c_int) };
    let files = [file.as_fd().as_raw_fd()];
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
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(ring) }
}
