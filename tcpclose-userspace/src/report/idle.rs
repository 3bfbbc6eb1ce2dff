//! The document of `GET /v1/idle` and `tcpclose idle --json`: ESTABLISHED connections that have been silent and have no keepalive, by
//! owner. If the peer vanishes, nothing ends them: they are leaks that never reach CLOSE-WAIT.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::time::Duration;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use tcpclose_common::state::TcpState;

use crate::linux::sock_diag::Socket;
use crate::names::Side;
use crate::names::words::named;
use crate::report::assemble::NetnsSockets;
use crate::report::cause;
use crate::report::envelope::{Envelope, Versioned, document};
use crate::report::owners::owners_of;
use crate::report::query;
use crate::report::requests::IDLE_PATH;
use crate::report::sockets::{Cookie, Owner, seconds};

/// The version of the document that this build writes and reads.
pub const SCHEMA: u32 = 1;

/// The most sockets that one answer lists.
pub const MOST_SOCKETS: usize = 100_000;
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
    /// The connections that nobody would notice to be dead.
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
        /// The idle connections, the longest silent first; as many as were asked for.
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
    /// Those of [`Self::idle`] whose peer is in the same network namespace: the kernel tells its end to this side.
    pub local: u64,
    /// The longest silence among them; at least this.
    pub silent_seconds: f64,
    /// Connections, idle or not, whose peer does not acknowledge what was sent: three timeouts in a row or more. These end when the
    /// retries run out.
    pub peer_gone: u64,
}

/// An idle connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdleSocket {
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
    /// Time since a segment with data, or an acknowledgment, came or went; at least this.
    pub silent_seconds: f64,
    /// Bytes that wait for the program.
    pub unread_bytes: u32,
    /// The peer is in the same network namespace.
    pub local_peer: bool,
    pub owners: Vec<Owner>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleQuery {
    /// The shortest silence.
    pub silent_for: Duration,
    /// Service ports; all if empty.
    pub ports: Vec<u16>,
    pub pid: Option<u32>,
    /// The inode of the only network namespace that is wanted.
    pub netns: Option<u32>,
    /// How many sockets are listed.
    pub sockets: usize,
}

/// The silence from which a connection counts as idle, by default: longer than the pauses of most protocols, and about what NAT gateways
/// and load balancers remember.
pub const DEFAULT_SILENCE: Duration = Duration::from_secs(600);

impl Default for IdleQuery {
    fn default() -> Self {
        Self { silent_for: DEFAULT_SILENCE, ports: Vec::new(), pid: None, netns: None, sockets: 0 }
    }
}

impl IdleQuery {
    /// Reads the part after the `?`.
    ///
    /// # Errors
    /// What is wrong with a field.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut wanted = Self::default();
        for (key, value) in query::fields(text, &["silent_for", "port", "pid", "netns", "sockets"])? {
            let number = |most: usize| query::number(key, value, 0..=most);
            match key {
                "silent_for" => wanted.silent_for = query::duration(key, value)?,
                "port" => {
                    let port = query::number(key, value, 1..=usize::from(u16::MAX))?;
                    wanted.ports.extend(u16::try_from(port));
                }
                "pid" => wanted.pid = u32::try_from(number(i32::MAX as usize)?).ok(),
                "netns" => wanted.netns = u32::try_from(number(u32::MAX as usize)?).ok(),
                _ => wanted.sockets = number(MOST_SOCKETS)?,
            }
        }
        Ok(wanted)
    }

    /// The path and query of the request.
    pub fn target(&self) -> String {
        let Self { silent_for, ports, pid, netns, sockets } = self;
        let silent_ms = silent_for.as_millis();
        let mut target =
            format!("{IDLE_PATH}?silent_for={silent_ms}ms&sockets={}", (*sockets).min(MOST_SOCKETS));
        ports.iter().for_each(|port| target.push_str(&format!("&port={port}")));
        pid.iter().for_each(|pid| target.push_str(&format!("&pid={pid}")));
        netns.iter().for_each(|netns| target.push_str(&format!("&netns={netns}")));
        target
    }

    pub fn silent_ns(&self) -> u64 {
        u64::try_from(self.silent_for.as_nanos()).unwrap_or(u64::MAX)
    }
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

/// Whether `socket` is to be described: silent for `bound_ns`, or with a peer that is gone.
pub fn is_wanted(socket: &Socket, bound_ns: u64) -> bool {
    silence_ns(socket).is_some_and(|silence| silence >= bound_ns) || is_peer_gone(socket)
}

fn is_peer_gone(socket: &Socket) -> bool {
    socket.state == TcpState::Established && cause::is_peer_gone(socket)
}

