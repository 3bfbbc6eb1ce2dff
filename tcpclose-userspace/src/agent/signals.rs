//! SIGTERM, SIGINT and SIGHUP, from the agent's first instruction on.
//!
//! The start can wait in the kernel: for the verifier, RCU, another agent's lock. So signals are blocked on
//! every thread and taken by one that does nothing else. Until the start is over that thread ends the process
//! itself, whatever other threads do: it removes the files in [`Leftovers`] and exits. Everything of eBPF
//! goes with its descriptors, and a load that is under way gives up (`do_check()` looks at
//! `signal_pending()`, kernel/bpf/verifier.c, 5.8 to 6.18). After the start it notifies the agent's loop,
//! which ends in order.

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::sync::Notify;

use crate::agent::leftovers::{HeldFiles, Leftovers};

/// An agent that has not ended so long after a signal is ended by force. Longer than its last save and its
/// last dump may take together.
const LAST_RESORT: Duration = Duration::from_secs(4);

const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The signals, blocked on this thread and on those that it starts.
pub struct Blocked {
    set: libc::sigset_t,
}

/// Blocks the signals. One that comes now waits for [`Blocked::listen`].
pub fn block() -> io::Result<Blocked> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset() initialises the set, sigaddset() changes it, and pthread_sigmask() reads it; it
    // is given no place for the former mask.
    let (set, refused) = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in SIGNALS {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        let refused = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        (set.assume_init(), refused)
    };
    match refused {
        0 => Ok(Blocked { set }),
        why => Err(io::Error::from_raw_os_error(why)),
    }
}

impl Blocked {
    /// Starts the thread that takes them; it runs `first` first.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn listen(self, first: impl FnOnce() + Send + 'static) -> io::Result<Signals> {
        /// For a few calls, and a log line.
        const STACK: usize = 128 << 10;
        let signals = Signals::default();
        let taking = signals.clone();
        thread::Builder::new().name("signals".to_owned()).stack_size(STACK).spawn(move || {
            first();
            loop {
                taking.take(wait(&self.set));
            }
        })?;
        Ok(signals)
    }
}

/// The next signal of `set`.
fn wait(set: &libc::sigset_t) -> libc::c_int {
    let mut signal = 0;
    // SAFETY: it reads the set, which is initialised, and writes one number. It can fail for a bad set only.
    unsafe { libc::sigwait(set, &mut signal) };
    signal
}

#[derive(Clone, Default)]
pub struct Signals {
    shared: Arc<SignalState>,
}

#[derive(Default)]
struct SignalState {
    end: Notify,
    hangup: Notify,
    leftovers: Leftovers,
    /// The signal that ends the agent.
    ended_by: OnceLock<&'static str>,
    reported: AtomicBool,
}

impl Signals {
    pub fn leftovers(&self) -> &Leftovers {
        &self.shared.leftovers
    }

    /// The start is over: from now on the loop ends the agent, when [`Self::end`] returns.
    pub fn started(&self) {
        self.shared.leftovers.hold().started = true;
    }

    /// Returns when the agent is to end.
    pub async fn end(&self) {
        self.shared.end.notified().await;
    }

    /// Returns when the settings are to be read again. Several SIGHUPs at once count as one.
    pub async fn hangup(&self) {
        self.shared.hangup.notified().await;
    }

    /// Logs the signal that ended the agent, if one did.
    pub fn report_stop(&self) {
        if let Some(name) = self.shared.ended_by.get() {
            self.report(format_args!("{name}"));
        }
    }

    /// Once: both this thread and the agent's may be about to end the process.
    fn report(&self, how: std::fmt::Arguments<'_>) {
        if !self.shared.reported.swap(true, Ordering::Relaxed) {
            log::info!("stopped: {how}");
        }
    }

    fn take(&self, signal: libc::c_int) {
        let name = match signal {
            libc::SIGHUP => return self.shared.hangup.notify_one(),
            libc::SIGINT => "SIGINT",
            _ => "SIGTERM",
        };
        let held = self.shared.leftovers.hold();
        if !held.started {
            self.report(format_args!("{name} during the start"));
            exit(held);
        }
        drop(held);
        // The first signal counts; later ones are not taken.
        let _ = self.shared.ended_by.set(name);
        self.shared.end.notify_one();
        thread::sleep(LAST_RESORT);
        let mut held = self.shared.leftovers.hold();
        // First, since a log that nobody reads may block.
        remove(&mut held);
        self.report(format_args!("{name}, by force: tasks were still running after {LAST_RESORT:?}"));
        exit(held);
    }
}

/// Removes what the process holds, and ends it. The exit may wait for a thread in the kernel; the path of the
/// socket and the state directory are free for the next agent before that.
fn exit(mut held: MutexGuard<'_, HeldFiles>) -> ! {
    remove(&mut held);
    // SAFETY: it ends every thread where it is and runs nothing of this process. The guard is not released,
    // so that the starting thread makes nothing new meanwhile.
    unsafe { libc::_exit(0) }
}

fn remove(held: &mut HeldFiles) {
    if let Some(file) = held.socket.take() {
        file.remove();
    }
    if let Some(lock) = held.lock.take() {
        // It goes with the process anyway.
        let _ = flock(lock, FlockOperation::Unlock);
    }
}
