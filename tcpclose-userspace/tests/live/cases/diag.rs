//! What the script asks of the kernel itself, without the product's own readers: which state a socket is in, from
//! /proc/net/tcp (a look over netlink would give the socket a cookie, and hide it if an agent forgot to); and
//! SOCK_DESTROY, a request written by hand (include/uapi/linux/inet_diag.h).

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;

/// The state of the socket or minisocket between `local` and `remote` in the calling thread's namespace; `None` if
/// there is none. A minisocket's is its substate (net/ipv4/tcp_ipv4.c, get_timewait4_sock).
pub fn state(local: SocketAddr, remote: SocketAddr) -> Option<u8> {
    Table::of(local).state(local, remote)
}

/// All sockets of one family, as they were while it was read.
pub struct Table(String);

impl Table {
    /// Of the family of `end`.
    pub fn of(end: SocketAddr) -> Self {
        let file = if end.is_ipv4() { "tcp" } else { "tcp6" };
        Self(fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap())
    }

    /// As [`state`].
    pub fn state(&self, local: SocketAddr, remote: SocketAddr) -> Option<u8> {
        let ends = format!(" {} {} ", shown(local), shown(remote));
        self.0.lines().find_map(|line| {
            let (_, rest) = line.split_once(&ends)?;
            u8::from_str_radix(rest.get(..2)?, 16).ok()
        })
    }
}

/// An end as /proc/net/tcp shows it: the address in words of the host's byte order.
fn shown(end: SocketAddr) -> String {
    let bytes = match end.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = bytes.chunks(4).filter_map(|word| word.try_into().ok()).map(u32::from_ne_bytes);
    words.map(|word| format!("{word:08X}")).collect::<String>() + &format!(":{:04X}", end.port())
}

/// SOCK_DESTROY, which needs CONFIG_INET_DIAG_DESTROY.
pub fn destroy(local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.send_to(&request(local, remote), &NetlinkAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    // The errno of an NLMSG_ERROR, behind its header.
    let errno = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match errno {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::Error::other("sock_diag: an answer that is none")),
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut request = Vec::with_capacity(72);
    request.extend(72u32.to_ne_bytes());
    request.extend(SOCK_DESTROY.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
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
