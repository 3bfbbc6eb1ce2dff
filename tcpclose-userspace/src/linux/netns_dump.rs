//! Dumps of several network namespaces, one after the other, on one thread that ends with them.
//!
//! A dump walks the kernel's whole table of connections, whichever namespace it is for: an empty one costs
//! milliseconds while another holds a hundred thousand sockets. So the number of a namespace's sockets is read first.

use std::collections::HashMap;
use std::io;
use std::ops::RangeInclusive;
use std::time::Duration;

use foldhash::fast::RandomState;

use tcpclose_common::state::TcpState;

use crate::linux::host;
use crate::linux::host::{monotonic_ns, thread_cpu_ns};
use crate::linux::local_addresses::LocalAddresses;
use crate::linux::netns;
use crate::linux::netns::{Netns, NetnsPath, Population};
use crate::linux::sock_diag;
use crate::linux::sock_diag::{Dump, Socket, SocketLookup, lookups};
use crate::names::{Flow, NetnsOwner, Opening};

/// What to dump in each namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpRequest {
    /// A mask of `1 << state`.
    pub states: u32,
    /// With the times of full sockets.
    pub info: bool,
}

/// One namespace's sockets.
#[derive(Clone, Debug)]
pub struct NetnsDump {
    pub netns: Netns,
    pub place: NetnsPath,
    pub owner: NetnsOwner,
    /// `ip_local_port_range` in it.
    pub local_ports: RangeInclusive<u16>,
    /// [`host::time_wait_limit_used`] in it.
    pub limit_used: Option<f64>,
    /// Without its sockets where [`stream`] has passed them on.
    pub dump: Dump,
    /// How many sockets the dump met.
    pub met: u64,
    /// CPU time of entering it and of the dump, nanoseconds.
    pub cpu_ns: u64,
}

/// The result of one pass over the namespaces.
#[derive(Debug, Default)]
pub struct NetnsDumps {
    pub namespaces: Vec<NetnsDump>,
    /// Namespaces that could not be entered, and why.
    pub failed: Vec<(NetnsPath, io::Error)>,
    /// Namespaces that the time did not suffice for.
    pub rest: Vec<NetnsPath>,
    /// CLOCK_MONOTONIC before the first request, nanoseconds.
    pub started_ns: u64,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub finished_ns: u64,
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
}

impl NetnsDumps {
    /// Takes the sockets out, by namespace. Also returns what went wrong with any dump.
    pub fn take_sockets(&mut self) -> (Vec<DumpedNetns>, Dump) {
        let mut all = Dump::default();
        let sort = |dumped: NetnsDump| {
            let NetnsDump { netns, place, local_ports, dump, .. } = dumped;
            all.malformed += dump.malformed;
            all.interrupted |= dump.interrupted;
            let (listeners, mut sockets): (Vec<Socket>, Vec<Socket>) =
                dump.sockets.into_iter().partition(|socket| socket.state == TcpState::Listen);
            distinct(&mut sockets);
            without_subflows(&mut sockets);
            DumpedNetns { netns, place, local_ports, sockets, listeners }
        };
        (std::mem::take(&mut self.namespaces).into_iter().map(sort).collect(), all)
    }

    /// The number of namespaces that this process is not allowed to enter.
    pub fn refused(&self) -> usize {
        self.failed.iter().filter(|(_, why)| why.kind() == io::ErrorKind::PermissionDenied).count()
    }

    /// Adds the result of a later pass.
    pub fn add(&mut self, more: Self) {
        self.namespaces.extend(more.namespaces);
        self.failed.extend(more.failed);
        self.rest.extend(more.rest);
        self.finished_ns = more.finished_ns;
        self.cpu_ns += more.cpu_ns;
    }
}

/// The distinct sockets of one namespace, listeners apart.
pub struct DumpedNetns {
    pub netns: Netns,
    pub place: NetnsPath,
    /// `ip_local_port_range` in it.
    pub local_ports: RangeInclusive<u16>,
    pub sockets: Vec<Socket>,
    pub listeners: Vec<Socket>,
}

/// Keeps each socket once: a dump resumes at a position in a hash bucket, and can meet a socket twice.
pub fn distinct(sockets: &mut Vec<Socket>) {
    sockets.sort_unstable_by_key(|socket| (socket.cookie, socket.seen_ns));
    sockets.dedup_by_key(|socket| socket.cookie);
}

