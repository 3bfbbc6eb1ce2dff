//! Limits the rate of kills: at most so many per second, without a burst after a pause.

use std::time::Duration;

/// A rate limiter. Pure: the caller passes the time.
#[derive(Clone, Copy, Debug)]
pub struct KillPace {
    between: Duration,
    /// The time of the next turn, since an origin that the caller chose.
    next: Duration,
}

impl KillPace {
    /// At most `rate` turns per second, the first at once. A rate of 0 counts as 1.
    pub fn new(rate: u32) -> Self {
        // Rounded up, so that n turns take at least (n − 1) ÷ rate seconds.
        let ns = 1_000_000_000_u64.div_ceil(u64::from(rate.max(1)));
        Self { between: Duration::from_nanos(ns), next: Duration::ZERO }
    }

    /// The time from `now` to the next turn.
    pub fn wait(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now)
    }

    /// Takes a turn at `now`.
    pub fn take(&mut self, now: Duration) {
        self.next = now.max(self.next) + self.between;
    }

    /// The minimum time that `turns` more take from `now`.
    pub fn left(&self, now: Duration, turns: usize) -> Duration {
        let between = self.between.saturating_mul(u32::try_from(turns.saturating_sub(1)).unwrap_or(u32::MAX));
        if turns == 0 { Duration::ZERO } else { self.wait(now).saturating_add(between) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn n_turns_take_no_less_than_their_rate_allows() {
        for rate in [1, 3, 7, 100, 1_000_000] {
            let (mut pace, mut now, n) = (KillPace::new(rate), Duration::ZERO, 50);
            for _ in 0..n {
                now += pace.wait(now);
                pace.take(now);
            }
            assert!(now.as_secs_f64() >= f64::from(n - 1) / f64::from(rate), "{rate}: {now:?}");
            assert!(now.as_secs_f64() <= f64::from(n - 1) / f64::from(rate) + 1e-6, "{rate}: {now:?}");
        }
        assert_eq!(KillPace::new(0).between, Duration::from_secs(1));
    }

    #[test]
    fn a_slow_turn_is_not_made_up_for() {
        let mut pace = KillPace::new(100);
        pace.take(Duration::ZERO);
        assert_eq!(pace.wait(4 * MS), 6 * MS);
        pace.take(500 * MS);
        assert_eq!(pace.wait(500 * MS), 10 * MS);
        assert_eq!(pace.left(500 * MS, 0), Duration::ZERO);
        assert_eq!(pace.left(500 * MS, 3), 30 * MS);
    }
}
