//! SIGINT and SIGTERM, noticed between two steps of a command that must not stop in the middle of one.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::failure::Failure;

/// Catches the signals from its creation on; they no longer end the process.
pub struct Interrupt {
    /// A signal writes a byte to the other end.
    caught: UnixStream,
}

impl Interrupt {
    pub fn catch() -> Result<Self, Failure> {
        let pair = UnixStream::pair().and_then(|(caught, written)| {
            pipe::register(SIGINT, written.try_clone()?)?;
            pipe::register(SIGTERM, written)?;
            Ok(caught)
        });
        pair.map(|caught| Self { caught }).map_err(|why| Failure::new("cannot start", why, "report this"))
    }

    /// Waits for `pause`, or until a signal has come: returns whether one has.
    pub fn within(&self, pause: Duration) -> bool {
        let pause = Timespec::try_from(pause).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        loop {
            match poll(&mut [PollFd::new(&self.caught, PollFlags::IN)], Some(&pause)) {
                Err(Errno::INTR) => {}
                ready => return ready.is_ok_and(|ready| ready > 0),
            }
        }
    }
}
