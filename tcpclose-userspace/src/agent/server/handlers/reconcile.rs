//! `POST /v1/reconcile`: a user asks for a comparison with the kernel now; `GET` tells how far it is.

use serde::{Deserialize, Serialize};

use crate::linux::host;
use crate::report::sockets::{Versioned, seconds};

use crate::agent::tracking::Tracking;

/// Where the command line asks, on the unix socket alone.
pub const PATH: &str = "/v1/reconcile";

pub const SCHEMA: u32 = 1;

/// How far the reconcile is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReconcileProgress {
    /// [`SCHEMA`].
    pub schema: u32,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub now_ns: u64,
    /// When the last one that is over began, by the same clock.
    pub done_ns: u64,
    /// Whether one is under way; if so, how many network namespaces it has not been to.
    pub under_way: bool,
    pub namespaces_left: usize,
    /// The age of the oldest part of what the gauges tell.
    pub age_seconds: f64,
}

impl Versioned for ReconcileProgress {
    fn schema(&self) -> u32 {
        self.schema
    }
}

impl ReconcileProgress {
    /// Whether a reconcile that began at `since_ns` or later is over.
    pub fn is_done(&self, since_ns: u64) -> bool {
        self.done_ns >= since_ns
    }

    /// What there is to wait for, in words.
    pub fn words(&self) -> String {
        let old = format!("its numbers are up to {:.0} s old", self.age_seconds);
        match (self.under_way, self.namespaces_left) {
            (false, _) => format!("the agent searches for network namespaces; {old}"),
            (true, 1) => format!("the agent dumps 1 more network namespace; {old}"),
            (true, n) => format!("the agent dumps {n} more network namespaces; {old}"),
        }
    }
}

/// Has the dumps begin one.
pub fn ask(engine: &mut Tracking) -> ReconcileProgress {
    engine.asked_ns = host::monotonic_ns();
    engine.asked.notify_one();
    progress(engine)
}

pub fn progress(engine: &Tracking) -> ReconcileProgress {
    let now_ns = host::monotonic_ns();
    ReconcileProgress {
        schema: SCHEMA,
        now_ns,
        done_ns: engine.dumps.round_ns,
        under_way: engine.namespaces.is_under_way(),
        namespaces_left: engine.namespaces.left(),
        age_seconds: seconds(engine.ages(now_ns).oldest_ns()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_said() {
        let mut progress = ReconcileProgress {
            schema: 1,
            now_ns: 9,
            done_ns: 5,
            under_way: false,
            namespaces_left: 0,
            age_seconds: 40.4,
        };
        assert!(progress.is_done(5) && !progress.is_done(6));
        assert_eq!(
            progress.words(),
            "the agent searches for network namespaces; its numbers are up to 40 s old"
        );
        (progress.under_way, progress.namespaces_left) = (true, 12);
        assert!(progress.words().starts_with("the agent dumps 12 more network namespaces; "));
    }
}
