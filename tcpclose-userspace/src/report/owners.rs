//! The owners of a socket: the inodes to search for, and the processes that hold them.

use std::net::Ipv6Addr;

use rustc_hash::FxHashMap;
use tcpclose_common::state::TcpState;

use crate::linux::owners::Owners;
use crate::linux::proc_fd::FdHolder;
use crate::linux::sock_diag::Socket;
use crate::names::Flow;
use crate::report::accept_queues::AcceptQueues;
use crate::report::sockets::{Listener, Owner, StuckSocket};

/// The listeners that can have accepted a connection with this local end: those on its address, else those on every address
/// of its family, else those on `[::]`; of these the ones that are bound to its device, else those that are bound to none. More
/// than one where SO_REUSEPORT shares the port. `interface`: the device that the connection is bound to, which it has from its
/// listener (net/ipv4/inet_hashtables.c, compute_score(); include/net/inet_sock.h, inet_request_bound_dev_if(); 5.8 to 6.18).
pub fn listeners_of<'a>(
    flow: &Flow,
    interface: u32,
    listeners: &'a [Socket],
) -> impl Iterator<Item = &'a Socket> {
    const ANY_V4: Ipv6Addr = std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
    let (local, port) = (flow.local, flow.local_port);
    let rank = move |listener: &Socket| match listener.flow.local {
        _ if listener.flow.local_port != port || listener.state != TcpState::Listen => 0,
        _ if listener.interface != 0 && listener.interface != interface => 0,
        address if address == local => 3,
        ANY_V4 if local.to_ipv4_mapped().is_some() => 2,
        Ipv6Addr::UNSPECIFIED => 1,
        _ => 0,
    };
    let rank = move |listener: &Socket| match rank(listener) {
        0 => 0,
        rank => 2 * rank + u8::from(listener.interface != 0),
    };
    let best = listeners.iter().map(rank).max().unwrap_or(0);
    listeners.iter().filter(move |listener| best > 0 && rank(listener) == best)
}

/// The other ends of connections within one network namespace: by a socket's cookie, its peer.
#[derive(Clone, Debug, Default)]
pub struct Peers(FxHashMap<u64, Socket>);

impl Peers {
    pub fn new(by_cookie: FxHashMap<u64, Socket>) -> Self {
        Self(by_cookie)
    }

    pub(super) fn of_socket(&self, socket: &Socket) -> Option<&Socket> {
        self.0.get(&socket.cookie)
    }

    /// Whether the peer of `socket` has sent its FIN and still reads: a process holds it.
    pub fn waits(&self, socket: &Socket) -> bool {
        let is_half_closed = |peer: &Socket| matches!(peer.state, TcpState::FinWait1 | TcpState::FinWait2);
        self.of_socket(socket).is_some_and(|peer| is_half_closed(peer) && peer.inode != 0)
    }

    /// Those of `sockets`.
    pub fn of<'a>(&'a self, sockets: &'a [Socket]) -> impl Iterator<Item = &'a Socket> {
        sockets.iter().filter_map(|socket| self.of_socket(socket))
    }
}

/// The inodes whose owners [`assemble`](crate::report::assemble::assemble) needs. `queues`: of the namespace of `sockets`.
pub fn wanted_inodes<'a>(
    sockets: &'a [Socket],
    queues: &'a AcceptQueues,
    peers: &'a Peers,
) -> impl Iterator<Item = u32> + 'a {
    let all = move || sockets.iter().chain(peers.of(sockets));
    let listeners = all().flat_map(|socket| queues.of(socket)).map(|listener| listener.inode);
    all().map(|socket| socket.inode).chain(listeners).filter(|inode| *inode != 0)
}

/// A holder of a socket, or of the listener in whose queue it can be.
fn owner(holder: &FdHolder, known: &Owners, listener: Option<&Listener>) -> Owner {
    Owner {
        pid: holder.pid,
        fd: holder.fd,
        listener: listener.map(|listener| listener.inode),
        candidate: listener.is_some_and(|listener| listener.candidate),
        process: known.processes.get(&holder.pid).cloned().unwrap_or_default(),
    }
}

/// The owners of `socket`: of one that was not accepted, the holders of the listeners in whose `queues` it can be.
pub(super) fn owners_of(socket: &Socket, known: &Owners, queues: &AcceptQueues) -> Vec<Owner> {
    let mut owners: Vec<Owner> = match queues.of(socket) {
        [] => known.of(socket.inode).map(|holder| owner(holder, known, None)).collect(),
        listeners => listeners
            .iter()
            .flat_map(|listener| known.of(listener.inode).map(move |holder| (holder, listener)))
            .map(|(holder, listener)| owner(holder, known, Some(listener)))
            .collect(),
    };
    owners.sort_unstable_by_key(|owner| (owner.pid, owner.fd));
    owners
}

/// A socket that was not dumped, with the owners that its cookie leads to.
pub fn owned_by_cookie(socket: StuckSocket, known: &Owners) -> StuckSocket {
    let Some(inode) = known.inode_of(socket.cookie.0) else { return socket };
    let owners = known.of(inode).map(|holder| owner(holder, known, None)).collect();
    StuckSocket { inode, owners, ..socket }
}

