//! Requests of sock_diag, as bytes.

use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};

use crate::linux::sock_diag::socket::{INET_DIAG_INFO, cookie_words};
use crate::names::Flow;

/// `TCPDIAG_GETSOCK` of include/uapi/linux/inet_diag.h.
const TCPDIAG_GETSOCK: u16 = 18;
const HEADER: usize = 16;

/// The request for the one socket with these addresses and this cookie. `family`: AF_INET6 first, then AF_INET.
pub(super) fn exact(family: i32, flow: &Flow, interface: u32, cookie: u64) -> InetRequest {
    let address = |address: Ipv6Addr| match address.to_ipv4_mapped() {
        Some(v4) if family == libc::AF_INET => IpAddr::V4(v4),
        _ => IpAddr::V6(address),
    };
    InetRequest {
        family: family as u8,
        protocol: libc::IPPROTO_TCP as u8,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: flow.local_port,
            destination_port: flow.remote_port,
            source_address: address(flow.local),
            destination_address: address(flow.remote),
            interface_id: interface,
            cookie: cookie_words(cookie),
        },
    }
}

/// `payload` as a netlink message.
pub(super) fn message<T: NetlinkSerializable>(
    sequence: u32,
    flags: u16,
    payload: NetlinkPayload<T>,
) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// `struct inet_diag_req`, the request of `TCPDIAG_GETSOCK`: with it one walk brings both families
/// (net/ipv4/inet_diag.c, `inet_diag_dump_compat()` asks for `AF_UNSPEC`, 5.8 to 6.18), as `ss` does it. The newer
/// `SOCK_DIAG_BY_FAMILY` walks the host's whole table once per family: 9.0 ms against 9.4 + 2.8 ms of CPU with 14,000
/// TIME-WAITs, 2.4 against 2.7 + 1.8 with 900 CLOSE-WAITs (6.18).
pub(super) fn dump_request(sequence: u32, states: u32, with_info: bool) -> [u8; HEADER + 60] {
    const INFO: u8 = 1 << (INET_DIAG_INFO - 1);
    let mut bytes = [0; HEADER + 60];
    let mut header = NetlinkBuffer::new(&mut bytes[..]);
    header.set_length((HEADER + 60) as u32);
    header.set_message_type(TCPDIAG_GETSOCK);
    header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    header.set_sequence_number(sequence);
    header.set_port_number(0);
    // idiag_ext, then past the all-zero struct inet_diag_sockid: idiag_states.
    bytes[HEADER + 3] = if with_info { INFO } else { 0 };
    bytes[HEADER + 52..HEADER + 56].copy_from_slice(&states.to_ne_bytes());
    bytes
}
