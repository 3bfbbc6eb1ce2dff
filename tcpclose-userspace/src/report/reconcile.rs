//! The progress of a reconcile that a user has asked for.

use serde::{Deserialize, Serialize};

use crate::report::sockets::Versioned;

pub const SCHEMA: u32 = 1;

/// Progress of the reconcile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReconcileProgress {
    /// [`SCHEMA`].
    pub schema: u32,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub now_ns: u64,
    /// Beginning of the last complete reconcile, by the same clock.
    pub done_ns: u64,
    pub under_way: bool,
    /// Network namespaces that the running one has not dumped yet.
    pub namespaces_left: usize,
    /// Age of the oldest part of the gauges.
    pub age_seconds: f64,
}

impl Versioned for ReconcileProgress {
    fn schema(&self) -> u32 {
        self.schema
    }
}

impl ReconcileProgress {
    /// Whether a reconcile that began at `since_ns` or later is complete.
    pub fn is_done(&self, since_ns: u64) -> bool {
        self.done_ns >= since_ns
    }

    /// What the client waits for, in words.
    pub fn words(&self) -> String {
        let old = format!("its numbers are up to {:.0} s old", self.age_seconds);
        match (self.under_way, self.namespaces_left) {
            (false, _) => format!("the agent is searching for network namespaces; {old}"),
            (true, 1) => format!("the agent still has to dump 1 network namespace; {old}"),
            (true, n) => format!("the agent still has to dump {n} network namespaces; {old}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_is_put_into_words() {
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
            "the agent is searching for network namespaces; its numbers are up to 40 s old"
        );
        (progress.under_way, progress.namespaces_left) = (true, 12);
        assert!(progress.words().starts_with("the agent still has to dump 12 network namespaces; "));
    }
}
