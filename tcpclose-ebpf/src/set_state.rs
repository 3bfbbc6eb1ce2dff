//! `inet_sock_set_state`: one body behind two attach points.
//!
//! Both filter first (TCP, a real transition, the close phase), because most of what fires here is the opening of
//! connections; then one record is made, with addresses at the first step of a socket, without at later ones.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skc_to_tcp_sock};
use aya_ebpf::programs::{BtfTracePointContext, TracePointContext};
use aya_log_ebpf::{trace, warn};
use tcpclose_common::event::{
    FlowStepRecord, HeaderDetail, OpenRecord, RecordHeader, StepRecord, flags, flow_hash,
};
use tcpclose_common::state::{BEFORE_FIN, TcpState, is_close_step, is_first_step, is_in};

use crate::openings;
use crate::reset;
use crate::ring;
use crate::sock::classic::{self, ByFormat, InPlace, RecordFields};
use crate::sock::{self, Copied, IPPROTO_MPTCP, IPPROTO_TCP, Load, SocketFields, Typed};

/// The errors of `tcp_reset()`.
const EPIPE: u16 = 32;
const ECONNRESET: u16 = 104;

/// The states that this side's FIN leads to.
const FIN_SENT: u32 = TcpState::FinWait1.bit() | TcpState::LastAck.bit();

/// The tp_btf backend: direct loads, keyed by socket cookie.
#[inline(always)]
pub fn by_btf(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    let (old, new) = (old as u32, new as u32);
    // SAFETY: the tracepoint's first argument is a live struct sock.
    let opening = if is_close_step(old, new) { 0 } else { unsafe { openings::kind::<Typed>(sk, old, new) } };
    let is_wanted = is_close_step(old, new) || opening != 0;
    // SAFETY: as above.
    if !is_wanted {
        return;
    }
    // SAFETY: as above.
    match unsafe { sock::protocol::<Typed>(sk) } {
        IPPROTO_TCP => {}
        // SAFETY: as above.
        IPPROTO_MPTCP => {
            // SAFETY: as above.
            return unsafe { mptcp_step::<Typed>(sk, || sock::cookie_or_new(sk), old, new, flags::COOKIE) };
        }
        _ => return,
    }
    // SAFETY: a helper call; NULL when this is no TCP socket.
    let tcp: *const u8 = unsafe { bpf_skc_to_tcp_sock(sk.cast_mut().cast()) }.cast();
    if tcp.is_null() {
        return;
    }
    if opening != 0 {
        // SAFETY: the tracepoint's own socket, as a tcp_sock.
        unsafe { openings::mark::<Typed>(tcp, opening, sock::cookie_or_new(sk)) };
        return;
    }
    // SAFETY: both point to the tracepoint's own socket; this backend loads only where the offsets are resolved.
    let (facts, (local_port, remote_port), cookie) = unsafe {
        (sock::facts::<Typed>(sk, tcp, new), sock::ports::<Typed>(sk, tcp), sock::cookie_or_new(sk))
    };
    let numbers = facts.numbers;
    // SAFETY: as above.
    let facts = with_reset(unsafe { with_opening::<Typed>(facts, tcp, cookie, old) }, sk as u64, new);
    let head = head::<Typed>(cookie, (local_port, remote_port), old, new, facts, flags::COOKIE);
    let sent = if is_first_step(old) {
        // SAFETY: as above.
        let ((local, remote), inum) =
            unsafe { (sock::addresses::<Typed>(sk), sock::netns_inum::<Typed>(sk)) };
        open(head, OpenRecord { numbers, local, remote, inum, ..OpenRecord::default() })
    } else {
        ring::send(StepRecord { head, numbers })
    };
    log(ctx, sent, old, new, local_port, remote_port);
}

/// The classic tracepoint: the tracepoint's own fields, and what BTF tells of the rest. Of the two ways to read the record the
/// verifier removes the other one.
#[inline(always)]
pub fn by_tracepoint(ctx: &TracePointContext) {
    if classic::is_mainline() {
        by_record::<InPlace>(ctx);
    } else {
        by_record::<ByFormat>(ctx);
    }
}

#[inline(always)]
fn by_record<F: RecordFields>(ctx: &TracePointContext) {
    let (old, new) = classic::step::<F>(ctx);
    let sk = classic::sk::<F>(ctx);
    if !is_close_step(old, new) {
        return by_record_opening::<F>(ctx, sk, old, new);
    }
    match classic::protocol::<F>(ctx) {
        IPPROTO_TCP => {}
        IPPROTO_MPTCP if sock::resolved() => {
            // SAFETY: the tracepoint's own socket. The loads are checked by the helper.
            return unsafe { mptcp_step::<Copied>(sk as *const u8, || sk, old, new, 0) };
        }
        _ => return,
    }
    let (local_port, remote_port) = classic::ports::<F>(ctx);
    let (local, remote) = classic::addresses::<F>(ctx);
    let facts = if sock::resolved() {
        let at = sk as *const u8;
        // SAFETY: the tracepoint's own socket, and protocol 6: a tcp_sock. The loads are checked by the helper.
        let facts = unsafe { with_opening::<Copied>(sock::facts::<Copied>(at, at, new), at, sk, old) };
        with_reset(facts, sk, new)
    } else {
        SocketFields::NONE
    };
    let numbers = facts.numbers;
    let head = head::<Copied>(sk, (local_port, remote_port), old, new, facts, 0);
    let sent = if is_first_step(old) {
        // SAFETY: as for the facts.
        let inum = if sock::resolved() { unsafe { sock::netns_inum::<Copied>(sk as *const u8) } } else { 0 };
        open(head, OpenRecord { numbers, local, remote, inum, ..OpenRecord::default() })
    } else {
        let flow = flow_hash(&local, &remote, local_port, remote_port);
        ring::send(FlowStepRecord { step: StepRecord { head, numbers }, flow })
    };
    log(ctx, sent, old, new, local_port, remote_port);
}

