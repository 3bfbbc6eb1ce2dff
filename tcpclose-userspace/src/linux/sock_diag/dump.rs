//! Dumps: all TCP sockets of a network namespace.

use std::io::{self, ErrorKind};

use netlink_packet_core::NLM_F_DUMP_INTR;

use crate::linux::host::{monotonic_ns, thread_cpu_ns};
use crate::linux::sock_diag::connection::{SEQUENCE, exchange};
use crate::linux::sock_diag::request::dump_request;
use crate::linux::sock_diag::socket::{Socket, decode};

/// The sockets that one walk over the kernel's table met. This is no snapshot: a walk can skip or repeat a socket that
/// moves meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    pub sockets: Vec<Socket>,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub started_ns: u64,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub finished_ns: u64,
    /// CPU time of this thread, nanoseconds: the kernel walks its table on the caller's time.
    pub cpu_ns: u64,
    /// The table changed during the walk (`NLM_F_DUMP_INTR`).
    pub interrupted: bool,
    /// Answers that could not be decoded and were skipped.
    pub malformed: u64,
}

/// Every TCP socket of the caller's network namespace in one of `states` (a mask of
/// [`TcpState::bit`](tcpclose_common::state::TcpState::bit)s), IPv4 and IPv6. `with_info` asks for [`Socket::times`],
/// which locks each full socket for a moment (net/ipv4/tcp.c, `tcp_get_info()`).
///
/// The mask matches a minisocket's substate: FIN-WAIT-2 brings full sockets and minisockets.
pub fn dump(states: u32, with_info: bool) -> io::Result<Dump> {
    let mut sockets = Vec::new();
    let dump = visit(states, with_info, |socket| sockets.push(socket))?;
    Ok(Dump { sockets, ..dump })
}

/// The same, but passes each socket to `take` and keeps none.
pub fn visit(states: u32, with_info: bool, mut take: impl FnMut(Socket)) -> io::Result<Dump> {
    let (started_ns, cpu) = (monotonic_ns(), thread_cpu_ns());
    let mut dump = Dump { started_ns, ..Dump::default() };
    let request = dump_request(SEQUENCE, states, with_info);
    exchange(&request, |answer| {
        dump.interrupted |= answer.flags & NLM_F_DUMP_INTR != 0;
        match decode(answer.payload) {
            Some(socket) => take(answer.dated(socket)),
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

pub(super) fn refused(error: &io::Error) -> io::Error {
    io::Error::new(
        ErrorKind::Unsupported,
        format!(
            "the kernel does not list TCP sockets over netlink ({error}): CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG \
             are missing, or the modules inet_diag and tcp_diag could not be loaded (try: modprobe tcp_diag)"
        ),
    )
}