/// Leaves out the subflows of MPTCP sockets in CLOSE-WAIT. If the peer knows only TCP, the one subflow goes to CLOSE-WAIT too
/// (net/mptcp/subflow.c, `subflow_sched_work_if_closed()`), and its MPTCP socket is what the program holds and reads from. What the
/// subflow proves of the opening, it proves of both.
fn without_subflows(sockets: &mut Vec<Socket>) {
    let of_mptcp = sockets.iter().filter(|socket| socket.mptcp.is_some());
    // Users choose flows, so the hash has a secret.
    let mut openings: HashMap<Flow, Opening, RandomState> =
        of_mptcp.map(|socket| (socket.flow, socket.opening)).collect();
    if openings.is_empty() {
        return;
    }
    sockets.retain(|socket| match openings.get_mut(&socket.flow) {
        Some(opening) if socket.mptcp.is_none() && socket.state == TcpState::CloseWait => {
            *opening = socket.opening;
            false
        }
        _ => true,
    });
    for socket in sockets.iter_mut().filter(|socket| socket.mptcp.is_some()) {
        socket.opening = openings.get(&socket.flow).copied().unwrap_or(socket.opening);
    }
}

/// A namespace whose dump begins.
#[derive(Clone, Debug)]
pub struct EnteredNetns {
    pub id: u32,
    pub inum: u32,
    pub owner: NetnsOwner,
    /// The user who made it; 0 for root.
    pub creator: u32,
    /// `ip_local_port_range` in it.
    pub local_ports: RangeInclusive<u16>,
}

/// A part of a dump of several namespaces, in the order of the dump.
#[derive(Debug, Default)]
pub struct NetnsChunk {
    /// CLOCK_MONOTONIC before the dump's first request, nanoseconds.
    pub started_ns: u64,
    /// Namespaces whose dump begins in this chunk, with all of their listeners if those are dumped.
    pub entered: Vec<EnteredNetns>,
    /// Each with the id of its namespace.
    pub sockets: Vec<(u32, Socket)>,
}

/// Dumps `places` in their order until that has taken `most` of CPU time; the first is always dumped.
///
/// # Errors
/// When a namespace that was entered cannot be dumped: then none can.
pub fn survey(places: Vec<NetnsPath>, ask: DumpRequest, most: Option<Duration>) -> io::Result<NetnsDumps> {
    let mut dumps: Vec<Vec<Socket>> = Vec::new();
    let mut survey = walk(places, ask, most, monotonic_ns(), |_, met| match (met, dumps.last_mut()) {
        (Some(socket), Some(dump)) => dump.push(socket),
        _ => dumps.push(Vec::new()),
    })?;
    for (dumped, sockets) in survey.namespaces.iter_mut().zip(dumps) {
        dumped.dump.sockets = sockets;
    }
    Ok(survey)
}

/// The same, but passes the sockets to `take` in chunks and keeps none: of a million, at 130 bytes each, one chunk is
/// in memory.
///
/// # Errors
/// As [`survey`]; the chunks passed until then are valid.
pub fn stream(
    places: Vec<NetnsPath>,
    ask: DumpRequest,
    most: Option<Duration>,
    mut take: impl FnMut(NetnsChunk) + Send,
) -> io::Result<NetnsDumps> {
    /// Below malloc's limit for blocks that are mapped and unmapped one by one (`agent/malloc_trim.rs`).
    const AT_ONCE: usize = 512;
    let started_ns = monotonic_ns();
    let empty = || NetnsChunk { started_ns, sockets: Vec::with_capacity(AT_ONCE), ..NetnsChunk::default() };
    let mut chunk = empty();
    let survey = walk(places, ask, most, started_ns, |netns, met| match met {
        None => chunk.entered.push(netns.clone()),
        Some(socket) => {
            chunk.sockets.push((netns.id, socket));
            // Listeners come first, in the chunk in which their namespace begins.
            if chunk.sockets.len() >= AT_ONCE && socket.state != TcpState::Listen {
                take(std::mem::replace(&mut chunk, empty()));
            }
        }
    })?;
    take(chunk);
    Ok(survey)
}

