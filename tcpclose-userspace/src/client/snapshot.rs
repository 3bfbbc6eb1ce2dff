//! Documents without an agent: what fresh dumps and /proc show.

use std::collections::HashMap;
use std::io;
use std::thread;
use std::time::Duration;

use rustc_hash::FxHashSet;
use tcpclose_common::state::{CLOSE_PHASE, TcpState};

use crate::collect;
use crate::linux::age::{proven_age, write_look};
use crate::linux::ephemeral_ports;
use crate::linux::host;
use crate::linux::netns;
use crate::linux::netns::{Descriptors, FoundNetns, NetnsPath, Scope, UnreadMounts};
use crate::linux::netns_dump;
use crate::linux::netns_dump::{DumpRequest, DumpedNetns, NetnsDumps};
use crate::linux::owners::{OwnersLookup, WITHIN};
use crate::linux::proc_fd;
use crate::linux::proc_fd::{FileFilter, OpenFiles, Urgency};
use crate::linux::sock_diag::Socket;
use crate::linux::time_wait_length;
use crate::names::LastWrite;
use crate::report::assemble::{DumpClock, NetnsSockets, assemble, dumped_facts, written_bytes};
use crate::report::envelope::DocumentSource;
use crate::report::exhaustion::document;
use crate::report::exhaustion::document::{BUDGET, ExhaustionDocument, ExhaustionInputs};
use crate::report::idle::{IdleDocument, IdleQuery};
use crate::report::incomplete::{not_inspected, of_the_dump};
use crate::report::ports;
use crate::report::ports::{NetnsDumped, PortsDocument};
use crate::report::sockets::{Depth, SocketsDocument};

fn clock() -> DumpClock {
    DumpClock {
        now_ns: host::monotonic_ns(),
        uptime_ns: host::uptime_ns(),
        time_wait_ns: time_wait_length::constant_ns(),
    }
}

/// Every socket in one of `states` (a mask of [`TcpState::bit`]s of the close phase), from one dump of each network
/// namespace. `bound_ns`: the age from which one is called stuck, nanoseconds.
pub fn sockets(states: u32, bound_ns: u64, scope: Scope, depth: Depth) -> io::Result<SocketsDocument> {
    let ask = DumpRequest { states: states | TcpState::Listen.bit(), info: true };
    let (denied, unread, files, mut dumps) = dump_with_files(ask, scope)?;
    let at = host::wall_clock();
    let now = clock();
    let (mut dumped, dump) = dumps.take_sockets();
    let writes = second_look(&mut dumped, bound_ns, now)?;
    let (at, clock) = if writes.is_empty() { (at, now) } else { (host::wall_clock(), clock()) };
    let peers = collect::sockets::peers(depth, &dumped);
    let lookup = OwnersLookup::Proc(Urgency::Hurried);
    let queues = collect::sockets::accept_queues(&dumped, &peers);
    let files = (Some(files), &FxHashSet::default());
    let owners = collect::sockets::find_owners(&mut dumped, &queues, &peers, files, lookup)?;

    let mut sockets = Vec::new();
    for (DumpedNetns { netns, local_ports, sockets: seen, listeners, .. }, queues) in
        dumped.iter().zip(&queues)
    {
        let namespace =
            NetnsSockets { sockets: seen, queues, owners: &owners, peers: &peers, netns, bound_ns };
        let facts = |socket: &Socket| dumped_facts(socket, listeners, local_ports, clock, &writes);
        assemble(&namespace, facts, &mut sockets);
    }
    let mut incomplete = collect::sockets::incomplete(&dump, &owners, &queues, &sockets);
    incomplete.extend(not_inspected("sockets", dumps.refused(), denied as usize));
    incomplete.extend(unread.words());
    let envelope = collect::envelope(DocumentSource::Snapshot, at, incomplete);
    Ok(SocketsDocument { sockets, ..SocketsDocument::within(envelope) })
}

/// How long a program is given to write once more.
const SECOND_LOOK: Duration = Duration::from_millis(200);

/// Looks again at the namespaces with sockets in CLOSE-WAIT of which `dumped` does not prove whether the program has written to them
/// within `bound_ns`, such as those that the kernel always has something to send for. A socket that has more written by then is
/// replaced by what it is now. Returns the last write before, by cookie, of those; without such sockets it costs nothing.
fn second_look(
    dumped: &mut [DumpedNetns],
    bound_ns: u64,
    clock: DumpClock,
) -> io::Result<HashMap<u64, LastWrite>> {
    let mut doubtful = HashMap::new();
    let mut places = Vec::new();
    for DumpedNetns { place, sockets, .. } in dumped.iter() {
        let before = doubtful.len();
        for socket in sockets.iter().filter(|socket| socket.state == TcpState::CloseWait) {
            let Some(look) = write_look(socket, clock.uptime_ns) else { continue };
            let age = proven_age(socket, clock.uptime_ns);
            let write = LastWrite::seen(None, look);
            let silence = write.age(clock.now_ns);
            if look.written != 0
                && silence.may_be_past(bound_ns)
                && (age.is_past(bound_ns) || age.may_be_past(bound_ns))
            {
                doubtful.insert(socket.cookie, write);
            }
        }
        if doubtful.len() != before {
            places.push(place.clone());
        }
    }
    if doubtful.is_empty() {
        return Ok(doubtful);
    }
    thread::sleep(SECOND_LOOK);
    let again =
        netns_dump::survey(places, DumpRequest { states: TcpState::CloseWait.bit(), info: true }, None)?;
    let again = again.namespaces.into_iter().flat_map(|dumped| dumped.dump.sockets);
    let again: HashMap<u64, Socket> = again.map(|socket| (socket.cookie, socket)).collect();
    for socket in dumped.iter_mut().flat_map(|dumped| dumped.sockets.iter_mut()) {
        if doubtful.contains_key(&socket.cookie)
            && let Some(now) = again.get(&socket.cookie)
            && written_bytes(now) != written_bytes(socket)
        {
            *socket = *now;
        }
    }
    Ok(doubtful)
}

