//! What the script asks the kernel itself: is this socket there, in which state; and SOCK_DESTROY. The two requests are
//! written by hand (include/uapi/linux/inet_diag.h), so that the table does not lean on the product's own reader.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const LISTEN: u8 = 10;

/// The state of the socket or minisocket between `local` and `remote` in the calling thread's namespace; `None` if
/// there is none. A minisocket's is its substate (net/ipv4/inet_diag.c, inet_twsk_diag_fill).
pub fn state(local: SocketAddr, remote: SocketAddr) -> Option<u8> {
    match ask(SOCK_DIAG_BY_FAMILY, local, remote) {
        // With no connection the look-up finds the listener (inet_diag_find_one_icsk).
        Ok(LISTEN) => None,
        Ok(state) => Some(state),
        Err(why) if why.raw_os_error() == Some(libc::ENOENT) => None,
        Err(why) => panic!("sock_diag: {why}"),
    }
}

/// SOCK_DESTROY, which needs CONFIG_INET_DIAG_DESTROY.
pub fn destroy(local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    ask(SOCK_DESTROY, local, remote).map(drop)
}

/// One request, and the state in its answer; 0 for an answer without one.
fn ask(kind: u16, local: SocketAddr, remote: SocketAddr) -> io::Result<u8> {
    let request = request(kind, local, remote);
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.send_to(&request, &NetlinkAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let word =
        |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, word(16)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(0),
        (Some(NLMSG_ERROR), Some(errno)) => Err(io::Error::from_raw_os_error(-errno)),
        (Some(SOCK_DIAG_BY_FAMILY), Some(_)) => Ok(answer[17]),
        _ => Err(io::Error::other("sock_diag: an answer that is none")),
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(kind: u16, local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut request = Vec::with_capacity(72);
    request.extend(72u32.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | if kind == SOCK_DESTROY { NLM_F_ACK } else { 0 }).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(local.port().to_be_bytes());
    request.extend(remote.port().to_be_bytes());
    for end in [local, remote] {
        let mut address = [0; 16];
        match end.ip() {
            IpAddr::V4(ip) => address[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => address = ip.octets(),
        }
        request.extend(address);
    }
    // Any interface, any cookie.
    request.extend([0; 4]);
    request.extend([0xff; 8]);
    request
}