/// Dumps `places`, and calls `met` for each: with no socket on entry, then with each socket, listeners first.
fn walk(
    places: Vec<NetnsPath>,
    ask: DumpRequest,
    most: Option<Duration>,
    started_ns: u64,
    mut met: impl FnMut(&EnteredNetns, Option<Socket>) + Send,
) -> io::Result<NetnsDumps> {
    let most_ns = most.map_or(u64::MAX, |most| most.as_nanos() as u64);
    netns::with_visitor(move |visitor| {
        let cpu = thread_cpu_ns();
        let mut survey = NetnsDumps { started_ns, ..NetnsDumps::default() };
        let mut places = places.into_iter();
        for place in places.by_ref() {
            let before = survey.cpu_ns;
            match visitor.enter(&place) {
                Ok(netns) => {
                    let (owner, creator) = netns::owner();
                    let local_ports = host::ip_local_port_range();
                    let limit_used = host::time_wait_limit_used();
                    let Netns { id, inum, .. } = netns;
                    let entered = EnteredNetns { id, inum, owner, creator, local_ports };
                    met(&entered, None);
                    let mut count = 0;
                    let dump = visit(ask, |socket| {
                        count += 1;
                        met(&entered, Some(socket));
                    })?;
                    let cpu_ns = thread_cpu_ns().saturating_sub(cpu).saturating_sub(before);
                    let (met, local_ports) = (count, entered.local_ports);
                    survey.namespaces.push(NetnsDump {
                        netns,
                        place,
                        owner,
                        local_ports,
                        limit_used,
                        dump,
                        met,
                        cpu_ns,
                    });
                }
                Err(why) => survey.failed.push((place, why)),
            }
            survey.cpu_ns = thread_cpu_ns().saturating_sub(cpu);
            if survey.cpu_ns >= most_ns {
                break;
            }
        }
        survey.rest = places.collect();
        survey.finished_ns = monotonic_ns();
        Ok(survey)
    })?
}

/// The sockets of this thread's namespace.
pub(super) fn dump(ask: DumpRequest) -> io::Result<Dump> {
    let mut sockets = Vec::new();
    let dump = visit(ask, |socket| sockets.push(socket))?;
    Ok(Dump { sockets, ..dump })
}

/// Passes each socket of this thread's namespace to `met`, listeners first, and keeps none.
fn visit(ask: DumpRequest, mut met: impl FnMut(Socket)) -> io::Result<Dump> {
    let DumpRequest { states, info } = ask;
    let listen = TcpState::Listen.bit();
    let mut listeners = 0;
    // Listeners have a table of their own, which costs little to walk.
    let found = if states & listen == 0 {
        empty_dump()
    } else {
        sock_diag::visit(listen, false, |socket| {
            listeners += 1;
            met(socket);
        })?
    };
    // An MPTCP socket has no record, and no other close-phase state that lasts while its program does nothing. One whose subflows
    // are gone is not in the population.
    if states & TcpState::CloseWait.bit() != 0
        && let Err(why) = sock_diag::visit_mptcp(TcpState::CloseWait.bit(), &mut met)
    {
        log::debug!("cannot dump MPTCP sockets: {why}");
    }
    if states & !listen == 0 || !may_hold(states, netns::population(), listeners) {
        return Ok(found);
    }
    let mut dump = sock_diag::visit(states & !listen, info, met)?;
    dump.started_ns = found.started_ns;
    dump.cpu_ns += found.cpu_ns;
    dump.interrupted |= found.interrupted;
    dump.malformed += found.malformed;
    Ok(dump)
}

fn empty_dump() -> Dump {
    let now = monotonic_ns();
    Dump { started_ns: now, finished_ns: now, ..Dump::default() }
}

/// Whether a namespace with this `population`, with so many `listeners`, can have a socket in one of `states`.
fn may_hold(states: u32, population: Option<Population>, listeners: u64) -> bool {
    let Some(Population { sockets, minisockets }) = population else { return true };
    let any = |states_of: &[TcpState]| states_of.iter().any(|state| states & state.bit() != 0);
    let of_minisockets = any(&[TcpState::FinWait2, TcpState::TimeWait]);
    let of_sockets = states & !(TcpState::TimeWait.bit() | TcpState::Listen.bit()) != 0;
    of_minisockets && minisockets > 0 || of_sockets && sockets > listeners
}

