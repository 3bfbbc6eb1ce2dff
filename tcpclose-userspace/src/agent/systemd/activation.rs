//! Sockets that systemd has opened for the agent (sd_listen_fds(3)). They are recognised by their type, so
//! units need no names: TCP listeners serve metrics, a unix listener serves the command line.

use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::failure::Failure;

/// systemd passes descriptors from this one on (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;
const MOST: u32 = 64;

/// Replaces `--listen`, and `--socket`, if there are any.
#[derive(Debug, Default)]
pub struct Passed {
    pub metrics: Vec<TcpListener>,
    pub queries: Option<UnixListener>,
}

/// Takes ownership of the passed sockets. To be called once.
///
/// # Errors
/// When one of them is neither kind of listener.
pub fn take() -> Result<Passed, Failure> {
    let text = |name| std::env::var(name).ok();
    let count = count(text("LISTEN_PID").as_deref(), text("LISTEN_FDS").as_deref(), std::process::id())?;
    let mut passed = Passed::default();
    for fd in (FIRST..).take(count as usize) {
        passed.take(fd)?;
    }
    Ok(passed)
}

/// The number of sockets for this process.
fn count(pid: Option<&str>, fds: Option<&str>, own: u32) -> Result<u32, Failure> {
    let (Some(pid), Some(fds)) = (pid, fds) else { return Ok(0) };
    if pid.parse() != Ok(own) {
        return Ok(0);
    }
    match fds.parse() {
        Ok(count) if count <= MOST => Ok(count),
        _ => {
            let why = format!("LISTEN_FDS is {fds:?}");
            Err(Failure::new("sockets passed by systemd", why, format!("pass at most {MOST}")))
        }
    }
}

impl Passed {
    fn take(&mut self, fd: RawFd) -> Result<(), Failure> {
        let refused = |why: &dyn std::fmt::Display, todo: &str| {
            Failure::new(format!("descriptor {fd}, passed by systemd"), why, todo)
        };
        const UNIT: &str = "its unit needs ListenStream= with an address and port, or a path, and no Accept=";
        // SAFETY: fcntl() takes any number for a descriptor.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(refused(&std::io::Error::last_os_error(), UNIT));
        }
        // SAFETY: it is open, and by LISTEN_PID and LISTEN_FDS meant for this process alone, which takes it
        // once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let listens = socket_acceptconn(&fd).unwrap_or(false);
        let stream = socket_type(&fd) == Ok(SocketType::STREAM);
        match socket_domain(&fd) {
            Ok(AddressFamily::INET | AddressFamily::INET6) if listens && stream => {
                self.metrics.push(fd.into());
                Ok(())
            }
            Ok(AddressFamily::UNIX) if listens && stream && self.queries.is_none() => {
                self.queries = Some(fd.into());
                Ok(())
            }
            Ok(AddressFamily::UNIX) if listens && stream => {
                Err(refused(&"a second unix socket", "configure one in its units"))
            }
            Ok(_) => Err(refused(&"not a TCP or unix stream listener", UNIT)),
            Err(_) => Err(refused(&"not a socket", UNIT)),
        }
    }

    /// # Errors
    /// When the kernel refuses, for which it has no reason.
    pub fn set_nonblocking(&self) -> std::io::Result<()> {
        self.metrics.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        self.queries.as_ref().map_or(Ok(()), |listener| listener.set_nonblocking(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_for_the_process_that_is_named() {
        let counted = |pid, fds| count(pid, fds, 7).map_err(|failure| failure.to_string());
        assert_eq!(counted(Some("7"), Some("2")), Ok(2));
        for (pid, fds) in [
            (None, None),
            (None, Some("2")),
            (Some("7"), None),
            (Some("8"), Some("2")),
            (Some("x"), Some("2")),
        ] {
            assert_eq!(counted(pid, fds), Ok(0), "{pid:?} {fds:?}");
        }
        for fds in ["-1", "65", "many", ""] {
            assert!(counted(Some("7"), Some(fds)).unwrap_err().contains("LISTEN_FDS is"), "{fds}");
        }
    }
}
