//! Whose a socket is: which inodes to look for, and what is made of the processes that were found.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::Ipv6Addr;

use rustc_hash::{FxHashMap, FxHashSet};
use tcpclose_common::state::TcpState;

use crate::linux::executables;
use crate::linux::host;
use crate::linux::host::Capability;
use crate::linux::netns::NetnsPath as NetnsPlace;
use crate::linux::netns_dump;
use crate::linux::netns_dump::{LookupKey, LookupResult};
use crate::linux::owners as holders;
use crate::linux::owners::{FdHolder, Owners, OwnersLookup};
use crate::linux::proc_fd::OpenFiles;
use crate::linux::process;
use crate::linux::sock_diag::Socket;
use crate::names::{Flow, Phase};
use crate::report::sockets::{ClosedBy, Owner, StuckSocket, seconds};
use crate::report::{DumpedNetns, NetnsSockets};

/// The listeners that a connection with this local end can have come through: those on its address, else those on
/// every address of its family, else those on `[::]`. More than one where SO_REUSEPORT shares the port.
pub fn listeners_of<'a>(flow: &Flow, listeners: &'a [Socket]) -> impl Iterator<Item = &'a Socket> {
    const ANY_V4: Ipv6Addr = std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
    let (local, port) = (flow.local, flow.local_port);
    let rank = move |listener: &Socket| match listener.flow.local {
        _ if listener.flow.local_port != port || listener.state != TcpState::Listen => 0,
        address if address == local => 3,
        ANY_V4 if local.to_ipv4_mapped().is_some() => 2,
        Ipv6Addr::UNSPECIFIED => 1,
        _ => 0,
    };
    let best = listeners.iter().map(rank).max().unwrap_or(0);
    listeners.iter().filter(move |listener| best > 0 && rank(listener) == best)
}

/// The other ends of connections within one network namespace: by a socket's cookie, its peer.
#[derive(Clone, Debug, Default)]
pub struct Peers(FxHashMap<u64, Socket>);

impl Peers {
    /// Looks up the peers of those sockets whose remote address is one that their namespace uses itself. What was closed
    /// meanwhile, and what cannot be looked up, has none.
    pub fn of(sights: &[DumpedNetns]) -> Self {
        let mut cookies = Vec::new();
        let mut keys = Vec::new();
        let mut states = 0;
        for DumpedNetns { netns, sockets, listeners, .. } in sights {
            let own: HashSet<Ipv6Addr> =
                sockets.iter().chain(listeners).map(|socket| socket.flow.local).collect();
            let is_local = |address: Ipv6Addr| own.contains(&address) || address.to_canonical().is_loopback();
            for socket in sockets.iter().filter(|socket| !socket.minisocket && is_local(socket.flow.remote)) {
                let Flow { local, remote, local_port, remote_port } = socket.flow;
                let other =
                    Flow { local: remote, remote: local, local_port: remote_port, remote_port: local_port };
                cookies.push(socket.cookie);
                keys.push(LookupKey { netns: netns.id, flow: other, interface: 0, cookie: 0 });
                states |= peer_states(socket.state);
            }
        }
        if keys.is_empty() {
            return Self::default();
        }
        let answers = netns_dump::meet(&places(sights), &keys, states).unwrap_or_default();
        let found = cookies.into_iter().zip(answers);
        Self(found.filter_map(|(cookie, answer)| Some((cookie, there(answer)?))).collect())
    }

    fn of_socket(&self, socket: &Socket) -> Option<&Socket> {
        self.0.get(&socket.cookie)
    }
}

fn there(answer: LookupResult) -> Option<Socket> {
    match answer {
        LookupResult::There(socket) => Some(socket),
        LookupResult::Gone | LookupResult::Unknown => None,
    }
}

/// The states in which a process can hold the other end of a connection whose one end is in `state`.
fn peer_states(state: TcpState) -> u32 {
    use TcpState::{CloseWait, Closing, Established, FinWait1, FinWait2, LastAck};
    let states: &[TcpState] = match state {
        // Only a FIN leads there.
        CloseWait => &[FinWait1, FinWait2],
        _ => &[Established, FinWait1, FinWait2, CloseWait, LastAck, Closing],
    };
    states.iter().fold(0, |all, state| all | state.bit())
}

