//! The bounded account of how connections end: counters and histograms per (side, port, state). Pure.
//!
//! * [`buckets`]: the bounds of each state's histogram.
//! * [`names`]: which ports have a series of their own, so that the number of series is bounded.
//! * [`census`]: the gauges, counted over the tracker's lives at the moment they are asked for.

pub mod buckets;
pub mod census;
pub mod names;

use std::collections::{BTreeMap, BTreeSet};

use tcpclose_common::state::TcpState;

use crate::terms::{Outcome, Phase, Role};
use crate::tracker::fact::{Ended, Fact, Mended, Sink, Why};
use crate::tracker::life::Life;
use buckets::Histogram;
use census::{Census, StuckAfter};
use names::{Label, Names};

/// Kinds of close (role and outcome) that all labels together may have, for each label that can exist. A host has a
/// handful a port; the bound keeps a hostile one from making all of them. Beyond it a new kind counts as unknown.
const CLOSE_KINDS_PER_LABEL: usize = 20;

/// The counters, in the order that the metrics list has them.
pub struct Ledger {
    names: Names,
    /// Combinations that `tcpclose_sockets` has shown.
    shown: BTreeSet<(Label, Phase)>,
    durations: BTreeMap<(Label, Phase), Histogram>,
    transitions: BTreeMap<(TcpState, TcpState), u64>,
    closes: BTreeMap<(Label, Role, Outcome), u64>,
    time_wait_ended: BTreeMap<Ended, u64>,
    unseen: BTreeMap<(Phase, Why), u64>,
    mended: BTreeMap<Mended, u64>,
    overflows: u64,
    folded: u64,
}

impl Ledger {
    pub fn new(names: Names) -> Self {
        Self {
            names,
            shown: BTreeSet::new(),
            durations: BTreeMap::new(),
            transitions: BTreeMap::new(),
            closes: BTreeMap::new(),
            time_wait_ended: BTreeMap::new(),
            unseen: BTreeMap::new(),
            mended: BTreeMap::new(),
            overflows: 0,
            folded: 0,
        }
    }

    /// Durations by state, of sockets that left it.
    pub fn durations(&self) -> impl Iterator<Item = (Label, Phase, &Histogram)> {
        self.durations.iter().map(|(&(label, phase), histogram)| (label, phase, histogram))
    }

    pub fn transitions(&self) -> impl Iterator<Item = (TcpState, TcpState, u64)> {
        self.transitions.iter().map(|(&(from, to), &n)| (from, to, n))
    }

    pub fn closes(&self) -> impl Iterator<Item = (Label, Role, Outcome, u64)> {
        self.closes.iter().map(|(&(label, role, outcome), &n)| (label, role, outcome, n))
    }

    /// Every reason, 0 where none was seen.
    pub fn time_wait_ended(&self) -> impl Iterator<Item = (Ended, u64)> {
        Ended::ALL.into_iter().map(|how| (how, self.time_wait_ended.get(&how).copied().unwrap_or(0)))
    }

    pub fn unseen(&self) -> impl Iterator<Item = (Phase, Why, u64)> {
        self.unseen.iter().map(|(&(phase, why), &n)| (phase, why, n))
    }

    /// Every kind, 0 where nothing was mended.
    pub fn mended(&self) -> impl Iterator<Item = (Mended, u64)> {
        Mended::ALL.into_iter().map(|what| (what, self.mended.get(&what).copied().unwrap_or(0)))
    }

    /// TIME-WAITs that were skipped, as hooks told.
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Closes that went to `other` for want of a name.
    pub fn folded(&self) -> u64 {
        self.folded
    }

    /// Counts the gauges over `lives`, see [`Census::count`]. A combination that was shown once is shown as 0 from then on.
    pub fn census<'a>(
        &mut self,
        lives: impl Iterator<Item = &'a Life>,
        stuck_after: &StuckAfter,
        dumped: &impl Fn(u32) -> bool,
        now_ns: u64,
    ) -> Census {
        let mut census = Census::count(lives, &mut self.names, stuck_after, dumped, now_ns);
        self.retire();
        self.shown.extend(census.sockets.keys());
        for &combination in &self.shown {
            census.sockets.entry(combination).or_default();
        }
        for label in self.shown.iter().map(|&(label, _)| label) {
            census.stuck.entry(label).or_insert_with(|| vec![0; stuck_after.bounds_ns().len()]);
            census.unproven.entry(label).or_default();
        }
        census
    }

    /// Removes the series of pairs that lost their name since the last call.
    fn retire(&mut self) {
        for label in self.names.take_retired() {
            self.shown.retain(|&(l, _)| l != label);
            self.durations.retain(|&(l, _), _| l != label);
            self.closes.retain(|&(l, ..), _| l != label);
        }
    }
}

