//! Notifications for systemd (sd_notify(3)): ready, reloading, stopping, alive.
//!
//! Each is a datagram to the socket in NOTIFY_SOCKET; without that variable none is sent. The ring loop sends
//! "alive", so `WatchdogSec=` restarts an agent whose thread hangs.

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
                let text = |name| std::env::var(name).ok();
                let watchdog = watchdog(
                    text("WATCHDOG_USEC").as_deref(),
                    text("WATCHDOG_PID").as_deref(),
                    std::process::id(),
                );
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

/// WATCHDOG_USEC, if it is meant for this process.
fn watchdog(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    usec?.parse().ok().filter(|usec| *usec > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_for_the_process_that_it_names() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog(Some("1000000"), None, 7), second);
        assert_eq!(watchdog(Some("1000000"), Some("7"), 7), second);
        for (usec, pid) in [
            (None, None),
            (Some("0"), None),
            (Some("x"), None),
            (Some("1"), Some("8")),
            (Some("1"), Some("")),
        ] {
            assert_eq!(watchdog(usec, pid, 7), None, "{usec:?} {pid:?}");
        }
    }

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
