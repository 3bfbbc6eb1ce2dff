//! The histogram of one state's durations, with bounds fixed per state: each state lives on a scale of its own.

use crate::terms::Phase;

/// Upper bounds in seconds.
pub const fn bounds(phase: Phase) -> &'static [f64] {
    match phase {
        // From a program that answers at once to a leak of days.
        Phase::CloseWait => &[0.001, 0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0],
        // 60 s and what the coarse timer adds: up to 66 s is normal, 120 s is a re-armed timer.
        Phase::TimeWait => &[1.0, 30.0, 59.0, 66.0, 120.0],
        // tcp_fin_timeout is 60 s unless set.
        Phase::FinWait2 => &[0.01, 0.1, 1.0, 10.0, 60.0, 120.0],
        // A round trip, or retransmissions.
        Phase::FinWait1 | Phase::Closing | Phase::LastAck => &[0.001, 0.01, 0.2, 2.0, 60.0],
    }
}

/// Counts per bucket, and the exact sum.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One a bound, not cumulative; what exceeds the last is in `count` only.
    counts: Vec<u64>,
    count: u64,
    /// Nanoseconds. 64 bits would be full after 300 million TIME-WAITs.
    sum_ns: u128,
}

impl Histogram {
    pub fn new(phase: Phase) -> Self {
        let bounds = bounds(phase);
        Self { bounds, counts: vec![0; bounds.len()], count: 0, sum_ns: 0 }
    }

    pub fn observe(&mut self, ns: u64) {
        let seconds = ns as f64 / 1e9;
        let at = self.bounds.partition_point(|&bound| bound < seconds);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.count += 1;
        self.sum_ns += u128::from(ns);
    }

    pub const fn count(&self) -> u64 {
        self.count
    }

    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// Upper bound in seconds and how many samples were not above it; without `+Inf`, which is [`Self::count`].
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        self.bounds.iter().zip(&self.counts).scan(0, |sum, (&bound, &count)| {
            *sum += count;
            Some((bound, *sum))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let mut histogram = Histogram::new(Phase::TimeWait);
        for ns in [0, 1_000_000_000, 1_000_000_001, 59_000_000_000, 60_000_000_000, 200_000_000_000] {
            histogram.observe(ns);
        }
        let got: Vec<_> = histogram.cumulative().collect();
        assert_eq!(got, [(1.0, 2), (30.0, 3), (59.0, 4), (66.0, 5), (120.0, 5)]);
        assert_eq!(histogram.count(), 6);
    }

    #[test]
    fn bounds_ascend() {
        for phase in Phase::ALL {
            assert!(bounds(phase).is_sorted_by(|a, b| a < b), "{phase:?}");
        }
    }
}
