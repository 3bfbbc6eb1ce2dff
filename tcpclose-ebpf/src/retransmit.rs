//! `tcp_retransmit_skb`: what a socket sends again after its FIN.

use aya_ebpf::programs::BtfTracePointContext;
use tcpclose_common::event::{HookKind, SocketOrRcvNxt};
use tcpclose_common::state::{FIN_UNACKNOWLEDGED, is_in};

use crate::hook_record;
use crate::sock::{self, LAYOUT, Load, Typed};

/// `TP_PROTO(const struct sock *sk, const struct sk_buff *skb)`, called when the segment has gone out; since 6.17 also when it could
/// not, with the error as a third argument (net/ipv4/tcp_output.c, __tcp_retransmit_skb()). A request's SYN-ACK has a tracepoint of
/// its own, so that `sk` is a full socket.
#[inline(always)]
pub fn sent_again(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    // SAFETY: the tracepoint's own socket.
    let state = unsafe { Typed::load::<u8>(sk, sock::state_offset()) };
    if !is_in(state.into(), FIN_UNACKNOWLEDGED) || is_error(ctx) {
        return;
    }
    // SAFETY: as above.
    let mut head = unsafe { hook_record::head::<Typed>(sk) };
    (head.old, head.new) = (state, state);
    hook_record::send(head, HookKind::SentAgain, SocketOrRcvNxt::of_socket(sk as u64));
}

/// Whether the segment has not gone out. An older kernel's verifier does not look at the argument, since the layout is constant to it.
#[inline(always)]
fn is_error(ctx: &BtfTracePointContext) -> bool {
    sock::offset(&LAYOUT.has_retransmit_error) != 0 && ctx.arg::<i32>(2) != 0
}
