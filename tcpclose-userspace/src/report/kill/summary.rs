//! What became of each socket: the document of `kill --json`, and the sums.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::kill::KillOutcome;
use crate::report::kill::plan::Left;
use crate::report::sockets::{DocumentSource, StuckSocket};

/// What `tcpclose kill --json` prints.
#[derive(Debug, Serialize)]
pub struct KillReport {
    /// [`crate::kill::SCHEMA`].
    pub schema: u32,
    pub host: String,
    pub boot_id: String,
    /// When the sockets were looked at, RFC 3339, UTC.
    pub at: String,
    /// Who looked, and who destroyed.
    pub source: DocumentSource,
    /// Nothing was touched.
    pub dry_run: bool,
    /// Stopped by a signal before the last one.
    pub interrupted: bool,
    pub destroyed: usize,
    pub spared: usize,
    pub refused: usize,
    /// Matching sockets that were left alone, by why.
    pub left: Left,
    pub incomplete: Vec<String>,
    pub sockets: Vec<Fate>,
}

/// A socket that was to go, and whether it went.
#[derive(Debug, Serialize)]
pub struct Fate {
    #[serde(flatten)]
    pub socket: StuckSocket,
    /// `null` for one that was not tried: in a dry run, or after a signal.
    pub result: Option<KillOutcome>,
    /// When it was tried, RFC 3339, UTC.
    pub tried_at: Option<String>,
}

/// How many went, and how many did not, by why.
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
