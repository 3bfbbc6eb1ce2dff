//! Hooks on the functions that make, change and end a minisocket: birth, flip from FIN-WAIT-2 to TIME-WAIT, end and its
//! cause.
//!
//! Every early end goes through `inet_twsk_deschedule_put(tw)`; a mark made just before shows its caller.
//! What runs with softirqs disabled from the mark to the end marks its CPU ([`Scratch`]): a segment
//! (`tcp_timewait_state_process` and its callers `tcp_v4_rcv`, `tcp_v6_rcv`) and connect() (`__inet_hash_connect`, from
//! `tcp_twsk_unique` on). What can sleep or move to another CPU in between marks its task: SOCK_DESTROY (`tcp_abort`
//! disables softirqs around the end only) and a vanishing namespace (`inet_twsk_purge`). Function names and their
//! callers are those of net/ipv4 in Linux 6.1 to 6.18.
//!
//! An end can be reported more than once. A segment or a task that found the minisocket before its timer fired calls
//! `inet_twsk_deschedule_put` all the same: that waits for the handler, ends nothing (`timer_shutdown_sync`, in 6.1
//! `del_timer_sync`, returns 0) and only puts its reference; two such callers are the same. The first report has the
//! cause, and the agent's tracker knows the others by the cookie.

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_get_socket_cookie};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray};
use aya_ebpf::programs::{FEntryContext, FExitContext};
use tcpclose_common::event::{HookKind, SocketOrRcvNxt};
use tcpclose_common::state::TcpState;

use crate::hook_record::{head, send};
use crate::sock::{self, Copied, IPPROTO_TCP, Load, Typed};

/// What this CPU is doing to which minisocket.
#[repr(C)]
#[derive(Clone, Copy)]
struct Scratch {
    /// Its address; 0 for none. Forgotten at its end: the slab uses an address again within microseconds.
    tw: u64,
    doing: Doing,
}

#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// In `tcp_timewait_state_process`, which began in FIN-WAIT-2. It ends a minisocket itself only for a RST.
    SegmentInFinWait2 = 0,
    /// The same, begun in TIME-WAIT.
    SegmentInTimeWait,
    /// It returned TCP_TW_SYN: `tcp_v4_rcv` ends the minisocket and hands the SYN to the listener.
    Recycling,
    /// It returned TCP_TW_RST: `tcp_v4_rcv` sends a RST and ends the minisocket.
    Resetting,
    /// `tcp_twsk_unique` said yes: `__inet_hash_connect` or `__inet_check_established` ends it.
    Reusing,
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Tasks in `tcp_abort` of a minisocket: by pid and tgid, its address.
#[map]
static ABORTING: HashMap<u64, u64> = HashMap::with_max_entries(64, 0);

/// Tasks in `inet_twsk_purge`: by pid and tgid, the address of the minisocket whose end was reported last.
#[map]
static PURGING: HashMap<u64, u64> = HashMap::with_max_entries(64, 0);

/// `enum tcp_tw_status` (include/net/tcp.h; these are the same from 5.8 to 6.18).
const TCP_TW_RST: i32 = 1;
const TCP_TW_ACK: i32 = 2;
const TCP_TW_SYN: i32 = 3;

/// `tcp_time_wait(struct sock *sk, int state, int timeo)`, entered: gives the socket a cookie if it has none, so that
/// the minisocket inherits one. Only the classic tracepoint needs that.
#[inline(always)]
pub fn enter_time_wait(ctx: &FEntryContext) {
    let sk: *const u8 = ctx.arg(0);
    // SAFETY: a helper call on the function's own socket.
    unsafe { bpf_get_socket_cookie(sk.cast_mut().cast()) };
}

