//! Which sockets are in a close-phase state, since when, whose they are, and why.
//!
//! * [`sockets`]: the answer, as it travels and as `--json` prints it; [`encoding`]: the forms in which it travels.
//! * [`owners`]: whose they are. [`ports`]: the close phase by port, as it travels; [`crate::report::exhaustion::document`]: the ports in use.
//! * [`owner_counts`]: how many stuck sockets each has.
//! * [`assemble`]: sockets, their listeners and their owners put together; pure.
//! * [`snapshot`]: the answer from one dump, without an agent.

pub mod api;
pub mod encoding;
pub mod exhaustion;
pub mod kill;
pub mod owner_counts;
mod owners;
pub mod ports;
pub mod reconcile;
pub mod sockets;
pub mod verify;
pub mod watch;

use std::io;
use std::ops::RangeInclusive;
use std::thread;

use tcpclose_common::state::TcpState;

use crate::linux::age::proven_age;
use crate::linux::host;
use crate::linux::netns;
use crate::linux::netns::{Descriptors, FoundNetns, Netns, NetnsPath, Scope, UnreadMounts};
use crate::linux::netns_dump;
use crate::linux::netns_dump::{DumpRequest, NetnsDumps};
use crate::linux::owners::{Owners, OwnersLookup, WITHIN};
use crate::linux::proc_fd;
use crate::linux::proc_fd::{FileFilter, OpenFiles, Urgency};
use crate::linux::sock_diag::{Dump, Socket};
use crate::names::{Age, Diagnosis, Flow, Phase, Side};
pub use crate::report::owners::{Peers, find_owners, listeners_of, name_closers};
use crate::report::owners::{owners_of, peer_owners_of, unanswered, unknown_owners, unknown_programs};
use crate::report::sockets::{
    ClosedBy, Cookie, DocumentSource, SCHEMA, SocketsDocument, StuckSocket, seconds,
};

/// How far to look for owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Those of the sockets themselves.
    Owners,
    /// Those of local peers too, which are looked up first.
    WithPeers,
}

impl Depth {
    pub fn peers(self, sights: &[DumpedNetns]) -> Peers {
        match self {
            Self::Owners => Peers::default(),
            Self::WithPeers => Peers::of(sights),
        }
    }
}

/// What is known of a socket beyond its dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFacts {
    pub side: Side,
    /// The service port.
    pub port: u16,
    /// The time in its state when the document is made.
    pub age: Age,
    /// Who closed it, and how many nanoseconds before the document is made.
    pub closer: Option<(u32, u64)>,
}

/// The sockets of one network namespace and what belongs to them.
pub struct NetnsSockets<'a> {
    pub sockets: &'a [Socket],
    /// The namespace's listening sockets.
    pub listeners: &'a [Socket],
    pub owners: &'a Owners,
    pub peers: &'a Peers,
    pub netns: &'a Netns,
    /// The age from which a socket is called stuck, nanoseconds.
    pub bound_ns: u64,
}

/// Describes every socket of `scene` that is in the close phase, into `described`. `facts` tells what the tracker, or the
/// dump alone, knows of each.
pub fn assemble(
    scene: &NetnsSockets<'_>,
    facts: impl Fn(&Socket) -> SocketFacts,
    described: &mut Vec<StuckSocket>,
) {
    // All at once: a socket is hundreds of bytes to move each time that the room doubles.
    described.reserve(scene.sockets.len());
    described.extend(scene.sockets.iter().filter_map(|socket| {
        let state = Phase::of(socket.state)?;
        let SocketFacts { side, port, age, closer } = facts(socket);
        let diagnosis = diagnose(socket, age, scene.bound_ns);
        Some(StuckSocket {
            state,
            side,
            port,
            local: socket.flow.local(),
            peer: socket.flow.remote(),
            cookie: Cookie(socket.cookie),
            interface: socket.interface,
            inode: socket.inode,
            uid: socket.uid,
            netns: scene.netns.inum,
            netns_id: scene.netns.id,
            netns_name: scene.netns.name.clone(),
            age: age.into(),
            unread_bytes: unread_data(socket),
            unsent_bytes: socket.unsent,
            last_sent_seconds: socket.times.map(|times| seconds(times.last_sent_ns)),
            diagnosis,
            owners: owners_of(socket, scene),
            closed_by: closer.filter(|_| socket.inode == 0).map(ClosedBy::from),
            peer_owners: peer_owners_of(socket, scene),
        })
    }));
}

