//! The document of `GET /v1/idle` and `tcpclose idle --json`: ESTABLISHED connections that have been silent and have no keepalive, by
//! owner. If the peer vanishes, nothing ends them: they are leaks that never reach CLOSE-WAIT.

use std::cmp::Reverse;
use std::net::SocketAddr;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use tcpclose_common::state::TcpState;

use crate::linux::sock_diag::Socket;
use crate::names::words::named;
use crate::names::{IdleReason, Side};
use crate::report::assemble::NetnsSockets;
use crate::report::cause;
use crate::report::envelope::{Envelope, Versioned, document};
use crate::report::owners::owners_of;
use crate::report::sockets::{Cookie, Owner, seconds};

mod query;
#[cfg(test)]
mod tests;

pub use crate::report::idle::query::{IdleQuery, MOST_SOCKETS};

/// The version of the document that this build writes and reads.
pub const SCHEMA: u32 = 1;

/// The most groups that one answer has: those with the most connections.
const MOST_GROUPS: usize = 1000;
/// The most owners that one group names.
const MOST_OWNERS: usize = 100;

impl Versioned for IdleDocument {
    fn schema(&self) -> u32 {
        self.schema
    }
}

document! {
    /// The connections whose death nobody would notice.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct IdleDocument: SCHEMA {
        /// The shortest silence of a connection that counts as idle.
        pub silent_for_seconds: f64,
    } {
        /// ESTABLISHED sockets that were looked at, before any filter.
        pub established: u64,
        /// Groups by owner, side, port and network namespace, the most idle connections with remote peers first.
        pub groups: Vec<IdleGroup>,
        /// Groups that were left out.
        pub groups_left: usize,
        /// How many connections the groups count.
        pub matching: usize,
        /// The connections that the groups count, the longest silent first; as many as were asked for.
        pub sockets: Vec<IdleSocket>,
    }
}

/// The idle connections of one program on one port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdleGroup {
    /// The processes that hold them, of siblings each; empty when unknown. Their descriptors are examples.
    pub owners: Vec<Owner>,
    #[serde(with = "named")]
    pub side: Side,
    /// The service port.
    pub port: u16,
    /// The inode of the network namespace.
    pub netns: u32,
    /// The namespace's name as `ip netns` shows it, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_name: Option<String>,
    /// Silent connections without keepalive.
    pub idle: u64,
    /// Those of [`Self::idle`] whose peer is in the same network namespace: the kernel reports its end to this side.
    pub local: u64,
    /// The longest silence among [`Self::idle`]; at least this.
    pub silent_seconds: f64,
    /// Connections, with keepalive or without, with data that the program has not read for so long.
    #[serde(default)]
    pub not_read: u64,
    /// Connections, idle or not, whose peer does not acknowledge what was sent: three timeouts in a row or more. These end when the
    /// retries run out.
    pub peer_gone: u64,
}

/// A connection that is listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdleSocket {
    /// The first of these that holds: its peer is gone, it has unread data, it is idle.
    #[serde(with = "named")]
    pub why: IdleReason,
    #[serde(with = "named")]
    pub side: Side,
    /// The service port.
    pub port: u16,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// The socket cookie, as `ss -e` writes `sk:`.
    pub cookie: Cookie,
    /// 0 for a connection that no program has accepted.
    pub inode: u32,
    pub uid: u32,
    /// The inode of the network namespace.
    pub netns: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_name: Option<String>,
    /// Time since a segment with data, or an acknowledgment, came or went, or for unread data since the last came; at least this.
    pub silent_seconds: f64,
    /// Bytes that wait for the program.
    pub unread_bytes: u32,
    /// The peer is in the same network namespace.
    pub local_peer: bool,
    pub owners: Vec<Owner>,
}

