//! The least that a monitor could cost: programs on `inet_sock_set_state` that do as little as possible. `cargo xtask bench`
//! builds them and measures the probe against them; they are not in the agent.

#![no_std]
#![no_main]

#[allow(dead_code, reason = "the probe reads more of a socket than these do")]
mod sock;

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, map, tracepoint};
use aya_ebpf::maps::{PerCpuArray, RingBuf};
use aya_ebpf::programs::{BtfTracePointContext, TracePointContext};
use tcpclose_common::state::is_close_step;

use crate::sock::classic::InPlace;

/// As many bytes as the agent's default.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Records that found no room.
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// A record of 64 bytes with nothing in it but its time.
type Blank = [u64; 8];

/// Nothing: what the hook itself costs.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn empty(_: BtfTracePointContext) -> i32 {
    0
}

/// The probe's filter, and nothing after it.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn filter(ctx: BtfTracePointContext) -> i32 {
    passes(&ctx).into()
}

/// The filter, then a record to the ring that wakes nobody.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn record(ctx: BtfTracePointContext) -> i32 {
    if passes(&ctx) {
        send();
    }
    0
}

/// [`empty`] at the classic tracepoint.
#[tracepoint(category = "sock", name = "inet_sock_set_state")]
pub fn empty_classic(_: TracePointContext) -> u32 {
    0
}

/// [`record`] at the classic tracepoint.
#[tracepoint(category = "sock", name = "inet_sock_set_state")]
pub fn record_classic(ctx: TracePointContext) -> u32 {
    let (old, new) = sock::classic::step::<InPlace>(&ctx);
    if is_close_step(old, new) && sock::classic::protocol::<InPlace>(&ctx) == sock::IPPROTO_TCP {
        send();
    }
    0
}

#[inline(always)]
fn send() {
    let Some(mut entry) = EVENTS.reserve::<Blank>(0) else {
        if let Some(lost) = LOST.get_ptr_mut(0) {
            // SAFETY: this CPU's element of a map that lives as long as the program.
            unsafe { *lost += 1 };
        }
        return;
    };
    let mut blank: Blank = [0; 8];
    // SAFETY: a helper without arguments.
    blank[0] = unsafe { bpf_ktime_get_ns() };
    entry.write(blank);
    entry.submit(BPF_RB_NO_WAKEUP.into());
}

/// As in `set_state`.
#[inline(always)]
fn passes(ctx: &BtfTracePointContext) -> bool {
    let sk: *const u8 = ctx.arg(0);
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    // SAFETY: the tracepoint's first argument is a live struct sock.
    is_close_step(old as u32, new as u32) && unsafe { sock::protocol::<sock::Typed>(sk) } == sock::IPPROTO_TCP
}

/// As the probe's; none of the helpers above asks for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
