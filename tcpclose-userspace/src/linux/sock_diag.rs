//! TCP sockets by NETLINK_SOCK_DIAG: all of a network namespace, or one by its addresses.
//!
//! Answers are decoded here and not by `netlink-packet-sock-diag`: its `Timer::TimeWait` (0.5.0) drops
//! `idiag_expires`, which is the one thing that tells how long a minisocket has been there; and its response owns
//! several heap allocations, which a hundred thousand sockets would feel.
//!
//! A socket is opened for each dump and each lookup and closed with it: an open one would keep a deleted network
//! namespace and its interfaces alive.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::{Socket as Netlink, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use tcpclose_common::state::TcpState;

use crate::linux::age::TICKS_NS;
use crate::linux::host::{monotonic_ns, thread_cpu_ns, tick_ns};
use crate::linux::lookups::{SocketLookup, lookups};
use crate::names::Flow;

/// One socket as the kernel described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// A minisocket's state is its `tw_substate`: FIN-WAIT-2 or TIME-WAIT.
    pub state: TcpState,
    /// A timewait minisocket: it has no inode, no uid and no times.
    pub minisocket: bool,
    /// A listener's remote end is `0.0.0.0:0` or `[::]:0`.
    pub flow: Flow,
    /// The interface that the socket is bound to, 0 for none; a lookup needs it.
    pub interface: u32,
    /// The socket cookie. The dump creates those that nobody had asked for (net/core/sock_diag.c,
    /// `sock_diag_save_cookie()`).
    pub cookie: u64,
    /// Time left on the running timer; `None` when none runs. Rounded to the kernel's tick.
    pub expires_ns: Option<u64>,
    /// The inode of `/proc/PID/fd`'s `socket:[inode]`; 0 for a socket that no program holds: not accepted yet,
    /// orphaned, or a minisocket.
    pub inode: u32,
    /// The user that the socket was opened by.
    pub uid: u32,
    /// `idiag_rqueue`: bytes that wait for the program, a taken FIN counts one. For a listener: connections that
    /// wait to be accepted.
    pub unread: u32,
    /// `idiag_wqueue`: bytes that the peer has not acknowledged yet, a sent FIN counts one.
    pub unsent: u32,
    /// `None` for minisockets, and where they were not asked for.
    pub times: Option<Times>,
    /// CLOCK_MONOTONIC, nanoseconds: the kernel wrote this answer at most [`Self::window_ns`] before, never after.
    pub seen_ns: u64,
    /// How long before [`Self::seen_ns`] the kernel may have written this answer, or counted its ticks to, nanoseconds.
    pub window_ns: u64,
}

#[cfg(test)]
impl Socket {
    /// A socket of which tests say the rest.
    pub fn made_up(state: TcpState, flow: Flow) -> Self {
        Self {
            state,
            minisocket: false,
            flow,
            interface: 0,
            cookie: 0,
            expires_ns: None,
            inode: 0,
            uid: 0,
            unread: 0,
            unsent: 0,
            times: None,
            seen_ns: 0,
            window_ns: 0,
        }
    }
}

/// What a full socket remembers, as ages at the moment that the kernel wrote them. The kernel counts them in ticks
/// and hands them out in milliseconds, modulo 2³² (see [`crate::linux::age`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Since a segment with data was sent last (or since the handshake); retransmissions count.
    pub last_sent_ns: u64,
    /// Since a segment with data was received last (or since the handshake).
    pub last_data_received_ns: u64,
    /// Since an acknowledgment was received last.
    pub last_ack_received_ns: u64,
}

/// The sockets that one walk over the kernel's table met. No snapshot: it can skip or repeat a socket that changes
/// its place meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    pub sockets: Vec<Socket>,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub started_ns: u64,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub finished_ns: u64,
    /// CPU time of this thread, nanoseconds: the kernel walks its table on the caller's time.
    pub cpu_ns: u64,
    /// The kernel says that the table changed under the walk (`NLM_F_DUMP_INTR`).
    pub interrupted: bool,
    /// Answers that could not be decoded, and were skipped.
    pub malformed: u64,
}