/// `inet_twsk_alloc(const struct sock *sk, struct inet_timewait_death_row *dr, const int state)`, left.
#[inline(always)]
pub fn born(ctx: &FExitContext) {
    let sk: *const u8 = ctx.arg(0);
    let state: u64 = ctx.arg(2);
    // DCCP allocates here too.
    // SAFETY: the function's own socket.
    if unsafe { sock::protocol::<Typed>(sk) } != IPPROTO_TCP {
        return;
    }
    let Ok(tw) = ctx.ret::<u64>() else { return };
    // SAFETY: the function's own socket; its cookie is what the minisocket got.
    let (old, mut head) = unsafe { (Typed::load::<u8>(sk, sock::state_offset()), head::<Typed>(sk)) };
    head.old = old;
    head.new = state as u8;
    let kind = if tw == 0 { HookKind::Unborn } else { HookKind::Born };
    send(head, kind, SocketOrRcvNxt::of_socket(sk as u64));
}

/// `tcp_timewait_state_process(struct inet_timewait_sock *tw, …)`, entered.
#[inline(always)]
pub fn segment(ctx: &FEntryContext) {
    let tw: *const u8 = ctx.arg(0);
    // SAFETY: the function's own minisocket.
    let substate: u8 = unsafe { Typed::load(tw, sock::substate_offset()) };
    let doing = if substate == TcpState::FinWait2.raw() {
        Doing::SegmentInFinWait2
    } else {
        Doing::SegmentInTimeWait
    };
    remember(tw as u64, doing);
}

/// `tcp_timewait_state_process`, left. Before TCP_TW_SUCCESS it has always put its reference, by `inet_twsk_put` or by
/// `inet_twsk_deschedule_put`: the minisocket may be gone, and another be at its address. Before TCP_TW_ACK it has not,
/// its caller puts it after the answer (`tcp_v4_timewait_ack`), and the flip returns nothing else (net/ipv4/tcp_minisocks.c
/// and tcp_ipv4.c, 5.8 to 6.18).
#[inline(always)]
pub fn segment_done(ctx: &FExitContext) {
    let tw: *const u8 = ctx.arg(0);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's element; nothing else of this file runs on this CPU between the function's entry and here.
    let Scratch { tw: entered, doing } = unsafe { scratch.read() };
    // It was ended inside, and reported then.
    if entered != tw as u64 {
        return;
    }
    match ctx.ret::<i32>().unwrap_or(0) {
        TCP_TW_SYN => remember(entered, Doing::Recycling),
        TCP_TW_RST => remember(entered, Doing::Resetting),
        TCP_TW_ACK => {
            remember(0, Doing::SegmentInTimeWait);
            if doing == Doing::SegmentInFinWait2 {
                flipped(tw);
            }
        }
        _ => remember(0, Doing::SegmentInTimeWait),
    }
}

/// Reports the flip to TIME-WAIT, if that is what the segment did. `tw` is referenced.
#[inline(always)]
fn flipped(tw: *const u8) {
    // SAFETY: a referenced minisocket.
    let substate: u8 = unsafe { Typed::load(tw, sock::substate_offset()) };
    if substate != TcpState::TimeWait.raw() {
        return;
    }
    // SAFETY: as above.
    let mut head = unsafe { head::<Typed>(tw) };
    head.old = TcpState::FinWait2.raw();
    head.new = substate;
    // SAFETY: as above.
    let rcv_nxt: u32 = unsafe { Typed::load(tw, sock::tw_rcv_nxt_offset()) };
    send(head, HookKind::Flipped, SocketOrRcvNxt::of_rcv_nxt(rcv_nxt));
}

/// `tcp_twsk_unique(struct sock *sk, struct sock *sktw, void *twp)`, left.
#[inline(always)]
pub fn unique(ctx: &FExitContext) {
    let tw: u64 = ctx.arg(1);
    // What the function returned stands behind its three arguments. Through bpf_get_func_ret the verifier of 6.1 takes
    // it for the helper's own status, 0, and removes the branch (linked registers, mended in 6.8).
    let unique: i32 = ctx.arg(3);
    if unique == 1 {
        remember(tw, Doing::Reusing);
    }
}

