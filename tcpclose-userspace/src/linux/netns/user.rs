//! The host's user to whom a namespace belongs, so that work for many namespaces can be divided among users.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::linux::netns::place::identity;
use crate::names::NetnsOwner;

// include/uapi/linux/nsfs.h.
const GET_USERNS: libc::Ioctl = 0xb701;
const GET_PARENT: libc::Ioctl = 0xb702;
const GET_OWNER_UID: libc::Ioctl = 0xb704;

/// To whom the calling thread's network namespace belongs, and the user who made it; 0 for root.
///
/// Where PID 1's may not be read, the one that this program was started in counts as the host's. A namespace of a user
/// namespace around the caller's own cannot be told (EPERM), and was made by somebody with more rights than the caller.
pub fn owner() -> (NetnsOwner, u32) {
    let own = "/proc/thread-self/ns/net";
    let host = identity("/proc/1/ns/net").or_else(|_| identity("/proc/self/ns/net"));
    if host.is_ok_and(|host| identity(own).is_ok_and(|own| own == host)) {
        return (NetnsOwner::Host, 0);
    }
    match File::open(own).and_then(|file| user_of(file.as_fd())) {
        Ok(0) | Err(_) => (NetnsOwner::Container, 0),
        Ok(user) => (NetnsOwner::User, user),
    }
}

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
