//! How far apart looks of one kind are, so that an agent with all of them together takes less than 1 % of a core.

use std::time::Duration;

/// The pause after a look is this many times its CPU time: two thirds of a percent. The rest of the one percent is for what
/// cannot be charged to one look: the ring's timer, the state file, a look at all descriptors, a thread's making and end, and
/// looks dearer than the middle one.
pub const SHARE: u32 = 150;

/// The costs of the last looks of one kind.
///
/// What counts is the last one, or the middle one of the last three where that is less: on a busy machine a single look
/// can be charged many times its cost (another program emptied the caches, an interrupt storm ran on its time), and a
/// hundred times that is a pause in which nothing is seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuBudget {
    last: [Option<u64>; 3],
}

impl CpuBudget {
    /// Takes in what a look has cost. Returns the pause after it.
    pub fn after(&mut self, cost: Duration) -> Duration {
        let usual_ns = self.usual_ns(u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX));
        Duration::from_nanos(usual_ns.saturating_mul(SHARE.into()))
    }

    /// Takes in what a look has cost. Returns what of that counts.
    pub fn usual_ns(&mut self, cost_ns: u64) -> u64 {
        let [_, b, c] = self.last;
        self.last = [b, c, Some(cost_ns)];
        let mut costs: Vec<u64> = self.last.into_iter().flatten().collect();
        costs.sort_unstable();
        // Of two the lesser.
        let middle = costs.get((costs.len().saturating_sub(1)) / 2).copied().unwrap_or(cost_ns);
        middle.min(cost_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_that_cost_too_much_changes_nothing_and_two_do() {
        let ms = Duration::from_millis;
        let mut pace = CpuBudget::default();
        assert_eq!(pace.after(ms(10)), ms(1500));
        assert_eq!(pace.after(ms(3000)), ms(1500));
        assert_eq!(pace.after(ms(11)), ms(1650));
        assert_eq!(pace.after(ms(9)), ms(1350), "cheaper at once");
        assert_eq!(pace.after(ms(200)), ms(1650));
        assert_eq!(pace.after(ms(200)), ms(30_000), "it has become dearer");
    }
}
