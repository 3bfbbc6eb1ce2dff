//! Which sockets are in a close-phase state, since when, whose they are, and why.
//!
//! * [`document`]: the answer, as it travels and as `--json` prints it.
//! * [`assemble`]: sockets, their listeners and their owners put together; pure.
//! * [`snapshot`]: the answer from one dump, without an agent.

pub mod document;

use std::collections::HashSet;
use std::io;
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;

use tcpclose_common::state::TcpState;

use crate::kernel::age::proven_age;
use crate::kernel::host;
use crate::kernel::netns::{Netns, Place, Scope};
use crate::kernel::owners::{self, Holder, Owners};
use crate::kernel::sock_diag::{Dump, Socket};
use crate::kernel::survey::{self, Answer, Ask, Key, Survey};
use crate::terms::{Age, Diagnosis, Flow, Phase, Side};
use document::{Cookie, Document, Owner, SCHEMA, Source, StuckSocket, seconds};

/// What is known of a socket beyond its dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    pub side: Side,
    /// The service port.
    pub port: u16,
    /// The time in its state when the document is made.
    pub age: Age,
}

/// The sockets of one network namespace and what belongs to them.
pub struct Scene<'a> {
    pub sockets: &'a [Socket],
    /// The namespace's listening sockets.
    pub listeners: &'a [Socket],
    pub owners: &'a Owners,
    pub netns: &'a Netns,
    /// The age from which a socket is called stuck, nanoseconds.
    pub bound_ns: u64,
}

/// Describes every socket of `scene` that is in the close phase. `facts` tells what the tracker, or the dump alone,
/// knows of each.
pub fn assemble(scene: &Scene<'_>, facts: impl Fn(&Socket) -> Facts) -> Vec<StuckSocket> {
    scene
        .sockets
        .iter()
        .filter_map(|socket| {
            let state = Phase::of(socket.state)?;
            let Facts { side, port, age } = facts(socket);
            let diagnosis = diagnose(socket, age, scene.bound_ns);
            let mut owners: Vec<Owner> = match diagnosis {
                Some(Diagnosis::NotAccepted) => listeners_of(&socket.flow, scene.listeners)
                    .flat_map(|listener| scene.owners.of(listener.inode))
                    .map(|holder| owner(holder, scene.owners))
                    .collect(),
                _ => scene.owners.of(socket.inode).iter().map(|holder| owner(holder, scene.owners)).collect(),
            };
            owners.sort_unstable_by_key(|owner| (owner.pid, owner.fd));
            Some(StuckSocket {
                state,
                side,
                port,
                local: socket.flow.local(),
                peer: socket.flow.remote(),
                cookie: Cookie(socket.cookie),
                inode: socket.inode,
                uid: socket.uid,
                netns: scene.netns.inum,
                netns_name: scene.netns.name.clone(),
                age: age.into(),
                unread_bytes: unread_data(socket),
                unsent_bytes: socket.unsent,
                last_sent_seconds: socket.times.map(|times| seconds(times.last_sent_ns)),
                diagnosis,
                owners,
            })
        })
        .collect()
}

/// Why `socket`, in CLOSE-WAIT for `age`, is still there; `None` in other states. Who sent within `bound_ns` is
/// at work, unless that was before the FIN came.
pub fn diagnose(socket: &Socket, age: Age, bound_ns: u64) -> Option<Diagnosis> {
    if socket.state != TcpState::CloseWait {
        return None;
    }
    // A child in the accept queue has no struct socket yet, and so no inode (net/core/sock.c, sock_i_ino(), 5.8 to
    // 6.18); an orphan cannot be in CLOSE-WAIT, for close() leads to LAST-ACK.
    if socket.inode == 0 {
        return Some(Diagnosis::NotAccepted);
    }
    let sent_since_the_fin = |ns: u64| age.max_ns.is_none_or(|age| ns <= age);
    if socket
        .times
        .is_some_and(|times| times.last_sent_ns < bound_ns && sent_since_the_fin(times.last_sent_ns))
    {
        return Some(Diagnosis::StillSending);
    }
    Some(if socket.unread > 0 { Diagnosis::NotRead } else { Diagnosis::NotClosed })
}

