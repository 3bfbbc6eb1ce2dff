//! The histogram of one state's durations, with bounds fixed per state: each state has a scale of its own.

use crate::names::Phase;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

/// The most bounds of a histogram.
const MOST: usize = 12;

/// Upper bounds in nanoseconds; [`MOST`] at the most.
const fn bounds_ns(phase: Phase) -> &'static [u64] {
    match phase {
        // From a program that answers at once to a leak of days.
        Phase::CloseWait => &[
            MS,
            10 * MS,
            100 * MS,
            S,
            5 * S,
            15 * S,
            60 * S,
            300 * S,
            900 * S,
            3600 * S,
            14_400 * S,
            86_400 * S,
        ],
        // 60 s and what the coarse timer adds: up to 66 s is normal, 120 s is a re-armed timer.
        Phase::TimeWait => &[S, 30 * S, 59 * S, 66 * S, 120 * S],
        // tcp_fin_timeout is 60 s unless set.
        Phase::FinWait2 => &[10 * MS, 100 * MS, S, 10 * S, 60 * S, 120 * S],
        // A round trip, or retransmissions.
        Phase::FinWait1 | Phase::Closing | Phase::LastAck => &[MS, 10 * MS, 200 * MS, 2 * S, 60 * S],
    }
}

/// Counts per bucket, and the exact sum.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds_ns: &'static [u64],
    /// One per bound, not cumulative; samples above the last bound are in `count` only.
    counts: [u64; MOST],
    count: u64,
    /// Nanoseconds. 64 bits would be full after 300 million TIME-WAITs.
    sum_ns: u128,
}

impl Histogram {
    pub const fn new(phase: Phase) -> Self {
        Self { bounds_ns: bounds_ns(phase), counts: [0; MOST], count: 0, sum_ns: 0 }
    }

    pub fn observe(&mut self, ns: u64) {
        // Most samples are in the first few buckets, and alike: the processor predicts a walk, and no bisection.
        let at = self.bounds_ns.iter().position(|&bound| ns <= bound);
        if let Some(count) = at.and_then(|at| self.counts.get_mut(at)) {
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

    /// Adds the counts of `other`, a histogram of the same state.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.count += other.count;
        self.sum_ns += other.sum_ns;
    }

    /// The bucket of the `q`-quantile (0 < `q` ≤ 1), and the quantile if samples lie evenly in it, as in Prometheus'
    /// `histogram_quantile`. `None` without samples.
    pub fn quantile(&self, q: f64) -> Option<Quantile> {
        let rank = q * self.count as f64;
        let (mut below, mut from_ns) = (0, 0);
        for (&to_ns, &inside) in self.bounds_ns.iter().zip(&self.counts) {
            if inside > 0 && (below + inside) as f64 >= rank {
                let share = (rank - below as f64) / inside as f64;
                let seconds = (from_ns as f64 + (to_ns - from_ns) as f64 * share) / 1e9;
                return Some(Quantile { from_ns, to_ns: Some(to_ns), seconds: Some(seconds) });
            }
            (below, from_ns) = (below + inside, to_ns);
        }
        (self.count > 0).then_some(Quantile { from_ns, to_ns: None, seconds: None })
    }

    /// Upper bounds in seconds, each with the number of samples not above it; without `+Inf`, which is [`Self::count`].
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        self.bounds_ns.iter().zip(&self.counts).scan(0, |sum, (&bound, &count)| {
            *sum += count;
            Some((bound as f64 / 1e9, *sum))
        })
    }
}

/// Where a quantile lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantile {
    /// Proven: not below this, nanoseconds.
    pub from_ns: u64,
    /// Proven: not above this; `None` beyond the last bound.
    pub to_ns: Option<u64>,
    /// By linear interpolation in between; `None` beyond the last bound.
    pub seconds: Option<f64>,
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
    fn a_quantile_is_interpolated_in_its_bucket() {
        let mut histogram = Histogram::new(Phase::TimeWait);
        assert_eq!(histogram.quantile(0.5), None);
        for ns in [S / 2, 60 * S, 61 * S, 62 * S] {
            histogram.observe(ns);
        }
        // The 2nd of 4: the first third of the bucket from 59 s to 66 s.
        let Some(Quantile { from_ns, to_ns, seconds: Some(seconds) }) = histogram.quantile(0.5) else {
            panic!()
        };
        assert_eq!((from_ns, to_ns), (59 * S, Some(66 * S)));
        assert!((seconds - (59.0 + 7.0 / 3.0)).abs() < 1e-9, "{seconds}");
        assert_eq!(histogram.quantile(0.25).unwrap().seconds, Some(1.0));
        assert_eq!(histogram.quantile(1.0).unwrap().seconds, Some(66.0));
        let mut beyond = Histogram::new(Phase::TimeWait);
        beyond.observe(121 * S);
        assert_eq!(beyond.quantile(0.5), Some(Quantile { from_ns: 120 * S, to_ns: None, seconds: None }));
        histogram.add(&beyond);
        assert_eq!((histogram.count(), histogram.sum_seconds()), (5, 304.5));
        assert_eq!(histogram.quantile(0.99), beyond.quantile(0.5));
    }

    #[test]
    fn bounds_are_written_as_plain_seconds() {
        let written = |phase| -> Vec<f64> { Histogram::new(phase).cumulative().map(|(le, _)| le).collect() };
        assert_eq!(
            written(Phase::CloseWait),
            [0.001, 0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0]
        );
        assert_eq!(written(Phase::TimeWait), [1.0, 30.0, 59.0, 66.0, 120.0]);
        assert_eq!(written(Phase::FinWait2), [0.01, 0.1, 1.0, 10.0, 60.0, 120.0]);
        assert_eq!(written(Phase::LastAck), [0.001, 0.01, 0.2, 2.0, 60.0]);
    }

    #[test]
    fn bounds_ascend_and_have_room() {
        for phase in Phase::ALL {
            assert!(bounds_ns(phase).is_sorted_by(|a, b| a < b), "{phase:?}");
            assert!(bounds_ns(phase).len() <= MOST, "{phase:?}");
        }
    }
}
