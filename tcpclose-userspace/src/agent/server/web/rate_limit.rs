//! The rate limit: a token bucket, of which each request takes a token.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Between two tokens.
    pub interval: Duration,
    /// Capacity of the bucket, which begins full.
    pub burst: u32,
}

#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    tokens: u32,
    /// When the last token was added.
    since: Instant,
}

impl Bucket {
    pub const fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: rate.burst, since: now }
    }

    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let interval = self.rate.interval.as_nanos().max(1);
        let come = now.saturating_duration_since(self.since).as_nanos() / interval;
        if come >= u128::from(self.rate.burst - self.tokens.min(self.rate.burst)) {
            // Full again: further tokens are lost.
            self.tokens = self.rate.burst;
            self.since = now;
        } else {
            // Fewer than the bucket holds.
            let come = come as u32;
            self.tokens += come;
            self.since += self.rate.interval * come;
        }
        let taken = self.tokens > 0;
        self.tokens -= u32::from(taken);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut bucket = Bucket::full(Rate { interval: Duration::from_secs(1), burst: 3 }, start);
        let taken: Vec<bool> = (0..5).map(|_| bucket.take(at(0))).collect();
        assert_eq!(taken, [true, true, true, false, false]);
        assert!(!bucket.take(at(999)));
        assert!(bucket.take(at(1000)) && !bucket.take(at(1000)));
        // Halves are kept.
        assert!(bucket.take(at(2500)) && !bucket.take(at(2999)) && bucket.take(at(3000)));
        // And no more than a burst is saved up, over however long.
        let taken = (0..10).filter(|_| bucket.take(at(u64::from(u32::MAX)))).count();
        assert_eq!(taken, 3);
        assert!(!bucket.take(at(0)));
    }
}
