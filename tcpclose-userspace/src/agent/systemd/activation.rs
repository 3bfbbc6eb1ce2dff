//! Sockets that systemd has opened for the agent (sd_listen_fds(3)). They are recognised by their type, so
//! units need no names: TCP listeners serve metrics, a unix listener serves the command line.

use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::failure::Failure;

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
    let fds = sd_notify::listen_fds().map_err(|why| {
        let todo = "start it by its socket unit, or unset LISTEN_PID and LISTEN_FDS";
        Failure::new("sockets passed by systemd", why, todo)
    })?;
    let mut passed = Passed::default();
    for fd in fds {
        passed.take(fd)?;
    }
    Ok(passed)
}

impl Passed {
    fn take(&mut self, fd: RawFd) -> Result<(), Failure> {
        let refused = |why: &dyn std::fmt::Display, todo: &str| {
            Failure::new(format!("descriptor {fd}, passed by systemd"), why, todo)
        };
        const UNIT: &str = "its unit needs ListenStream= with an address and port, or a path, and no Accept=";
        // SAFETY: it is open, since close-on-exec was set on it, and by LISTEN_PID and LISTEN_FDS meant for this process
        // alone, which takes it once.
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
