//! The words that the agent and the probe share while both run.

/// One element of the array map `CONTROL`.
///
/// The agent raises `need_wakeup` before it sleeps. The probe, when it finds the ring filled past
/// [`Self::wakeup_mark`], lowers it and wakes the agent: once a sleep, for a wakeup costs more than ten records
/// (13.5 µs on Linux 6.18).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// 1 while the agent sleeps and wants to be woken; 0 otherwise.
    pub need_wakeup: u32,
    _pad: u32,
    /// Bytes of unread records in the ring from which the probe wakes the agent.
    pub wakeup_mark: u64,
}

impl Control {
    pub const fn new(need_wakeup: bool, wakeup_mark: u64) -> Self {
        Self { need_wakeup: need_wakeup as u32, _pad: 0, wakeup_mark }
    }
}

/// What the probe counts on each CPU, one element of the per-CPU array map `COUNTERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records that found no room in the ring.
    pub lost: u64,
}