/// Every TCP socket of the caller's network namespace in one of `states` (a mask of [`TcpState::bit`]s), IPv4 and
/// IPv6. `with_info` asks for [`Socket::times`], which locks each full socket for a moment
/// (net/ipv4/tcp.c, `tcp_get_info()`).
///
/// The mask matches a minisocket's substate: FIN-WAIT-2 brings full sockets and minisockets.
pub fn dump(states: u32, with_info: bool) -> io::Result<Dump> {
    let mut sockets = Vec::new();
    let dump = visit(states, with_info, |socket| sockets.push(socket))?;
    Ok(Dump { sockets, ..dump })
}

/// The same, but hands each socket to `take`, and keeps none.
pub fn visit(states: u32, with_info: bool, mut take: impl FnMut(Socket)) -> io::Result<Dump> {
    let (started_ns, cpu) = (monotonic_ns(), thread_cpu_ns());
    let mut dump = Dump { started_ns, ..Dump::default() };
    let request = dump_request(states, with_info);
    exchange(&request, |answer| {
        dump.interrupted |= answer.flags & NLM_F_DUMP_INTR != 0;
        match decode(answer.payload) {
            Some(socket) => {
                take(Socket { seen_ns: answer.seen_ns, window_ns: answer.window_ns, ..socket });
            }
            None => dump.malformed += 1,
        }
    })
    .map_err(|error| match error.kind() {
        // An unknown family or protocol, after the kernel tried to load the module that would know it.
        ErrorKind::NotFound | ErrorKind::Unsupported => refused(&error),
        _ => error,
    })?;
    dump.finished_ns = monotonic_ns();
    dump.cpu_ns = thread_cpu_ns().saturating_sub(cpu);
    Ok(dump)
}

/// The socket with these addresses and this cookie (any cookie, for `None`), in any state; `None` when it is gone. A
/// socket that is bound to an interface is found only with that interface's index.
pub fn lookup(flow: &Flow, interface: u32, cookie: Option<u64>) -> io::Result<Option<Socket>> {
    lookups(&[SocketLookup { flow: *flow, interface, cookie }])?.pop().unwrap_or(Ok(None))
}

/// The request for the one socket with these addresses and this cookie; `family` as in [`lookups`]' two tries.
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
pub(super) fn message<T: NetlinkSerializable>(flags: u16, payload: NetlinkPayload<T>) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = SEQUENCE;
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Every exchange has a socket of its own, and so one request.
const SEQUENCE: u32 = 1;
/// `TCPDIAG_GETSOCK` of include/uapi/linux/inet_diag.h.
const TCPDIAG_GETSOCK: u16 = 18;
const HEADER: usize = 16;
/// More than the 32 KiB that the kernel puts into one datagram of a dump (net/netlink/af_netlink.c,
/// `netlink_recvmsg()`, 5.8 to 6.18).
const BATCH: usize = 64 << 10;

/// `struct inet_diag_req`, the request of `TCPDIAG_GETSOCK`: with it one walk brings both families
/// (net/ipv4/inet_diag.c, `inet_diag_dump_compat()` asks for `AF_UNSPEC`, 5.8 to 6.18), as `ss` does it. The newer
/// `SOCK_DIAG_BY_FAMILY` walks the host's whole table once per family: 9.0 ms against 9.4 + 2.8 ms of CPU with 14,000
/// TIME-WAITs, 2.4 against 2.7 + 1.8 with 900 CLOSE-WAITs (6.18).
fn dump_request(states: u32, with_info: bool) -> [u8; HEADER + 60] {
    const INFO: u8 = 1 << (INET_DIAG_INFO - 1);
    let mut bytes = [0; HEADER + 60];
    let mut header = NetlinkBuffer::new(&mut bytes[..]);
    header.set_length((HEADER + 60) as u32);
    header.set_message_type(TCPDIAG_GETSOCK);
    header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    header.set_sequence_number(SEQUENCE);
    header.set_port_number(0);
    // idiag_ext, then past the all-zero struct inet_diag_sockid: idiag_states.
    bytes[HEADER + 3] = if with_info { INFO } else { 0 };
    bytes[HEADER + 52..HEADER + 56].copy_from_slice(&states.to_ne_bytes());
    bytes
}