/// `tcp_abort(struct sock *sk, int err)`, entered.
#[inline(always)]
pub fn abort(ctx: &FEntryContext) {
    let sk: *const u8 = ctx.arg(0);
    // SAFETY: a sock or a minisocket: both begin with a sock_common.
    if unsafe { Typed::load::<u8>(sk, sock::state_offset()) } == TcpState::TimeWait.raw() {
        // A full map only means that this end is reported as early.
        let _ = ABORTING.insert(task(), sk as u64, 0);
    }
}

/// `tcp_abort`, left.
#[inline(always)]
pub fn abort_done() {
    let _ = ABORTING.remove(task());
}

/// `inet_twsk_purge(…)`, entered and left.
#[inline(always)]
pub fn purge(enter: bool) {
    // A full map only means that these ends are reported as early.
    let _ = if enter { PURGING.insert(task(), 0, 0) } else { PURGING.remove(task()) };
}

/// `tw_timer_handler(struct timer_list *t)`, entered.
#[inline(always)]
pub fn expired(ctx: &FEntryContext) {
    let timer: *const u8 = ctx.arg(0);
    // The timer lies inside the minisocket: a pointer that the verifier does not know, so the loads are copies.
    let tw = timer.wrapping_sub(sock::timer_offset());
    end::<Copied>(tw, HookKind::Expired);
}

/// `inet_twsk_deschedule_put(struct inet_timewait_sock *tw)`, entered.
#[inline(always)]
pub fn early(ctx: &FEntryContext) {
    let tw: *const u8 = ctx.arg(0);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's element.
    let Scratch { tw: ours, doing } = unsafe { scratch.read() };
    let kind = if ours == tw as u64 {
        match doing {
            Doing::SegmentInFinWait2 | Doing::SegmentInTimeWait => HookKind::Reset,
            Doing::Recycling => HookKind::Recycled,
            Doing::Resetting => HookKind::DataAfterClose,
            Doing::Reusing => HookKind::Reused,
        }
    } else {
        of_task(tw as u64)
    };
    remember(0, Doing::SegmentInTimeWait);
    end::<Typed>(tw, kind);
}

/// Why this task ends `tw`.
#[inline(always)]
fn of_task(tw: u64) -> HookKind {
    let task = task();
    // SAFETY: the value is not kept.
    if unsafe { ABORTING.get(task) }.is_some_and(|aborting| *aborting == tw) {
        return HookKind::Destroyed;
    }
    // SAFETY: as above.
    if unsafe { PURGING.get(task) }.is_none() {
        return HookKind::Early;
    }
    // The destructor, which follows, need not report it again.
    let _ = PURGING.insert(task, tw, 0);
    HookKind::Purged
}

/// `tcp_twsk_destructor(struct sock *sk)`, entered: the last reference to the minisocket is gone. In Debian's 6.1
/// `inet_twsk_purge` has a copy of `inet_twsk_deschedule_put` inlined (both in net/ipv4/inet_timewait_sock.c), so that
/// this is the only sign of such an end; it comes in the same task.
#[inline(always)]
pub fn gone(ctx: &FEntryContext) {
    let tw: *const u8 = ctx.arg(0);
    // SAFETY: the value is not kept.
    if unsafe { PURGING.get(task()) }.is_some_and(|reported| *reported != tw as u64) {
        // A struct sock to the verifier, which has no substate: the loads are copies.
        end::<Copied>(tw, HookKind::Purged);
    }
}

/// Reports a minisocket's end.
#[inline(always)]
fn end<L: Load>(tw: *const u8, kind: HookKind) {
    // SAFETY: a live minisocket: its end has only begun.
    let (substate, mut head) = unsafe { (L::load::<u8>(tw, sock::substate_offset()), head::<L>(tw)) };
    head.old = substate;
    head.new = TcpState::Close.raw();
    send(head, kind, SocketOrRcvNxt::NONE);
}

/// The task that runs, or that a softirq has interrupted.
#[inline(always)]
fn task() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_current_pid_tgid() }
}

#[inline(always)]
fn remember(tw: u64, doing: Doing) {
    if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
        // SAFETY: this CPU's element, of a map that lives as long as the program.
        unsafe { scratch.write(Scratch { tw, doing }) };
    }
}
