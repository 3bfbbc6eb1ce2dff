//! The result for each socket: the document of `kill --json`, and the sums.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::report::envelope::document;
use crate::report::kill::outcome::{KillOutcome, SCHEMA};
use crate::report::kill::plan::Left;
use crate::report::sockets::StuckSocket;

document! {
    /// What `tcpclose kill --json` prints. Its `source` listed the sockets and destroyed them.
    #[derive(Debug, Serialize)]
    pub struct KillReport: SCHEMA {
        /// Nothing was destroyed.
        pub dry_run: bool,
        /// A signal stopped it before the last socket.
        pub interrupted: bool,
        pub destroyed: usize,
        pub spared: usize,
        pub refused: usize,
        /// Matching sockets that were left alone, by reason.
        pub left: Left,
    } {
        pub sockets: Vec<Fate>,
    }
}

/// A socket that was selected, and its result.
#[derive(Debug, Serialize)]
pub struct Fate {
    #[serde(flatten)]
    pub socket: StuckSocket,
    /// `null` where it was not tried: in a dry run, or after a signal.
    pub result: Option<KillOutcome>,
    /// When it was tried, RFC 3339, UTC.
    pub tried_at: Option<String>,
}

/// How many were destroyed, and how many were not, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub destroyed: usize,
    pub spared: BTreeMap<String, usize>,
    pub refused: BTreeMap<String, usize>,
}

impl Tally {
    pub fn add(&mut self, outcome: &KillOutcome) {
        match outcome {
            KillOutcome::Destroyed => self.destroyed += 1,
            KillOutcome::Spared { why } => *self.spared.entry(why.clone()).or_default() += 1,
            KillOutcome::Refused { why, .. } => *self.refused.entry(why.clone()).or_default() += 1,
        }
    }

    pub fn spared(&self) -> usize {
        self.spared.values().sum()
    }

    pub fn refused(&self) -> usize {
        self.refused.values().sum()
    }

    /// `destroyed 98, spared 1 (it has gone), refused 1 (Operation not permitted (os error 1))`.
    pub fn words(&self) -> String {
        let mut words = format!("destroyed {}", self.destroyed);
        for (what, by_why) in [("spared", &self.spared), ("refused", &self.refused)] {
            for (why, n) in by_why {
                words.push_str(&format!(", {what} {n} ({why})"));
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_why() {
        let mut tally = Tally::default();
        let refused = |errno, why: &str| KillOutcome::Refused { errno: Some(errno), why: why.to_owned() };
        for outcome in [
            KillOutcome::Destroyed,
            refused(1, "not permitted"),
            KillOutcome::Spared { why: "it has gone".to_owned() },
            refused(1, "not permitted"),
            refused(95, "not supported"),
        ] {
            tally.add(&outcome);
        }
        assert_eq!((tally.destroyed, tally.spared(), tally.refused()), (1, 1, 3));
        assert_eq!(
            tally.words(),
            "destroyed 1, spared 1 (it has gone), refused 2 (not permitted), refused 1 (not supported)"
        );
    }
}