/// Bytes of data, without the FIN that `idiag_rqueue` counts in the states that have taken one.
fn unread_data(socket: &Socket) -> u32 {
    match socket.state {
        TcpState::CloseWait | TcpState::LastAck | TcpState::Closing => socket.unread.saturating_sub(1),
        _ => socket.unread,
    }
}

fn owner(holder: &Holder, owners: &Owners) -> Owner {
    let process = owners.processes.get(&holder.pid);
    Owner {
        pid: holder.pid,
        comm: process.map(|process| process.comm.clone()).unwrap_or_default(),
        fd: holder.fd,
        fds_used: process.map(|process| process.fds_used),
        fds_limit: process.and_then(|process| process.fds_limit),
    }
}

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

/// What a dump alone proves of one of its sockets at `now_ns`: an age, and a side where it has the listener too.
pub fn dumped_facts(
    socket: &Socket,
    listeners: &[Socket],
    ephemeral: &RangeInclusive<u16>,
    now_ns: u64,
    uptime_ns: u64,
) -> Facts {
    let side = match listeners_of(&socket.flow, listeners).next() {
        Some(_) => Side::Server,
        None => Side::Unknown,
    };
    let Flow { local_port, remote_port, .. } = socket.flow;
    let age = proven_age(socket, uptime_ns).later(now_ns.saturating_sub(socket.seen_ns));
    Facts { side, port: side.service_port(local_port, remote_port, ephemeral), age }
}

/// The inodes whose owners [`assemble`] asks for.
pub fn wanted_inodes(sockets: &[Socket], listeners: &[Socket]) -> HashSet<u32> {
    let not_accepted = |socket: &&Socket| socket.state == TcpState::CloseWait && socket.inode == 0;
    let queues = sockets
        .iter()
        .filter(not_accepted)
        .flat_map(|socket| listeners_of(&socket.flow, listeners))
        .map(|listener| listener.inode);
    sockets.iter().map(|socket| socket.inode).chain(queues).filter(|inode| *inode != 0).collect()
}

/// Says in words what a dump and a look for owners did not see.
pub fn incomplete(dump: &Dump, owners: &Owners, sockets: &[StuckSocket]) -> Vec<String> {
    let mut incomplete = Vec::new();
    let held = |socket: &&StuckSocket| socket.inode != 0 || socket.state == Phase::CloseWait;
    let unknown = sockets.iter().filter(held).filter(|socket| socket.owners.is_empty()).count();
    let sockets = if unknown == 1 { "1 socket".to_owned() } else { format!("{unknown} sockets") };
    if unknown > 0 && owners.denied > 0 {
        incomplete.push(format!(
            "owners of {sockets} are unknown: CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are needed to read \
             other users' /proc/PID/fd"
        ));
    } else if unknown > 0 {
        incomplete.push(format!(
            "owners of {sockets} are unknown: no process in this /proc holds them (another PID namespace, \
             a descriptor on its way over a unix socket, or the kernel itself)"
        ));
    }
    if dump.malformed > 0 {
        incomplete.push(format!("{} answers of the kernel could not be decoded", dump.malformed));
    }
    if dump.interrupted {
        incomplete.push("the kernel's table changed under the dump: sockets may be missing".to_owned());
    }
    incomplete
}

/// What dumps have met of one namespace.
pub struct Sight {
    pub netns: Netns,
    pub place: Place,
    pub sockets: Vec<Socket>,
    pub listeners: Vec<Socket>,
}

/// Sorts out what dumps have brought. Also what they had in common: how it went.
pub fn sights(survey: &mut Survey) -> (Vec<Sight>, Dump) {
    let mut all = Dump::default();
    let sight = |looked: survey::Looked| {
        let survey::Looked { netns, place, dump } = looked;
        all.malformed += dump.malformed;
        all.interrupted |= dump.interrupted;
        let (listeners, mut sockets): (Vec<Socket>, Vec<Socket>) =
            dump.sockets.into_iter().partition(|socket| socket.state == TcpState::Listen);
        distinct(&mut sockets);
        Sight { netns, place, sockets, listeners }
    };
    let sights = std::mem::take(&mut survey.looked).into_iter().map(sight).collect();
    (sights, all)
}