/// One socket to look up.
#[derive(Clone, Copy, Debug)]
pub struct LookupKey {
    /// The id of its network namespace; 0 for any.
    pub netns: u32,
    pub flow: Flow,
    pub interface: u32,
    /// 0 for any.
    pub cookie: u64,
}

impl LookupKey {
    fn wanted(&self) -> SocketLookup {
        let Self { flow, interface, cookie, .. } = *self;
        SocketLookup { flow, interface, cookie: (cookie != 0).then_some(cookie) }
    }
}

/// The result of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupResult {
    There(Socket),
    Gone,
    /// Its namespace could not be entered, or the lookup failed.
    Unknown,
}

/// Looks up each of `keys` in its namespace, which is one of `places` (id and path). Also returns the CPU time that this took,
/// nanoseconds.
pub fn look_up(places: &[(u32, NetnsPath)], keys: &[LookupKey]) -> io::Result<(Vec<LookupResult>, u64)> {
    look_up_by(places, keys, lookups)
}

/// Looks up those of `keys` whose local address is one of the namespace's own; the others count as gone. Many sockets are found
/// by a dump of those in `states`, a mask of `1 << state`, which costs less: they have no times, and one in another state
/// counts as gone.
pub fn meet(places: &[(u32, NetnsPath)], keys: &[LookupKey], states: u32) -> io::Result<Vec<LookupResult>> {
    let meet = |wanted: &[SocketLookup]| {
        let mut answers: Vec<_> = wanted.iter().map(|_| Ok(None)).collect();
        let local = local(wanted);
        let ours: Vec<SocketLookup> = local.iter().filter_map(|&at| wanted.get(at).copied()).collect();
        for (at, answer) in local.into_iter().zip(meet_here(&ours, states)?) {
            if let Some(place) = answers.get_mut(at) {
                *place = answer;
            }
        }
        Ok(answers)
    };
    Ok(look_up_by(places, keys, meet)?.0)
}

/// The places in `wanted` of those whose local address this thread's namespace has; of all, where it does not list its addresses.
fn local(wanted: &[SocketLookup]) -> Vec<usize> {
    let is_loopback = |one: &SocketLookup| one.flow.local.to_canonical().is_loopback();
    if wanted.iter().all(is_loopback) {
        return (0..wanted.len()).collect();
    }
    let own = LocalAddresses::read().inspect_err(|why| log::debug!("cannot list local addresses: {why}"));
    let is_local = |one: &SocketLookup| own.as_ref().map_or(true, |own| own.contains(one.flow.local));
    let places = wanted.iter().enumerate().filter(|(_, one)| is_loopback(one) || is_local(one));
    places.map(|(at, _)| at).collect()
}

/// Finds `wanted` in this thread's namespace, one by one or by a dump.
fn meet_here(wanted: &[SocketLookup], states: u32) -> io::Result<Vec<io::Result<Option<Socket>>>> {
    /// Few enough to be looked up one by one.
    const FEW: usize = 64;
    /// An exact lookup costs some 2.5 µs, a socket in a dump half of one (6.18).
    const TIMES: u64 = 4;
    let all = netns::population().map_or(u64::MAX, |there| there.sockets + there.minisockets);
    if wanted.len() <= FEW || all / TIMES > wanted.len() as u64 {
        return lookups(wanted);
    }
    let mut answers = met(wanted, states)?;
    // A walk can skip a socket while its neighbour is removed.
    let missing: Vec<usize> =
        (0..answers.len()).filter(|&at| matches!(answers.get(at), Some(Ok(None)))).collect();
    if missing.len() <= FEW {
        let again: Vec<SocketLookup> = missing.iter().filter_map(|&at| wanted.get(at).copied()).collect();
        for (at, answer) in missing.into_iter().zip(lookups(&again)?) {
            if let Some(first) = answers.get_mut(at) {
                *first = answer;
            }
        }
    }
    Ok(answers)
}

