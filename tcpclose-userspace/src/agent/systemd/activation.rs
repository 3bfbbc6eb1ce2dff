//! Sockets that systemd has opened for the agent (sd_listen_fds(3)): told apart by what they are, so that their units need no
//! names. TCP listeners are for metrics, a unix listener is for the command line.

use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::failure::Failure;

/// The first descriptor behind the standard ones, which is where systemd begins.
const FIRST: RawFd = 3;
const MOST: u32 = 64;

/// In place of `--listen`, and of `--socket`, where there are any.
#[derive(Debug, Default)]
pub struct Passed {
    pub metrics: Vec<TcpListener>,
    pub queries: Option<UnixListener>,
}

/// Takes them. To be called once, for they are the caller's from then on.
///
/// # Errors
/// Where one of them is neither kind of listener.
pub fn take() -> Result<Passed, Failure> {
    let text = |name| std::env::var(name).ok();
    let count = count(text("LISTEN_PID").as_deref(), text("LISTEN_FDS").as_deref(), std::process::id())?;
    let mut passed = Passed::default();
    for fd in (FIRST..).take(count as usize) {
        passed.take(fd)?;
    }
    Ok(passed)
}

/// How many there are for this process.
fn count(pid: Option<&str>, fds: Option<&str>, own: u32) -> Result<u32, Failure> {
    let (Some(pid), Some(fds)) = (pid, fds) else { return Ok(0) };
    if pid.parse() != Ok(own) {
        return Ok(0);
    }
    match fds.parse() {
        Ok(count) if count <= MOST => Ok(count),
        _ => {
            let why = format!("LISTEN_FDS is {fds:?}");
            Err(Failure::new("sockets of systemd", why, format!("let its units have {MOST} at most")))
        }
    }
}

impl Passed {
    fn take(&mut self, fd: RawFd) -> Result<(), Failure> {
        let refused = |why: &dyn std::fmt::Display, todo: &str| {
            Failure::new(format!("descriptor {fd}, passed by systemd"), why, todo)
        };
        const UNIT: &str =
            "write ListenStream= with an address and port or a path, and no Accept=, in its unit";
        // SAFETY: fcntl() takes any number for a descriptor.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(refused(&std::io::Error::last_os_error(), UNIT));
        }
        // SAFETY: it is open, and by LISTEN_PID and LISTEN_FDS meant for this process alone, which takes it once.
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
                Err(refused(&"a second unix socket", "let the units have one of them"))
            }
            Ok(_) => Err(refused(&"it is no listener that the agent could serve at", UNIT)),
            Err(_) => Err(refused(&"it is no socket", UNIT)),
        }
    }

    /// Nothing waits for who is not there.
    ///
    /// # Errors
    /// Where the kernel refuses, which it has no reason to.
    pub fn never_block(&self) -> std::io::Result<()> {
        self.metrics.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        self.queries.as_ref().map_or(Ok(()), |listener| listener.set_nonblocking(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_for_the_process_that_is_named() {
        let told = |pid, fds| count(pid, fds, 7).map_err(|failure| failure.to_string());
        assert_eq!(told(Some("7"), Some("2")), Ok(2));
        for (pid, fds) in [
            (None, None),
            (None, Some("2")),
            (Some("7"), None),
            (Some("8"), Some("2")),
            (Some("x"), Some("2")),
        ] {
            assert_eq!(told(pid, fds), Ok(0), "{pid:?} {fds:?}");
        }
        for fds in ["-1", "65", "many", ""] {
            assert!(told(Some("7"), Some(fds)).unwrap_err().contains("LISTEN_FDS is"), "{fds}");
        }
    }
}
