//! `GET /v1/sockets?state=close_wait[&owners=once][&peers=no][&older_than=60s]`: every socket in a state,
//! with its age from the tracker, and all else from a fresh dump and /proc.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};
use tcpclose_common::state::TcpState;
use tokio::task::spawn_blocking;

use crate::collect;
use crate::linux::age::proven_age;
use crate::linux::host;
use crate::linux::netns::Netns;
use crate::linux::netns_dump;
use crate::linux::netns_dump::{DumpRequest, DumpedNetns, NetnsDump, NetnsDumps};
use crate::linux::owners;
use crate::linux::owners::OwnersLookup;
use crate::linux::proc_fd::OpenFiles;
use crate::linux::sock_diag::Socket;
use crate::names::{Age, Diagnosis, Phase};
use crate::report::assemble::{DumpClock, NetnsSockets, SocketFacts, assemble, dumped_age, dumped_facts};
use crate::report::diagnosis::last_write;
use crate::report::encoding::Form;
use crate::report::incomplete;
use crate::report::owners::owned_by_cookie;
use crate::report::query;
use crate::report::requests;
use crate::report::sockets::{ClosedBy, Cookie, Depth, DocumentSource, SocketsDocument, StuckSocket};
use crate::tracker::Tracker;
use crate::tracker::socket::{Closer, SocketKind, TrackedSocket};

use crate::agent::malloc_trim;
use crate::agent::parts::Parts;
use crate::agent::server::response::{Answer, QueryError, with_type};
use crate::agent::tracking::Tracking;

/// A [`SocketsDocument`], written in the form that was asked for.
struct SocketsReply {
    written: Vec<u8>,
    /// The age from which the diagnosis calls a socket stuck, as humantime writes it.
    stuck_after: String,
}

/// Answers `query`, the part after the `?`.
pub async fn answer(query: &str, form: Form, parts: &Parts) -> Answer {
    match sockets(query, form, parts).await {
        Ok(reply) => {
            let mut answer = with_type(StatusCode::OK, form.media_type(), reply.written);
            if let Ok(bound) = HeaderValue::from_str(&reply.stuck_after) {
                answer.headers_mut().insert(HeaderName::from_static(requests::STUCK_AFTER_HEADER), bound);
            }
            answer
        }
        Err(why) => why.answer(),
    }
}

async fn sockets(query: &str, form: Form, parts: &Parts) -> Result<SocketsReply, QueryError> {
    let Parts { tracking, stacks, .. } = parts;
    let SocketsQuery { phase, older_than, owners_once, depth } = parse(query).map_err(QueryError::Request)?;
    let first = || Duration::from_nanos(tracking.borrow().stuck_after.first_ns());
    let bound = older_than.unwrap_or_else(first);
    let Described { mut document, .. } = describe(tracking, phase, bound, depth).await?;
    stacks.borrow().add_to(&mut document);
    if phase == Phase::CloseWait {
        document.groups = tracking.borrow().output.verdicts.groups(host::monotonic_ns());
    }
    // malloc would keep the memory of so many.
    let many = document.sockets.len() > 1000;
    let written = spawn_blocking(move || {
        if owners_once {
            document.name_owners_once();
        }
        (form.write(&document), document)
    });
    let (written, document) = written.await.context("the thread that writes the answer died")?;
    if many {
        // The answer does not wait for it.
        spawn_blocking(move || {
            drop(document);
            malloc_trim::give_back();
        });
    }
    let written = written.map_err(anyhow::Error::msg).context("cannot write the answer")?;
    Ok(SocketsReply { written, stuck_after: humantime::format_duration(bound).to_string() })
}

/// The sockets in a state, and the cost of describing them.
pub struct Described {
    pub document: SocketsDocument,
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
}