/// The silence of an ESTABLISHED socket without keepalive, nanoseconds; `None` of any other, and of one on which something is to happen: a
/// timer runs while something is not acknowledged, while the peer's window is closed, and for keepalive.
///
/// A user timeout (TCP_USER_TIMEOUT) does not show, and without keepalive it ends no silent connection (net/ipv4/tcp_timer.c, 5.8 to
/// 6.18: only retransmissions, window probes and keepalive look at it). Probes of the peer's keepalive are no acknowledgments of
/// anything (net/ipv4/tcp_input.c, `tcp_validate_incoming()`).
pub fn silence_ns(socket: &Socket) -> Option<u64> {
    let is_idle = socket.state == TcpState::Established && !socket.minisocket && socket.timer.is_none();
    let times = socket.times.filter(|_| is_idle)?;
    Some(times.last_sent_ns.min(times.last_data_received_ns).min(times.last_ack_received_ns))
}

/// Whether `socket` is to be described: silent for `bound_ns`, unread for as long, or with a peer that is gone.
pub fn is_wanted(socket: &Socket, bound_ns: u64) -> bool {
    IdleFindings::of(socket, bound_ns).why().is_some()
}

/// What is found of a socket.
#[derive(Clone, Copy, Debug)]
struct IdleFindings {
    /// Its silence, if it is idle, nanoseconds.
    idle_ns: Option<u64>,
    /// For how long it has had unread data, at least, if that is long enough.
    not_read_ns: Option<u64>,
    is_peer_gone: bool,
}

impl IdleFindings {
    fn of(socket: &Socket, bound_ns: u64) -> Self {
        let long = |ns: &u64| *ns >= bound_ns;
        let is_open = socket.state == TcpState::Established && !socket.minisocket;
        let last_data_ns = socket.times.map(|times| times.last_data_received_ns);
        Self {
            idle_ns: silence_ns(socket).filter(long),
            not_read_ns: last_data_ns.filter(|_| is_open && socket.unread > 0).filter(long),
            is_peer_gone: is_open && cause::is_peer_gone(socket),
        }
    }

    fn why(&self) -> Option<IdleReason> {
        match self {
            Self { is_peer_gone: true, .. } => Some(IdleReason::PeerGone),
            Self { not_read_ns: Some(_), .. } => Some(IdleReason::NotRead),
            Self { idle_ns: Some(_), .. } => Some(IdleReason::Idle),
            _ => None,
        }
    }

    /// How long it has been silent, by the first of these that holds.
    fn silent_ns(&self, socket: &Socket) -> u64 {
        let since_ack = || socket.times.map_or(0, |times| times.last_ack_received_ns);
        self.not_read_ns.or(self.idle_ns).unwrap_or_else(since_ack)
    }
}

