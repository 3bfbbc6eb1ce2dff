//! The owner of a network namespace: the host, a container or a user.

use std::fs::File;
use std::os::fd::AsFd;

use crate::linux::netns::place::identity;
use crate::linux::netns::user::user_of;
use crate::names::NetnsOwner;

/// To whom the calling thread's network namespace belongs, and the user who made it; 0 for root.
///
/// Where reading PID 1's is not allowed, the one that this program was started in counts as the host's. A namespace of a user
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
