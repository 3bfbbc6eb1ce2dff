//! Openings that nothing of a socket would tell later: children of a listener without a backlog, and sockets
//! that are restored in repair mode. They are marked; nothing is stored of an ordinary opening.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use tcpclose_common::event::flags;
use tcpclose_common::state::TcpState;

use crate::sock::{self, Load};

/// Marks, by a socket's key in its records. One that is evicted makes the side `unknown` at worst.
#[map]
static OPENINGS: LruHashMap<u64, u32> = LruHashMap::with_max_entries(16_384, 0);

/// The values of [`OPENINGS`].
const ACCEPTED: u32 = 1;
const RESTORED: u32 = 2;

/// Not 0 once a socket was restored: only then does a socket with the counters of a connecting one need a look
/// at its mark.
static mut ANY_RESTORED: u64 = 0;

/// The kind of opening that a step to ESTABLISHED ends; 0 for none that needs a mark. In a program's first
/// lines: an opening costs two comparisons and one load.
///
/// # Safety
/// `sk` is the tracepoint's own socket.
#[inline(always)]
pub unsafe fn kind<L: Load>(sk: *const u8, old: u32, new: u32) -> u32 {
    if new != TcpState::Established as u32 {
        return 0;
    }
    // SAFETY: the caller's promise. A child is a full socket when it gets here, and so is what connects.
    unsafe {
        if old == TcpState::SynRecv as u32 {
            if sock::has_backlog::<L>(sk) { 0 } else { ACCEPTED }
        } else if old == TcpState::SynSent as u32 && sock::is_forced_to_reuse::<L>(sk) {
            RESTORED
        } else {
            0
        }
    }
}

/// Marks an opening of this `kind`, not 0, of the TCP socket `tcp`.
///
/// # Safety
/// `tcp` is a live struct tcp_sock.
#[inline(always)]
pub unsafe fn mark<L: Load>(tcp: *const u8, kind: u32, key: u64) {
    // In a simultaneous open, and so when a socket connects to itself, the SYN was acknowledged before
    // (tcp_rcv_state_process()). SAFETY: the caller's promise.
    if kind == ACCEPTED && unsafe { sock::acknowledged_unsent::<L>(tcp) } == 1 {
        return;
    }
    if kind == RESTORED {
        // SAFETY: an aligned word that is written whole, and never anything else.
        unsafe { (&raw mut ANY_RESTORED).write_volatile(1) };
    }
    // Without a mark the side is `unknown` at worst.
    let _ = OPENINGS.insert(key, kind, 0);
}

/// What is known of the opening of a socket without a backlog that has not sent its FIN, as [`flags`]. `first`:
/// at its first step, which takes its mark.
///
/// # Safety
/// `tcp` is a live struct tcp_sock.
#[inline(always)]
pub unsafe fn facts<L: Load>(tcp: *const u8, key: u64, first: bool) -> u16 {
    // SAFETY: the caller's promise.
    let unsent = unsafe { sock::acknowledged_unsent::<L>(tcp) };
    // SAFETY: an aligned word that is read whole.
    let any_restored = || unsafe { (&raw const ANY_RESTORED).read_volatile() != 0 };
    if first && (unsent != 1 || any_restored()) {
        // SAFETY: the value is copied at once.
        let mark = unsafe { OPENINGS.get(key) }.copied().unwrap_or(0);
        if mark != 0 {
            let _ = OPENINGS.remove(key);
        }
        if mark == RESTORED {
            return flags::NOT_CONNECTED;
        }
        // With the other counters it is the mark of a socket that had this address before.
        if mark == ACCEPTED && unsent != 1 {
            return flags::ACCEPTED;
        }
    }
    match unsent {
        1 => flags::CONNECTED,
        0 | 2.. => flags::NOT_CONNECTED,
        _ => 0,
    }
}
