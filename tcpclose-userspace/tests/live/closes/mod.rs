//! Every way in which a connection ends, on real sockets: exactly the phases it went through are counted, on the right
//! port and side, each with the duration by the test's own clock, and nothing else.
//!
//! * [`table`]: the closes, and the expected result of each. [`stage`]: how they are made.
//! * [`watcher`]: agents at every backend of the state hook, which watch the same traffic. [`verdict`]: their results.
//! * [`all`]: all closes at the same time, each on a port of its own, so that one minute of TIME-WAIT is enough for all.
//! * [`older`]: sockets that were there before the agents.
//!
//! A wrong report of an agent fails the test, unless the kernel's own count shows that it left out the agent's program that
//! often (`common/left_out.rs`): then that close is repeated until every agent reports it right (`common/rounds.rs`). Linux 6.1, emulated, with five agents on two CPUs, does that to the classic tracepoint in some
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

use std::sync::{Mutex, MutexGuard, PoisonError};

use stage::Family;

#[test]
#[ignore = "needs root"]
fn every_close_is_counted_as_it_was() {
    rounds::until_reported(all::plays(), all::round);
}

#[test]
#[ignore = "needs root"]
fn what_was_there_before_the_agent_has_its_true_age() {
    rounds::until_reported(Family::ALL.to_vec(), older::round);
}

/// A lock for the start of agents. One after the other they are up as soon as side by side, and the first ones sooner: the
/// sockets before them last a minute.
fn starting() -> MutexGuard<'static, ()> {
    static STARTING: Mutex<()> = Mutex::new(());
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}
