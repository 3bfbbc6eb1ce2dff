//! The consuming end of the ring buffer.

use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result, bail};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::{Ebpf, Pod};
use tcpclose_common::control::{Control, Counters};
use tcpclose_common::event::Record;

use crate::probe::ring_window::RingWindow;

/// The most records that one [`Ring::drain`] takes, so that a flood cannot starve the rest of the agent.
const AT_ONCE: u64 = 1 << 18;

/// The result of one [`Ring::drain`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Records, decoded or not.
    pub records: u64,
    /// Records that could not be decoded and were skipped.
    pub malformed: u64,
    /// The ring may hold more.
    pub more: bool,
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct ControlWord(Control);

// SAFETY: repr(transparent) over repr(C) integers without padding; every bit pattern is a value.
unsafe impl Pod for ControlWord {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct CpuCounters(Counters);

// SAFETY: as for ControlWord.
unsafe impl Pod for CpuCounters {}

/// The ring buffer and the two maps that belong to it.
pub struct Ring {
    events: RingWindow,
    control: Array<MapData, ControlWord>,
    counters: PerCpuArray<MapData, CpuCounters>,
    size: u32,
    most_used: u64,
}

impl Ring {
    /// Takes the ring's maps out of the loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut map = |name: &'static str| ebpf.take_map(name).with_context(|| format!("no map {name}"));
        let Map::RingBuf(events) = map("EVENTS")? else { bail!("EVENTS is not a ring buffer") };
        let events = RingWindow::new(events)?;
        let mut ring = Self {
            size: events.size(),
            events,
            most_used: 0,
            control: Array::try_from(map("CONTROL")?)?,
            counters: PerCpuArray::try_from(map("COUNTERS")?)?,
        };
        ring.sleep()?;
        Ok(ring)
    }

    /// Passes every record to `each`, in the order of their reservation, up to a bound.
    pub fn drain(&mut self, mut each: impl FnMut(&Record)) -> Drained {
        let mut taken = Drained::default();
        // Usage is at its highest when a drain begins.
        self.most_used = self.most_used.max(self.events.used());
        while taken.records < AT_ONCE {
            let bytes = match self.events.next() {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return taken,
                Err(why) => {
                    log::error!(
                        "cannot read the ring buffer: {why} (records stay in it until the next drain)"
                    );
                    return taken;
                }
            };
            taken.records += 1;
            match Record::decode(bytes) {
                Some(record) => each(&record),
                None => taken.malformed += 1,
            }
        }
        self.events.tell();
        taken.more = true;
        taken
    }

    /// Arms the wakeup: from here on the probe wakes the agent, once, when the ring fills.
    pub fn sleep(&mut self) -> Result<()> {
        self.control.set(0, ControlWord(Control::new(true, self.size)), 0)?;
        Ok(())
    }

    /// Whether this thread's privileges suffice to read and write the maps.
    pub fn is_readable(&mut self) -> bool {
        self.counters().is_ok() && self.sleep().is_ok()
    }

    /// The size of the ring in bytes.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The most bytes in use at the start of a drain, including the kernel's 8 bytes per record.
    pub fn most_used(&self) -> u64 {
        self.most_used
    }

    /// The probe's counters, summed over all CPUs.
    pub fn counters(&self) -> Result<Counters> {
        let mut sum = Counters::default();
        for CpuCounters(cpu) in self.counters.get(&0, 0)?.iter() {
            sum.lost += cpu.lost;
        }
        Ok(sum)
    }
}

impl AsRawFd for Ring {
    /// Readable after a wakeup.
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}
