//! A netlink connection: sends requests, receives datagrams.

use std::io::{self, ErrorKind};
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_DUMP, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::{Socket as Netlink, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

use crate::linux::host::{TICKS_NS, monotonic_ns, tick_ns};
use crate::linux::sock_diag::socket::Socket;
use crate::linux::sock_diag::socket::take;

/// The sequence number of the one request of an [`exchange`].
pub const SEQUENCE: u32 = 1;
/// More than the 32 KiB that the kernel puts into one datagram of a dump (net/netlink/af_netlink.c,
/// `netlink_recvmsg()`, 5.8 to 6.18).
const BATCH: usize = 64 << 10;

/// A netlink socket, closed when this is dropped.
pub struct NetlinkConnection {
    netlink: Netlink,
    buffer: Vec<u8>,
}

impl NetlinkConnection {
    /// Opens one to `protocol`, for datagrams of up to `longest` bytes.
    pub fn open(protocol: isize, longest: usize) -> io::Result<Self> {
        let netlink = Netlink::new(protocol)?;
        // Connected to the kernel: no other process can send answers in its name (net/netlink/af_netlink.c,
        // netlink_getsockbyportid()).
        netlink.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self { netlink, buffer: Vec::with_capacity(longest) })
    }

    /// Has the kernel obey the fields of dump requests, as far as it can.
    pub fn ask_strictly(&mut self) {
        if let Err(why) = self.netlink.set_netlink_get_strict_chk(true) {
            log::debug!("cannot have the kernel filter what it dumps: {why}");
        }
    }

    pub fn send(&self, request: &[u8]) -> io::Result<()> {
        self.netlink.send(request, 0).map(drop)
    }

    /// The next datagram.
    pub fn receive(&mut self) -> io::Result<&[u8]> {
        let length = loop {
            self.buffer.clear();
            match self.netlink.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => break done?,
            }
        };
        if length > self.buffer.len() {
            return Err(io::Error::other("a netlink answer is longer than any kernel sends"));
        }
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(&self.buffer)
    }
}

/// One message of an answer, and when the kernel wrote it.
pub(super) struct NetlinkAnswer<'a> {
    pub(super) flags: u16,
    pub(super) payload: &'a [u8],
    pub(super) seen_ns: u64,
    pub(super) window_ns: u64,
    /// How much more than [`TICKS_NS`] the tick counter was late when the kernel began to write it.
    pub(super) late_ns: u64,
}

impl NetlinkAnswer<'_> {
    /// `socket`, which this is about, with the moment of the answer. What is left of a timer is counted from the last tick, so a late
    /// tick makes it longer (net/ipv4/inet_diag.c, inet_twsk_diag_fill()).
    pub(super) fn dated(&self, socket: Socket) -> Socket {
        let expires_ns = socket.expires_ns.map(|left| left.saturating_sub(self.late_ns));
        Socket { seen_ns: self.seen_ns, window_ns: self.window_ns, expires_ns, ..socket }
    }
}

/// The moment up to which a socket's times are counted at `now_ns`: the last tick. [`crate::linux::age`] allows for a tick
/// that is late by no more than a tick; where it is later, all ages in the answer are too short by that.
pub(super) fn by_ticks(now_ns: u64) -> u64 {
    now_ns.min(tick_ns() + TICKS_NS)
}

/// Sends `request` on a connection of its own and passes every message of the answer to `take`.
pub(super) fn exchange(request: &[u8], mut take: impl FnMut(NetlinkAnswer<'_>)) -> io::Result<()> {
    let mut connection = NetlinkConnection::open(NETLINK_SOCK_DIAG, BATCH)?;
    let dumping = is_dump(request);

    // The kernel answers a lookup, and fills the first batch of a dump, inside send(); it fills each batch after
    // that at the end of the recv() that hands out the one before (netlink_dump_start(), netlink_recvmsg()). So the
    // time that `take` needs widens no window.
    let mut began_ns = monotonic_ns();
    let mut filling_ns = by_ticks(began_ns);
    connection.send(request)?;
    let mut seen_ns = monotonic_ns();
    loop {
        let (batch_ns, window_ns) = (seen_ns, seen_ns.saturating_sub(filling_ns));
        let late_ns = began_ns.saturating_sub(filling_ns);
        began_ns = monotonic_ns();
        filling_ns = by_ticks(began_ns);
        let datagram = connection.receive()?;
        seen_ns = monotonic_ns();
        let over = messages(datagram, |flags, payload| {
            take(NetlinkAnswer { flags, payload, seen_ns: batch_ns, window_ns, late_ns });
            if dumping { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if over.is_break() {
            return Ok(());
        }
    }
}

/// Passes flags and payload of every message in `datagram` to `take`, until `take` breaks or the answer is over.
///
/// # Errors
/// The errno that ends an answer, and malformed framing.
pub fn messages<'a>(
    datagram: &'a [u8],
    mut take: impl FnMut(u16, &'a [u8]) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest)
            .map_err(|_| io::Error::new(ErrorKind::InvalidData, "malformed netlink framing"))?;
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
