//! The ring buffer to the agent: reserve, submit, wake, and count what was lost.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};
use tcpclose_common::control::{Control, Counters, LONGEST};

/// Records on their way to the agent. The agent sets the size (`--ring-size`).
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// Puts `record` into the ring, or counts it as lost. `false` when it was lost.
#[inline(always)]
pub fn send<T: 'static>(record: T) -> bool {
    let Some(mut entry) = EVENTS.reserve::<T>(0) else {
        let Some(counters) = COUNTERS.get_ptr_mut(0) else { return false };
        // SAFETY: the pointer is to this CPU's element of a map that lives as long as the program. A program that
        // interrupts this one on the same CPU could make it miss one increment; since 6.1 the kernel refuses to
        // nest it (kernel/trace/bpf_trace.c, __bpf_trace_run) and counts that itself.
        unsafe { (*counters).lost += 1 };
        return false;
    };
    const { assert!(size_of::<T>() + 8 < LONGEST as usize) };
    let wakeup = wakeup(entry.as_ptr().cast());
    entry.write(record);
    entry.submit(wakeup);
    true
}

/// Whether the record at `place` in the ring must wake the agent: only when the agent sleeps and the ring has filled past
/// the mark. To ask how full it is takes a helper call, so one record a stride asks: one that begins in the first
/// [`LONGEST`] bytes of it. From where strides are counted does not matter, as long as it stays the same; and the
/// difference of two pointers is a number that the verifier lets us have (adjust_reg_min_max_vals(), 5.8 to 6.18).
#[inline(always)]
fn wakeup(place: *const u8) -> u64 {
    let Some(control) = CONTROL.get_ptr_mut(0) else { return BPF_RB_NO_WAKEUP.into() };
    let at = (place as usize).wrapping_sub(control as usize);
    // SAFETY: the element lives as long as the program; its words are read and written whole. Two CPUs that see
    // the flag raised at once wake the agent twice, which harms nobody.
    unsafe {
        if at as u32 & (&raw const (*control).stride_mask).read_volatile() >= LONGEST
            || (&raw const (*control).need_wakeup).read_volatile() == 0
            || EVENTS.query(BPF_RB_AVAIL_DATA.into()) < (&raw const (*control).wakeup_mark).read_volatile()
        {
            return BPF_RB_NO_WAKEUP.into();
        }
        (&raw mut (*control).need_wakeup).write_volatile(0);
    }
    BPF_RB_FORCE_WAKEUP.into()
}
