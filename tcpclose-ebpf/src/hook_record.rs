//! Records of what is no state change of a socket.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use tcpclose_common::event::{HeaderDetail, HookKind, HookRecord, RecordHeader, SocketOrRcvNxt, flags};

use crate::ring;
use crate::sock::{self, Load};

/// Sends a record of this kind.
#[inline(always)]
pub fn send(mut head: RecordHeader, kind: HookKind, subject: SocketOrRcvNxt) {
    head.detail = HeaderDetail::of_hook(kind);
    ring::send(HookRecord { head, subject });
}

/// The header of a record of a socket or minisocket, now.
///
/// # Safety
/// `common` is a live sock or inet_timewait_sock.
#[inline(always)]
pub unsafe fn head<L: Load>(common: *const u8) -> RecordHeader {
    // SAFETY: both begin with a sock_common.
    unsafe {
        let (local_port, remote_port) = sock::common_ports::<L>(common);
        RecordHeader {
            key: sock::cookie::<L>(common),
            time_ns: bpf_ktime_get_ns(),
            local_port,
            remote_port,
            old: 0,
            new: 0,
            flags: flags::HOOK | flags::COOKIE,
            netns: sock::netns::<L>(common),
            detail: HeaderDetail::NONE,
        }
    }
}
