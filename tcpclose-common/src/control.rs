//! The words that the agent and the probe share while both run.

/// One element of the array map `CONTROL`.
///
/// The agent raises `need_wakeup` before it sleeps. The probe, when it finds the ring filled past
/// [`Self::wakeup_mark`], lowers it and wakes the agent: once per sleep, since a wakeup costs more than ten records
/// (13.5 µs on Linux 6.18). It looks once per [stride](Self::stride_mask) of the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// 1 while the agent sleeps and wants to be woken; 0 otherwise.
    pub need_wakeup: u32,
    /// A power of two less one: the bytes of records between two looks at the fill of the ring, less one.
    pub stride_mask: u32,
    /// Bytes of unread records in the ring from which the probe wakes the agent.
    pub wakeup_mark: u64,
}

impl Control {
    /// Wakes when a ring of `size` bytes, a power of two, is a quarter full, which leaves three quarters for the time until
    /// the agent runs; looks 64 times per round.
    pub const fn new(need_wakeup: bool, size: u32) -> Self {
        let stride = if size / 64 < LONGEST { LONGEST } else { size / 64 };
        Self { need_wakeup: need_wakeup as u32, stride_mask: stride - 1, wakeup_mark: (size / 4) as u64 }
    }
}

/// A record, with the kernel's 8 bytes before it, takes less than this: so one begins in every so many bytes of the ring.
pub const LONGEST: u32 = 128;

/// The probe's counters on each CPU, one element of the per-CPU array map `COUNTERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records that found no room in the ring.
    pub lost: u64,
}

/// The number of reasons for which the probe counts RSTs that were sent (`enum sk_rst_reason` has 25 in 6.18).
pub const RESET_REASONS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_looks_before_the_mark_is_far_behind() {
        for size in [4096, 65_536, 8 << 20, 1 << 30] {
            let control = Control::new(true, size);
            let stride = u64::from(control.stride_mask) + 1;
            assert!(stride.is_power_of_two() && stride >= u64::from(LONGEST));
            assert!(control.wakeup_mark + stride <= u64::from(size) / 3, "{size}");
        }
    }
}
