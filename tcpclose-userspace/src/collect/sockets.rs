//! The owners and peers of dumped sockets.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use tcpclose_common::state::TcpState;

use crate::collect;
use crate::linux::netns::NetnsPath;
use crate::linux::netns_dump;
use crate::linux::netns_dump::{DumpRequest, DumpedNetns, LookupKey, LookupResult, NetnsChunk};
use crate::linux::owners;
use crate::linux::owners::{Owners, OwnersLookup};
use crate::linux::proc_fd::OpenFiles;
use crate::linux::process;
use crate::linux::sock_diag::{Dump, Socket, mptcp_is_hidden};
use crate::names::Flow;
use crate::report::accept_queues::{AcceptQueues, waits};
use crate::report::incomplete;
use crate::report::owners::{Peers, wanted_inodes};
use crate::report::sockets::{Depth, StuckSocket};

/// The local peers of everything in `dumped`, if `depth` asks for them.
pub fn peers(depth: Depth, dumped: &[DumpedNetns]) -> Peers {
    match depth {
        Depth::Owners => Peers::default(),
        Depth::WithPeers => peers_of(dumped),
    }
}

/// Looks up the peers of those sockets whose remote address is their namespace's own. Sockets whose peer was closed meanwhile or
/// cannot be looked up have none.
fn peers_of(dumped: &[DumpedNetns]) -> Peers {
    let mut cookies = Vec::new();
    let mut keys = Vec::new();
    let mut states = 0;
    for DumpedNetns { netns, sockets, .. } in dumped {
        for socket in sockets.iter().filter(|socket| socket.state != TcpState::TimeWait) {
            let Flow { local, remote, local_port, remote_port } = socket.flow;
            let flow =
                Flow { local: remote, remote: local, local_port: remote_port, remote_port: local_port };
            cookies.push(socket.cookie);
            keys.push(LookupKey { netns: netns.id, flow, interface: peer_interface(socket), cookie: 0 });
            states |= peer_states(socket.state);
        }
    }
    if keys.is_empty() {
        return Peers::default();
    }
    let answers = netns_dump::meet(&places(dumped), &keys, states).unwrap_or_default();
    let found = cookies.into_iter().zip(answers);
    Peers::new(found.filter_map(|(cookie, answer)| Some((cookie, there(answer)?))).collect())
}

/// The interface by which the peer of `socket` is found: a lookup with one finds a socket that is bound to that or to none
/// (include/net/inet_hashtables.h, `INET_MATCH()`; include/net/inet_sock.h, `inet_bound_dev_eq()`; 5.8 to 6.18). Both ends of a
/// link-local connection are bound to its interface; what is bound to none goes by the loopback.
fn peer_interface(socket: &Socket) -> u32 {
    /// include/net/flow.h
    const LOOPBACK_IFINDEX: u32 = 1;
    if socket.interface == 0 { LOOPBACK_IFINDEX } else { socket.interface }
}

fn there(answer: LookupResult) -> Option<Socket> {
    match answer {
        LookupResult::There(socket) => Some(socket),
        LookupResult::Gone | LookupResult::Unknown => None,
    }
}

/// The states that the peer of a socket in `state` can have while a process holds it.
fn peer_states(state: TcpState) -> u32 {
    use TcpState::{CloseWait, Closing, Established, FinWait1, FinWait2, LastAck};
    let states: &[TcpState] = match state {
        // Only a FIN leads there.
        CloseWait => &[FinWait1, FinWait2],
        _ => &[Established, FinWait1, FinWait2, CloseWait, LastAck, Closing],
    };
    states.iter().fold(0, |all, state| all | state.bit())
}

/// The id and path of each namespace of `dumped`.
fn places(dumped: &[DumpedNetns]) -> Vec<(u32, NetnsPath)> {
    dumped.iter().map(|netns| (netns.netns.id, netns.place.clone())).collect()
}

