//! `tcp_send_reset`: the kernel answers a segment with a RST.
//!
//! Data that arrives after close looks like a RST that came (`tcp_rcv_state_process` calls `tcp_reset` for both); the
//! RST that goes out some microseconds after →CLOSE tells them apart.

use aya_ebpf::programs::BtfTracePointContext;
use tcpclose_common::event::{HookKind, SocketOrRcvNxt};
use tcpclose_common::state::TcpState;

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
