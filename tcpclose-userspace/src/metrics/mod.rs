//! Counters, histograms and gauges of how connections end, per (side, port, state), in bounded number. Pure.
//!
//! * [`descriptors`]: name, type, help and labels of every metric.
//! * [`histogram`]: the bounds of each state's histogram.
//! * [`port_labels`]: which ports have a series of their own, so that the number of series is bounded; [`charge`]: for whom.
//! * [`gauges`]: the gauges, counted over the tracker's sockets at each request.
//! * [`rates`]: how fast the counters grow.

pub mod charge;
pub mod descriptors;
pub mod gauges;
pub mod histogram;
pub mod port_labels;
pub mod rates;

use std::collections::BTreeSet;

use tcpclose_common::state::TcpState;

use crate::metrics::charge::PortFacts;
use crate::metrics::gauges::{Gauges, StuckAfter};
use crate::metrics::histogram::Histogram;
use crate::metrics::port_labels::{LabelRequest, PortLabel, PortLabels, Retired};
use crate::names::{
    Correction, LastWrite, Outcome, Phase, PortKey, PortKind, Role, Side, TimeWaitEnd, UnmeasuredReason,
};
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::socket::TrackedSocket;

/// Kinds of close (role and outcome) that all labels together may have, per possible label. A host has a handful per
/// port; the bound keeps a hostile peer from making all of them, and with them more series than are promised. Beyond it a
/// new kind counts as unknown.
const CLOSE_KINDS_PER_LABEL: usize = 10;

/// As many as the kernel has numbers for, and one that it does not use.
const STATES: usize = TcpState::BoundInactive as usize + 1;

/// The counters. All are arrays indexed by the parts of an event, since each record makes two or three events; a
/// combination is shown once it is not zero.
pub struct Metrics {
    labels: PortLabels,
    /// Combinations that `tcpclose_sockets` has shown.
    shown: BTreeSet<(PortLabel, Phase)>,
    /// By slot.
    rows: Vec<LabelRow>,
    transitions: [[u64; STATES]; STATES],
    /// Kinds of close in all rows.
    close_kinds: usize,
    time_wait_ended: [u64; TimeWaitEnd::ALL.len()],
    unmeasured: [[u64; UnmeasuredReason::ALL.len()]; Phase::ALL.len()],
    corrections: [u64; Correction::ALL.len()],
    overflows: u64,
    folded: u64,
    /// Connections that a RST of the peer ended, and those among them whose program had written after the peer's FIN.
    reset_by_peer: u64,
    reset_for_stale_write: u64,
}

/// What is counted under one label.
struct LabelRow {
    durations: [Histogram; Phase::ALL.len()],
    closes: [[u64; Outcome::ALL.len()]; Role::ALL.len()],
    stale_writes: u64,
    fin_retransmits: u64,
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
        stale_writes: 0,
        fin_retransmits: 0,
    };

    fn close_kinds(&self) -> usize {
        self.closes.as_flattened().iter().filter(|&&n| n != 0).count()
    }
}

impl Metrics {
    pub fn new(labels: PortLabels) -> Self {
        Self {
            labels,
            shown: BTreeSet::new(),
            rows: Vec::new(),
            transitions: [[0; STATES]; STATES],
            close_kinds: 0,
            time_wait_ended: [0; TimeWaitEnd::ALL.len()],
            unmeasured: [[0; UnmeasuredReason::ALL.len()]; Phase::ALL.len()],
            corrections: [0; Correction::ALL.len()],
            overflows: 0,
            folded: 0,
            reset_by_peer: 0,
            reset_for_stale_write: 0,
        }
    }