/// The owners of the other end of `socket`, if that is in the same network namespace.
pub(super) fn peer_owners_of(
    socket: &Socket,
    peers: &Peers,
    known: &Owners,
    queues: &AcceptQueues,
) -> Vec<Owner> {
    peers.of_socket(socket).map(|peer| owners_of(peer, known, queues)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::linux::host::Capability;
    use crate::linux::netns::Netns;
    use crate::linux::process;
    use crate::linux::sock_diag::Dump;
    use crate::names::{Age, Side};
    use crate::report::assemble::{NetnsSockets, SocketFacts, assemble};
    use crate::report::fixtures::{MINUTE, close_wait, dumped_socket as socket};
    use crate::report::incomplete::incomplete;
    use rustc_hash::FxHashSet;

    #[test]
    fn a_connection_belongs_to_the_most_specific_listener() {
        let listen = |local: &str, inode| socket(TcpState::Listen, local, "0.0.0.0:0", inode);
        let listeners = [
            listen("[::]:8080", 1),
            listen("0.0.0.0:8080", 2),
            listen("10.0.0.5:8080", 3),
            listen("10.0.0.5:8080", 4),
            listen("10.0.0.6:9090", 5),
        ];
        let found = |local: &str, listeners: &[Socket]| -> Vec<u32> {
            let flow = Flow::new(local.parse().unwrap(), "10.0.0.9:41234".parse().unwrap());
            listeners_of(&flow, 0, listeners).map(|listener| listener.inode).collect()
        };
        assert_eq!(found("10.0.0.5:8080", &listeners), [3, 4]);
        assert_eq!(found("10.0.0.7:8080", &listeners), [2]);
        assert_eq!(found("[2001:db8::1]:8080", &listeners), [1]);
        assert_eq!(found("10.0.0.7:8080", &listeners[..1]), [1]);
        assert!(found("10.0.0.5:9090", &listeners).is_empty());
    }

    #[test]
    fn a_connection_belongs_to_the_listener_of_its_device() {
        let listen = |interface, inode| Socket {
            interface,
            ..socket(TcpState::Listen, "0.0.0.0:8080", "0.0.0.0:0", inode)
        };
        let listeners = [listen(2, 1), listen(3, 2), listen(0, 3)];
        let flow = Flow::new("10.0.0.5:8080".parse().unwrap(), "10.0.0.9:41234".parse().unwrap());
        for (interface, inode) in [(2, 1), (3, 2), (4, 3), (0, 3)] {
            let found: Vec<u32> =
                listeners_of(&flow, interface, &listeners).map(|listener| listener.inode).collect();
            assert_eq!(found, [inode], "{interface}");
        }
    }

    #[test]
    fn a_socket_that_was_not_accepted_is_its_listeners_owners() {
        let sockets = [Socket { inode: 0, ..close_wait(6) }, close_wait(0)];
        let listeners = [socket(TcpState::Listen, "0.0.0.0:8080", "0.0.0.0:0", 3)];
        let queues = AcceptQueues::new(sockets[..1].iter(), &listeners);
        let wanted: FxHashSet<u32> = wanted_inodes(&sockets, &queues, &Peers::default()).collect();
        assert_eq!(wanted, FxHashSet::from_iter([3, 7]));
        let exe = Some("/api".into());
        let api = Arc::new(process::Process { comm: "api".into(), exe, ..process::Process::default() });
        let owners =
            Owners::new(vec![(3, FdHolder { pid: 42, fd: 5 })], FxHashMap::from_iter([(42, api)]), 0);
        let netns = Netns { id: 7, inum: 1, name: Some("blue".into()) };
        let scene = NetnsSockets {
            sockets: &sockets,
            queues: &queues,
            owners: &owners,
            peers: &Peers::default(),
            netns: &netns,
            bound_ns: MINUTE,
        };
        let facts = SocketFacts {
            side: Side::Server,
            port: 8080,
            age: Age::exact(10 * MINUTE),
            last_write: None,
            closer: None,
        };
        let mut described = Vec::new();
        assemble(&scene, |_| facts, &mut described);
        assert_eq!(described.len(), 2);
        assert_eq!((described[0].owners[0].pid, described[0].owners[0].fd), (42, 5));
        assert_eq!(described[0].unread_bytes, 5);
        assert_eq!((described[0].netns, described[0].netns_name.as_deref()), (1, Some("blue")));
        assert!(described[1].owners.is_empty());
        let printed = incomplete(&Dump::default(), &owners, &described, &[]);
        assert!(
            printed.len() == 1 && printed[0].starts_with("owners of 1 socket are unknown: no process"),
            "{printed:?}"
        );
        let mut late = owners.clone();
        (late.unanswered, late.unread) = ((1..=7).collect(), vec![42]);
        assert_eq!(
            incomplete(&Dump::default(), &late, &described, &[]),
            [
                "owners of 1 socket are unknown",
                "owners may be missing: the descriptors of 7 processes (pid 1, 2, 3, 4, 5, …) were not all read within 4s",
                "the runtime of 1 process (pid 42) is unknown: the executable was not read within 2s (a lease on it, a file system \
                 that does not answer, or no helper process)",
            ]
        );
        let mut denied = owners;
        denied.denied = 3;
        for (missing, words) in [
            (&[][..], "tcpclose may not list the files of 3 processes"),
            (&[Capability::SysPtrace], "CAP_SYS_PTRACE is needed to read other users'"),
            (
                &[Capability::SysPtrace, Capability::DacReadSearch],
                "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are needed to read other users'",
            ),
        ] {
            let printed = incomplete(&Dump::default(), &denied, &described, missing);
            assert!(printed[0].contains(words), "{printed:?}");
        }
    }
}