/// The accept queues of each namespace of `dumped`, in that order.
pub fn accept_queues(dumped: &[DumpedNetns], peers: &Peers) -> Vec<AcceptQueues> {
    let waiting = |netns: &DumpedNetns, more: &[(u32, Socket)]| {
        let more = more.iter().filter(|(id, _)| *id == netns.netns.id).map(|(_, socket)| *socket);
        let found = netns.sockets.iter().chain(peers.of(&netns.sockets)).copied().chain(more);
        let by_cookie = found.filter(waits).map(|socket| (socket.cookie, socket));
        let waiting: FxHashMap<u64, Socket> = by_cookie.collect();
        AcceptQueues::new(waiting.values(), &netns.listeners)
    };
    let mut queues: Vec<AcceptQueues> = dumped.iter().map(|netns| waiting(netns, &[])).collect();
    let unsure = || dumped.iter().zip(&queues).filter(|(_, queues)| queues.is_unsure());
    let places: Vec<NetnsPath> = unsure().map(|(netns, _)| netns.place.clone()).collect();
    if places.is_empty() {
        return queues;
    }
    let ask = DumpRequest { states: TcpState::Established.bit() | TcpState::CloseWait.bit(), info: false };
    let mut more = Vec::new();
    let take = |chunk: NetnsChunk| more.extend(chunk.sockets.into_iter().filter(|(_, socket)| waits(socket)));
    /// What is not reached has more candidates.
    const WITHIN: Duration = Duration::from_secs(1);
    if let Err(why) = netns_dump::stream(places, ask, Some(WITHIN), take) {
        log::debug!("cannot dump what waits in accept queues: {why} (more listeners are candidates)");
        return queues;
    }
    for (netns, queues) in dumped.iter().zip(&mut queues).filter(|(_, queues)| queues.is_unsure()) {
        *queues = waiting(netns, &more);
    }
    queues
}

/// Finds the owners of everything in `dumped`, whose `queues` are in the same order, and of the sockets with these `cookies`, and
/// drops sockets that were closed since the dump. `seen`: the files that processes held meanwhile, if those were read.
pub fn find_owners(
    dumped: &mut [DumpedNetns],
    queues: &[AcceptQueues],
    peers: &Peers,
    (seen, cookies): (Option<OpenFiles>, &FxHashSet<u64>),
    lookup: OwnersLookup,
) -> io::Result<Owners> {
    let mut inodes = FxHashSet::default();
    for (DumpedNetns { sockets, .. }, queues) in dumped.iter().zip(queues) {
        inodes.reserve(sockets.len());
        inodes.extend(wanted_inodes(sockets, queues, peers));
    }
    let owners = owners::find_in(&inodes, cookies, seen.unwrap_or_default(), lookup)?;
    drop_closed(dumped, &owners)?;
    Ok(owners)
}

/// Drops sockets that were closed since the dump. One without an owner, although every process was readable, has probably just
/// been closed: a lookup tells.
fn drop_closed(dumped: &mut [DumpedNetns], owners: &Owners) -> io::Result<()> {
    if owners.denied > 0 || !owners.unanswered.is_empty() {
        return Ok(());
    }
    // No lookup finds an MPTCP socket by its addresses.
    let doubtful = |socket: &Socket| socket.inode != 0 && socket.mptcp.is_none() && !owners.has(socket.inode);
    let mut keys = Vec::new();
    for netns in &*dumped {
        keys.extend(netns.sockets.iter().filter(|socket| doubtful(socket)).map(|socket| LookupKey {
            netns: netns.netns.id,
            flow: socket.flow,
            interface: socket.interface,
            cookie: socket.cookie,
        }));
    }
    if keys.is_empty() {
        return Ok(());
    }
    let mut answers = netns_dump::look_up(&places(dumped), &keys)?.0.into_iter();
    for netns in dumped {
        netns.sockets.retain(|socket| {
            !doubtful(socket) || answers.next().and_then(there).is_some_and(|now| now.state == socket.state)
        });
    }
    Ok(())
}

/// What the dump and the search for owners did not see, one sentence each.
pub fn incomplete(
    dump: &Dump,
    owners: &Owners,
    queues: &[AcceptQueues],
    sockets: &[StuckSocket],
) -> Vec<String> {
    let mut incomplete = incomplete::incomplete(dump, owners, sockets, &collect::missing_for_owners());
    incomplete.extend(incomplete::too_many_listeners(queues));
    if mptcp_is_hidden() {
        incomplete.push(
            "MPTCP connections: this kernel does not list their sockets (CONFIG_INET_MPTCP_DIAG, module mptcp_diag); one that is not \
             closed is not among these"
                .to_owned(),
        );
    }
    incomplete
}

/// Names the processes that closed, if they still run; one that started later only has the same pid. `uptime_ns`: the uptime
/// at the moment from which the seconds count.
pub fn name_closers(sockets: &mut [StuckSocket], uptime_ns: u64) {
    let mut known: HashMap<u32, Option<(u64, String)>> = HashMap::new();
    for closer in sockets.iter_mut().filter_map(|socket| socket.closed_by.as_mut()) {
        let process = known.entry(closer.pid).or_insert_with(|| process::started(closer.pid));
        let closed_ns = uptime_ns.saturating_sub((closer.seconds * 1e9) as u64);
        closer.comm =
            process.as_ref().filter(|(began_ns, _)| *began_ns <= closed_ns).map(|(_, comm)| comm.clone());
    }
}