/// Dumps every namespace and, on another thread, reads all processes' files. Also returns how many namespaces belong to
/// processes that the caller is not allowed to inspect, and the mount tables that were skipped.
fn dump_with_files(ask: DumpRequest, scope: Scope) -> io::Result<(u32, UnreadMounts, OpenFiles, NetnsDumps)> {
    thread::scope(|threads| {
        let walk = || proc_fd::read_within(Urgency::Hurried, FileFilter::NamespacesAndSockets, WITHIN);
        let walking = thread::Builder::new().name("files".to_owned()).spawn_scoped(threads, walk)?;
        let FoundNetns { places, denied, unread, .. } = scope.find(&Descriptors::NONE)?;
        let mut dumps = netns_dump::survey(places, ask, None)?;
        let files =
            walking.join().map_err(|_| io::Error::other("the thread that reads files panicked"))??;
        if scope == Scope::All {
            // The process of a namespace may have ended before that was entered.
            let reached: Vec<NetnsPath> =
                dumps.namespaces.iter().map(|dumped| dumped.place.clone()).collect();
            let held = netns::held(&files, &reached)?;
            if !held.is_empty() {
                dumps.add(netns_dump::survey(held, ask, None)?);
            }
        }
        Ok((denied, unread, files, dumps))
    })
}

/// The close phase by port. `bound_ns`: the age from which a CLOSE-WAIT is stuck.
///
/// # Errors
/// When /proc or the kernel's sockets cannot be read.
pub fn ports(bound_ns: u64, scope: Scope) -> io::Result<PortsDocument> {
    let found = scope.find(&Descriptors::All)?;
    let ask =
        DumpRequest { states: CLOSE_PHASE | TcpState::TimeWait.bit() | TcpState::Listen.bit(), info: true };
    let mut dumps = netns_dump::survey(found.places, ask, None)?;
    let (at, clock) = (host::wall_clock(), clock());
    let (dumped, dump) = dumps.take_sockets();
    let mut incomplete = of_the_dump(&dump);
    incomplete.extend(not_inspected("sockets", dumps.refused(), found.denied as usize));
    incomplete.extend(found.unread.words());
    incomplete.push("durations, closes and rates are not known: only a running agent counts them".to_owned());
    let envelope = collect::envelope(DocumentSource::Snapshot, at, incomplete);
    let dumped = dumped.iter().map(|DumpedNetns { local_ports, sockets, listeners, .. }| NetnsDumped {
        local_ports,
        sockets,
        listeners,
    });
    Ok(ports::of_dumps(envelope, dumped, bound_ns, clock))
}

/// The silent connections without keepalive that `wanted` asks for.
///
/// # Errors
/// When /proc or the kernel's sockets cannot be read.
pub fn idle(wanted: &IdleQuery, scope: Scope) -> io::Result<IdleDocument> {
    let lookup = OwnersLookup::Proc(Urgency::Hurried);
    collect::idle::document((scope, &Descriptors::All), wanted, DocumentSource::Snapshot, lookup)
}

/// The `limit` fullest tuples, from two samples `period` apart.
///
/// # Errors
/// When /proc or the kernel's sockets cannot be read.
pub fn exhaustion(period: Duration, limit: usize, scope: Scope) -> io::Result<ExhaustionDocument> {
    let FoundNetns { places, denied, unread, .. } = scope.find(&Descriptors::All)?;
    let before = match period.is_zero() {
        true => None,
        false => Some(document::remember(&ephemeral_ports::look(&places, BUDGET)?)),
    };
    thread::sleep(period);
    let port_use = ephemeral_ports::look(&places, BUDGET)?;
    let inputs = ExhaustionInputs {
        port_use: &port_use,
        before: before.as_ref(),
        closers: &HashMap::new(),
        at: host::wall_clock(),
        source: DocumentSource::Snapshot,
        denied: denied as usize,
        unread: unread.words(),
    };
    collect::exhaustion::assemble(&inputs, limit, OwnersLookup::Proc(Urgency::Hurried))
}
