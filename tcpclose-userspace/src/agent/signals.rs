//! SIGTERM, SIGINT and SIGHUP, from the agent's first instruction on.
//!
//! The start can wait in the kernel: the verifier, RCU, a lock of another agent's. So signals are blocked on every thread and
//! taken by one that does nothing else. Until the start is over it ends the process itself, whatever other threads do:
//! it takes away the files in [`Leftovers`] and exits. Everything of eBPF goes with its descriptors, and a load that is
//! under way gives up (`do_check()` looks at `signal_pending()`, kernel/bpf/verifier.c, 5.8 to 6.18). Afterwards it
//! tells the agent's loop, which ends in order.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::sync::Notify;

use crate::agent::server::listener::SocketFile;

/// An agent that is told to end and has not ended after this long is ended: more than it gives its last save and its last
/// dump together.
const LAST_RESORT: Duration = Duration::from_secs(4);

const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The signals, blocked on this thread and on those that it starts.
pub struct Blocked {
    set: libc::sigset_t,
}

/// Blocks the signals. One that comes now waits for [`Blocked::hear`].
pub fn block() -> io::Result<Blocked> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset() initialises the set, sigaddset() changes it, and pthread_sigmask() reads it; it is given no place
    // for the former mask.
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
    /// Starts the thread that takes them; it begins with `first`.
    ///
    /// # Errors
    /// When there can be no such thread.
    pub fn hear(self, first: impl FnOnce() + Send + 'static) -> io::Result<Signals> {
        /// It calls little, and logs a line.
        const STACK: usize = 128 << 10;
        let signals = Signals::default();
        let heard = signals.clone();
        thread::Builder::new().name("signals".to_owned()).stack_size(STACK).spawn(move || {
            first();
            loop {
                heard.take(wait(&self.set));
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

/// What the signals do.
#[derive(Clone, Default)]
pub struct Signals {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    end: Notify,
    hangup: Notify,
    leftovers: Leftovers,
}

impl Signals {
    pub fn leftovers(&self) -> &Leftovers {
        &self.shared.leftovers
    }

    /// The start is over: from now on the loop ends the agent, by [`Self::end`].
    pub fn started(&self) {
        self.shared.leftovers.hold().started = true;
    }

    /// Returns when the agent is to end.
    pub async fn end(&self) {
        self.shared.end.notified().await;
    }

    /// Returns when the settings are to be read again. Several that come at once are one.
    pub async fn hangup(&self) {
        self.shared.hangup.notified().await;
    }

    fn take(&self, signal: libc::c_int) {
        let name = match signal {
            libc::SIGHUP => return self.shared.hangup.notify_one(),
            libc::SIGINT => "SIGINT",
            _ => "SIGTERM",
        };
        let held = self.shared.leftovers.hold();
        if !held.started {
            log::info!("ended by {name} during the start");
            exit(held);
        }
        drop(held);
        log::info!("ending: {name}");
        self.shared.end.notify_one();
        thread::sleep(LAST_RESORT);
        exit(self.shared.leftovers.hold());
    }
}

/// Takes away what the process holds, and ends it. An exit that waits for a thread in the kernel keeps neither the path of
/// the socket nor the state directory from the next agent.
fn exit(mut held: MutexGuard<'_, Held>) -> ! {
    if let Some(file) = held.socket.take() {
        file.remove();
    }
    if let Some(lock) = held.lock.take() {
        // It goes with the process anyway.
        let _ = flock(lock, FlockOperation::Unlock);
    }
    // SAFETY: it ends every thread where it is and runs nothing of this process. The guard is not released, so that the
    // starting thread makes nothing new meanwhile.
    unsafe { libc::_exit(0) }
}

/// What an agent that ends during its start would leave behind.
#[derive(Clone, Default)]
pub struct Leftovers {
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
pub struct Held {
    /// The query socket's file.
    pub socket: Option<SocketFile>,
    /// The lock of the state directory.
    pub lock: Option<File>,
    started: bool,
}

impl Leftovers {
    /// Held while something is made and written down here, so that no signal comes between the two.
    pub fn hold(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
