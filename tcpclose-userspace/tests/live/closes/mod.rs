//! Every way in which a connection ends, on real sockets: exactly the phases it went through are counted, on the right
//! port and side, each as long as the test's own clock says, and nothing is counted besides.
//!
//! * [`table`]: the closes, and what is true of each. [`stage`]: how they are played.
//! * [`watcher`]: agents at every backend of the state hook, which watch the same traffic. [`verdict`]: what they told.
//! * [`all`]: all closes at the same time, each on a port of its own, so that one minute of TIME-WAIT serves them all.
//! * [`older`]: sockets that were there before the agents.
//!
//! What an agent tells wrong of a close fails the test, but where the kernel itself says that it left out the agent's
//! program that often (`common/left_out.rs`): then that close is played again, until every agent tells it right
//! (`common/rounds.rs`). Linux 6.1, emulated, with five agents on two CPUs, does that to the classic tracepoint in some
//! runs.

use crate::common;
use crate::common::left_out;
use crate::common::rounds;

mod all;
mod older;
mod stage;
mod table;
mod verdict;
mod watcher;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use stage::{Family, now, seconds};
use watcher::Watcher;

#[test]
#[ignore = "needs root"]
fn every_close_is_counted_as_it_was() {
    rounds::until_told(all::plays(), all::round);
}

#[test]
#[ignore = "needs root"]
fn what_was_there_before_the_agent_has_its_true_age() {
    rounds::until_told(Family::ALL.to_vec(), older::round);
}

/// To be held while agents start. One after the other they are up as soon as side by side, and the first ones sooner: what
/// is there before them lasts a minute.
fn starting() -> MutexGuard<'static, ()> {
    static STARTING: Mutex<()> = Mutex::new(());
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the thread that notes gaps, also when a test fails before it is done.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Notes how far apart dumps are, until `done`.
fn note_gaps(watchers: &[Watcher], done: &AtomicBool) {
    const PAUSE: Duration = Duration::from_millis(250);
    while !done.load(Ordering::Relaxed) {
        let before = now();
        sleep(PAUSE);
        // As late as this thread woke up, an agent may wake up too.
        let late = seconds(now() - before) - PAUSE.as_secs_f64();
        for watcher in watchers {
            watcher.note_gap(&watcher.metrics(), late);
        }
    }
}
