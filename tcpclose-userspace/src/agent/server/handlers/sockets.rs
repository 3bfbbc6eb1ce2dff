//! `GET /v1/sockets?state=close_wait[&owners=once][&peers=no][&older_than=60s]`: every socket in a state, with what the tracker knows of its
//! age and what a fresh dump and /proc know of the rest.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result};
use rustc_hash::{FxBuildHasher, FxHashMap};
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
use crate::report::assemble::{NetnsSockets, SocketFacts, assemble, dumped_facts};
use crate::report::encoding::Form;
use crate::report::sockets::{ClosedBy, Cookie, Depth, DocumentSource, SocketsDocument, StuckSocket};
use crate::tracker::Tracker;
use crate::tracker::socket::{Closer, SocketKind, TrackedSocket};

use crate::agent::malloc_trim;
use crate::agent::tracking::Tracking;

/// Where the command line asks.
pub const PATH: &str = "/v1/sockets";

/// What a query is answered with.
pub struct SocketsReply {
    /// A [`SocketsDocument`] in the form that was asked for.
    pub written: Vec<u8>,
    /// The bound that the diagnosis took, as humantime writes it.
    pub stuck_after: String,
}

/// Why a query is not answered.
pub enum QueryError {
    /// It makes no sense: what is wrong with it.
    Request(String),
    /// Something failed on the way.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for QueryError {
    fn from(why: anyhow::Error) -> Self {
        Self::Failed(why)
    }
}

/// Answers the query `query` (what stands after the `?`).
pub async fn sockets(
    query: &str,
    form: Form,
    engine: &RefCell<Tracking>,
) -> Result<SocketsReply, QueryError> {
    let SocketsQuery { phase, older_than, owners_once, depth } = parse(query).map_err(QueryError::Request)?;
    let bound = older_than.unwrap_or_else(|| Duration::from_nanos(engine.borrow().stuck_after.first_ns()));
    let Described { mut document, .. } = describe(engine, phase, bound, depth).await?;
    // What so many took would stay with malloc otherwise.
    let many = document.sockets.len() > 1000;
    let written = spawn_blocking(move || {
        if owners_once {
            document.name_owners_once();
        }
        (form.write(&document), document)
    });
    let (written, document) = written.await.context("the writer died")?;
    if many {
        // Nobody waits for that.
        spawn_blocking(move || {
            drop(document);
            malloc_trim::give_back();
        });
    }
    let written = written.map_err(anyhow::Error::msg).context("the answer cannot be written")?;
    Ok(SocketsReply { written, stuck_after: humantime::format_duration(bound).to_string() })
}

/// The sockets in a state, and what it took to describe them.
pub struct Described {
    pub document: SocketsDocument,
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
}

/// Every socket in `phase`, by fresh dumps and a pass over all files. `bound`: the age from which one is stuck.
pub async fn describe(
    engine: &RefCell<Tracking>,
    phase: Phase,
    bound: Duration,
    depth: Depth,
) -> Result<Described> {
    let ask = DumpRequest { states: phase.state().bit() | TcpState::Listen.bit(), info: true };
    let places = engine.borrow().places_of(phase);
    let looked = async || {
        let places = match places {
            Some(places) => places,
            None => {
                let (scope, descriptors) = {
                    let namespaces = &engine.borrow().namespaces;
                    (namespaces.scope(), namespaces.descriptors_known())
                };
                spawn_blocking(move || scope.find(&descriptors)).await??.places
            }
        };
        anyhow::Ok(spawn_blocking(move || netns_dump::survey(places, ask, None)).await??)
    };
    // Where a pass over all files is sure to be needed, it goes beside the dumps.
    let many = engine.borrow().has_many(phase);
    let seen = many.then(|| {
        let look = engine.borrow_mut().probe.owners_lookup();
        spawn_blocking(move || owners::look(look, None))
    });
    let survey = looked().await.context("no dump of the kernel's sockets")?;
    let seen = match seen {
        Some(seen) => Some(seen.await.context("the look for owners died")?.context("/proc cannot be read")?),
        None => None,
    };
    let survey_ns = survey.cpu_ns + seen.as_ref().map_or(0, |seen| seen.cpu_ns);
    let before = host::thread_cpu_ns();
    let known = TrackedFacts::gather(phase, &survey, depth, &mut engine.borrow_mut());
    let gather_ns = host::thread_cpu_ns().saturating_sub(before);
    let describe = move || {
        let before = host::thread_cpu_ns();
        let document = known.document(survey, seen, bound)?;
        let own_ns = host::thread_cpu_ns().saturating_sub(before);
        Ok(Described { document, cpu_ns: survey_ns + gather_ns + own_ns })
    };
    spawn_blocking(describe).await.context("the look for owners died")?
}