/// Leaves each socket once: a dump resumes by its place in a bucket, and can meet a socket twice.
fn distinct(sockets: &mut Vec<Socket>) {
    sockets.sort_unstable_by_key(|socket| (socket.cookie, socket.seen_ns));
    sockets.dedup_by_key(|socket| socket.cookie);
}

/// Finds the owners of everything in sight, and leaves out what was closed since the dump.
pub fn owners_of(sights: &mut [Sight]) -> io::Result<Owners> {
    let inodes = sights.iter().flat_map(|sight| wanted_inodes(&sight.sockets, &sight.listeners)).collect();
    let owners = owners::find(&inodes)?;
    still_there(sights, &owners)?;
    Ok(owners)
}

/// Leaves out what was closed since the dump: whose owner is not found although every process was readable has most
/// likely just been closed, and a look tells.
fn still_there(sights: &mut [Sight], owners: &Owners) -> io::Result<()> {
    if owners.denied > 0 {
        return Ok(());
    }
    let doubtful = |socket: &Socket| socket.inode != 0 && owners.of(socket.inode).is_empty();
    let mut keys = Vec::new();
    for sight in &*sights {
        keys.extend(sight.sockets.iter().filter(|socket| doubtful(socket)).map(|socket| Key {
            netns: sight.netns.id,
            flow: socket.flow,
            interface: socket.interface,
            cookie: socket.cookie,
        }));
    }
    if keys.is_empty() {
        return Ok(());
    }
    let places: Vec<(u32, Place)> =
        sights.iter().map(|sight| (sight.netns.id, sight.place.clone())).collect();
    let mut answers = survey::look_up(&places, &keys)?.0.into_iter();
    for sight in sights {
        sight.sockets.retain(|socket| {
            !doubtful(socket)
                || matches!(answers.next(), Some(Answer::There(now)) if now.state == socket.state)
        });
    }
    Ok(())
}

/// Says in words which namespaces were not looked at: `refused` may not be entered, the processes of `denied` may not be
/// looked at; `sockets` that are there are missing.
pub fn not_looked_at(sockets: &str, refused: usize, denied: usize) -> Vec<String> {
    let others = |n: usize| match n {
        1 => "1 other network namespace".to_owned(),
        n => format!("{n} other network namespaces"),
    };
    let mut words = Vec::new();
    if refused > 0 {
        words.push(format!(
            "{sockets} in {} are missing: CAP_SYS_ADMIN is needed to enter them",
            others(refused)
        ));
    }
    if denied > 0 {
        words.push(format!(
            "{sockets} in {} are missing: CAP_SYS_PTRACE and CAP_SYS_ADMIN are needed to enter those that processes are in",
            others(denied)
        ));
    }
    words
}

