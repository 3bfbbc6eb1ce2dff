//! Puts sockets, their listeners and their owners together.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use tcpclose_common::state::TcpState;

use crate::linux::age::{proven_age, time_wait_age};
use crate::linux::netns::Netns;
use crate::linux::owners::Owners;
use crate::linux::sock_diag::Socket;
use crate::names::{Age, Flow, LastWrite, Listening, Phase, Side};
use crate::report::accept_queues::AcceptQueues;
use crate::report::cause::cause;
use crate::report::diagnosis::{diagnose, last_write, not_accepted};
use crate::report::owners::{Peers, listeners_of, owners_of, peer_owners_of};
use crate::report::sockets::{AgeSeconds, ClosedBy, Cookie, StuckSocket, seconds};

/// What is known of a socket beyond its dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFacts {
    pub side: Side,
    /// The service port.
    pub port: u16,
    /// The time in its state as of the document.
    pub age: Age,
    /// How long ago its program last wrote to it, as of the document; in CLOSE-WAIT, where a dump shows it.
    pub last_write: Option<Age>,
    /// The process that closed it, and how many nanoseconds before the document.
    pub closer: Option<(u32, u64)>,
}

/// The sockets of one network namespace, with their listeners, owners and peers.
pub struct NetnsSockets<'a> {
    pub sockets: &'a [Socket],
    /// The accept queues of the namespace.
    pub queues: &'a AcceptQueues,
    pub owners: &'a Owners,
    pub peers: &'a Peers,
    pub netns: &'a Netns,
    /// The age from which a socket is called stuck, nanoseconds.
    pub bound_ns: u64,
}

/// Describes every socket of `namespace` that is in the close phase, and adds it to `described`. `facts`: what the tracker,
/// or the dump alone, knows of each.
pub fn assemble(
    namespace: &NetnsSockets<'_>,
    facts: impl Fn(&Socket) -> SocketFacts,
    described: &mut Vec<StuckSocket>,
) {
    // Reserved at once: a socket has hundreds of bytes, which growing the vector would move again and again.
    described.reserve(namespace.sockets.len());
    described.extend(namespace.sockets.iter().filter_map(|socket| {
        let state = Phase::of(socket.state)?;
        let SocketFacts { side, port, age, last_write, closer } = facts(socket);
        // What waits in an accept queue was opened by its peer, whatever the tracker knows of it.
        let (side, port) = match not_accepted(socket) {
            true => (Side::Server, socket.flow.local_port),
            false => (side, port),
        };
        let diagnosis = diagnose(socket, age, last_write, namespace.bound_ns);
        let owners = owners_of(socket, namespace.owners, namespace.queues);
        // A close() that waits for its data to be sent (SO_LINGER) has given its descriptor up, and keeps the inode until then.
        let is_closed = socket.inode == 0 || owners.is_empty();
        let has_sent_fin = !matches!(state, Phase::CloseWait | Phase::TimeWait);
        let retries = socket.retries.filter(|_| has_sent_fin);
        Some(StuckSocket {
            state,
            side,
            port,
            local: socket.flow.local(),
            peer: socket.flow.remote(),
            cookie: Cookie(socket.cookie),
            interface: socket.interface,
            mptcp: socket.mptcp.is_some(),
            inode: socket.inode,
            uid: socket.uid,
            netns: namespace.netns.inum,
            netns_id: namespace.netns.id,
            netns_name: namespace.netns.name.clone(),
            age: age.into(),
            unread_bytes: unread_data(socket),
            unsent_bytes: if socket.mptcp.is_some() { 0 } else { socket.unsent },
            last_sent_seconds: socket.times.map(|times| seconds(times.last_sent_ns)),
            written_bytes: written_bytes(socket),
            last_write: last_write.map(AgeSeconds::from),
            diagnosis,
            cause: cause(socket, namespace.peers.of_socket(socket)),
            retransmits: retries.map(|retries| retries.timeouts),
            peer_window: retries.and_then(|retries| retries.window),
            timer_seconds: socket.expires_ns.filter(|_| has_sent_fin).map(seconds),
            owners,
            listeners: namespace.queues.of(socket).to_vec(),
            closed_by: closer.filter(|_| is_closed).map(ClosedBy::from),
            peer_owners: peer_owners_of(socket, namespace.peers, namespace.owners, namespace.queues),
            peer_waits: state == Phase::CloseWait && namespace.peers.waits(socket),
            stacks: None,
        })
    }));
}

