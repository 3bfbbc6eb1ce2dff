//! The probe: the programs of tcpclose, each an attach point of a body of its own.
//!
//! * [`set_state`]: `inet_sock_set_state`, by tp_btf or by the classic tracepoint.
//! * [`time_wait`]: a minisocket's birth, flip and end, by fentry and fexit.
//! * [`reset`]: `tcp_receive_reset` and `tcp_send_reset`, which settle whether an error was a reset, and what data after
//!   close was.
//! * [`retransmit`]: `tcp_retransmit_skb`, for what is sent again after a FIN.
//! * [`openings`]: marks for the few openings that a socket does not tell of itself.
//! * [`stacks`]: the user's stack at the moments that matter for a leak, of armed processes.
//! * [`task_file`]: the processes that hold sockets, by an iterator over all tasks' files.
//! * [`sock`]: the only place that reads sockets.
//! * [`hook_record`]: records of what is no state change. [`ring`]: reserve, submit, wake, count what was lost.

#![no_std]
#![no_main]

mod hook_record;
mod openings;
mod reset;
mod retransmit;
mod ring;
mod set_state;
mod sock;
mod stacks;
mod task_file;
mod time_wait;

use aya_ebpf::macros::{btf_tracepoint, fentry, fexit, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, FExitContext, TracePointContext};

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

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn send_reset(ctx: BtfTracePointContext) -> i32 {
    reset::sent(&ctx);
    0
}

#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn receive_reset(ctx: BtfTracePointContext) -> i32 {
    reset::received(&ctx);
    0
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn retransmit(ctx: BtfTracePointContext) -> i32 {
    retransmit::sent_again(&ctx);
    0
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn stack_opened(ctx: BtfTracePointContext) -> i32 {
    stacks::opened(&ctx);
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
pub fn stack_received(ctx: BtfTracePointContext) -> i32 {
    stacks::received(&ctx);
    0
}

#[btf_tracepoint(function = "sock_send_length")]
pub fn stack_sent(ctx: BtfTracePointContext) -> i32 {
    stacks::sent(&ctx);
    0
}

#[btf_tracepoint(function = "sys_exit")]
pub fn stack_accepted(ctx: BtfTracePointContext) -> i32 {
    stacks::accepted(&ctx);
    0
}

#[fentry(function = "tcp_time_wait")]
pub fn tw_cookie(ctx: FEntryContext) -> i32 {
    time_wait::enter_time_wait(&ctx);
    0
}

#[fexit(function = "inet_twsk_alloc")]
pub fn tw_born(ctx: FExitContext) -> i32 {
    time_wait::born(&ctx);
    0
}

#[fentry(function = "tcp_timewait_state_process")]
pub fn tw_segment(ctx: FEntryContext) -> i32 {
    time_wait::segment(&ctx);
    0
}

#[fexit(function = "tcp_timewait_state_process")]
pub fn tw_segment_done(ctx: FExitContext) -> i32 {
    time_wait::segment_done(&ctx);
    0
}

#[fexit(function = "tcp_twsk_unique")]
pub fn tw_unique(ctx: FExitContext) -> i32 {
    time_wait::unique(&ctx);
    0
}

#[fentry(function = "tcp_abort")]
pub fn tw_abort(ctx: FEntryContext) -> i32 {
    time_wait::abort(&ctx);
    0
}

#[fexit(function = "tcp_abort")]
pub fn tw_abort_done(_: FExitContext) -> i32 {
    time_wait::abort_done();
    0
}

#[fentry(function = "inet_twsk_purge")]
pub fn tw_purge(_: FEntryContext) -> i32 {
    time_wait::purge(true);
    0
}

#[fexit(function = "inet_twsk_purge")]
pub fn tw_purge_done(_: FExitContext) -> i32 {
    time_wait::purge(false);
    0
}

#[fentry(function = "tw_timer_handler")]
pub fn tw_expired(ctx: FEntryContext) -> i32 {
    time_wait::expired(&ctx);
    0
}

#[fentry(function = "inet_twsk_deschedule_put")]
pub fn tw_early(ctx: FEntryContext) -> i32 {
    time_wait::early(&ctx);
    0
}

#[fentry(function = "tcp_twsk_destructor")]
pub fn tw_gone(ctx: FEntryContext) -> i32 {
    time_wait::gone(&ctx);
    0
}

/// An iterator: it runs when the agent reads, and costs nothing until then.
///
/// # Safety
/// `ctx` is what the kernel runs an iterator over task_file with.
#[unsafe(link_section = "iter/task_file")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn task_file(ctx: *const task_file::Context) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { task_file::visit(ctx) };
    0
}

/// Some helpers are for GPL-compatible programs only (`bpf_probe_read_kernel`, `bpf_skc_to_tcp_sock`).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