/// Finds `wanted` in one dump. The same four numbers may be there once per device.
fn met(wanted: &[SocketLookup], states: u32) -> io::Result<Vec<io::Result<Option<Socket>>>> {
    let mut before: Vec<usize> = (0..wanted.len()).collect();
    let mut last: HashMap<Flow, usize, RandomState> =
        HashMap::with_capacity_and_hasher(wanted.len(), RandomState::default());
    // Of each flow the last that wants it, and from each the one before.
    for (at, one) in wanted.iter().enumerate() {
        if let Some(before) = before.get_mut(at) {
            *before = last.insert(one.flow, at).unwrap_or(at);
        }
    }
    let mut answers: Vec<_> = wanted.iter().map(|_| Ok(None)).collect();
    sock_diag::visit(states, false, |socket| {
        let mut next = last.get(&socket.flow).copied();
        while let Some(at) = next {
            // As a lookup with that interface finds it.
            let is_there = wanted.get(at).is_some_and(|one| [0, one.interface].contains(&socket.interface));
            if let Some(answer) = answers.get_mut(at).filter(|_| is_there) {
                *answer = Ok(Some(socket));
            }
            next = before.get(at).copied().filter(|before| *before != at);
        }
    })?;
    Ok(answers)
}

/// Calls `ask` in each namespace for those of `keys` that may be there.
fn look_up_by(
    places: &[(u32, NetnsPath)],
    keys: &[LookupKey],
    ask: impl Fn(&[SocketLookup]) -> io::Result<Vec<io::Result<Option<Socket>>>> + Sync,
) -> io::Result<(Vec<LookupResult>, u64)> {
    netns::with_visitor(|visitor| {
        let cpu = thread_cpu_ns();
        let mut answers = vec![None; keys.len()];
        let mut concerns: HashMap<u32, Vec<usize>, RandomState> = HashMap::default();
        for (at, key) in keys.iter().enumerate() {
            concerns.entry(key.netns).or_default().push(at);
        }
        let anywhere = concerns.remove(&0).unwrap_or_default();
        for (id, place) in places {
            let here = concerns.get(id).into_iter().flatten().chain(&anywhere).copied();
            let wanted: Vec<SocketLookup> =
                here.clone().filter_map(|at| keys.get(at)).map(LookupKey::wanted).collect();
            if wanted.is_empty() {
                continue;
            }
            let there = visitor.enter(place).is_ok_and(|netns| netns.id == *id);
            let found = if there { ask(&wanted).ok() } else { None };
            let mut found = found.into_iter().flatten();
            for at in here {
                let result = match found.next() {
                    Some(Ok(Some(socket))) => LookupResult::There(socket),
                    Some(Ok(None)) => LookupResult::Gone,
                    Some(Err(_)) | None => LookupResult::Unknown,
                };
                // A socket of an unknown namespace is gone when no namespace has it.
                if let Some(answer) = answers.get_mut(at)
                    && answer.is_none_or(|before| before == LookupResult::Gone)
                {
                    *answer = Some(result);
                }
            }
        }
        let answers = answers.into_iter().map(|answer| answer.unwrap_or(LookupResult::Unknown)).collect();
        (answers, thread_cpu_ns().saturating_sub(cpu))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_walked_only_when_it_can_hold_what_is_sought() {
        let has = |sockets, minisockets| Some(Population { sockets, minisockets });
        let (close_wait, time_wait) = (TcpState::CloseWait.bit(), TcpState::TimeWait.bit());
        assert!(!may_hold(close_wait, has(0, 9), 0) && !may_hold(close_wait, has(3, 0), 3));
        assert!(may_hold(close_wait, has(4, 0), 3) && may_hold(close_wait, None, 3));
        assert!(!may_hold(time_wait, has(9, 0), 0) && may_hold(time_wait, has(0, 1), 0));
        let fin_wait_2 = TcpState::FinWait2.bit();
        assert!(may_hold(fin_wait_2, has(0, 1), 0) && may_hold(fin_wait_2, has(1, 0), 0));
        assert!(!may_hold(TcpState::Listen.bit(), has(3, 0), 3));
    }

    #[test]
    fn our_own_namespace_needs_no_privilege() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let places = vec![netns::own_place().unwrap()];
        let ask = DumpRequest { states: TcpState::Listen.bit(), info: false };
        let survey = survey(places, ask, None).unwrap();
        let port = listener.local_addr().unwrap().port();
        let [NetnsDump { netns, dump, .. }] = &survey.namespaces[..] else { panic!("{survey:?}") };
        assert_eq!(netns, &netns::own().unwrap());
        assert!(dump.sockets.iter().any(|socket| socket.flow.local_port == port));
    }
}
