//! Lost records.

/// Records were lost, and the tracker may still differ from the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordLoss {
    /// CLOCK_MONOTONIC: they were lost before.
    pub(super) noticed_ns: u64,
    /// Whole rounds since, one after the other, in which every socket could be compared with the kernel.
    pub(super) rounds: u8,
}

impl RecordLoss {
    pub(super) const fn new(noticed_ns: u64) -> Self {
        Self { noticed_ns, rounds: 0 }
    }
}