/// Every socket in one of `states` (a mask of [`TcpState::bit`]s of the close phase), from one dump of each network
/// namespace. `bound_ns`: the age from which one is called stuck, nanoseconds.
pub fn snapshot(states: u32, bound_ns: u64, scope: Scope) -> io::Result<Document> {
    let found = scope.find()?;
    let ask = Ask { states: states | TcpState::Listen.bit(), info: true };
    let mut survey = survey::survey(found.places, ask, None)?;
    let (at, now_ns, uptime_ns) = (host::wall_clock(), host::monotonic_ns(), host::uptime_ns());
    let (mut sights, dump) = sights(&mut survey);
    let owners = owners_of(&mut sights)?;

    let ephemeral = host::ip_local_port_range();
    let mut sockets = Vec::new();
    for Sight { netns, sockets: seen, listeners, .. } in &sights {
        let scene = Scene { sockets: seen, listeners, owners: &owners, netns, bound_ns };
        let facts = |socket: &Socket| dumped_facts(socket, listeners, &ephemeral, now_ns, uptime_ns);
        sockets.extend(assemble(&scene, facts));
    }
    let mut incomplete = incomplete(&dump, &owners, &sockets);
    let refused =
        survey.failed.iter().filter(|(_, why)| why.kind() == io::ErrorKind::PermissionDenied).count();
    incomplete.extend(not_looked_at("sockets", refused, found.denied as usize));
    Ok(Document {
        schema: SCHEMA,
        host: host::hostname(),
        boot_id: host::boot_id(),
        at,
        source: Source::Snapshot,
        incomplete,
        sockets,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::sock_diag::Times;

    const SECOND: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * SECOND;

    fn socket(state: TcpState, local: &str, remote: &str, inode: u32) -> Socket {
        Socket {
            state,
            minisocket: false,
            flow: Flow::new(local.parse().unwrap(), remote.parse().unwrap()),
            interface: 0,
            cookie: u64::from(inode),
            expires_ns: None,
            inode,
            uid: 0,
            unread: 0,
            unsent: 0,
            times: None,
            seen_ns: 0,
            window_ns: 0,
        }
    }

    fn close_wait(unread: u32, last_sent_ns: u64) -> Socket {
        Socket {
            unread,
            times: Some(Times { last_sent_ns, last_data_received_ns: 0, last_ack_received_ns: 0 }),
            ..socket(TcpState::CloseWait, "10.0.0.5:8080", "10.0.0.9:41234", 7)
        }
    }

    #[test]
    fn each_diagnosis_follows_from_what_the_kernel_shows() {
        let age = Age::exact(10 * MINUTE);
        let why = |socket: &Socket| diagnose(socket, age, MINUTE);
        assert_eq!(why(&Socket { inode: 0, ..close_wait(6, 0) }), Some(Diagnosis::NotAccepted));
        assert_eq!(why(&close_wait(6, SECOND)), Some(Diagnosis::StillSending));
        assert_eq!(why(&close_wait(6, MINUTE)), Some(Diagnosis::NotRead));
        assert_eq!(why(&close_wait(1, MINUTE)), Some(Diagnosis::NotRead));
        assert_eq!(why(&close_wait(0, MINUTE)), Some(Diagnosis::NotClosed));
        assert_eq!(why(&Socket { state: TcpState::LastAck, ..close_wait(0, 0) }), None);
        // What was sent before the FIN came is no sign of a half-close at work.
        assert_eq!(
            diagnose(&close_wait(0, 3 * SECOND), Age::exact(2 * SECOND), MINUTE),
            Some(Diagnosis::NotClosed)
        );
    }

    #[test]
    fn the_fin_is_no_data() {
        for (unread, data) in [(0, 0), (1, 0), (6, 5)] {
            assert_eq!(unread_data(&close_wait(unread, 0)), data);
        }
        assert_eq!(unread_data(&socket(TcpState::FinWait2, "10.0.0.5:1", "10.0.0.9:2", 1)), 0);
    }

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
        assert_eq!(wanted_inodes(&sockets, &listeners), HashSet::from([3, 7]));
        let mut owners = Owners::default();
        owners.by_inode.insert(3, vec![Holder { pid: 42, fd: 5 }]);
        owners.processes.insert(42, owners::Process { comm: "api".into(), fds_used: 9, fds_limit: None });
        let netns = Netns { id: 7, inum: 1, name: Some("blue".into()) };
        let scene = Scene {
            sockets: &sockets,
            listeners: &listeners,
            owners: &owners,
            netns: &netns,
            bound_ns: MINUTE,
        };
        let facts = Facts { side: Side::Server, port: 8080, age: Age::exact(10 * MINUTE) };
        let described = assemble(&scene, |_| facts);
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
        let denied = Owners { denied: 3, ..owners };
        assert!(incomplete(&Dump::default(), &denied, &described)[0].contains("CAP_SYS_PTRACE"));
    }
}