/// What identifies each namespace of `sights`, and where it is.
fn places(sights: &[DumpedNetns]) -> Vec<(u32, NetnsPlace)> {
    sights.iter().map(|sight| (sight.netns.id, sight.place.clone())).collect()
}

/// Finds the owners of everything in sight, and leaves out what was closed since the dump. `seen`: what was held meanwhile,
/// if that was looked at.
pub fn find_owners(
    sights: &mut [DumpedNetns],
    peers: &Peers,
    seen: Option<OpenFiles>,
    look: OwnersLookup,
) -> io::Result<Owners> {
    let mut inodes = FxHashSet::default();
    for DumpedNetns { sockets, listeners, .. } in &*sights {
        inodes.reserve(sockets.len());
        inodes.extend(wanted_inodes(sockets, listeners, peers));
    }
    let owners = match seen {
        Some(seen) => holders::find_in(&inodes, seen, look)?,
        None => holders::find(&inodes, look)?,
    };
    still_there(sights, &owners)?;
    Ok(owners)
}

/// The inodes whose owners [`crate::report::assemble`] asks for.
fn wanted_inodes<'a>(
    sockets: &'a [Socket],
    listeners: &'a [Socket],
    peers: &'a Peers,
) -> impl Iterator<Item = u32> + 'a {
    let all = move || sockets.iter().chain(sockets.iter().filter_map(|socket| peers.of_socket(socket)));
    let queues = all()
        .filter(|socket| not_accepted(socket))
        .flat_map(|socket| listeners_of(&socket.flow, listeners))
        .map(|listener| listener.inode);
    all().map(|socket| socket.inode).chain(queues).filter(|inode| *inode != 0)
}

/// A child in the accept queue has no struct socket yet, and so no inode (net/core/sock.c, `sock_i_ino()`, 5.8 to 6.18);
/// an orphan cannot be in CLOSE-WAIT, for close() leads to LAST-ACK.
pub(super) fn not_accepted(socket: &Socket) -> bool {
    socket.state == TcpState::CloseWait && socket.inode == 0
}

/// Leaves out what was closed since the dump: whose owner is not found although every process was readable has most
/// likely just been closed, and a look tells.
fn still_there(sights: &mut [DumpedNetns], owners: &Owners) -> io::Result<()> {
    if owners.denied > 0 || !owners.unanswered.is_empty() {
        return Ok(());
    }
    let doubtful = |socket: &Socket| socket.inode != 0 && !owners.has(socket.inode);
    let mut keys = Vec::new();
    for sight in &*sights {
        keys.extend(sight.sockets.iter().filter(|socket| doubtful(socket)).map(|socket| LookupKey {
            netns: sight.netns.id,
            flow: socket.flow,
            interface: socket.interface,
            cookie: socket.cookie,
        }));
    }
    if keys.is_empty() {
        return Ok(());
    }
    let mut answers = netns_dump::look_up(&places(sights), &keys)?.0.into_iter();
    for sight in sights {
        sight.sockets.retain(|socket| {
            !doubtful(socket) || answers.next().and_then(there).is_some_and(|now| now.state == socket.state)
        });
    }
    Ok(())
}

fn owner(holder: &FdHolder, owners: &Owners) -> Owner {
    let process = owners.processes.get(&holder.pid).cloned().unwrap_or_default();
    Owner { pid: holder.pid, fd: holder.fd, process }
}

/// Whose `socket` is: of one that was not accepted, the holders of its listener.
pub(super) fn owners_of(socket: &Socket, scene: &NetnsSockets<'_>) -> Vec<Owner> {
    let mut owners: Vec<Owner> = if not_accepted(socket) {
        listeners_of(&socket.flow, scene.listeners)
            .flat_map(|listener| scene.owners.of(listener.inode))
            .map(|holder| owner(holder, scene.owners))
            .collect()
    } else {
        scene.owners.of(socket.inode).map(|holder| owner(holder, scene.owners)).collect()
    };
    owners.sort_unstable_by_key(|owner| (owner.pid, owner.fd));
    owners
}