/// One message of an answer, and when the kernel wrote it.
pub(super) struct Answer<'a> {
    flags: u16,
    payload: &'a [u8],
    seen_ns: u64,
    window_ns: u64,
}

/// What a socket's times are counted to, at `now_ns`: the last tick. One that is no later than a tick is allowed for by
/// [`crate::linux::age`]; when it is later, all ages in the answer are too short by that.
fn by_ticks(now_ns: u64) -> u64 {
    now_ns.min(tick_ns() + TICKS_NS)
}

/// Sends `request` and hands every message of the answer to `take`.
pub(super) fn exchange(request: &[u8], mut take: impl FnMut(Answer<'_>)) -> io::Result<()> {
    let netlink = Netlink::new(NETLINK_SOCK_DIAG)?;
    // Connected to the kernel: no other process can put words into its mouth (net/netlink/af_netlink.c,
    // netlink_getsockbyportid()).
    netlink.connect(&NetlinkAddr::new(0, 0))?;
    let dumping = is_dump(request);
    let mut buffer = Vec::with_capacity(BATCH);

    // The kernel answers a lookup, and fills the first batch of a dump, inside send(); it fills each batch after
    // that at the end of the recv() that hands out the one before (netlink_dump_start(), netlink_recvmsg()). So the
    // time that `take` needs widens no window.
    let mut filling_ns = by_ticks(monotonic_ns());
    netlink.send(request, 0)?;
    let mut seen_ns = monotonic_ns();
    loop {
        let (batch_ns, window_ns) = (seen_ns, seen_ns.saturating_sub(filling_ns));
        filling_ns = by_ticks(monotonic_ns());
        let length = loop {
            buffer.clear();
            match netlink.recv(&mut buffer, libc::MSG_TRUNC) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => break done?,
            }
        };
        seen_ns = monotonic_ns();
        if length > buffer.len() {
            return Err(io::Error::other("an answer of sock_diag is longer than any kernel sends"));
        }
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let over = messages(&buffer, |flags, payload| {
            take(Answer { flags, payload, seen_ns: batch_ns, window_ns });
            if dumping { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if over.is_break() {
            return Ok(());
        }
    }
}

/// Hands flags and payload of every message in `datagram` to `take`, until that or the message says that it was the last
/// of the answer.
///
/// # Errors
/// The errno that ends an answer, and what is no netlink message.
pub fn messages<'a>(
    datagram: &'a [u8],
    mut take: impl FnMut(u16, &'a [u8]) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest)
            .map_err(|_| io::Error::new(ErrorKind::InvalidData, "sock_diag: malformed netlink framing"))?;
        let (kind, flags, payload) = (message.message_type(), message.flags(), message.payload());
        // Messages are aligned to 4 bytes; the last one of a datagram may go without its padding.
        let next = (message.length() as usize).next_multiple_of(4).min(rest.len());
        let ours = message.sequence_number() == SEQUENCE;
        rest = rest.get(next..).unwrap_or_default();
        match kind {
            _ if !ours => {}
            NLMSG_ERROR | NLMSG_DONE => return status(payload).map(ControlFlow::Break),
            _ if take(flags, payload).is_break() => return Ok(ControlFlow::Break(())),
            _ => {}
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn is_dump(request: &[u8]) -> bool {
    NetlinkBuffer::new_checked(request).is_ok_and(|header| header.flags() & NLM_F_DUMP == NLM_F_DUMP)
}

/// The errno at the start of an NLMSG_ERROR or NLMSG_DONE, 0 or negative.
pub(super) fn status(payload: &[u8]) -> io::Result<()> {
    match take(payload, 0).map(i32::from_ne_bytes) {
        Some(errno @ ..0) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        _ => Ok(()),
    }
}

fn refused(error: &io::Error) -> io::Error {
    io::Error::new(
        ErrorKind::Unsupported,
        format!(
            "the kernel does not list TCP sockets over netlink ({error}): CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG \
             are missing, or the modules inet_diag and tcp_diag could not be loaded (try: modprobe tcp_diag)"
        ),
    )
}

const INET_DIAG_INFO: u16 = 2;
/// `idiag_timer` of a timewait minisocket (net/ipv4/inet_diag.c, `inet_twsk_diag_fill()`, 5.8 to 6.18).
const TIMER_TIME_WAIT: u8 = 3;
/// `size_of::<inet_diag_msg>()`.
const MESSAGE: usize = 72;
/// The high bits of `nla_type` are flags (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Decodes `struct inet_diag_msg` and the attributes behind it. `None` for what is too short, has an attribute
/// that does not fit, or a family or state that is no TCP's. [`Socket::seen_ns`] and [`Socket::window_ns`] are left
/// 0: the bytes do not tell.
pub fn decode(bytes: &[u8]) -> Option<Socket> {
    let word = |at| take(bytes, at).map(u32::from_ne_bytes);
    let port = |at| take(bytes, at).map(u16::from_be_bytes);
    let attributes = bytes.get(MESSAGE..)?;

    let address: fn(&[u8], usize) -> Option<Ipv6Addr> = match i32::from(*bytes.first()?) {
        libc::AF_INET => |bytes, at| Some(Ipv4Addr::from(take::<4>(bytes, at)?).to_ipv6_mapped()),
        libc::AF_INET6 => |bytes, at| Some(Ipv6Addr::from(take::<16>(bytes, at)?)),
        _ => return None,
    };
    let timer = *bytes.get(2)?;
    let milliseconds_left = word(52)?;
    Some(Socket {
        state: TcpState::from_raw(*bytes.get(1)?)?,
        minisocket: timer == TIMER_TIME_WAIT,
        flow: Flow {
            local: address(bytes, 8)?,
            remote: address(bytes, 24)?,
            local_port: port(4)?,
            remote_port: port(6)?,
        },
        interface: word(40)?,
        cookie: u64::from(word(44)?) | u64::from(word(48)?) << 32,
        expires_ns: (timer != 0).then_some(u64::from(milliseconds_left) * 1_000_000),
        unread: word(56)?,
        unsent: word(60)?,
        uid: word(64)?,
        inode: word(68)?,
        times: times(attributes)?,
        seen_ns: 0,
        window_ns: 0,
    })
}

/// The times in the INET_DIAG_INFO attribute, `Some(None)` without one; `None` when an attribute does not fit.
fn times(mut attributes: &[u8]) -> Option<Option<Times>> {
    while !attributes.is_empty() {
        let length = usize::from(u16::from_ne_bytes(take(attributes, 0)?));
        let kind = u16::from_ne_bytes(take(attributes, 2)?) & NLA_TYPE_MASK;
        let payload = attributes.get(4..length)?;
        if kind == INET_DIAG_INFO {
            // Offsets in struct tcp_info (include/uapi/linux/tcp.h): the struct only ever grew at its end.
            let age = |at| Some(u64::from(u32::from_ne_bytes(take(payload, at)?)) * 1_000_000);
            return Some(Some(Times {
                last_sent_ns: age(44)?,
                last_data_received_ns: age(52)?,
                last_ack_received_ns: age(56)?,
            }));
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(None)
}

/// `N` bytes at `at`; `None` past the end.
fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// `idiag_cookie`: two words, the low one first, each in the host's byte order.
fn cookie_words(cookie: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&(cookie as u32).to_ne_bytes());
    bytes[4..].copy_from_slice(&((cookie >> 32) as u32).to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests;