/// The parts of the document as they are collected, namespace by namespace.
#[derive(Debug, Default)]
pub struct IdleSockets {
    groups: FxHashMap<IdleKey, IdleGroup>,
    sockets: Vec<IdleSocket>,
    /// Those without a known owner.
    unowned: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct IdleKey {
    who: IdleHolder,
    side: Side,
    port: u16,
    netns: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum IdleHolder {
    /// A process, with its siblings of the same name: workers, or the children of a server that forks.
    Siblings(String, u32),
    /// In order.
    Processes(Vec<u32>),
}

impl IdleHolder {
    fn of(owners: &[Owner]) -> Self {
        /// Whose children have nothing in common.
        const INIT: u32 = 1;
        let mut pids: Vec<u32> = owners.iter().map(|owner| owner.pid).collect();
        pids.dedup();
        if let ([one, ..], [_]) = (owners, pids.as_slice())
            && let Some(parent) = one.parent.filter(|parent| *parent > INIT)
        {
            return Self::Siblings(one.comm.clone(), parent);
        }
        Self::Processes(pids)
    }
}

impl IdleSockets {
    /// Adds what `wanted` asks for of one namespace, whose [`NetnsSockets::bound_ns`] is the shortest silence. `sides`: of a socket, the side
    /// and the service port.
    pub fn add(
        &mut self,
        namespace: &NetnsSockets<'_>,
        sides: impl Fn(&Socket) -> (Side, u16),
        wanted: &IdleQuery,
    ) {
        let NetnsSockets { netns, bound_ns, .. } = *namespace;
        if wanted.netns.is_some_and(|only| only != netns.inum) {
            return;
        }
        for socket in namespace.sockets {
            let (side, port) = sides(socket);
            let owners = owners_of(socket, namespace.owners, namespace.queues);
            let is_held_by = |pid| owners.iter().any(|owner| owner.pid == pid);
            if !wanted.ports.is_empty() && !wanted.ports.contains(&port)
                || wanted.pid.is_some_and(|pid| !is_held_by(pid))
            {
                continue;
            }
            let findings = IdleFindings::of(socket, bound_ns);
            let Some(why) = findings.why() else { continue };
            let is_local = is_loopback(socket) || namespace.peers.of_socket(socket).is_some();
            self.unowned += usize::from(owners.is_empty());
            let key = IdleKey { who: IdleHolder::of(&owners), side, port, netns: netns.inum };
            let group = self.groups.entry(key).or_insert_with(|| IdleGroup {
                owners: Vec::new(),
                side,
                port,
                netns: netns.inum,
                netns_name: netns.name.clone(),
                idle: 0,
                local: 0,
                silent_seconds: 0.0,
                not_read: 0,
                peer_gone: 0,
            });
            group.take_in(&findings, is_local, &owners);
            self.sockets.push(IdleSocket {
                why,
                side,
                port,
                local: socket.flow.local(),
                peer: socket.flow.remote(),
                cookie: Cookie(socket.cookie),
                inode: socket.inode,
                uid: socket.uid,
                netns: netns.inum,
                netns_name: netns.name.clone(),
                silent_seconds: seconds(findings.silent_ns(socket)),
                unread_bytes: socket.unread,
                local_peer: is_local,
                owners,
            });
        }
    }

    /// How many sockets have no known owner.
    pub fn unowned(&self) -> usize {
        self.unowned
    }

    pub fn document(mut self, wanted: &IdleQuery, established: u64, envelope: Envelope) -> IdleDocument {
        let mut groups: Vec<IdleGroup> = self.groups.into_values().collect();
        groups.sort_by_key(|group| {
            let first = group.owners.first().map(|owner| owner.pid);
            (
                Reverse(group.idle - group.local),
                Reverse(group.idle),
                Reverse(group.peer_gone),
                group.port,
                first,
            )
        });
        let groups_left = groups.len().saturating_sub(MOST_GROUPS);
        groups.truncate(MOST_GROUPS);
        // The bits of floats that are not negative sort as the floats do.
        self.sockets.sort_by_cached_key(|socket| (Reverse(socket.silent_seconds.to_bits()), socket.cookie));
        let matching = self.sockets.len();
        self.sockets.truncate(wanted.sockets);
        IdleDocument {
            silent_for_seconds: wanted.silent_for.as_secs_f64(),
            established,
            groups,
            groups_left,
            matching,
            sockets: self.sockets,
            ..IdleDocument::within(envelope)
        }
    }
}

impl IdleGroup {
    fn take_in(&mut self, findings: &IdleFindings, is_local: bool, owners: &[Owner]) {
        let IdleFindings { idle_ns, not_read_ns, is_peer_gone } = *findings;
        self.peer_gone += u64::from(is_peer_gone);
        self.not_read += u64::from(not_read_ns.is_some());
        if let Some(idle_ns) = idle_ns {
            self.idle += 1;
            self.local += u64::from(is_local);
            self.silent_seconds = self.silent_seconds.max(seconds(idle_ns));
        }
        for owner in owners {
            if self.owners.len() < MOST_OWNERS && self.owners.iter().all(|known| known.pid != owner.pid) {
                self.owners.push(owner.clone());
            }
        }
    }
}

fn is_loopback(socket: &Socket) -> bool {
    socket.flow.remote.to_canonical().is_loopback()
}
