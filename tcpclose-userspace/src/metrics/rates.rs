//! Rates of the counters, from samples of the last minute. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tcpclose_common::state::TcpState;

use crate::metrics::Metrics;
use crate::metrics::port_labels::PortLabel;

/// The time between two samples.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Rates are taken over this many intervals, less while the agent is young.
const SAMPLES: usize = 12;
/// Over less time a rate would be chance.
const SHORTEST_NS: u64 = 1_000_000_000;

/// The counters at one instant.
#[derive(Clone, Debug, Default)]
struct CounterSample {
    at_ns: u64,
    closes: BTreeMap<PortLabel, u64>,
    transitions: BTreeMap<(TcpState, TcpState), u64>,
}

/// Samples of the last minute, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct RateHistory {
    samples: VecDeque<CounterSample>,
}

/// The growth since one sample.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    sample: &'a CounterSample,
    pub seconds: f64,
}

impl RateHistory {
    /// Samples the counters of `metrics` at `now_ns`.
    pub fn sample(&mut self, metrics: &Metrics, now_ns: u64) {
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        let transitions = metrics.transitions().map(|(from, to, n)| ((from, to), n)).collect();
        self.samples.push_back(CounterSample { at_ns: now_ns, closes: closes_of(metrics), transitions });
    }

    /// The longest window until `now_ns`; `None` while it is too short for a rate.
    pub fn window(&self, now_ns: u64) -> Option<Window<'_>> {
        let sample = self.samples.front()?;
        let ns = now_ns.saturating_sub(sample.at_ns);
        (ns >= SHORTEST_NS).then_some(Window { sample, seconds: ns as f64 / 1e9 })
    }
}

impl Window<'_> {
    /// Closes of `label` per second, given `now` of them.
    pub fn closes(&self, label: PortLabel, now: u64) -> f64 {
        self.growth(self.sample.closes.get(&label), now)
    }

    pub fn transitions(&self, from: TcpState, to: TcpState, now: u64) -> f64 {
        self.growth(self.sample.transitions.get(&(from, to)), now)
    }

    fn growth(&self, then: Option<&u64>, now: u64) -> f64 {
        let then = then.copied().unwrap_or(0);
        // A label that lost its name and got it again began at 0.
        now.checked_sub(then).unwrap_or(now) as f64 / self.seconds
    }
}

/// Closes by label, of every role and outcome.
pub fn closes_of(metrics: &Metrics) -> BTreeMap<PortLabel, u64> {
    let mut closes = BTreeMap::new();
    for (label, _, _, n) in metrics.closes() {
        *closes.entry(label).or_default() += n;
    }
    closes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::port_labels::PortLabels;
    use crate::names::{Outcome, PortKey, Role, Side};
    use crate::tracker::event::{EventSink, TrackerEvent};

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_rate_is_the_growth_over_the_last_minute() {
        let mut metrics = Metrics::new(PortLabels::new(4, &[]));
        let pair = PortKey { side: Side::Server, port: 80 };
        let label = PortLabel { side: Side::Server, port: Some(80) };
        let mut rates = RateHistory::default();
        assert!(rates.window(5 * S).is_none());
        for step in 0..100 {
            rates.sample(&metrics, step * 5 * S);
            for role in [Role::Active, Role::Passive] {
                metrics.event(1, TrackerEvent::Closed { pair, role, outcome: Outcome::Graceful });
            }
            metrics.event(1, TrackerEvent::Transition { from: TcpState::LastAck, to: TcpState::Close });
        }
        assert_eq!(rates.samples.len(), SAMPLES);
        assert!(
            RateHistory { samples: [CounterSample { at_ns: 7, ..CounterSample::default() }].into() }
                .window(S)
                .is_none()
        );
        let window = rates.window(500 * S).unwrap();
        assert_eq!(window.seconds, 60.0);
        let now = closes_of(&metrics)[&label];
        assert_eq!((now, window.closes(label, now)), (200, 24.0 / 60.0));
        assert_eq!(window.transitions(TcpState::LastAck, TcpState::Close, 100), 12.0 / 60.0);
        assert_eq!(window.closes(label, 6), 0.1, "it began anew");
        assert_eq!(window.closes(PortLabel { side: Side::Client, port: None }, 6), 0.1, "it is new");
    }
}
