//! Notifications for systemd (sd_notify(3)): ready, reloading, stopping, alive.
//!
//! Each is a datagram to the socket in NOTIFY_SOCKET, sent without waiting (sd_notify::notify() waits while the receiver's queue
//! is full, and the agent has one thread); without that variable none is sent. The ring loop sends "alive", so `WatchdogSec=` restarts an agent whose thread hangs.

use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use crate::failure::printable;
use crate::linux::host;

#[derive(Default)]
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// systemd restarts the agent if it hears nothing for so long.
    watchdog: Option<Duration>,
    /// The last "alive".
    alive: Cell<Option<Instant>>,
}

impl Notify {
    pub fn from_environment() -> Self {
        let Some(to) = std::env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        match open(&to) {
            Ok(to) => {
                let watchdog = sd_notify::watchdog_enabled().filter(|watchdog| !watchdog.is_zero());
                Self { to: Some(to), watchdog, alive: Cell::default() }
            }
            Err(why) => {
                log::warn!(
                    "cannot notify systemd: NOTIFY_SOCKET={}: {why} (a unit with Type=notify will time out)",
                    to.display()
                );
                Self::default()
            }
        }
    }

    fn send(&self, message: &str) {
        let Some((socket, to)) = &self.to else { return };
        if let Err(why) = socket.send_to_addr(message.as_bytes(), to) {
            log::debug!("cannot send {message:?} to systemd: {why}");
        }
    }

    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", printable(status)));
    }

    pub fn reloading(&self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", host::monotonic_ns() / 1000));
    }

    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping");
    }

    /// The longest pause before [`Self::alive`] is to be called again.
    pub fn pause(&self) -> Duration {
        self.watchdog.map_or(Duration::MAX, |watchdog| watchdog / 4)
    }

    /// To be called at least each [`Self::pause`]; sends at most twice within the watchdog's time.
    pub fn alive(&self) {
        let Some(watchdog) = self.watchdog else { return };
        let now = Instant::now();
        // Another pause would be too late.
        if self.alive.get().is_none_or(|last| now - last >= watchdog / 4) {
            self.send("WATCHDOG=1");
            self.alive.set(Some(now));
        }
    }
}

/// `to`: a path, or an abstract name behind an @.
fn open(to: &OsString) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match to.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(to)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abstract_name_is_notified_as_well_as_a_path() {
        let name = format!("tcpclose-{}", std::process::id());
        let receiver = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let to = open(&OsString::from(format!("@{name}"))).unwrap();
        let notify = Notify { to: Some(to), ..Notify::default() };
        notify.ready("a\nb");
        let mut text = [0; 64];
        let n = receiver.recv(&mut text).unwrap();
        assert_eq!(&text[..n], b"READY=1\nSTATUS=a\\nb");
        assert!(open(&OsString::from("x".repeat(200))).is_err());
    }
}