/// Describes every socket in `phase`, by fresh dumps and a pass over all files. `bound`: the age from which
/// one is stuck.
pub async fn describe(
    tracking: &RefCell<Tracking>,
    phase: Phase,
    bound: Duration,
    depth: Depth,
) -> Result<Described> {
    let request = DumpRequest { states: phase.state().bit() | TcpState::Listen.bit(), info: true };
    let places = {
        let mut tracking = tracking.borrow_mut();
        // The first socket of a namespace may be in the ring still.
        tracking.drain_all();
        tracking.places_of(phase)
    };
    let dump = async || {
        let places = match places {
            Some(places) => places,
            None => {
                let (scope, descriptors) = {
                    let namespaces = &tracking.borrow().namespaces;
                    (namespaces.scope(), namespaces.descriptors_known())
                };
                spawn_blocking(move || scope.find(&descriptors)).await??.places
            }
        };
        anyhow::Ok(spawn_blocking(move || netns_dump::survey(places, request, None)).await??)
    };
    // A pass over all files that is sure to be needed runs beside the dumps.
    let many = tracking.borrow().has_many(phase);
    let files = many.then(|| {
        let look = tracking.borrow_mut().probe.owners_lookup();
        spawn_blocking(move || owners::look(look))
    });
    let dumps = dump().await.context("cannot dump the kernel's sockets")?;
    let files = match files {
        Some(files) => {
            let files = files.await.context("the thread that looks for owners died")?;
            Some(files.context("cannot read /proc")?)
        }
        None => None,
    };
    let looking_ns = dumps.cpu_ns + files.as_ref().map_or(0, |files| files.cpu_ns);
    let before = host::thread_cpu_ns();
    let known = TrackedFacts::gather(phase, &dumps, depth, &mut tracking.borrow_mut());
    let gather_ns = host::thread_cpu_ns().saturating_sub(before);
    let describe = move || {
        let before = host::thread_cpu_ns();
        let document = known.document(dumps, files, bound)?;
        let own_ns = host::thread_cpu_ns().saturating_sub(before);
        Ok(Described { document, cpu_ns: looking_ns + gather_ns + own_ns })
    };
    spawn_blocking(describe).await.context("the thread that looks for owners died")?
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketsQuery {
    pub phase: Phase,
    pub older_than: Option<Duration>,
    /// Facts of an owner are written once, not with each of its sockets.
    pub owners_once: bool,
    pub depth: Depth,
}

/// Reads the fields of a query.
///
/// # Errors
/// What is wrong with one.
pub fn parse(query: &str) -> Result<SocketsQuery, String> {
    let mut request = SocketsQuery {
        phase: Phase::CloseWait,
        older_than: None,
        owners_once: false,
        depth: Depth::WithPeers,
    };
    for (key, value) in query::fields(query, &["state", "older_than", "peers", "owners"])? {
        match key {
            "state" => {
                let phase = Phase::ALL.into_iter().find(|phase| phase.name() == value);
                request.phase = phase.ok_or_else(|| {
                    let names = Phase::ALL.map(Phase::name).join(", ");
                    format!("state={value}: not a close-phase state; choose one of {names}")
                })?;
            }
            "older_than" => request.older_than = Some(query::duration(key, value)?),
            "owners" => request.owners_once = query::only(key, value, "once").map(|()| true)?,
            _ => request.depth = query::only(key, value, "no").map(|()| Depth::Owners)?,
        }
    }
    Ok(request)
}

/// What the answer needs from the tracker, as of one instant.
struct TrackedFacts {
    facts: FxHashMap<u64, SocketFacts>,
    /// Sockets in network namespaces that could not be dumped, known by records only.
    elsewhere: Vec<StuckSocket>,
    incomplete: Vec<String>,
    at: String,
    clock: DumpClock,
    look: OwnersLookup,
    depth: Depth,
}

impl TrackedFacts {
    fn gather(phase: Phase, dumps: &NetnsDumps, depth: Depth, tracking: &mut Tracking) -> Self {
        tracking.drain_all();
        // The ages are of this instant, or one that is later by as long as this thread has to wait now.
        let at = host::wall_clock();
        let (now_ns, uptime_ns) = (host::monotonic_ns(), host::uptime_ns());
        let clock = DumpClock { now_ns, uptime_ns, time_wait_ns: tracking.tracker.time_wait_ns() };
        let met = dumps.namespaces.iter().map(|dumped| dumped.dump.sockets.len()).sum();
        let mut facts = FxHashMap::with_capacity_and_hasher(met, FxBuildHasher);
        for NetnsDump { netns, dump, .. } in &dumps.namespaces {
            for socket in &dump.sockets {
                let known = match socket.mptcp {
                    Some(_) => tracking.mptcp.get(netns.id, &socket.flow),
                    None => tracking
                        .find(netns.id, socket.cookie, &socket.flow)
                        .map(|tracked| (tracked, tracking.tracker.last_write(tracked))),
                };
                let Some((tracked, written)) = known else { continue };
                let body = if socket.minisocket { SocketKind::Minisocket } else { SocketKind::Socket };
                let proven = proven_age(socket, uptime_ns).later(now_ns.saturating_sub(socket.seen_ns));
                let age = if (tracked.phase, tracked.kind) == (phase, body) {
                    Some(tighter(tracked.since.age(now_ns), proven))
                } else {
                    age_of_next(tracked, socket, clock)
                };
                if let Some(age) = age {
                    let last_write = last_write(socket, written, uptime_ns, now_ns);
                    let (side, port, closer) = (tracked.side, tracked.port, closer(tracked, now_ns));
                    facts.insert(socket.cookie, SocketFacts { side, port, age, last_write, closer });
                }
            }
        }
        let dumped: HashSet<u32> = dumps.namespaces.iter().map(|dumped| dumped.netns.id).collect();
        let (mut elsewhere, mut unseen) = (Vec::new(), BTreeMap::new());
        let (tracker, namespaces) = (&tracking.tracker, &tracking.namespaces);
        let outside = |socket: &&TrackedSocket| socket.netns != 0 && !dumped.contains(&socket.netns);
        for socket in tracker.sockets().filter(outside) {
            if socket.phase == phase {
                elsewhere.push(undumped(socket, tracker, namespaces.get(socket.netns), now_ns));
                *unseen.entry(tracker.inum_of(socket.netns)).or_default() += 1;
            } else if namespaces.is_hidden(socket.netns) {
                unseen.entry(tracker.inum_of(socket.netns)).or_default();
            }
        }
        Self {
            facts,
            incomplete: [tracking.namespaces.incomplete(&unseen), Vec::from_iter(tracking.silence())]
                .concat(),
            elsewhere,
            at,
            clock,
            look: tracking.probe.owners_lookup(),
            depth,
        }
    }

    /// Looks for owners and assembles the document. Blocks for as long as a pass over all files takes.
    fn document(
        self,
        mut dumps: NetnsDumps,
        files: Option<OpenFiles>,
        bound: Duration,
    ) -> Result<SocketsDocument> {
        let (mut sights, dump) = dumps.take_sockets();
        let peers = collect::sockets::peers(self.depth, &sights);
        let queues = collect::sockets::accept_queues(&sights, &peers);
        let held: FxHashSet<u64> = self.elsewhere.iter().map(|socket| socket.cookie.0).collect();
        let owners = collect::sockets::find_owners(&mut sights, &queues, &peers, (files, &held), self.look)
            .context("cannot read /proc")?;
        let no_earlier_look = HashMap::new();
        let mut described = Vec::new();
        for (DumpedNetns { netns, local_ports, sockets, listeners, .. }, queues) in sights.iter().zip(&queues)
        {
            let inputs = NetnsSockets {
                sockets,
                queues,
                owners: &owners,
                peers: &peers,
                netns,
                bound_ns: u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX),
            };
            let facts = |socket: &Socket| {
                self.facts.get(&socket.cookie).copied().unwrap_or_else(|| {
                    dumped_facts(socket, listeners, local_ports, self.clock, &no_earlier_look)
                })
            };
            assemble(&inputs, facts, &mut described);
        }
        let mut incomplete = collect::sockets::incomplete(&dump, &owners, &queues, &described);
        incomplete.extend(self.incomplete);
        incomplete.extend(incomplete::of_undumped(&owners, self.elsewhere.len()));
        described.extend(self.elsewhere.into_iter().map(|socket| owned_by_cookie(socket, &owners)));
        collect::sockets::name_closers(&mut described, self.clock.uptime_ns);
        let envelope = collect::envelope(DocumentSource::Agent, self.at, incomplete);
        Ok(SocketsDocument { sockets: described, ..SocketsDocument::within(envelope) })
    }
}

