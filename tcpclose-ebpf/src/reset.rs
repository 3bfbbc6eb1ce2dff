//! `tcp_receive_reset`: the kernel resets a socket; `tcp_send_reset`: it answers a segment with a RST.
//!
//! `sk_err` alone does not show that a socket is being reset: an error that a sockmap or kTLS has left there
//! stays until the program asks for it (`sk_psock_report_error()`, `tls_err_abort()`).
//!
//! Data that arrives after close looks like a RST that came (`tcp_rcv_state_process` calls `tcp_reset` for both); the
//! RST that goes out some microseconds after →CLOSE tells them apart.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use tcpclose_common::control::RESET_REASONS;
use tcpclose_common::event::{HeaderDetail, HookRecord, SocketOrRcvNxt};
use tcpclose_common::state::{CONNECTED, TcpState, is_in};

use crate::hook_record;
use crate::ring;
use crate::sock::{self, IPPROTO_TCP, LAYOUT, Load, Typed};

/// RSTs that were sent, by the kernel's reason; a reason beyond the last entry counts in the first.
#[map]
static RESETS_SENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(RESET_REASONS, 0);

/// `TP_PROTO(const struct sock *sk, const struct sk_buff *skb, …)`; `sk` is NULL where no socket is concerned, and may be
/// a minisocket or a request.
#[inline(always)]
pub fn sent(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    let reason = reason(ctx);
    count(reason);
    if sk.is_null() {
        return;
    }
    // SAFETY: a sock, a minisocket or a request: all begin with a sock_common.
    let state = unsafe { Typed::load::<u8>(sk, sock::state_offset()) };
    // In these states it is a full socket: a minisocket's is TIME_WAIT, a request's NEW_SYN_RECV.
    if !is_in(state.into(), CONNECTED | TcpState::Close.bit())
        // SAFETY: a full socket.
        || unsafe { sock::protocol::<Typed>(sk) } != IPPROTO_TCP
    {
        return;
    }
    // After its first step it has a cookie, which is read here.
    // SAFETY: a full socket.
    let mut head = unsafe { hook_record::head::<Typed>(sk) };
    // The RST can come before the first step: then it is asked for, as tp_btf programs can since 5.12.
    if gives_reasons() {
        // SAFETY: the tracepoint's own socket, on 6.10 or later.
        head.key = unsafe { sock::cookie_or_new(sk) };
    }
    head.old = state;
    head.new = TcpState::Close.raw();
    head.detail = HeaderDetail::of_reset(reason);
    ring::send(HookRecord { head, subject: SocketOrRcvNxt::of_socket(sk as u64) });
}

/// Whether the kernel gives reasons, as it does since 6.10. An older kernel's verifier does not look at what depends on that, since the
/// layout is constant to it.
#[inline(always)]
fn gives_reasons() -> bool {
    sock::offset(&LAYOUT.has_reset_reason) != 0
}

/// The third argument, `const enum sk_rst_reason reason`, where the kernel has it; else 0.
#[inline(always)]
fn reason(ctx: &BtfTracePointContext) -> u16 {
    if !gives_reasons() {
        return 0;
    }
    let reason: i32 = ctx.arg(2);
    reason as u16
}

#[inline(always)]
fn count(reason: u16) {
    let index = if u32::from(reason) < RESET_REASONS { u32::from(reason) } else { 0 };
    if let Some(count) = RESETS_SENT.get_ptr_mut(index) {
        // SAFETY: this CPU's element. Where a softirq interrupts a process in between, one may be counted too few.
        unsafe { *count = (*count).wrapping_add(1) };
    }
}

/// Sockets that are being reset, by address: from the tracepoint at the begin of `tcp_reset()` to the step to
/// CLOSE that it makes, both under the socket's lock (net/ipv4/tcp_input.c, 5.8 to 6.18).
#[map]
static RESETTING: LruHashMap<u64, u32> = LruHashMap::with_max_entries(1024, 0);

/// `TP_PROTO(struct sock *sk)`.
#[inline(always)]
pub fn received(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    // From other states there is no step to CLOSE that takes it away again.
    // SAFETY: the tracepoint's own socket, which is a full one.
    if is_in(unsafe { Typed::load::<u8>(sk, sock::state_offset()) }.into(), CONNECTED) {
        // The table is larger than the number of CPUs on which this can happen at once.
        let _ = RESETTING.insert(sk as u64, 0, 0);
    }
}

/// Whether the socket with this address is being reset; only once.
#[inline(always)]
pub fn is_received(sk: u64) -> bool {
    RESETTING.remove(sk).is_ok()
}
