//! The consuming end of the ring buffer.

use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result, bail};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::{Ebpf, Pod};
use tcpclose_common::control::{Control, Counters};
use tcpclose_common::event::Record;

use crate::probe::ring_window::RingWindow;

/// Records that one [`Ring::drain`] takes at most, so that a flood cannot keep the agent from everything else.
const AT_ONCE: u64 = 1 << 18;

/// What [`Ring::drain`] took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Records, sound or not.
    pub records: u64,
    /// Records that could not be decoded: skipped.
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

/// The ring, and the two maps that go with it.
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
        let Map::RingBuf(events) = map("EVENTS")? else { bail!("EVENTS is no ring buffer") };
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

    /// Hands every record there is to `each`, in the order of their reservation, up to a bound.
    pub fn drain(&mut self, mut each: impl FnMut(&Record)) -> Drained {
        let mut taken = Drained::default();
        // Between two drains it only fills.
        self.most_used = self.most_used.max(self.events.used());
        while taken.records < AT_ONCE {
            let bytes = match self.events.next() {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return taken,
                Err(why) => {
                    log::error!("the ring cannot be read now: {why}");
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

    /// Says that the agent is about to sleep: from here on the probe wakes it, once, when the ring fills.
    pub fn sleep(&mut self) -> Result<()> {
        self.control.set(0, ControlWord(Control::new(true, self.size)), 0)?;
        Ok(())
    }

    /// Whether its maps can be read and written with what this thread may do.
    pub fn is_readable(&mut self) -> bool {
        self.counters().is_ok() && self.sleep().is_ok()
    }

    /// In bytes.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The most bytes of the ring that were in use when a drain began, the kernel's 8 a record included.
    pub fn most_used(&self) -> u64 {
        self.most_used
    }

    /// What the probe has counted on all CPUs.
    pub fn counters(&self) -> Result<Counters> {
        let mut sum = Counters::default();
        for CpuCounters(cpu) in self.counters.get(&0, 0)?.iter() {
            sum.lost += cpu.lost;
        }
        Ok(sum)
    }
}

impl AsRawFd for Ring {
    /// Readable when the probe has called.
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}
