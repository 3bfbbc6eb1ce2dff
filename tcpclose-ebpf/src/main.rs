//! The probe: the programs of tcpclose, each a front door to a body of its own.
//!
//! * [`set_state`]: `inet_sock_set_state`, by tp_btf or by the classic tracepoint.
//! * [`sock`]: the only place that reads kernel structs.
//! * [`ring`]: reserve, submit, wake, count what was lost.

#![no_std]
#![no_main]

mod ring;
mod set_state;
mod sock;

use aya_ebpf::macros::{btf_tracepoint, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, TracePointContext};

/// `TP_PROTO(const struct sock *sk, const int oldstate, const int newstate)`; Linux ≥ 5.12 with BTF.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn set_state_btf(ctx: BtfTracePointContext) -> i32 {
    set_state::by_btf(&ctx);
    0
}

/// `sock:inet_sock_set_state` as perf sees it; Linux ≥ 5.8, BTF or not.
#[tracepoint(category = "sock", name = "inet_sock_set_state")]
pub fn set_state_tracepoint(ctx: TracePointContext) -> u32 {
    set_state::by_tracepoint(&ctx);
    0
}

/// Some helpers are for GPL-compatible programs only (`bpf_probe_read_kernel`, `bpf_skc_to_tcp_sock`).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