/// Whose the other end of `socket` is, if that is in the same network namespace.
pub(super) fn peer_owners_of(socket: &Socket, scene: &NetnsSockets<'_>) -> Vec<Owner> {
    scene.peers.of_socket(socket).map(|peer| owners_of(peer, scene)).unwrap_or_default()
}

impl From<(u32, u64)> for ClosedBy {
    fn from((pid, ago_ns): (u32, u64)) -> Self {
        Self { pid, comm: None, seconds: seconds(ago_ns) }
    }
}

/// Names those who closed, if they still run: a process that started later has but the same number. `uptime_ns` is of the
/// moment from which the seconds count.
pub fn name_closers(sockets: &mut [StuckSocket], uptime_ns: u64) {
    let mut known: HashMap<u32, Option<(u64, String)>> = HashMap::new();
    for closer in sockets.iter_mut().filter_map(|socket| socket.closed_by.as_mut()) {
        let process = known.entry(closer.pid).or_insert_with(|| process::started(closer.pid));
        let closed_ns = uptime_ns.saturating_sub((closer.seconds * 1e9) as u64);
        closer.comm =
            process.as_ref().filter(|(began_ns, _)| *began_ns <= closed_ns).map(|(_, comm)| comm.clone());
    }
}

/// Says in words whose owners are not known, and why.
pub(super) fn unknown_owners(owners: &Owners, sockets: &[StuckSocket]) -> Option<String> {
    let held = |socket: &&StuckSocket| socket.inode != 0 || socket.state == Phase::CloseWait;
    let unknown = sockets.iter().filter(held).filter(|socket| socket.owners.is_empty()).count();
    let sockets = if unknown == 1 { "1 socket".to_owned() } else { format!("{unknown} sockets") };
    if unknown == 0 {
        return None;
    }
    let missing: Vec<&str> = [Capability::SysPtrace, Capability::DacReadSearch]
        .into_iter()
        .filter(|&capability| !host::has_cap(capability))
        .map(Capability::name)
        .collect();
    let elsewhere = "another PID namespace, a descriptor on its way over a unix socket, or the kernel itself";
    if !owners.unanswered.is_empty() {
        // Said with their numbers: [`unanswered`].
        return Some(format!("owners of {sockets} are unknown"));
    }
    Some(match owners.denied {
        0 => format!("owners of {sockets} are unknown: no process in this /proc holds them ({elsewhere})"),
        _ if !missing.is_empty() => format!(
            "owners of {sockets} are unknown: {} needed to read other users' /proc/PID/fd",
            match missing.as_slice() {
                [one] => format!("{one} is"),
                all => format!("{} are", all.join(" and ")),
            }
        ),
        denied => format!(
            "owners of {sockets} are unknown: {} not show their files to this one, and no other holds them \
             ({elsewhere})",
            if denied == 1 { "1 process does".to_owned() } else { format!("{denied} processes do") }
        ),
    })
}

/// Says in words which processes did not answer in time.
pub(crate) fn unanswered(owners: &Owners) -> Vec<String> {
    let descriptors = (!owners.unanswered.is_empty()).then(|| {
        format!(
            "owners may be missing: the descriptors of {} were not all read within {:?}",
            processes(&owners.unanswered),
            holders::WITHIN
        )
    });
    let executables = (!owners.unread.is_empty()).then(|| {
        format!(
            "what runs {} is unknown: the executable was not read within {:?} (a lease on it, a file system that does not \
             answer, or no helper process)",
            processes(&owners.unread),
            executables::WITHIN
        )
    });
    descriptors.into_iter().chain(executables).collect()
}

/// How many they are, and the first of them.
fn processes(pids: &[u32]) -> String {
    const NAMED: usize = 5;
    let what = if pids.len() == 1 { "process" } else { "processes" };
    let named: Vec<String> = pids.iter().take(NAMED).map(u32::to_string).collect();
    let more = if pids.len() > NAMED { ", …" } else { "" };
    format!("{} {what} (pid {}{more})", pids.len(), named.join(", "))
}