/// The parts of the document as they are collected, namespace by namespace.
#[derive(Debug, Default)]
pub struct IdleSockets {
    groups: FxHashMap<GroupKey, IdleGroup>,
    sockets: Vec<IdleSocket>,
    /// Idle ones without a known owner.
    unowned: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GroupKey {
    who: Who,
    side: Side,
    port: u16,
    netns: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    /// A process, with its siblings of the same name: workers, or the children of a server that forks.
    Siblings(String, u32),
    /// In order.
    Processes(Vec<u32>),
}

impl Who {
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
            let silence_ns = silence_ns(socket).filter(|silence| *silence >= bound_ns);
            let described = silence_ns.map(|silence_ns| IdleSocket {
                side,
                port,
                local: socket.flow.local(),
                peer: socket.flow.remote(),
                cookie: Cookie(socket.cookie),
                inode: socket.inode,
                uid: socket.uid,
                netns: netns.inum,
                netns_name: netns.name.clone(),
                silent_seconds: seconds(silence_ns),
                unread_bytes: socket.unread,
                local_peer: is_loopback(socket) || namespace.peers.of_socket(socket).is_some(),
                owners: owners.clone(),
            });
            self.unowned += usize::from(described.is_some() && owners.is_empty());
            let key = GroupKey { who: Who::of(&owners), side, port, netns: netns.inum };
            let group = self.groups.entry(key).or_insert_with(|| IdleGroup {
                owners: Vec::new(),
                side,
                port,
                netns: netns.inum,
                netns_name: netns.name.clone(),
                idle: 0,
                local: 0,
                silent_seconds: 0.0,
                peer_gone: 0,
            });
            group.take_in(described.as_ref(), owners, is_peer_gone(socket));
            self.sockets.extend(described);
        }
    }

    /// How many idle sockets have no known owner.
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
        self.sockets.truncate(wanted.sockets);
        IdleDocument {
            silent_for_seconds: wanted.silent_for.as_secs_f64(),
            established,
            groups,
            groups_left,
            sockets: self.sockets,
            ..IdleDocument::within(envelope)
        }
    }
}

impl IdleGroup {
    fn take_in(&mut self, idle: Option<&IdleSocket>, owners: Vec<Owner>, is_peer_gone: bool) {
        self.peer_gone += u64::from(is_peer_gone);
        if let Some(socket) = idle {
            self.idle += 1;
            self.local += u64::from(socket.local_peer);
            self.silent_seconds = self.silent_seconds.max(socket.silent_seconds);
        }
        for owner in owners {
            if self.owners.len() < MOST_OWNERS && self.owners.iter().all(|known| known.pid != owner.pid) {
                self.owners.push(owner);
            }
        }
    }
}

