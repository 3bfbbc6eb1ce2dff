//! The bounded account of how connections end: counters and histograms per (side, port, state). Pure.
//!
//! * [`histogram`]: the bounds of each state's histogram.
//! * [`port_labels`]: which ports have a series of their own, so that the number of series is bounded.
//! * [`gauges`]: the gauges, counted over the tracker's lives at the moment they are asked for.
//! * [`rates`]: how fast the counters grow.

pub mod gauges;
pub mod histogram;
pub mod port_labels;
pub mod rates;

use std::collections::BTreeSet;

use tcpclose_common::state::TcpState;

use crate::metrics::gauges::{Gauges, StuckAfter};
use crate::metrics::histogram::Histogram;
use crate::metrics::port_labels::{LabelSlot, PortLabels, Retired};
use crate::names::{Correction, Outcome, Phase, PortKey, Role, Side, TimeWaitEnd, UnmeasuredReason};
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::socket::TrackedSocket;

/// Kinds of close (role and outcome) that all labels together may have, for each label that can exist. A host has a
/// handful a port; the bound keeps a hostile one from making all of them, and with them more series than are promised.
/// Beyond it a new kind counts as unknown.
const CLOSE_KINDS_PER_LABEL: usize = 14;

/// As many as the kernel has numbers for, and one that it does not use.
const STATES: usize = TcpState::BoundInactive as usize + 1;

/// The counters, in the order that the metrics list has them. All are arrays that facts index, since each record makes
/// two or three of those; a combination is shown once it is not zero.
pub struct Metrics {
    names: PortLabels,
    /// Combinations that `tcpclose_sockets` has shown.
    shown: BTreeSet<(LabelSlot, Phase)>,
    /// By seat.
    rows: Vec<LabelRow>,
    transitions: [[u64; STATES]; STATES],
    /// Kinds of close that all rows have.
    close_kinds: usize,
    time_wait_ended: [u64; TimeWaitEnd::ALL.len()],
    unseen: [[u64; UnmeasuredReason::ALL.len()]; Phase::ALL.len()],
    mended: [u64; Correction::ALL.len()],
    overflows: u64,
    folded: u64,
}

/// What is counted under one label.
struct LabelRow {
    durations: [Histogram; Phase::ALL.len()],
    closes: [[u64; Outcome::ALL.len()]; Role::ALL.len()],
}

impl LabelRow {
    const EMPTY: Self = Self {
        durations: {
            let mut durations = [const { Histogram::new(Phase::FinWait1) }; Phase::ALL.len()];
            let mut at = 0;
            while at < Phase::ALL.len() {
                durations[at] = Histogram::new(Phase::ALL[at]);
                at += 1;
            }
            durations
        },
        closes: [[0; Outcome::ALL.len()]; Role::ALL.len()],
    };

    fn close_kinds(&self) -> usize {
        self.closes.as_flattened().iter().filter(|&&n| n != 0).count()
    }
}

impl Metrics {
    pub fn new(names: PortLabels) -> Self {
        Self {
            names,
            shown: BTreeSet::new(),
            rows: Vec::new(),
            transitions: [[0; STATES]; STATES],
            close_kinds: 0,
            time_wait_ended: [0; TimeWaitEnd::ALL.len()],
            unseen: [[0; UnmeasuredReason::ALL.len()]; Phase::ALL.len()],
            mended: [0; Correction::ALL.len()],
            overflows: 0,
            folded: 0,
        }
    }

    /// Durations by state, of sockets that left it.
    pub fn durations(&self) -> impl Iterator<Item = (LabelSlot, Phase, &Histogram)> {
        let each = self.rows().flat_map(|(label, row)| {
            Phase::ALL.into_iter().zip(&row.durations).map(move |(phase, each)| (label, phase, each))
        });
        each.filter(|(.., histogram)| histogram.count() != 0)
    }

    pub fn transitions(&self) -> impl Iterator<Item = (TcpState, TcpState, u64)> {
        let states = || (0..).map_while(|raw| (usize::from(raw) < STATES).then(|| TcpState::from_raw(raw)));
        let each = states()
            .zip(&self.transitions)
            .flat_map(move |(from, row)| states().zip(row).filter_map(move |(to, &n)| Some((from?, to?, n))));
        each.filter(|&(.., n)| n != 0)
    }

    pub fn closes(&self) -> impl Iterator<Item = (LabelSlot, Role, Outcome, u64)> {
        let each = self.rows().flat_map(|(label, row)| {
            Role::ALL.into_iter().zip(&row.closes).flat_map(move |(role, row)| {
                Outcome::ALL.into_iter().zip(row).map(move |(outcome, &n)| (label, role, outcome, n))
            })
        });
        each.filter(|&(.., n)| n != 0)
    }

    /// Every reason, 0 where none was seen.
    pub fn time_wait_ended(&self) -> impl Iterator<Item = (TimeWaitEnd, u64)> {
        TimeWaitEnd::ALL.into_iter().zip(self.time_wait_ended)
    }