/// By how much too young a busy machine may show a write: it is told in ticks, and those of a virtual machine were seen
/// 71 ms late (6.18). A connection whose FIN came at once was written to, by its handshake, just before.
const LATE_TICKS_NS: u64 = 200_000_000;

/// Why `socket`, in CLOSE-WAIT for `age`, is still there; `None` in other states. Who sent within `bound_ns` is
/// at work, unless that was before the FIN came.
pub fn diagnose(socket: &Socket, age: Age, bound_ns: u64) -> Option<Diagnosis> {
    if socket.state != TcpState::CloseWait {
        return None;
    }
    if owners::not_accepted(socket) {
        return Some(Diagnosis::NotAccepted);
    }
    let sent_since_the_fin = |ns: u64| age.max_ns.is_none_or(|age| ns.saturating_add(LATE_TICKS_NS) <= age);
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

/// What a dump alone proves of one of its sockets at `now_ns`: an age, and a side where it has the listener too.
pub fn dumped_facts(
    socket: &Socket,
    listeners: &[Socket],
    ephemeral: &RangeInclusive<u16>,
    now_ns: u64,
    uptime_ns: u64,
) -> SocketFacts {
    let side = match listeners_of(&socket.flow, listeners).next() {
        Some(_) => Side::Server,
        None => Side::Unknown,
    };
    let Flow { local_port, remote_port, .. } = socket.flow;
    let age = proven_age(socket, uptime_ns).later(now_ns.saturating_sub(socket.seen_ns));
    SocketFacts { side, port: side.service_port(local_port, remote_port, ephemeral), age, closer: None }
}

/// Says in words what a dump and a look for owners did not see.
pub fn incomplete(dump: &Dump, owners: &Owners, sockets: &[StuckSocket]) -> Vec<String> {
    let mut incomplete: Vec<String> = unknown_owners(owners, sockets).into_iter().collect();
    incomplete.extend(unanswered(owners));
    incomplete.extend(unknown_programs(owners));
    incomplete.extend(of_the_dump(dump));
    incomplete
}

/// Says in words what a dump did not see.
fn of_the_dump(dump: &Dump) -> Vec<String> {
    let mut incomplete = Vec::new();
    if dump.malformed > 0 {
        incomplete.push(format!("{} answers of the kernel could not be decoded", dump.malformed));
    }
    if dump.interrupted {
        incomplete.push("the kernel's table changed under the dump: sockets may be missing".to_owned());
    }
    incomplete
}

/// What dumps have met of one namespace.
pub struct DumpedNetns {
    pub netns: Netns,
    pub place: NetnsPath,
    pub sockets: Vec<Socket>,
    pub listeners: Vec<Socket>,
}

/// Sorts out what dumps have brought. Also what they had in common: how it went.
pub fn sights(survey: &mut NetnsDumps) -> (Vec<DumpedNetns>, Dump) {
    let mut all = Dump::default();
    let sight = |looked: netns_dump::NetnsDump| {
        let netns_dump::NetnsDump { netns, place, dump, .. } = looked;
        all.malformed += dump.malformed;
        all.interrupted |= dump.interrupted;
        let (listeners, mut sockets): (Vec<Socket>, Vec<Socket>) =
            dump.sockets.into_iter().partition(|socket| socket.state == TcpState::Listen);
        distinct(&mut sockets);
        DumpedNetns { netns, place, sockets, listeners }
    };
    let sights = std::mem::take(&mut survey.looked).into_iter().map(sight).collect();
    (sights, all)
}

/// Leaves each socket once: a dump resumes by its place in a bucket, and can meet a socket twice.
fn distinct(sockets: &mut Vec<Socket>) {
    sockets.sort_unstable_by_key(|socket| (socket.cookie, socket.seen_ns));
    sockets.dedup_by_key(|socket| socket.cookie);
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

/// The namespaces that may not be entered.
fn refusals(survey: &NetnsDumps) -> usize {
    survey.failed.iter().filter(|(_, why)| why.kind() == io::ErrorKind::PermissionDenied).count()
}

/// The sockets of every namespace and, for as long as those are dumped, who holds sockets. Also how many namespaces there
/// are whose processes do not show them.
fn look_around(ask: DumpRequest, scope: Scope) -> io::Result<(u32, UnreadMounts, OpenFiles, NetnsDumps)> {
    thread::scope(|threads| {
        let walk = || proc_fd::read_within(Urgency::Hurried, FileFilter::NamespacesAndSockets, WITHIN);
        let walking = thread::Builder::new().name("files".to_owned()).spawn_scoped(threads, walk)?;
        let FoundNetns { places, denied, unread, .. } = scope.find(&Descriptors::NONE)?;
        let mut survey = netns_dump::survey(places, ask, None)?;
        let files = walking.join().map_err(|_| io::Error::other("the look at files died"))??;
        if scope == Scope::All {
            // A process that led to one may have ended before it was entered.
            let reached: Vec<NetnsPath> = survey.looked.iter().map(|looked| looked.place.clone()).collect();
            let held = netns::held(&files, &reached)?;
            if !held.is_empty() {
                survey.add(netns_dump::survey(held, ask, None)?);
            }
        }
        Ok((denied, unread, files, survey))
    })
}

/// Every socket in one of `states` (a mask of [`TcpState::bit`]s of the close phase), from one dump of each network
/// namespace. `bound_ns`: the age from which one is called stuck, nanoseconds.
pub fn snapshot(states: u32, bound_ns: u64, scope: Scope, depth: Depth) -> io::Result<SocketsDocument> {
    let ask = DumpRequest { states: states | TcpState::Listen.bit(), info: true };
    let (denied, unread, files, mut survey) = look_around(ask, scope)?;
    let (at, now_ns, uptime_ns) = (host::wall_clock(), host::monotonic_ns(), host::uptime_ns());
    let (mut sights, dump) = sights(&mut survey);
    let peers = depth.peers(&sights);
    let owners = find_owners(&mut sights, &peers, Some(files), OwnersLookup::Proc(Urgency::Hurried))?;

    let ephemeral = host::ip_local_port_range();
    let mut sockets = Vec::new();
    for DumpedNetns { netns, sockets: seen, listeners, .. } in &sights {
        let scene =
            NetnsSockets { sockets: seen, listeners, owners: &owners, peers: &peers, netns, bound_ns };
        let facts = |socket: &Socket| dumped_facts(socket, listeners, &ephemeral, now_ns, uptime_ns);
        assemble(&scene, facts, &mut sockets);
    }
    let mut incomplete = incomplete(&dump, &owners, &sockets);
    incomplete.extend(not_looked_at("sockets", refusals(&survey), denied as usize));
    incomplete.extend(unread.words());
    Ok(SocketsDocument {
        schema: SCHEMA,
        host: host::hostname(),
        boot_id: host::boot_id(),
        at,
        source: DocumentSource::Snapshot,
        incomplete,
        sockets,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::sock_diag::Times;

    const SECOND: u64 = 1_000_000_000;
    pub const MINUTE: u64 = 60 * SECOND;

    pub fn socket(state: TcpState, local: &str, remote: &str, inode: u32) -> Socket {
        let flow = Flow::new(local.parse().unwrap(), remote.parse().unwrap());
        Socket { cookie: u64::from(inode), inode, ..Socket::made_up(state, flow) }
    }

    pub fn close_wait(unread: u32, last_sent_ns: u64) -> Socket {
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
        for age in [2 * SECOND, 3 * SECOND + SECOND / 10] {
            assert_eq!(
                diagnose(&close_wait(0, 3 * SECOND), Age::exact(age), MINUTE),
                Some(Diagnosis::NotClosed)
            );
        }
    }

    #[test]
    fn the_fin_is_no_data() {
        for (unread, data) in [(0, 0), (1, 0), (6, 5)] {
            assert_eq!(unread_data(&close_wait(unread, 0)), data);
        }
        assert_eq!(unread_data(&socket(TcpState::FinWait2, "10.0.0.5:1", "10.0.0.9:2", 1)), 0);
    }
}
