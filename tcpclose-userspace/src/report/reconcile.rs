//! The document at `/v1/reconcile`: the progress of a comparison with the kernel.

use serde::{Deserialize, Serialize};

use crate::report::sockets::Versioned;

pub const SCHEMA: u32 = 1;

/// The progress of the reconcile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReconcileProgress {
    /// [`SCHEMA`].
    pub schema: u32,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub now_ns: u64,
    /// Start of the last finished one, by the same clock.
    pub done_ns: u64,
    /// Whether one is under way, and the network namespaces it has left.
    pub under_way: bool,
    pub namespaces_left: usize,
    /// The age of the oldest part of the gauges.
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

    /// The work that is left, in words.
    pub fn words(&self) -> String {
        let old = format!("its numbers are up to {:.0} s old", self.age_seconds);
        match (self.under_way, self.namespaces_left) {
            (false, _) => format!("the agent searches for network namespaces; {old}"),
            (true, 1) => format!("the agent dumps 1 more network namespace; {old}"),
            (true, n) => format!("the agent dumps {n} more network namespaces; {old}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_that_is_left_is_named() {
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