    pub fn unseen(&self) -> impl Iterator<Item = (Phase, UnmeasuredReason, u64)> {
        let each = Phase::ALL.into_iter().zip(&self.unseen).flat_map(|(phase, row)| {
            UnmeasuredReason::ALL.into_iter().zip(row).map(move |(why, &n)| (phase, why, n))
        });
        each.filter(|&(.., n)| n != 0)
    }

    /// Every kind, 0 where nothing was mended.
    pub fn mended(&self) -> impl Iterator<Item = (Correction, u64)> {
        Correction::ALL.into_iter().zip(self.mended)
    }

    /// TIME-WAITs that were skipped, as hooks told.
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Closes that went to `other` for want of a name.
    pub fn folded(&self) -> u64 {
        self.folded
    }

    /// Counts the gauges over `lives`, see [`Gauges::count`]. A combination that was shown once is shown as 0 from then on.
    pub fn census<'a>(
        &mut self,
        lives: impl Iterator<Item = &'a TrackedSocket>,
        stuck_after: &StuckAfter,
        dumped: &impl Fn(u32) -> bool,
        now_ns: u64,
    ) -> Gauges {
        let mut census = Gauges::count(lives, &mut self.names, stuck_after, dumped, now_ns);
        self.retire();
        self.shown.extend(census.standing.keys());
        for &combination in &self.shown {
            census.standing.entry(combination).or_default();
        }
        for label in self.shown.iter().map(|&(label, _)| label) {
            census.stuck.entry(label).or_insert_with(|| vec![0; stuck_after.bounds_ns().len()]);
            census.unproven.entry(label).or_default();
        }
        census
    }

    /// Every row, in the order of labels.
    fn rows(&self) -> impl Iterator<Item = (LabelSlot, &LabelRow)> {
        let seated = self.names.seated().into_iter();
        seated.filter_map(|(label, seat)| Some((label, self.rows.get(seat)?)))
    }

    /// The row of `pair`, heard of at `now_ns`: its seat.
    fn seat(&mut self, pair: PortKey, now_ns: u64) -> usize {
        let seat = self.names.seat(pair, now_ns);
        if self.names.has_retired() {
            self.retire();
        }
        if seat >= self.rows.len() {
            self.rows.resize_with(seat + 1, || LabelRow::EMPTY);
        }
        seat
    }

    /// Removes the series of pairs that lost their name since the last call.
    fn retire(&mut self) {
        for Retired { label, seat } in self.names.take_retired() {
            self.shown.retain(|&(l, _)| l != label);
            if let Some(row) = self.rows.get_mut(seat) {
                self.close_kinds -= row.close_kinds();
                *row = LabelRow::EMPTY;
            }
        }
    }

    fn close(&mut self, pair: PortKey, role: Role, outcome: Outcome, at_ns: u64) {
        self.names.closed(pair);
        let seat = self.seat(pair, at_ns);
        if PortLabels::is_other(seat) {
            self.folded += 1;
        }
        let most = (self.names.most() + Side::ALL.len()) * CLOSE_KINDS_PER_LABEL;
        let Some(LabelRow { closes, .. }) = self.rows.get_mut(seat) else { return };
        let full = self.close_kinds >= most;
        let (role, outcome) = match closes[role as usize][outcome as usize] {
            0 if full => (Role::Unknown, Outcome::Unknown),
            _ => (role, outcome),
        };
        let n = &mut closes[role as usize][outcome as usize];
        self.close_kinds += usize::from(*n == 0);
        *n += 1;
    }
}