    /// Durations by state, of sockets that left it.
    pub fn durations(&self) -> impl Iterator<Item = (PortLabel, Phase, &Histogram)> {
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

    pub fn closes(&self) -> impl Iterator<Item = (PortLabel, Role, Outcome, u64)> {
        let each = self.rows().flat_map(|(label, row)| {
            Role::ALL.into_iter().zip(&row.closes).flat_map(move |(role, row)| {
                Outcome::ALL.into_iter().zip(row).map(move |(outcome, &n)| (label, role, outcome, n))
            })
        });
        each.filter(|&(.., n)| n != 0)
    }

    /// RSTs that ended a connection, by what this side knows of their reason.
    pub fn resets_received(&self) -> [(&'static str, u64); 2] {
        let stale = self.reset_for_stale_write;
        [("stale_write", stale), ("unknown", self.reset_by_peer.saturating_sub(stale))]
    }

    /// Writes to connections that the peer had closed, which it answered with a RST.
    pub fn stale_writes(&self) -> impl Iterator<Item = (PortLabel, u64)> {
        self.rows().map(|(label, row)| (label, row.stale_writes)).filter(|&(_, n)| n != 0)
    }

    /// Segments that were sent again after a FIN.
    pub fn fin_retransmits(&self) -> impl Iterator<Item = (PortLabel, u64)> {
        self.rows().map(|(label, row)| (label, row.fin_retransmits)).filter(|&(_, n)| n != 0)
    }

    /// Every reason, 0 where none was seen.
    pub fn time_wait_ended(&self) -> impl Iterator<Item = (TimeWaitEnd, u64)> {
        TimeWaitEnd::ALL.into_iter().zip(self.time_wait_ended)
    }

    pub fn unmeasured(&self) -> impl Iterator<Item = (Phase, UnmeasuredReason, u64)> {
        let each = Phase::ALL.into_iter().zip(&self.unmeasured).flat_map(|(phase, row)| {
            UnmeasuredReason::ALL.into_iter().zip(row).map(move |(why, &n)| (phase, why, n))
        });
        each.filter(|&(.., n)| n != 0)
    }

    /// Every kind, 0 where nothing was corrected.
    pub fn corrections(&self) -> impl Iterator<Item = (Correction, u64)> {
        Correction::ALL.into_iter().zip(self.corrections)
    }

    /// TIME-WAITs that were skipped, by the records of hooks.
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Closes that were counted under `other` for want of a name.
    pub fn folded(&self) -> u64 {
        self.folded
    }

    /// What dumps show of ports and the users that have them.
    pub fn port_facts(&mut self) -> &mut PortFacts {
        self.labels.facts()
    }

    pub fn is_named(&self, pair: PortKey) -> bool {
        self.labels.is_named(pair)
    }

    /// Counts the gauges over `sockets`, see [`Gauges::count`]. A combination that was shown once stays, as 0.
    pub fn gauges<'a>(
        &mut self,
        sockets: impl Iterator<Item = (&'a TrackedSocket, Option<&'a LastWrite>)>,
        kind: &impl Fn(&TrackedSocket) -> PortKind,
        stuck_after: &StuckAfter,
        dumped: &impl Fn(u32) -> bool,
        now_ns: u64,
    ) -> Gauges {
        let mut gauges = Gauges::count(sockets, kind, &mut self.labels, stuck_after, dumped, now_ns);
        self.retire();
        self.shown.extend(gauges.standing.keys());
        for &combination in &self.shown {
            gauges.standing.entry(combination).or_default();
        }
        for label in self.shown.iter().map(|&(label, _)| label) {
            gauges.stuck.entry(label).or_insert_with(|| vec![0; stuck_after.bounds_ns().len()]);
            gauges.unproven.entry(label).or_default();
        }
        gauges
    }

    /// Every row, in the order of labels.
    fn rows(&self) -> impl Iterator<Item = (PortLabel, &LabelRow)> {
        let labels = self.labels.labels().into_iter();
        labels.filter_map(|(label, slot)| Some((label, self.rows.get(slot)?)))
    }

    /// The slot of `pair`, seen at `now_ns`, whose row is there afterwards.
    fn slot(&mut self, pair: PortKey, kind: PortKind, now_ns: u64) -> usize {
        let slot = self.labels.slot(LabelRequest { pair, kind, stuck: false }, now_ns);
        if self.labels.has_retired() {
            self.retire();
        }
        if slot >= self.rows.len() {
            self.rows.resize_with(slot + 1, || LabelRow::EMPTY);
        }
        slot
    }

    /// The row of `pair`.
    fn row(&mut self, pair: PortKey, kind: PortKind, now_ns: u64) -> Option<&mut LabelRow> {
        let slot = self.slot(pair, kind, now_ns);
        self.rows.get_mut(slot)
    }

    /// Removes the series of pairs that lost their name since the last call.
    fn retire(&mut self) {
        for Retired { label, slot } in self.labels.take_retired() {
            self.shown.retain(|&(l, _)| l != label);
            if let Some(row) = self.rows.get_mut(slot) {
                self.close_kinds -= row.close_kinds();
                *row = LabelRow::EMPTY;
            }
        }
    }

    fn close(&mut self, (pair, kind): (PortKey, PortKind), role: Role, outcome: Outcome, at_ns: u64) {
        self.labels.closed(pair, kind);
        let slot = self.slot(pair, kind, at_ns);
        if PortLabels::is_other(slot) {
            self.folded += 1;
        }
        let most = (self.labels.most() + Side::ALL.len()) * CLOSE_KINDS_PER_LABEL;
        let Some(LabelRow { closes, .. }) = self.rows.get_mut(slot) else { return };
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
    fn event(&mut self, at_ns: u64, event: TrackerEvent) {
        self.event_of(at_ns, event, PortKind::Service);
    }

    fn event_of(&mut self, at_ns: u64, event: TrackerEvent, kind: PortKind) {
        match event {
            TrackerEvent::Transition { from, to } => self.transitions[from as usize][to as usize] += 1,
            TrackerEvent::StateDuration { phase, pair, ns } => {
                if let Some(row) = self.row(pair, kind, at_ns) {
                    row.durations[phase as usize].observe(ns);
                }
            }
            TrackerEvent::Unmeasured { phase, why } => self.unmeasured[phase as usize][why as usize] += 1,
            TrackerEvent::Closed { pair, role, outcome } => {
                self.reset_by_peer += u64::from(outcome == Outcome::ResetReceived);
                self.close((pair, kind), role, outcome, at_ns);
            }
            TrackerEvent::StaleWrite { pair } => {
                self.reset_for_stale_write += 1;
                if let Some(row) = self.row(pair, kind, at_ns) {
                    row.stale_writes += 1;
                }
            }
            TrackerEvent::FinRetransmit { pair } => {
                if let Some(row) = self.row(pair, kind, at_ns) {
                    row.fin_retransmits += 1;
                }
            }
            TrackerEvent::TimeWaitEnded { how } => self.time_wait_ended[how as usize] += 1,
            TrackerEvent::TimeWaitOverflow => self.overflows += 1,
            TrackerEvent::Corrected { what } => self.corrections[what as usize] += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(max: usize) -> Metrics {
        Metrics::new(PortLabels::new(max, &[]))
    }

    #[test]
    fn sums_and_counts_are_those_of_the_events() {
        let mut metrics = metrics(4);
        let pair = PortKey { side: Side::Server, port: 80 };
        for ns in [500_000, 1_500_000, 70_000_000_000] {
            metrics.event(1, TrackerEvent::StateDuration { phase: Phase::CloseWait, pair, ns });
        }
        metrics.event(1, TrackerEvent::Closed { pair, role: Role::Passive, outcome: Outcome::Graceful });
        let (label, phase, histogram) = metrics.durations().next().unwrap();
        assert_eq!((label.port, phase), (Some(80), Phase::CloseWait));
        assert_eq!(histogram.count(), 3);
        assert!((histogram.sum_seconds() - 70.002).abs() < 1e-9);
        let cumulative: Vec<(f64, u64)> = histogram.cumulative().collect();
        assert_eq!(&cumulative[..2], &[(0.001, 1), (0.01, 2)]);
        assert_eq!(cumulative.last().unwrap().1, 3);
        assert_eq!(metrics.folded(), 0);
    }

    #[test]
    fn fifty_thousand_ports_make_a_bounded_number_of_series() {
        let mut metrics = metrics(32);
        for port in 1..=50_000u16 {
            for (role, outcome) in [
                (Role::Active, Outcome::Graceful),
                (Role::Passive, Outcome::ResetReceived),
                (Role::None, Outcome::Aborted),
            ] {
                for side in Side::ALL {
                    let pair = PortKey { side, port };
                    for phase in Phase::ALL {
                        metrics.event(1, TrackerEvent::StateDuration { phase, pair, ns: 5 });
                    }
                    metrics.event(1, TrackerEvent::Closed { pair, role, outcome });
                }
            }
        }
        // The others are kept for listeners, leaks and chance ports.
        const NAMES: usize = 12;
        assert_eq!(metrics.durations().count(), (NAMES + 3) * 6);
        assert_eq!(metrics.closes().count(), (NAMES + 3) * 3);
        let named: Vec<u16> = metrics.closes().filter_map(|(label, ..)| label.port).collect();
        assert!(named.iter().all(|&port| port <= 4), "the first to come are named: {named:?}");
        assert_eq!(metrics.closes().map(|(.., n)| n).sum::<u64>(), 50_000 * 9);
        assert_eq!(metrics.folded(), (50_000 * 3 - NAMES as u64) * 3);
    }

    #[test]
    fn everything_is_in_the_order_of_its_words() {
        let mut metrics = metrics(16);
        for (side, port) in [(Side::Unknown, 9), (Side::Server, 443), (Side::Client, 80), (Side::Server, 80)]
        {
            let pair = PortKey { side, port };
            for phase in Phase::ALL.into_iter().rev() {
                metrics.event(1, TrackerEvent::StateDuration { phase, pair, ns: 5 });
            }
            for why in UnmeasuredReason::ALL.into_iter().rev() {
                metrics.event(1, TrackerEvent::Unmeasured { phase: Phase::LastAck, why });
                metrics.event(1, TrackerEvent::Unmeasured { phase: Phase::Closing, why });
            }
            for role in [Role::Passive, Role::Active] {
                metrics.event(1, TrackerEvent::Closed { pair, role, outcome: Outcome::Timeout });
                metrics.event(1, TrackerEvent::Closed { pair, role, outcome: Outcome::Graceful });
            }
        }
        for (from, to) in [(TcpState::Closing, TcpState::Close), (TcpState::Established, TcpState::FinWait1)]
        {
            metrics.event(1, TrackerEvent::Transition { from, to });
        }
        assert!(metrics.durations().map(|(label, phase, _)| (label, phase)).is_sorted());
        assert!(metrics.closes().map(|(label, role, outcome, _)| (label, role, outcome)).is_sorted());
        assert!(metrics.unmeasured().map(|(phase, why, _)| (phase, why)).is_sorted());
        assert_eq!(
            (metrics.durations().count(), metrics.closes().count(), metrics.unmeasured().count()),
            (24, 16, 8)
        );
        assert_eq!(
            metrics.transitions().collect::<Vec<_>>(),
            [(TcpState::Established, TcpState::FinWait1, 1), (TcpState::Closing, TcpState::Close, 1)]
        );
    }

    #[test]
    fn a_name_that_is_lost_takes_its_counts_along() {
        const HOUR: u64 = 3_600_000_000_000;
        let mut metrics = metrics(1);
        let [old, new] = [80, 443].map(|port| PortKey { side: Side::Server, port });
        let close = |pair| TrackerEvent::Closed { pair, role: Role::Active, outcome: Outcome::Graceful };
        for _ in 0..3 {
            metrics.event(1, TrackerEvent::StateDuration { phase: Phase::FinWait1, pair: old, ns: 5 });
            metrics.event(1, close(old));
        }
        metrics.event(2 * HOUR, close(new));
        let named = PortLabel { side: Side::Server, port: Some(443) };
        assert_eq!(metrics.durations().count(), 0);
        assert_eq!(metrics.closes().collect::<Vec<_>>(), [(named, Role::Active, Outcome::Graceful, 1)]);
        assert_eq!(metrics.close_kinds, 1);
        metrics.event(2 * HOUR, close(old));
        let other = PortLabel { side: Side::Server, port: None };
        assert_eq!(metrics.closes().next(), Some((other, Role::Active, Outcome::Graceful, 1)));
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
        let mut metrics = metrics(1);
        for side in Side::ALL {
            for port in [80, 81] {
                for role in Role::ALL {
                    for outcome in Outcome::ALL {
                        metrics
                            .event(1, TrackerEvent::Closed { pair: PortKey { side, port }, role, outcome });
                    }
                }
            }
        }
        // At most one (unknown, unknown) more for each of the four labels.
        assert!(metrics.closes().count() <= 4 * CLOSE_KINDS_PER_LABEL + 4);
        assert_eq!(metrics.closes().map(|(.., n)| n).sum::<u64>(), 3 * 2 * 5 * 7);
    }
}
