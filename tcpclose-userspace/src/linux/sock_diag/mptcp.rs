//! MPTCP sockets: what a program holds of an MPTCP connection. Its subflows are TCP sockets of their own.
//!
//! The end of an MPTCP connection is signalled at its own level (DATA_FIN): the socket goes to CLOSE-WAIT while its subflows stay
//! ESTABLISHED (net/mptcp/protocol.c, `mptcp_check_data_fin()`, 5.9 to 6.18). A connection with a peer that only knows TCP is a TCP
//! socket as soon as it is accepted.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer};

use crate::linux::host::monotonic_ns;
use crate::linux::sock_diag::connection::{SEQUENCE, exchange};
use crate::linux::sock_diag::socket::{
    Attributes, INET_DIAG_INFO, MESSAGE, Mptcp, Socket, decode_message, take,
};

/// `SOCK_DIAG_BY_FAMILY` of include/uapi/linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `INET_DIAG_REQ_PROTOCOL` of include/uapi/linux/inet_diag.h, for protocols beyond a byte; since 5.9.
const INET_DIAG_REQ_PROTOCOL: u16 = 3;
const IPPROTO_MPTCP: u32 = 262;
/// No protocol: what a kernel that does not know the attribute looks for.
const NO_PROTOCOL: u8 = 255;

const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56 + 8;

/// CLOCK_MONOTONIC when the kernel refused to list MPTCP sockets; 0 if it did not. Asked again, it looks for a module each time:
/// so it is asked once in [`AGAIN_NS`].
static REFUSED_NS: AtomicU64 = AtomicU64::new(0);
const AGAIN_NS: u64 = 3_600_000_000_000;

/// Whether this kernel has MPTCP and no way to list its sockets, by what was tried so far.
pub fn mptcp_is_hidden() -> bool {
    let refused_ns = REFUSED_NS.load(Ordering::Relaxed);
    refused_ns != 0 && monotonic_ns().saturating_sub(refused_ns) < AGAIN_NS
}

/// Passes every MPTCP socket of the caller's network namespace in one of `states` to `take`. Of a kernel without MPTCP, or that
/// cannot list its sockets, there is none.
pub fn visit_mptcp(states: u32, mut take: impl FnMut(Socket)) -> io::Result<()> {
    if mptcp_is_hidden() || !std::fs::exists("/proc/sys/net/mptcp/enabled").unwrap_or(false) {
        return Ok(());
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        let listed = exchange(&request(family, states), |answer| {
            if let Some(socket) = decode_mptcp(answer.payload) {
                take(answer.dated(socket));
            }
        });
        match listed {
            // No such handler, and no module that has one (net/core/sock_diag.c, net/ipv4/inet_diag.c).
            Err(why) if matches!(why.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {
                REFUSED_NS.store(monotonic_ns(), Ordering::Relaxed);
                return Ok(());
            }
            listed => listed?,
        }
    }
    Ok(())
}

/// `struct inet_diag_req_v2`, and the protocol in an attribute.
fn request(family: i32, states: u32) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let mut header = NetlinkBuffer::new(&mut bytes[..]);
    header.set_length(REQUEST as u32);
    header.set_message_type(SOCK_DIAG_BY_FAMILY);
    header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    header.set_sequence_number(SEQUENCE);
    header.set_port_number(0);
    bytes[HEADER] = family as u8;
    bytes[HEADER + 1] = NO_PROTOCOL;
    bytes[HEADER + 2] = 1 << (INET_DIAG_INFO - 1);
    bytes[HEADER + 4..HEADER + 8].copy_from_slice(&states.to_ne_bytes());
    bytes[HEADER + 56..HEADER + 58].copy_from_slice(&8_u16.to_ne_bytes());
    bytes[HEADER + 58..HEADER + 60].copy_from_slice(&INET_DIAG_REQ_PROTOCOL.to_ne_bytes());
    bytes[HEADER + 60..].copy_from_slice(&IPPROTO_MPTCP.to_ne_bytes());
    bytes
}

/// Decodes an answer. `INET_DIAG_INFO` is a `struct mptcp_info` here, and the queue lengths are memory, not bytes of data
/// (net/mptcp/mptcp_diag.c, `mptcp_diag_get_info()`).
pub fn decode_mptcp(bytes: &[u8]) -> Option<Socket> {
    let socket = decode_message(bytes)?;
    let info = Attributes::decode(bytes.get(MESSAGE..)?)?.info.unwrap_or_default();
    let mptcp = Mptcp {
        write_seq: take(info, 16).map(u64::from_ne_bytes),
        // Since 6.10.
        last_data_received_ms: take(info, 88).map(u32::from_ne_bytes),
    };
    Some(Socket { mptcp: Some(mptcp), minisocket: false, ..socket })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use tcpclose_common::state::TcpState;

    #[test]
    fn bytes_of_any_length_are_decoded_or_refused() {
        let mut bytes = vec![0; MESSAGE + 4 + 96];
        (bytes[0], bytes[1]) = (2, 8);
        bytes[MESSAGE..MESSAGE + 2].copy_from_slice(&100_u16.to_ne_bytes());
        bytes[MESSAGE + 2..MESSAGE + 4].copy_from_slice(&INET_DIAG_INFO.to_ne_bytes());
        bytes[MESSAGE + 4 + 16] = 7;
        bytes[MESSAGE + 4 + 88] = 9;
        let socket = decode_mptcp(&bytes).unwrap();
        assert_eq!((socket.state, socket.times), (TcpState::CloseWait, None));
        assert_eq!(socket.mptcp, Some(Mptcp { write_seq: Some(7), last_data_received_ms: Some(9) }));
        for length in 0..bytes.len() {
            assert_eq!(decode_mptcp(&bytes[..length]).is_some(), length == MESSAGE, "{length}");
        }
        // A kernel before 6.10 has no times.
        bytes.truncate(MESSAGE + 4 + 84);
        bytes[MESSAGE..MESSAGE + 2].copy_from_slice(&88_u16.to_ne_bytes());
        assert_eq!(decode_mptcp(&bytes).unwrap().mptcp.unwrap().last_data_received_ms, None);
    }

    #[test]
    fn the_kernel_lists_an_mptcp_listener_or_that_is_known() {
        // SAFETY: no pointers; the descriptor is checked below.
        let fd = unsafe {
            libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, IPPROTO_MPTCP as i32)
        };
        if fd < 0 {
            println!("SKIPPED: this kernel has no MPTCP: {}", io::Error::last_os_error());
            return;
        }
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::listen(fd.as_raw_fd(), 1) }, 0);
        let mut found = 0;
        visit_mptcp(TcpState::Listen.bit(), |socket| found += u32::from(socket.mptcp.is_some())).unwrap();
        // Before 5.19 no listener is listed.
        let lists_listeners = crate::linux::host::kernel_version().is_some_and(|version| version >= (5, 19));
        assert!(found > 0 || mptcp_is_hidden() || !lists_listeners);
    }
}