impl EventSink for Metrics {
    fn fact(&mut self, at_ns: u64, fact: TrackerEvent) {
        match fact {
            TrackerEvent::Transition { from, to } => self.transitions[from as usize][to as usize] += 1,
            TrackerEvent::StateDuration { phase, pair, ns } => {
                let seat = self.seat(pair, at_ns);
                if let Some(row) = self.rows.get_mut(seat) {
                    row.durations[phase as usize].observe(ns);
                }
            }
            TrackerEvent::Unmeasured { phase, why } => self.unseen[phase as usize][why as usize] += 1,
            TrackerEvent::Closed { pair, role, outcome } => self.close(pair, role, outcome, at_ns),
            TrackerEvent::TimeWaitEnded { how } => self.time_wait_ended[how as usize] += 1,
            TrackerEvent::TimeWaitOverflow => self.overflows += 1,
            TrackerEvent::Corrected { what } => self.mended[what as usize] += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(max: usize) -> Metrics {
        Metrics::new(PortLabels::new(max, &[], 32768..=60999))
    }

    #[test]
    fn sums_and_counts_are_those_of_the_facts() {
        let mut ledger = ledger(4);
        let pair = PortKey { side: Side::Server, port: 80 };
        for ns in [500_000, 1_500_000, 70_000_000_000] {
            ledger.fact(1, TrackerEvent::StateDuration { phase: Phase::CloseWait, pair, ns });
        }
        ledger.fact(1, TrackerEvent::Closed { pair, role: Role::Passive, outcome: Outcome::Graceful });
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
                    let pair = PortKey { side, port };
                    for phase in Phase::ALL {
                        ledger.fact(1, TrackerEvent::StateDuration { phase, pair, ns: 5 });
                    }
                    ledger.fact(1, TrackerEvent::Closed { pair, role, outcome });
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
    fn everything_is_told_in_the_order_of_its_words() {
        let mut ledger = ledger(4);
        for (side, port) in [(Side::Unknown, 9), (Side::Server, 443), (Side::Client, 80), (Side::Server, 80)]
        {
            let pair = PortKey { side, port };
            for phase in Phase::ALL.into_iter().rev() {
                ledger.fact(1, TrackerEvent::StateDuration { phase, pair, ns: 5 });
            }
            for why in UnmeasuredReason::ALL.into_iter().rev() {
                ledger.fact(1, TrackerEvent::Unmeasured { phase: Phase::LastAck, why });
                ledger.fact(1, TrackerEvent::Unmeasured { phase: Phase::Closing, why });
            }
            for role in [Role::Passive, Role::Active] {
                ledger.fact(1, TrackerEvent::Closed { pair, role, outcome: Outcome::Timeout });
                ledger.fact(1, TrackerEvent::Closed { pair, role, outcome: Outcome::Graceful });
            }
        }
        for (from, to) in [(TcpState::Closing, TcpState::Close), (TcpState::Established, TcpState::FinWait1)]
        {
            ledger.fact(1, TrackerEvent::Transition { from, to });
        }
        assert!(ledger.durations().map(|(label, phase, _)| (label, phase)).is_sorted());
        assert!(ledger.closes().map(|(label, role, outcome, _)| (label, role, outcome)).is_sorted());
        assert!(ledger.unseen().map(|(phase, why, _)| (phase, why)).is_sorted());
        assert_eq!(
            (ledger.durations().count(), ledger.closes().count(), ledger.unseen().count()),
            (24, 16, 8)
        );
        assert_eq!(
            ledger.transitions().collect::<Vec<_>>(),
            [(TcpState::Established, TcpState::FinWait1, 1), (TcpState::Closing, TcpState::Close, 1)]
        );
    }

    #[test]
    fn a_name_that_is_lost_takes_its_counts_along() {
        const HOUR: u64 = 3_600_000_000_000;
        let mut ledger = ledger(1);
        let [old, new] = [80, 443].map(|port| PortKey { side: Side::Server, port });
        let close = |pair| TrackerEvent::Closed { pair, role: Role::Active, outcome: Outcome::Graceful };
        for _ in 0..3 {
            ledger.fact(1, TrackerEvent::StateDuration { phase: Phase::FinWait1, pair: old, ns: 5 });
            ledger.fact(1, close(old));
        }
        ledger.fact(2 * HOUR, close(new));
        let named = LabelSlot { side: Side::Server, port: Some(443) };
        assert_eq!(ledger.durations().count(), 0);
        assert_eq!(ledger.closes().collect::<Vec<_>>(), [(named, Role::Active, Outcome::Graceful, 1)]);
        assert_eq!(ledger.close_kinds, 1);
        ledger.fact(2 * HOUR, close(old));
        let other = LabelSlot { side: Side::Server, port: None };
        assert_eq!(ledger.closes().next(), Some((other, Role::Active, Outcome::Graceful, 1)));
    }

    #[test]
    fn words_index_their_arrays() {
        assert!(Phase::ALL.into_iter().enumerate().all(|(at, phase)| at == phase as usize));
        assert!(Role::ALL.into_iter().enumerate().all(|(at, role)| at == role as usize));
        assert!(Outcome::ALL.into_iter().enumerate().all(|(at, outcome)| at == outcome as usize));
        assert!(Side::ALL.into_iter().enumerate().all(|(at, side)| at == side as usize));
        assert!(TimeWaitEnd::ALL.into_iter().enumerate().all(|(at, how)| at == how as usize));
        assert!(UnmeasuredReason::ALL.into_iter().enumerate().all(|(at, why)| at == why as usize));
        assert!(Correction::ALL.into_iter().enumerate().all(|(at, what)| at == what as usize));
        let states = (0..=u8::MAX).filter_map(TcpState::from_raw);
        assert_eq!(states.map(|state| state as usize).max(), Some(STATES - 1));
    }

    #[test]
    fn kinds_of_close_are_bounded() {
        let mut ledger = ledger(1);
        for side in Side::ALL {
            for port in [80, 81] {
                for role in Role::ALL {
                    for outcome in Outcome::ALL {
                        ledger.fact(1, TrackerEvent::Closed { pair: PortKey { side, port }, role, outcome });
                    }
                }
            }
        }
        // One (unknown, unknown) more for each of the four labels at the most.
        assert!(ledger.closes().count() <= 4 * CLOSE_KINDS_PER_LABEL + 4);
        assert_eq!(ledger.closes().map(|(.., n)| n).sum::<u64>(), 3 * 2 * 5 * 7);
    }
}
