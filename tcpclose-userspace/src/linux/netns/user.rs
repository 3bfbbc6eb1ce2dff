//! The host's user to whom a namespace belongs, so that work for many namespaces can be divided among users.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// include/uapi/linux/nsfs.h.
const GET_USERNS: libc::Ioctl = 0xb701;
const GET_PARENT: libc::Ioctl = 0xb702;
const GET_OWNER_UID: libc::Ioctl = 0xb704;

/// The creator of the outermost user namespace around `namespace`; 0 where that is the caller's own user namespace, as for
/// everything that root and container runtimes create.
///
/// The outermost one counts, since a user with subordinate ids can make inner ones that belong to thousands of ids; only
/// a process outside of all of them can make another outermost one (kernel/user_namespace.c, create_user_ns()).
///
/// # Errors
/// When it is no namespace, or one outside the caller's own user namespace.
pub(super) fn user_of(namespace: BorrowedFd<'_>) -> io::Result<u32> {
    let mut user = 0;
    let mut around = related(namespace, GET_USERNS)?;
    // The kernel refuses the parent of the caller's own (fs/nsfs.c, ns_ioctl(); kernel/nscommon.c or
    // kernel/user_namespace.c, ns_get_owner(), 4.9 to 6.18).
    while let Ok(parent) = related(around.as_fd(), GET_PARENT) {
        user = owner_of(around.as_fd())?;
        around = parent;
    }
    Ok(user)
}

/// The user namespace that `request` asks for.
fn related(namespace: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument and returns a new descriptor.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), request) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for the caller, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn owner_of(namespace: BorrowedFd<'_>) -> io::Result<u32> {
    let mut user: libc::uid_t = 0;
    // SAFETY: the request writes one uid_t, which `user` has room for.
    let done = unsafe { libc::ioctl(namespace.as_raw_fd(), GET_OWNER_UID, &raw mut user) };
    if done == 0 { Ok(user) } else { Err(io::Error::last_os_error()) }
}
