//! The pause between two looks of one kind, such that all kinds together take less than 1 % of a core.

use std::time::Duration;

use crate::linux::host;

/// The pause after a look is this many times its CPU time: two thirds of a percent. The rest of the 1 % is
/// for what cannot be charged to one look: the ring's timer, the state file, a search through all
/// descriptors, the start and end of a thread, and looks that cost more than the median.
pub const SHARE: u32 = 150;

/// The costs of the last looks of one kind.
///
/// The last cost counts, or the median of the last three where that is less: on a busy machine a single look
/// can be charged many times its cost (another program emptied the caches, an interrupt storm ran on its
/// time), and a hundred times that is a pause in which nothing is seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuBudget {
    last: [Option<u64>; 3],
}

impl CpuBudget {
    /// Records the cost of a look. Returns the pause after it.
    pub fn after(&mut self, cost: Duration) -> Duration {
        let usual_ns = self.usual_ns(u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX));
        Duration::from_nanos(usual_ns.saturating_mul(SHARE.into()))
    }

    /// Records the cost of a look. Returns the part of it that counts.
    pub fn usual_ns(&mut self, cost_ns: u64) -> u64 {
        let [_, b, c] = self.last;
        self.last = [b, c, Some(cost_ns)];
        let mut costs: Vec<u64> = self.last.into_iter().flatten().collect();
        costs.sort_unstable();
        // Of two, the lesser.
        let median = costs.get((costs.len().saturating_sub(1)) / 2).copied().unwrap_or(cost_ns);
        median.min(cost_ns)
    }
}

/// Runs `work` and measures the CPU time of this thread.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = host::thread_cpu_ns();
    let done = work();
    (done, Duration::from_nanos(host::thread_cpu_ns().saturating_sub(before)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_that_cost_too_much_changes_nothing_and_two_do() {
        let ms = Duration::from_millis;
        let mut budget = CpuBudget::default();
        assert_eq!(budget.after(ms(10)), ms(1500));
        assert_eq!(budget.after(ms(3000)), ms(1500));
        assert_eq!(budget.after(ms(11)), ms(1650));
        assert_eq!(budget.after(ms(9)), ms(1350), "cheaper at once");
        assert_eq!(budget.after(ms(200)), ms(1650));
        assert_eq!(budget.after(ms(200)), ms(30_000), "it has become dearer");
    }
}