fn is_loopback(socket: &Socket) -> bool {
    socket.flow.remote.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::netns::Netns;
    use crate::linux::owners::Owners;
    use crate::linux::proc_fd::FdHolder;
    use crate::linux::process::Process;
    use crate::linux::sock_diag::{Retries, Timer, Times};
    use crate::report::accept_queues::AcceptQueues;
    use crate::report::envelope::DocumentSource;
    use crate::report::fixtures::{MINUTE, SECOND, dumped_socket};
    use crate::report::owners::Peers;

    /// A connection that has been silent for so many minutes.
    fn silent(minutes: u64, peer: &str, inode: u32) -> Socket {
        let ns = minutes * MINUTE;
        let times = Times {
            last_sent_ns: ns,
            last_data_received_ns: ns + 5 * SECOND,
            last_ack_received_ns: ns,
            sending: None,
        };
        Socket { times: Some(times), ..dumped_socket(TcpState::Established, "10.0.0.5:8080", peer, inode) }
    }

    #[test]
    fn only_what_no_timer_watches_is_idle() {
        let idle = silent(20, "10.0.0.9:1000", 7);
        assert_eq!(silence_ns(&idle), Some(20 * MINUTE));
        assert!(is_wanted(&idle, 20 * MINUTE) && !is_wanted(&idle, 20 * MINUTE + 1));
        for timer in [Timer::Keepalive, Timer::Retransmission, Timer::WindowProbe, Timer::Other] {
            assert_eq!(silence_ns(&Socket { timer: Some(timer), ..idle }), None, "{timer:?}");
        }
        assert_eq!(silence_ns(&Socket { times: None, ..idle }), None);
        assert_eq!(silence_ns(&Socket { state: TcpState::CloseWait, ..idle }), None);
        let young = |change: fn(&mut Times)| {
            let mut socket = idle;
            socket.times.iter_mut().for_each(change);
            silence_ns(&socket)
        };
        assert_eq!(young(|times| times.last_sent_ns = 1), Some(1));
        assert_eq!(young(|times| times.last_data_received_ns = 2), Some(2));
        assert_eq!(young(|times| times.last_ack_received_ns = 3), Some(3));
    }

    #[test]
    fn a_peer_is_gone_that_does_not_acknowledge() {
        let sending = |timeouts, window| Socket {
            timer: Some(Timer::Retransmission),
            unsent: 9,
            retries: Some(Retries { timeouts, again: 4, window }),
            ..silent(0, "10.0.0.9:1000", 7)
        };
        assert!(is_wanted(&sending(4, Some(64_000)), MINUTE));
        assert!(!is_wanted(&sending(1, Some(64_000)), MINUTE));
        // It is there, and does not read.
        assert!(!is_wanted(&sending(4, Some(0)), MINUTE));
    }

    fn listed(sockets: &[Socket], parent: Option<u32>, wanted: &IdleQuery) -> IdleDocument {
        // Two workers of one master, with every other socket each.
        let held =
            sockets.iter().map(|socket| (socket.inode, FdHolder { pid: 40 + socket.inode % 2, fd: 3 }));
        let process = |pid| (pid, Process { comm: "api".into(), parent, ..Process::default() }.into());
        let owners = Owners::new(held.collect(), [40, 41].map(process).into_iter().collect(), 0);
        let netns = Netns { id: 7, inum: 77, name: None };
        let namespace = NetnsSockets {
            sockets,
            queues: &AcceptQueues::new([].iter(), &[]),
            owners: &owners,
            peers: &Peers::default(),
            netns: &netns,
            bound_ns: wanted.silent_ns(),
        };
        let mut idle = IdleSockets::default();
        idle.add(&namespace, |socket| (Side::Server, socket.flow.local_port), wanted);
        let envelope = Envelope {
            host: "h".into(),
            boot_id: String::new(),
            at: String::new(),
            source: DocumentSource::Agent,
            incomplete: Vec::new(),
        };
        idle.document(wanted, 9, envelope)
    }

    #[test]
    fn siblings_are_one_line_and_other_processes_are_not() {
        let sockets = [
            silent(20, "10.0.0.9:1000", 1),
            silent(30, "127.0.0.1:1001", 2),
            silent(10, "10.0.0.9:1002", 3),
            Socket {
                timer: Some(Timer::Retransmission),
                retries: Some(Retries { timeouts: 3, again: 3, window: Some(1) }),
                ..silent(0, "10.0.0.9:1003", 4)
            },
        ];
        let wanted = IdleQuery { sockets: 2, ..IdleQuery::default() };
        let document = listed(&sockets, Some(30), &wanted);
        let [group] = &document.groups[..] else { panic!("{document:?}") };
        assert_eq!((group.idle, group.local, group.peer_gone, group.silent_seconds), (3, 1, 1, 1800.0));
        assert_eq!(group.owners.iter().map(|owner| owner.pid).collect::<Vec<_>>(), [41, 40]);
        let silences: Vec<f64> = document.sockets.iter().map(|socket| socket.silent_seconds).collect();
        assert_eq!((silences, document.sockets[0].local_peer), (vec![1800.0, 1200.0], true));
        for parent in [None, Some(1)] {
            assert_eq!(listed(&sockets, parent, &wanted).groups.len(), 2);
        }
        let of_one = IdleQuery { pid: Some(40), sockets: 9, ..IdleQuery::default() };
        let document = listed(&sockets, Some(30), &of_one);
        assert_eq!((document.groups[0].idle, document.sockets.len(), document.established), (1, 1, 9));
        let elsewhere = IdleQuery { netns: Some(1), ..IdleQuery::default() };
        assert!(listed(&sockets, None, &elsewhere).groups.is_empty());
        let text = serde_json::to_string(&document).unwrap();
        assert_eq!(serde_json::from_str::<IdleDocument>(&text).unwrap(), document);
    }

    #[test]
    fn a_query_is_read_as_it_is_written() {
        let query = IdleQuery {
            silent_for: Duration::from_millis(1500),
            ports: vec![80, 443],
            pid: Some(42),
            netns: Some(4_026_531_840),
            sockets: 7,
        };
        for query in [query, IdleQuery::default()] {
            let target = query.target();
            let (path, fields) = target.split_once('?').unwrap();
            assert_eq!((path, IdleQuery::parse(fields)), (IDLE_PATH, Ok(query)));
        }
        assert_eq!(IdleQuery::parse(""), Ok(IdleQuery::default()));
        for (wrong, why) in [
            ("silent_for=soon", "silent_for=soon: "),
            ("port=0", "port=0: write a number from 1 to 65535"),
            ("sockets=100001", "sockets=100001: write a number from 0 to 100000"),
            ("limit=1", "limit: unknown key; this path has silent_for, port, pid, netns and sockets"),
        ] {
            assert!(IdleQuery::parse(wrong).unwrap_err().starts_with(why), "{wrong}");
        }
    }
}