/// The age of `socket` in a state that the tracker does not know of yet, since only dumps tell of it: it was entered after the last
/// that is known. `None` where the tracker knows more than this dump, or it may be another connection.
fn age_of_next(tracked: &TrackedSocket, socket: &Socket, clock: DumpClock) -> Option<Age> {
    let known_ns = tracked.event_ns.max(tracked.seen_ns);
    let is_older = known_ns != 0 && known_ns < socket.seen_ns;
    let is_same = tracked.flow == socket.flow && (tracked.cookie == 0 || tracked.cookie == socket.cookie);
    (is_older && is_same).then(|| {
        let (proven, most_ns) = (dumped_age(socket, clock), clock.now_ns.saturating_sub(known_ns));
        let max_ns = proven.max_ns.map_or(most_ns, |max| max.min(most_ns));
        Age { min_ns: proven.min_ns.min(max_ns), max_ns: Some(max_ns) }
    })
}

/// Combines two proofs of one age: an exact one of the tracker's holds, an interval is narrowed by a fresh
/// dump's.
fn tighter(tracked: Age, dumped: Age) -> Age {
    if tracked.is_exact() {
        return tracked;
    }
    let max_ns = match (tracked.max_ns, dumped.max_ns) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let min_ns = tracked.min_ns.max(dumped.min_ns);
    Age { min_ns: max_ns.map_or(min_ns, |max| min_ns.min(max)), max_ns }
}

