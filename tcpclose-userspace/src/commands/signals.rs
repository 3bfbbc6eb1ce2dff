//! SIGINT and SIGTERM, heard between two steps of a command that must not be cut in the middle of one.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// Hears signals from its making on; the process is no longer ended by them.
pub struct Interrupt {
    told: Receiver<()>,
}

impl Interrupt {
    pub fn hear() -> Result<Self, Failure> {
        let failure = |why: std::io::Error| Failure::new("cannot start", why, "report this");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failure)?;
        let guard = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failure)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failure)?;
        drop(guard);
        let (tell, told) = channel();
        // Ends with the process.
        thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    if tell.send(()).is_err() {
                        return;
                    }
                }
            });
        });
        Ok(Self { told })
    }

    /// Waits for `pause`, and no longer once a signal has come: returns whether one has.
    pub fn within(&self, pause: Duration) -> bool {
        match self.told.recv_timeout(pause) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                thread::sleep(pause);
                false
            }
        }
    }
}