/// An opening at the classic tracepoint, whose sockets are known by their address.
#[inline(always)]
fn by_record_opening<F: RecordFields>(ctx: &TracePointContext, sk: u64, old: u32, new: u32) {
    let is_opening = new == TcpState::Established as u32;
    if !is_opening || !sock::resolved() || classic::protocol::<F>(ctx) != IPPROTO_TCP {
        return;
    }
    let at = sk as *const u8;
    // SAFETY: the tracepoint's own socket, and protocol 6: a tcp_sock. The loads are checked by the helper.
    unsafe {
        let kind = openings::kind::<Copied>(at, old, new);
        if kind != 0 {
            openings::mark::<Copied>(at, kind, sk);
        }
    }
}

/// Reports a step of an MPTCP socket into CLOSE-WAIT or out of it. At the end of the peer's data (DATA_FIN) it is this socket that
/// changes its state, and its subflows, TCP sockets, stay ESTABLISHED (net/mptcp/protocol.c, mptcp_check_data_fin(), 5.9 to 6.18).
/// Its addresses and ports are the first subflow's (mptcp_copy_inaddrs()), and it keeps them.
///
/// # Safety
/// `sk` is the tracepoint's own socket, an MPTCP socket; the offsets are known.
#[inline(always)]
unsafe fn mptcp_step<L: Load>(sk: *const u8, key: impl FnOnce() -> u64, old: u32, new: u32, backend: u16) {
    const CLOSE_WAIT: u32 = TcpState::CloseWait as u32;
    if (old == CLOSE_WAIT) == (new == CLOSE_WAIT) {
        return;
    }
    // SAFETY: the caller's promise.
    let ((local_port, remote_port), (local, remote), netns, inum) = unsafe {
        (
            sock::common_ports::<L>(sk),
            sock::addresses::<L>(sk),
            sock::netns::<L>(sk),
            sock::netns_inum::<L>(sk),
        )
    };
    let head = RecordHeader {
        key: key(),
        // SAFETY: a helper without arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        local_port,
        remote_port,
        old: old as u8,
        new: new as u8,
        flags: flags::HOOK | backend,
        netns,
        detail: HeaderDetail::NONE,
    };
    open(head, OpenRecord { local, remote, inum, ..OpenRecord::default() });
}

/// Adds what is known of the opening, where the backlog does not tell it and this side's FIN is not sent yet.
///
/// # Safety
/// `tcp` is the tracepoint's own socket.
#[inline(always)]
unsafe fn with_opening<L: Load>(facts: SocketFields, tcp: *const u8, key: u64, old: u32) -> SocketFields {
    if facts.flags & flags::ACCEPTED != 0 || !is_in(old, BEFORE_FIN) {
        return facts;
    }
    // SAFETY: the caller's promise.
    let opening = unsafe { openings::facts::<L>(tcp, key, is_first_step(old)) };
    SocketFields { flags: facts.flags | opening, ..facts }
}

/// Adds whether the error at a step to CLOSE is that of a reset.
#[inline(always)]
fn with_reset(facts: SocketFields, sk: u64, new: u32) -> SocketFields {
    let is_error = matches!(facts.detail.err(), ECONNRESET | EPIPE);
    let is_reset = new == TcpState::Close as u32 && is_error && reset::is_received(sk);
    SocketFields { flags: facts.flags | if is_reset { flags::RESET } else { 0 }, ..facts }
}

#[inline(always)]
fn head<L: Load>(
    key: u64,
    ports: (u16, u16),
    old: u32,
    new: u32,
    facts: SocketFields,
    backend: u16,
) -> RecordHeader {
    let mut head = RecordHeader {
        key,
        // SAFETY: a helper without arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        local_port: ports.0,
        remote_port: ports.1,
        old: old as u8,
        new: new as u8,
        flags: facts.flags | backend,
        netns: facts.netns,
        detail: facts.detail,
    };
    // These two are entered by close() and shutdown() alone. With the lock owned it is this task that holds it; in softirq
    // it would be whoever was interrupted.
    if facts.flags & flags::OWNED != 0
        && is_in(new, FIN_SENT)
        && let Some(pid) = sock::current_process::<L>()
    {
        head.set_closer(pid);
    }
    head
}

#[inline(always)]
fn open(mut head: RecordHeader, open: OpenRecord) -> bool {
    head.flags |= flags::OPEN;
    ring::send(OpenRecord { head, ..open })
}

/// The probe's part of `--log-level`. At level off, the default, the verifier removes these branches: the level
/// is a constant to it.
#[inline(always)]
fn log(ctx: &impl EbpfContext, sent: bool, old: u32, new: u32, local_port: u16, remote_port: u16) {
    if !sent {
        warn!(ctx, "ring full: lost {} -> {} of {} -> {}", old, new, local_port, remote_port);
    }
    trace!(ctx, "{} -> {} of {} -> {}", old, new, local_port, remote_port);
}
