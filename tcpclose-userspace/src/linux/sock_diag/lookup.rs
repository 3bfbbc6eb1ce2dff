//! Exact lookups of many sockets through one netlink connection, several requests per datagram.
//!
//! For fifteen thousand CLOSE-WAITs with local peers, one netlink socket per lookup made 150,000 of a command's 166,000
//! system calls.

use std::io::{self, ErrorKind};

use netlink_packet_core::{NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::linux::host::monotonic_ns;
use crate::linux::sock_diag::connection::{NetlinkAnswer, NetlinkConnection, by_ticks, status};
use crate::linux::sock_diag::request::{exact, message};
use crate::linux::sock_diag::socket::{Socket, decode};
use crate::names::Flow;

/// The socket with these addresses and this cookie (any cookie, for `None`), in any state; `None` when it is gone. A
/// socket that is bound to an interface is found only with that interface's index.
pub fn lookup(flow: &Flow, interface: u32, cookie: Option<u64>) -> io::Result<Option<Socket>> {
    lookups(&[SocketLookup { flow: *flow, interface, cookie }])?.pop().unwrap_or(Ok(None))
}

/// One socket to look up.
#[derive(Clone, Copy, Debug)]
pub struct SocketLookup {
    pub flow: Flow,
    /// A socket that is bound to an interface is found only with that interface's index.
    pub interface: u32,
    /// `None` for any.
    pub cookie: Option<u64>,
}

/// Requests per datagram. The kernel queues all answers before send() returns, some 2 KiB each in the receive buffer, which
/// holds 208 KiB by default and a tenth of that on a frugal host.
const AT_ONCE: usize = 8;
/// An answer has some 400 bytes.
const LONGEST_ANSWER: usize = 8 << 10;

/// Looks up each of `wanted` in this thread's network namespace: the socket, in any state, or `None` when it is gone.
///
/// # Errors
/// When the kernel cannot be asked at all.
pub fn lookups(wanted: &[SocketLookup]) -> io::Result<Vec<io::Result<Option<Socket>>>> {
    let mut lookups =
        Lookups { connection: NetlinkConnection::open(NETLINK_SOCK_DIAG, LONGEST_ANSWER)?, sequence: 0 };
    // Both ends v4-mapped are looked up as IPv4, whatever family the socket has (net/ipv4/inet_diag.c,
    // inet_diag_find_one_icsk(), 5.8 to 6.18); a kernel without IPv6 knows AF_INET alone.
    let mut answers = lookups.all(libc::AF_INET6, wanted)?;
    let retry: Vec<usize> = (0..wanted.len())
        .filter(|&i| {
            wanted.get(i).is_some_and(|one| one.flow.is_v4()) && answers.get(i).is_some_and(no_family)
        })
        .collect();
    let again: Vec<SocketLookup> = retry.iter().filter_map(|&i| wanted.get(i).copied()).collect();
    for (i, answer) in retry.into_iter().zip(lookups.all(libc::AF_INET, &again)?) {
        if let Some(first) = answers.get_mut(i) {
            *first = answer;
        }
    }
    Ok(answers.into_iter().zip(wanted).map(|(answer, wanted)| matching(answer, wanted)).collect())
}

fn no_family(answer: &io::Result<Option<Socket>>) -> bool {
    let errno = |why: &io::Error| why.raw_os_error();
    matches!(answer.as_ref().map_err(errno), Err(Some(libc::EAFNOSUPPORT | libc::EINVAL)))
}

fn matching(answer: io::Result<Option<Socket>>, wanted: &SocketLookup) -> io::Result<Option<Socket>> {
    match answer {
        // The same addresses lead to a listener, or to a later connection.
        Ok(found) => Ok(found.filter(|socket| {
            socket.flow == wanted.flow && wanted.cookie.is_none_or(|cookie| socket.cookie == cookie)
        })),
        Err(error)
            if matches!(
                error.raw_os_error(),
                // No such socket; another cookie; no such family on this kernel.
                Some(libc::ENOENT | libc::ESTALE | libc::EAFNOSUPPORT | libc::EINVAL)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Many lookups on one connection.
struct Lookups {
    connection: NetlinkConnection,
    /// The sequence number of the last request.
    sequence: u32,
}

impl Lookups {
    fn all(&mut self, family: i32, wanted: &[SocketLookup]) -> io::Result<Vec<io::Result<Option<Socket>>>> {
        let mut answers = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(AT_ONCE) {
            answers.extend(self.some(family, some)?);
        }
        Ok(answers)
    }

    fn some(&mut self, family: i32, wanted: &[SocketLookup]) -> io::Result<Vec<io::Result<Option<Socket>>>> {
        let first = self.sequence.wrapping_add(1);
        let mut request = Vec::with_capacity(AT_ONCE * 128);
        for SocketLookup { flow, interface, cookie } in wanted {
            self.sequence = self.sequence.wrapping_add(1);
            // INET_DIAG_NOCOOKIE in both words (include/uapi/linux/inet_diag.h).
            let exact = exact(family, flow, *interface, cookie.unwrap_or(u64::MAX));
            let payload = SockDiagMessage::InetRequest(exact);
            request.extend(message(self.sequence, NLM_F_REQUEST, payload.into()));
        }
        // The kernel answers inside send() (net/netlink/af_netlink.c, netlink_rcv_skb()).
        let asked_ns = monotonic_ns();
        let filling_ns = by_ticks(asked_ns);
        self.connection.send(&request)?;
        let seen_ns = monotonic_ns();
        let (window_ns, late_ns) = (seen_ns - filling_ns, asked_ns - filling_ns);
        let mut answers: Vec<Option<io::Result<Option<Socket>>>> = wanted.iter().map(|_| None).collect();
        let mut open = wanted.len();
        while open > 0 {
            let message = NetlinkBuffer::new_checked(self.connection.receive()?)
                .map_err(|_| io::Error::new(ErrorKind::InvalidData, "malformed netlink framing"))?;
            let nth = message.sequence_number().wrapping_sub(first) as usize;
            let Some(place @ None) = answers.get_mut(nth) else { continue };
            let answer = match message.message_type() {
                NLMSG_ERROR => status(message.payload()).map(|()| None),
                _ => {
                    let (flags, payload) = (message.flags(), message.payload());
                    let answer = NetlinkAnswer { flags, payload, seen_ns, window_ns, late_ns };
                    Ok(decode(payload).map(|socket| answer.dated(socket)))
                }
            };
            *place = Some(answer);
            open -= 1;
        }
        Ok(answers.into_iter().map(|answer| answer.unwrap_or(Ok(None))).collect())
    }
}