/// What a query asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketsQuery {
    pub phase: Phase,
    pub older_than: Option<Duration>,
    /// What is known of an owner is said once.
    pub owners_once: bool,
    pub depth: Depth,
}

/// Reads the query's fields; keys that it does not know are a newer client's and change nothing that it asks here.
///
/// # Errors
/// What is wrong with one that it knows.
pub fn parse(query: &str) -> Result<SocketsQuery, String> {
    let mut asked = SocketsQuery {
        phase: Phase::CloseWait,
        older_than: None,
        owners_once: false,
        depth: Depth::WithPeers,
    };
    for (key, value) in query.split('&').filter_map(|field| field.split_once('=')) {
        match key {
            "state" => {
                let phase = Phase::ALL.into_iter().find(|phase| phase.name() == value);
                asked.phase = phase.ok_or_else(|| format!("state={value}: not a close-phase state"))?;
            }
            "older_than" => {
                let bound = humantime::parse_duration(value);
                asked.older_than = Some(bound.map_err(|why| format!("older_than={value}: {why}"))?);
            }
            "owners" => asked.owners_once = value == "once",
            "peers" if value == "no" => asked.depth = Depth::Owners,
            _ => {}
        }
    }
    Ok(asked)
}

/// What the tracker knows that the answer needs, taken out of it at one instant.
struct TrackedFacts {
    facts: FxHashMap<u64, SocketFacts>,
    /// Sockets in network namespaces that could not be dumped: only their records are known.
    elsewhere: Vec<StuckSocket>,
    incomplete: Vec<String>,
    at: String,
    now_ns: u64,
    uptime_ns: u64,
    ephemeral: std::ops::RangeInclusive<u16>,
    look: OwnersLookup,
    depth: Depth,
}

impl TrackedFacts {
    fn gather(phase: Phase, survey: &NetnsDumps, depth: Depth, engine: &mut Tracking) -> Self {
        engine.drain_all();
        let (now_ns, uptime_ns) = (host::monotonic_ns(), host::uptime_ns());
        let met = survey.looked.iter().map(|looked| looked.dump.sockets.len()).sum();
        let mut facts = FxHashMap::with_capacity_and_hasher(met, FxBuildHasher);
        for NetnsDump { netns, dump, .. } in &survey.looked {
            for socket in &dump.sockets {
                let Some(life) = engine.life_of(netns.id, socket.cookie, &socket.flow) else { continue };
                let body = if socket.minisocket { SocketKind::Minisocket } else { SocketKind::Socket };
                if (life.phase, life.kind) == (phase, body) {
                    let proven = proven_age(socket, uptime_ns).later(now_ns.saturating_sub(socket.seen_ns));
                    let age = tighter(life.since.age(now_ns), proven);
                    let (side, port, closer) = (life.side, life.port, closer(life, now_ns));
                    facts.insert(socket.cookie, SocketFacts { side, port, age, closer });
                }
            }
        }
        let dumped: HashSet<u32> = survey.looked.iter().map(|looked| looked.netns.id).collect();
        let (mut elsewhere, mut unseen) = (Vec::new(), BTreeMap::new());
        for life in engine.tracker.sockets().filter(|life| life.netns != 0 && !dumped.contains(&life.netns)) {
            if life.phase == phase {
                elsewhere.push(self::elsewhere(
                    life,
                    &engine.tracker,
                    engine.namespaces.get(life.netns),
                    now_ns,
                ));
                *unseen.entry(engine.tracker.inum_of(life.netns)).or_default() += 1;
            } else if engine.namespaces.is_hidden(life.netns) {
                unseen.entry(engine.tracker.inum_of(life.netns)).or_default();
            }
        }
        Self {
            facts,
            incomplete: engine.namespaces.incomplete(&unseen),
            elsewhere,
            at: host::wall_clock(),
            now_ns,
            uptime_ns,
            ephemeral: engine.ephemeral.clone(),
            look: engine.probe.owners_lookup(),
            depth,
        }
    }

