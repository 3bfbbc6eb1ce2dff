//! `tcp_receive_reset`: the kernel resets a socket; `tcp_send_reset`: it answers a segment with a RST.
//!
//! `sk_err` alone does not show that a socket is being reset: an error that a sockmap or kTLS has left there
//! stays until the program asks for it (`sk_psock_report_error()`, `tls_err_abort()`).
//!
//! Data that arrives after close looks like a RST that came (`tcp_rcv_state_process` calls `tcp_reset` for both); the
//! RST that goes out some microseconds after →CLOSE tells them apart.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::BtfTracePointContext;
use tcpclose_common::event::{HookKind, SocketOrRcvNxt};
use tcpclose_common::state::{CONNECTED, TcpState, is_in};

use crate::sock::{self, IPPROTO_TCP, Load, Typed};
use crate::time_wait;

/// `TP_PROTO(const struct sock *sk, const struct sk_buff *skb, …)`; `sk` is NULL where no socket is concerned, and may be
/// a minisocket or a request.
#[inline(always)]
pub fn sent(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    if sk.is_null() {
        return;
    }
    // Only a full socket that has just been closed is of interest: the step of an open one that resets shows it.
    // SAFETY: a sock, a minisocket or a request: all begin with a sock_common.
    if unsafe { Typed::load::<u8>(sk, sock::state_offset()) } != TcpState::Close.raw()
        // SAFETY: in state CLOSE, it is a full socket.
        || unsafe { sock::protocol::<Typed>(sk) } != IPPROTO_TCP
    {
        return;
    }
    // Its cookie is read, not asked for: it was given one at its first step, and tp_btf programs cannot call
    // bpf_get_socket_cookie() before 5.12.
    // SAFETY: a full socket.
    let mut head = unsafe { time_wait::head::<Typed>(sk) };
    head.old = TcpState::Close.raw();
    head.new = TcpState::Close.raw();
    time_wait::send(head, HookKind::ResetSent, SocketOrRcvNxt::of_socket(sk as u64));
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
