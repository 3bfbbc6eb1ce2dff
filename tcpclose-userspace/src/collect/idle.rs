//! Silent connections without keepalive, and their owners.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use tcpclose_common::state::TcpState;

use crate::collect;
use crate::collect::sockets;
use crate::linux::host;
use crate::linux::netns::{Descriptors, FoundNetns, NetnsPath, Scope};
use crate::linux::netns_dump;
use crate::linux::netns_dump::{DumpRequest, DumpedNetns, NetnsChunk, NetnsDump, NetnsDumps};
use crate::linux::owners::OwnersLookup;
use crate::linux::sock_diag::{Dump, Socket};
use crate::report::assemble::{DumpClock, NetnsSockets, dumped_facts};
use crate::report::envelope::DocumentSource;
use crate::report::idle::{IdleDocument, IdleQuery, IdleSockets, is_wanted};
use crate::report::incomplete;
use crate::report::sockets::Depth;

/// The CPU time of the dumps: if it does not suffice, namespaces are left out, those of users first. The first is always dumped.
const BUDGET: Duration = Duration::from_secs(2);
/// The most sockets that are kept, some 170 bytes each.
const MOST: usize = 150_000;

/// Looks at every ESTABLISHED socket in `scope`, and describes what `wanted` asks for. Blocks for as long as the dumps and a pass over
/// all files take.
///
/// # Errors
/// When /proc or the kernel's sockets cannot be read.
pub fn document(
    (scope, descriptors): (Scope, &Descriptors),
    wanted: &IdleQuery,
    source: DocumentSource,
    lookup: OwnersLookup,
) -> io::Result<IdleDocument> {
    let FoundNetns { places, denied, unread, .. } = scope.find(descriptors)?;
    let IdleDump { mut dumped, established, left, dumps, dump } = look(places, wanted.silent_ns())?;
    let at = host::wall_clock();
    let (now_ns, uptime_ns) = (host::monotonic_ns(), host::uptime_ns());
    let clock = DumpClock { now_ns, uptime_ns, time_wait_ns: None };
    let peers = sockets::peers(Depth::WithPeers, &dumped);
    let queues = sockets::accept_queues(&dumped, &peers);
    let owners = sockets::find_owners(&mut dumped, &queues, &peers, (None, &FxHashSet::default()), lookup)?;
    let mut idle = IdleSockets::default();
    for (DumpedNetns { netns, local_ports, sockets, listeners, .. }, queues) in dumped.iter().zip(&queues) {
        let (owners, peers, bound_ns) = (&owners, &peers, wanted.silent_ns());
        let namespace = NetnsSockets { sockets, queues, owners, peers, netns, bound_ns };
        let side = |socket: &Socket| {
            let facts = dumped_facts(socket, listeners, local_ports, clock, &HashMap::new());
            (facts.side, facts.port)
        };
        idle.add(&namespace, side, wanted);
    }
    let mut missing = incomplete::of_the_dump(&dump);
    missing.extend(incomplete::not_inspected("connections", dumps.refused(), denied as usize));
    missing.extend(unread.words());
    if !dumps.rest.is_empty() {
        missing.push(format!(
            "network namespaces that were skipped: {} (dumping all would take more than {BUDGET:?} of CPU time)",
            dumps.rest.len()
        ));
    }
    if left > 0 {
        missing.push(format!("connections that were left out: {left} (only {MOST} are described)"));
    }
    if idle.unowned() > 0 {
        missing.push(format!("listed connections whose owner is unknown: {}", idle.unowned()));
    }
    missing.extend(incomplete::unreadable(owners.denied, &collect::missing_for_owners()));
    missing.extend(incomplete::unanswered(&owners));
    missing.extend(incomplete::too_many_listeners(&queues));
    Ok(idle.document(wanted, established, collect::envelope(source, at, missing)))
}

/// What the dumps showed.
struct IdleDump {
    /// Idle sockets and those with a peer that is gone.
    dumped: Vec<DumpedNetns>,
    /// All ESTABLISHED sockets.
    established: u64,
    /// Idle sockets that were not kept.
    left: usize,
    dumps: NetnsDumps,
    /// What went wrong with any dump.
    dump: Dump,
}

fn look(mut places: Vec<NetnsPath>, bound_ns: u64) -> io::Result<IdleDump> {
    // The caller's own, the first, stays so.
    places.sort_by_key(|place| place.user != 0);
    let ask = DumpRequest { states: TcpState::Established.bit() | TcpState::Listen.bit(), info: true };
    let mut found: FxHashMap<u32, (Vec<Socket>, Vec<Socket>)> = FxHashMap::default();
    let (mut established, mut kept, mut left) = (0, 0, 0);
    let take = |chunk: NetnsChunk| {
        for (id, socket) in chunk.sockets {
            if socket.state == TcpState::Listen {
                found.entry(id).or_default().1.push(socket);
                continue;
            }
            established += 1;
            if !is_wanted(&socket, bound_ns) {
                continue;
            }
            if kept < MOST {
                kept += 1;
                found.entry(id).or_default().0.push(socket);
            } else {
                left += 1;
            }
        }
    };
    let mut dumps = netns_dump::stream(places, ask, Some(BUDGET), take)?;
    let mut dump = Dump::default();
    let of_one = |one: NetnsDump| {
        dump.malformed += one.dump.malformed;
        dump.interrupted |= one.dump.interrupted;
        let NetnsDump { netns, place, local_ports, .. } = one;
        let (mut sockets, listeners) = found.remove(&netns.id).unwrap_or_default();
        netns_dump::distinct(&mut sockets);
        DumpedNetns { netns, place, local_ports, sockets, listeners }
    };
    let dumped = std::mem::take(&mut dumps.namespaces).into_iter().map(of_one).collect();
    Ok(IdleDump { dumped, established, left, dumps, dump })
}