/// The process that closed a socket, and how long ago.
fn closer(socket: &TrackedSocket, now_ns: u64) -> Option<(u32, u64)> {
    socket.closer().map(|Closer { pid, at_ns }| (pid.get(), now_ns.saturating_sub(at_ns)))
}

/// A socket that is known by records only.
fn undumped(socket: &TrackedSocket, tracker: &Tracker, netns: Option<&Netns>, now_ns: u64) -> StuckSocket {
    StuckSocket {
        state: socket.phase,
        side: socket.side,
        port: socket.port,
        local: socket.flow.local(),
        peer: socket.flow.remote(),
        cookie: Cookie(socket.cookie),
        interface: tracker.interface_of(socket),
        inode: 0,
        uid: 0,
        netns: netns.map_or(tracker.inum_of(socket.netns), |netns| netns.inum),
        netns_id: socket.netns,
        netns_name: netns.and_then(|netns| netns.name.clone()),
        age: socket.since.age(now_ns).into(),
        unread_bytes: 0,
        unsent_bytes: 0,
        last_sent_seconds: None,
        written_bytes: None,
        last_write: None,
        mptcp: false,
        diagnosis: (socket.phase == Phase::CloseWait).then_some(Diagnosis::Unknown),
        cause: None,
        retransmits: None,
        peer_window: None,
        timer_seconds: None,
        owners: Vec::new(),
        listeners: Vec::new(),
        closed_by: closer(socket, now_ns).map(ClosedBy::from),
        peer_owners: Vec::new(),
        peer_waits: false,
        stacks: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_or_refused() {
        let query = parse("state=last_ack&older_than=90s&owners=once").ok().unwrap();
        assert_eq!((query.phase, query.older_than), (Phase::LastAck, Some(Duration::from_secs(90))));
        assert_eq!(query.depth, Depth::WithPeers);
        assert_eq!(parse("peers=no").ok().unwrap().depth, Depth::Owners);
        assert_eq!(parse("").ok().unwrap().phase, Phase::CloseWait);
        assert!(parse("state=banana").is_err_and(|why| why.contains("banana")));
        assert!(parse("older_than=soon").is_err_and(|why| why.contains("soon")));
        for wrong in ["later=1", "port=80", "owners=all", "peers=yes", "peers", "older_than"] {
            let key = wrong.split('=').next().unwrap();
            assert!(parse(wrong).is_err_and(|why| why.starts_with(key)), "{wrong}");
        }
    }

    #[test]
    fn two_proofs_make_the_narrower_interval() {
        let tracked = Age { min_ns: 10, max_ns: None };
        let dumped = Age { min_ns: 5, max_ns: Some(30) };
        assert_eq!(tighter(tracked, dumped), Age { min_ns: 10, max_ns: Some(30) });
        assert_eq!(tighter(Age::exact(7), dumped), Age::exact(7));
    }
}