    /// Reads owners and puts everything together. Blocks for as long as a pass over all files takes.
    fn document(
        self,
        mut survey: NetnsDumps,
        seen: Option<OpenFiles>,
        bound: Duration,
    ) -> Result<SocketsDocument> {
        let (mut sights, dump) = survey.take_sockets();
        let peers = collect::sockets::peers(self.depth, &sights);
        let owners = collect::sockets::find_owners(&mut sights, &peers, seen, self.look)
            .context("/proc cannot be read")?;
        let mut described = Vec::new();
        for DumpedNetns { netns, sockets, listeners, .. } in &sights {
            let scene = NetnsSockets {
                sockets,
                listeners,
                owners: &owners,
                peers: &peers,
                netns,
                bound_ns: u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX),
            };
            let facts = |socket: &Socket| {
                self.facts.get(&socket.cookie).copied().unwrap_or_else(|| {
                    dumped_facts(socket, listeners, &self.ephemeral, self.now_ns, self.uptime_ns)
                })
            };
            assemble(&scene, facts, &mut described);
        }
        let mut incomplete = collect::sockets::incomplete(&dump, &owners, &described);
        incomplete.extend(self.incomplete);
        described.extend(self.elsewhere);
        collect::sockets::name_closers(&mut described, self.uptime_ns);
        let envelope = collect::envelope(DocumentSource::Agent, self.at, incomplete);
        Ok(SocketsDocument { sockets: described, ..SocketsDocument::within(envelope) })
    }
}

/// Two proofs of one age: the tracker's holds unless a fresh dump proves more of an interval.
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

/// Who closed a socket, and how long ago.
fn closer(life: &TrackedSocket, now_ns: u64) -> Option<(u32, u64)> {
    life.closer().map(|Closer { pid, at_ns }| (pid.get(), now_ns.saturating_sub(at_ns)))
}

/// A socket of which only records are known.
fn elsewhere(life: &TrackedSocket, tracker: &Tracker, netns: Option<&Netns>, now_ns: u64) -> StuckSocket {
    StuckSocket {
        state: life.phase,
        side: life.side,
        port: life.port,
        local: life.flow.local(),
        peer: life.flow.remote(),
        cookie: Cookie(life.cookie),
        interface: tracker.interface_of(life),
        inode: 0,
        uid: 0,
        netns: netns.map_or(tracker.inum_of(life.netns), |netns| netns.inum),
        netns_id: life.netns,
        netns_name: netns.and_then(|netns| netns.name.clone()),
        age: life.since.age(now_ns).into(),
        unread_bytes: 0,
        unsent_bytes: 0,
        last_sent_seconds: None,
        diagnosis: (life.phase == Phase::CloseWait).then_some(Diagnosis::Unknown),
        owners: Vec::new(),
        closed_by: closer(life, now_ns).map(ClosedBy::from),
        peer_owners: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_or_refused() {
        let asked = parse("state=last_ack&older_than=90s&later=1").ok().unwrap();
        assert_eq!((asked.phase, asked.older_than), (Phase::LastAck, Some(Duration::from_secs(90))));
        assert_eq!(asked.depth, Depth::WithPeers);
        assert_eq!(parse("peers=no").ok().unwrap().depth, Depth::Owners);
        assert_eq!(parse("").ok().unwrap().phase, Phase::CloseWait);
        assert!(parse("state=banana").is_err_and(|why| why.contains("banana")));
        assert!(parse("older_than=soon").is_err_and(|why| why.contains("soon")));
    }

    #[test]
    fn two_proofs_make_the_narrower_interval() {
        let tracked = Age { min_ns: 10, max_ns: None };
        let dumped = Age { min_ns: 5, max_ns: Some(30) };
        assert_eq!(tighter(tracked, dumped), Age { min_ns: 10, max_ns: Some(30) });
        assert_eq!(tighter(Age::exact(7), dumped), Age::exact(7));
    }
}
