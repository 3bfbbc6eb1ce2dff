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

    /// Where the `q`-quantile (0 < `q` ≤ 1) lies, by the buckets and the sum. `None` without samples.
    pub fn quantile(&self, q: f64) -> Option<Quantile> {
        // Of the sorted samples the one with this number, from 1 on.
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut below = 0;
        for bucket in self.buckets() {
            if below + bucket.count >= rank {
                return Some(self.within(bucket, rank - below));
            }
            below += bucket.count;
        }
        None
    }

    /// The sample with the number `nth` (from 1 on) of those in `bucket`.
    ///
    /// The samples before it are not below the lower bounds of their buckets, and those after it not below it or those bounds: what is
    /// left of the sum is the most that it can be. In the same way the upper bounds give the least.
    fn within(&self, bucket: BucketCount, nth: u64) -> Quantile {
        let others = || self.buckets().filter(move |other| other.from_ns != bucket.from_ns);
        let least: u128 = others().map(|other| u128::from(other.from_ns) * u128::from(other.count)).sum();
        let most = others().map(|other| Some(u128::from(other.to_ns?) * u128::from(other.count)));
        let most: Option<u128> = most.sum();
        let (before, after) = (u128::from(nth - 1), u128::from(bucket.count - nth));
        let rest = self.sum_ns.saturating_sub(least + before * u128::from(bucket.from_ns));
        let at_most = u64::try_from(rest / (after + 1)).unwrap_or(u64::MAX);
        let to_ns = bucket.to_ns.map_or(at_most, |to_ns| to_ns.min(at_most));
        let at_least = most.zip(bucket.to_ns).map_or(0, |(most, to_ns)| {
            let rest = self.sum_ns.saturating_sub(most + after * u128::from(to_ns));
            u64::try_from(rest / (before + 1)).unwrap_or(0)
        });
        let from_ns = bucket.from_ns.max(at_least).min(to_ns);
        let share = nth as f64 / bucket.count as f64;
        let seconds = (from_ns as f64 + (to_ns - from_ns) as f64 * share) / 1e9;
        Quantile { from_ns, to_ns, seconds }
    }

    /// The buckets that have samples, in order; the last one has no upper bound.
    fn buckets(&self) -> impl Iterator<Item = BucketCount> {
        let beyond = self.count - self.counts.iter().sum::<u64>();
        let bounds = self.bounds_ns.iter().copied().map(Some).chain([None]);
        let counts = self.counts.iter().copied().take(self.bounds_ns.len()).chain([beyond]);
        let mut from_ns = 0;
        let bucket = move |(to_ns, count)| {
            let bucket = BucketCount { from_ns, to_ns, count };
            from_ns = to_ns.unwrap_or(from_ns);
            bucket
        };
        bounds.zip(counts).map(bucket).filter(|bucket| bucket.count > 0)
    }

    /// Upper bounds in seconds, each with the number of samples not above it; without `+Inf`, which is [`Self::count`].
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        self.bounds_ns.iter().zip(&self.counts).scan(0, |sum, (&bound, &count)| {
            *sum += count;
            Some((bound as f64 / 1e9, *sum))
        })
    }
}

/// The samples between two bounds.
#[derive(Clone, Copy, Debug)]
struct BucketCount {
    from_ns: u64,
    /// `None` beyond the last bound.
    to_ns: Option<u64>,
    count: u64,
}

/// Where a quantile lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantile {
    /// Proven: not below this, nanoseconds.
    pub from_ns: u64,
    /// Proven: not above this.
    pub to_ns: u64,
    /// By linear interpolation in between.
    pub seconds: f64,
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

    fn of(phase: Phase, samples: &[u64]) -> Histogram {
        let mut histogram = Histogram::new(phase);
        samples.iter().for_each(|&ns| histogram.observe(ns));
        histogram
    }

    #[test]
    fn equal_samples_are_told_by_their_sum() {
        // The bucket is from 5 s to 15 s.
        let five = of(Phase::CloseWait, &[5 * S + MS; 5]);
        for q in [0.5, 0.99] {
            let Quantile { from_ns, to_ns, seconds } = five.quantile(q).unwrap();
            assert!((5 * S..=5 * S + MS).contains(&from_ns) && to_ns <= 5 * S + 5 * MS, "{from_ns} {to_ns}");
            assert!((seconds - 5.001).abs() < 0.005, "{seconds}");
        }
        let one = of(Phase::TimeWait, &[121 * S]);
        assert_eq!(one.quantile(0.5), Some(Quantile { from_ns: 120 * S, to_ns: 121 * S, seconds: 121.0 }));
        assert_eq!(of(Phase::CloseWait, &[]).quantile(0.5), None);
    }

    #[test]
    fn a_quantile_is_between_its_bounds_whatever_the_samples() {
        // A generator of its own, so that a failure is repeated.
        let mut state = 7_u64;
        let mut random = |most: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 20) % most
        };
        for _ in 0..2000 {
            let scale = [MS, S, 60 * S, 200_000 * S][random(4) as usize];
            let mut samples: Vec<u64> = (0..1 + random(12)).map(|_| random(scale)).collect();
            let histogram = of(Phase::CloseWait, &samples);
            samples.sort_unstable();
            for q in [0.01, 0.25, 0.5, 0.9, 0.99, 1.0] {
                let rank = (q * samples.len() as f64).ceil() as usize;
                let truth = samples[rank - 1];
                let Quantile { from_ns, to_ns, seconds } = histogram.quantile(q).unwrap();
                assert!(from_ns <= truth && truth <= to_ns, "{q} {from_ns} {truth} {to_ns} {samples:?}");
                assert!(from_ns as f64 / 1e9 <= seconds && seconds <= to_ns as f64 / 1e9);
            }
        }
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