impl Sink for Ledger {
    fn fact(&mut self, at_ns: u64, fact: Fact) {
        match fact {
            Fact::Transition { from, to } => *self.transitions.entry((from, to)).or_default() += 1,
            Fact::Dwelt { phase, pair, ns } => {
                let label = self.names.label(pair, at_ns);
                self.retire();
                self.durations.entry((label, phase)).or_insert_with(|| Histogram::new(phase)).observe(ns);
            }
            Fact::Unseen { phase, why } => *self.unseen.entry((phase, why)).or_default() += 1,
            Fact::Closed { pair, role, outcome } => {
                self.names.closed(pair);
                let label = self.names.label(pair, at_ns);
                self.retire();
                if label.port.is_none() {
                    self.folded += 1;
                }
                let kinds = (self.names.most() + crate::terms::Side::ALL.len()) * CLOSE_KINDS_PER_LABEL;
                let full = self.closes.len() >= kinds;
                let kind = if full && !self.closes.contains_key(&(label, role, outcome)) {
                    (label, Role::Unknown, Outcome::Unknown)
                } else {
                    (label, role, outcome)
                };
                *self.closes.entry(kind).or_default() += 1;
            }
            Fact::TimeWaitEnded { how } => *self.time_wait_ended.entry(how).or_default() += 1,
            Fact::TimeWaitOverflow => self.overflows += 1,
            Fact::Mended { what } => *self.mended.entry(what).or_default() += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terms::Side;
    use crate::tracker::fact::Pair;

    fn ledger(max: usize) -> Ledger {
        Ledger::new(Names::new(max, &[], 32768..=60999))
    }

    #[test]
    fn sums_and_counts_are_those_of_the_facts() {
        let mut ledger = ledger(4);
        let pair = Pair { side: Side::Server, port: 80 };
        for ns in [500_000, 1_500_000, 70_000_000_000] {
            ledger.fact(1, Fact::Dwelt { phase: Phase::CloseWait, pair, ns });
        }
        ledger.fact(1, Fact::Closed { pair, role: Role::Passive, outcome: Outcome::Graceful });
        let (label, phase, histogram) = ledger.durations().next().unwrap();
        assert_eq!((label.port, phase), (Some(80), Phase::CloseWait));
        assert_eq!(histogram.count(), 3);
        assert!((histogram.sum_seconds() - 70.002).abs() < 1e-9);
        let cumulative: Vec<(f64, u64)> = histogram.cumulative().collect();
        assert_eq!(&cumulative[..2], &[(0.001, 1), (0.01, 2)]);
        assert_eq!(cumulative.last().unwrap().1, 3);
        assert_eq!(ledger.folded(), 0);
    }

    #[test]
    fn fifty_thousand_ports_leave_a_bounded_ledger() {
        let mut ledger = ledger(32);
        for port in 1..=50_000u16 {
            for (role, outcome) in [
                (Role::Active, Outcome::Graceful),
                (Role::Passive, Outcome::ResetReceived),
                (Role::None, Outcome::Aborted),
            ] {
                for side in Side::ALL {
                    let pair = Pair { side, port };
                    for phase in Phase::ALL {
                        ledger.fact(1, Fact::Dwelt { phase, pair, ns: 5 });
                    }
                    ledger.fact(1, Fact::Closed { pair, role, outcome });
                }
            }
        }
        assert_eq!(ledger.durations().count(), (32 + 3) * 6);
        assert_eq!(ledger.closes().count(), (32 + 3) * 3);
        let named: Vec<u16> = ledger.closes().filter_map(|(label, ..)| label.port).collect();
        assert!(named.iter().all(|&port| port <= 11), "the first to come are named: {named:?}");
        assert_eq!(ledger.closes().map(|(.., n)| n).sum::<u64>(), 50_000 * 9);
        assert_eq!(ledger.folded(), (50_000 * 3 - 32) * 3);
    }

    #[test]
    fn kinds_of_close_are_bounded() {
        let mut ledger = ledger(1);
        for side in Side::ALL {
            for port in [80, 81] {
                for role in Role::ALL {
                    for outcome in Outcome::ALL {
                        ledger.fact(1, Fact::Closed { pair: Pair { side, port }, role, outcome });
                    }
                }
            }
        }
        // One (unknown, unknown) more for each of the four labels at the most.
        assert!(ledger.closes().count() <= 4 * CLOSE_KINDS_PER_LABEL + 4);
        assert_eq!(ledger.closes().map(|(.., n)| n).sum::<u64>(), 3 * 2 * 5 * 7);
    }
}
