//! State of the dumps, as `/metrics`, `/readyz` and the ages of gauges tell it. Times are CLOCK_MONOTONIC,
//! nanoseconds, unless stated otherwise.

#[derive(Clone, Copy, Debug, Default)]
pub struct DumpStats {
    /// Wall time of the last dump.
    pub last_ns: u64,
    /// Present pause between dumps, stretched so that they take at most 1 % of a core.
    pub interval_ns: u64,
    /// End of the last complete reconcile, seconds since 1970; 0 before the first.
    pub reconciled_at: f64,
    /// Beginning of that reconcile.
    pub round_ns: u64,
    /// Last instant before a loss of records that the gauges of the host's namespace, or of the others, still
    /// suffer from.
    pub lost_host_ns: Option<u64>,
    pub lost_others_ns: Option<u64>,
    /// When it was last known that no record is lost.
    complete_ns: u64,
    /// Age of the last reconcile from which every number counts as old as that reconcile.
    pub overdue_ns: u64,
    /// `--reconcile-max`.
    pub max_ns: u64,
    /// Dumps take more than 1 % of a core, so that no number is older than `max_ns`.
    pub over_budget: bool,
}

impl DumpStats {
    pub fn new(interval_ns: u64) -> Self {
        Self { interval_ns, ..Self::default() }
    }

    /// Records were lost since the last check: until dumps have corrected the gauges these are as old as that
    /// check.
    pub fn records_lost(&mut self) {
        self.lost_host_ns.get_or_insert(self.complete_ns);
        self.lost_others_ns.get_or_insert(self.complete_ns);
    }

    /// No record was lost until `now_ns`.
    pub fn nothing_lost(&mut self, now_ns: u64) {
        self.complete_ns = now_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_are_as_old_as_the_last_check_before_the_first_loss() {
        let mut stats = DumpStats::new(1);
        stats.nothing_lost(7);
        stats.records_lost();
        stats.nothing_lost(9);
        stats.records_lost();
        assert_eq!((stats.lost_host_ns, stats.lost_others_ns), (Some(7), Some(7)));
        stats.lost_host_ns = None;
        stats.records_lost();
        assert_eq!((stats.lost_host_ns, stats.lost_others_ns), (Some(9), Some(7)));
    }
}