/// Bytes that the program has written, in CLOSE-WAIT.
pub fn written_bytes(socket: &Socket) -> Option<u64> {
    let sending = socket.times.filter(|_| socket.state == TcpState::CloseWait)?.sending?;
    Some(sending.written)
}

/// Bytes of data, without the FIN that `idiag_rqueue` counts in the states that have taken one.
fn unread_data(socket: &Socket) -> u32 {
    match socket.state {
        // It tells memory, not bytes.
        _ if socket.mptcp.is_some() => 0,
        TcpState::CloseWait | TcpState::LastAck | TcpState::Closing => socket.unread.saturating_sub(1),
        _ => socket.unread,
    }
}

/// The clocks at a dump, by which it tells ages; nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct DumpClock {
    /// CLOCK_MONOTONIC.
    pub now_ns: u64,
    pub uptime_ns: u64,
    /// The length of TIME-WAIT; `None` if unknown.
    pub time_wait_ns: Option<u64>,
}

/// What a dump alone proves of the age of one of its sockets at `clock`.
pub fn dumped_age(socket: &Socket, clock: DumpClock) -> Age {
    let proven = match (socket.state, clock.time_wait_ns, socket.expires_ns) {
        (TcpState::TimeWait, Some(length_ns), Some(left_ns)) => time_wait_age(length_ns, left_ns),
        _ => proven_age(socket, clock.uptime_ns),
    };
    proven.later(clock.now_ns.saturating_sub(socket.seen_ns))
}

/// What a dump alone proves of one of its sockets at `clock`: an age, and by the socket's counters a side. `writes`: the last write
/// by earlier looks, by cookie.
pub fn dumped_facts(
    socket: &Socket,
    listeners: &[Socket],
    ephemeral: &RangeInclusive<u16>,
    clock: DumpClock,
    writes: &HashMap<u64, LastWrite>,
) -> SocketFacts {
    let mut listening = Listening::default();
    for listener in listeners_of(&socket.flow, socket.interface, listeners) {
        listening.any = true;
        listening.without_backlog |= listener.is_without_backlog();
    }
    // What waits in a queue was accepted by the kernel, whatever its listener's address is.
    let side = if not_accepted(socket) { Side::Server } else { socket.opening.side(listening) };
    let Flow { local_port, remote_port, .. } = socket.flow;
    let age = dumped_age(socket, clock);
    let last_write = last_write(socket, writes.get(&socket.cookie), clock.uptime_ns, clock.now_ns);
    let port = side.service_port(local_port, remote_port, ephemeral);
    SocketFacts { side, port, age, last_write, closer: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixtures::{close_wait, dumped_socket};

    #[test]
    fn the_timer_of_a_time_wait_tells_its_least_age() {
        let mut socket = dumped_socket(TcpState::TimeWait, "10.0.0.5:1", "10.0.0.9:2", 1);
        let age = |socket: &Socket, time_wait_ns| {
            let clock = DumpClock { now_ns: socket.seen_ns + 5, uptime_ns: 1, time_wait_ns };
            dumped_facts(socket, &[], &(32_768..=60_999), clock, &HashMap::new()).age
        };
        const S: u64 = 1_000_000_000;
        socket.expires_ns = Some(45 * S);
        // A tick or two may be missing.
        assert_eq!(age(&socket, Some(60 * S)), Age { min_ns: 14_980_000_005, max_ns: None });
        assert_eq!(age(&socket, None), Age { min_ns: 5, max_ns: None });
        socket.expires_ns = Some(61 * S);
        assert_eq!(age(&socket, Some(60 * S)).min_ns, 5);
    }

    #[test]
    fn the_fin_is_no_data() {
        for (unread, data) in [(0, 0), (1, 0), (6, 5)] {
            assert_eq!(unread_data(&close_wait(unread)), data);
        }
        assert_eq!(unread_data(&dumped_socket(TcpState::FinWait2, "10.0.0.5:1", "10.0.0.9:2", 1)), 0);
    }
}