/// Says in words whose executables are not known, and why.
pub(super) fn unknown_programs(owners: &Owners) -> Option<String> {
    let unknown = owners.processes.values().filter(|process| process.exe.is_none()).count();
    let processes = if unknown == 1 { "1 process".to_owned() } else { format!("{unknown} processes") };
    (unknown > 0 && !host::has_cap(Capability::SysPtrace)).then(|| {
        format!(
            "the executables of {processes} are unknown: {} is needed to read other users' /proc/PID/exe",
            Capability::SysPtrace.name()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::linux::netns::Netns;
    use crate::linux::sock_diag::Dump;
    use crate::names::{Age, Side};
    use crate::report::tests::{MINUTE, close_wait, socket};
    use crate::report::{SocketFacts, assemble, incomplete};

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
            listeners_of(&flow, listeners).map(|listener| listener.inode).collect()
        };
        assert_eq!(found("10.0.0.5:8080", &listeners), [3, 4]);
        assert_eq!(found("10.0.0.7:8080", &listeners), [2]);
        assert_eq!(found("[2001:db8::1]:8080", &listeners), [1]);
        assert_eq!(found("10.0.0.7:8080", &listeners[..1]), [1]);
        assert!(found("10.0.0.5:9090", &listeners).is_empty());
    }

    #[test]
    fn a_socket_that_was_not_accepted_is_its_listeners_owners() {
        let sockets = [Socket { inode: 0, ..close_wait(6, 0) }, close_wait(0, MINUTE)];
        let listeners = [socket(TcpState::Listen, "0.0.0.0:8080", "0.0.0.0:0", 3)];
        let wanted: FxHashSet<u32> = wanted_inodes(&sockets, &listeners, &Peers::default()).collect();
        assert_eq!(wanted, FxHashSet::from_iter([3, 7]));
        let exe = Some("/api".into());
        let api = Arc::new(process::Process { comm: "api".into(), exe, ..process::Process::default() });
        let owners =
            Owners::new(vec![(3, FdHolder { pid: 42, fd: 5 })], FxHashMap::from_iter([(42, api)]), 0);
        let netns = Netns { id: 7, inum: 1, name: Some("blue".into()) };
        let scene = NetnsSockets {
            sockets: &sockets,
            listeners: &listeners,
            owners: &owners,
            peers: &Peers::default(),
            netns: &netns,
            bound_ns: MINUTE,
        };
        let facts =
            SocketFacts { side: Side::Server, port: 8080, age: Age::exact(10 * MINUTE), closer: None };
        let mut described = Vec::new();
        assemble(&scene, |_| facts, &mut described);
        assert_eq!(described.len(), 2);
        assert_eq!((described[0].owners[0].pid, described[0].owners[0].fd), (42, 5));
        assert_eq!(described[0].unread_bytes, 5);
        assert_eq!((described[0].netns, described[0].netns_name.as_deref()), (1, Some("blue")));
        assert!(described[1].owners.is_empty());
        let said = incomplete(&Dump::default(), &owners, &described);
        assert!(
            said.len() == 1 && said[0].starts_with("owners of 1 socket are unknown: no process"),
            "{said:?}"
        );
        let mut late = owners.clone();
        (late.unanswered, late.unread) = ((1..=7).collect(), vec![42]);
        assert_eq!(
            incomplete(&Dump::default(), &late, &described),
            [
                "owners of 1 socket are unknown",
                "owners may be missing: the descriptors of 7 processes (pid 1, 2, 3, 4, 5, …) were not all read within 4s",
                "what runs 1 process (pid 42) is unknown: the executable was not read within 2s (a lease on it, a file system \
                 that does not answer, or no helper process)",
            ]
        );
        let mut denied = owners;
        denied.denied = 3;
        let said = incomplete(&Dump::default(), &denied, &described);
        let privileged = host::has_cap(Capability::SysPtrace) && host::has_cap(Capability::DacReadSearch);
        let words =
            if privileged { "3 processes do not show their files" } else { "needed to read other users'" };
        assert!(said[0].contains(words), "{said:?}");
    }
}
