//! The document of `GET /exhaustion` and `tcpclose exhaustion --json`: the tuples of local address, remote address and
//! remote port that use most of the ports that connect() may take, and their owners.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashSet;
use serde::{Deserialize, Serialize};

use crate::linux::ephemeral_ports::NetnsPorts;
use crate::linux::host::Capability;
use crate::linux::netns::Netns;
use crate::linux::owners::Owners;
use crate::linux::process::Process;
use crate::names::NetnsOwner;
use crate::names::words::named_or_null;
use crate::report::envelope::{DocumentSource, Envelope, Versioned, document};
use crate::report::exhaustion::change::UsageSample;
use crate::report::exhaustion::port_table::{EphemeralUse, Kind, PortHolder, PortTable, Tuple};
use crate::report::incomplete::{not_inspected, unanswered, unreadable};

/// The version of the document that this build writes and reads.
pub const SCHEMA: u32 = 1;

/// The CPU time of a sample for which a client waits; clients wait for some seconds.
pub const BUDGET: Duration = Duration::from_secs(2);
/// The most processes that a tuple names: those with most of its ports.
const MOST_PROCESSES: usize = 5;

impl Versioned for ExhaustionDocument {
    fn schema(&self) -> u32 {
        self.schema
    }
}

document! {
    /// The tuples that use most ephemeral ports.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct ExhaustionDocument: SCHEMA {} {
        /// How many tuples have a port in use.
        pub tuples_in_use: usize,
        /// The fullest of them, the fullest first.
        pub tuples: Vec<TupleUse>,
        /// The local addresses that use most ports over all destinations, the fullest first. Older agents send none.
        #[serde(default)]
        pub locals: Vec<LocalUse>,
    }
}

/// One tuple: connections from `local` to `remote`, whose local ports must differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TupleUse {
    /// The inode of the network namespace.
    pub netns: u32,
    /// The namespace's name as `ip netns` shows it, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_name: Option<String>,
    /// To whom the namespace belongs; missing in answers of older agents.
    #[serde(with = "named_or_null", default, skip_serializing_if = "Option::is_none")]
    pub netns_owner: Option<NetnsOwner>,
    pub local: IpAddr,
    pub remote: SocketAddr,
    /// The interface that the sockets are bound to; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interface: u32,
    /// `ip_local_port_range` in the namespace.
    pub range: [u16; 2],
    /// Ports of the range that are in `ip_local_reserved_ports`.
    pub reserved: u32,
    /// How many ports connect() may choose from: the range without the reserved ones.
    pub ports: u32,
    /// How many of them are in use for this tuple, [`Self::bound`] included.
    pub used: u32,
    pub used_ratio: f64,
    /// Ports that bind() has taken, for a listener or a socket that is not connected: in use for every tuple of the
    /// namespace.
    pub bound: u32,
    /// TIME-WAITs among the ports in use.
    pub time_wait: u32,
    /// TIME-WAITs among those that connect() may reuse (`tcp_tw_reuse`: by default those with a loopback address, after a
    /// second). An upper bound: whether a remote peer uses timestamps is unknown.
    pub reusable: u32,
    /// Ports taken per second since an earlier sample; a lower bound, for ports released before this one are not seen. `null`
    /// where no earlier sample has the tuple.
    pub taken_per_second: Option<f64>,
    /// Ports taken minus ports released, per second; negative where the tuple empties.
    pub growth_per_second: Option<f64>,
    /// Time until connect() fails at this rate; 0 where it fails now. `null` where free ports are not becoming fewer.
    pub seconds_left: Option<f64>,
    /// The holders of the sockets, by number of sockets. A socket counts for the lowest pid that holds it.
    pub owners: Vec<ProcessShare>,
    /// The processes that closed what is in TIME-WAIT, as far as the agent saw that.
    pub closed_by: Vec<ProcessShare>,
}

/// One local address, over all destinations. bind() to it without a port, before connect(), takes a port that no socket of this
/// address has, and keeps it from all destinations (inet_csk_find_open_port(), inet_csk_bind_conflict(), 5.8 to 6.18).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalUse {
    /// The inode of the network namespace.
    pub netns: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_name: Option<String>,
    #[serde(with = "named_or_null", default, skip_serializing_if = "Option::is_none")]
    pub netns_owner: Option<NetnsOwner>,
    pub local: IpAddr,
    /// How many ports bind() and connect() may choose from.
    pub ports: u32,
    /// How many of them some socket of this address has, or one that is bound to every address.
    pub used: u32,
    pub used_ratio: f64,
    /// The number of tuples with this address.
    pub destinations: u32,
}

/// The `limit` fullest local addresses.
pub fn fullest_locals(port_use: &EphemeralUse, limit: usize) -> Vec<LocalUse> {
    let mut locals = Vec::new();
    for NetnsPorts { netns, owner, table } in &port_use.tables {
        let mut destinations: HashMap<Ipv6Addr, u32> = HashMap::new();
        table.tuples().for_each(|(tuple, _)| *destinations.entry(tuple.local).or_default() += 1);
        locals.extend(table.locals().map(|(local, used)| LocalUse {
            netns: netns.inum,
            netns_name: netns.name.clone(),
            netns_owner: Some(*owner),
            local: local.to_canonical(),
            ports: table.choice.ports(),
            used,
            used_ratio: table.local_ratio(used),
            destinations: destinations.get(&local).copied().unwrap_or(0),
        }));
    }
    locals.sort_by(|a, b| {
        b.used_ratio.total_cmp(&a.used_ratio).then(a.local.cmp(&b.local)).then(a.netns.cmp(&b.netns))
    });
    locals.truncate(limit);
    locals
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A process's share of a tuple.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessShare {
    pub pid: u32,
    /// `null` when it has ended since. May hold control characters: escape it for a terminal.
    pub comm: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    pub sockets: u32,
}

impl TupleUse {
    /// Ports that connect() can still take.
    pub fn left(&self) -> u32 {
        (self.ports + self.reusable).saturating_sub(self.used)
    }
}

/// The process that closed a socket: its pid, and how many nanoseconds before the sample.
pub type TupleCloser = (u32, u64);

/// One of the fullest tuples.
pub struct Pick<'a> {
    pub netns: &'a Netns,
    owner: NetnsOwner,
    table: &'a PortTable,
    pub tuple: &'a Tuple,
    pub taken: &'a [PortHolder],
}

/// The `limit` fullest tuples of `looked`, the fullest first, and how many tuples there are.
pub fn fullest(port_use: &EphemeralUse, limit: usize) -> (Vec<Pick<'_>>, usize) {
    let mut picks: Vec<Pick<'_>> = port_use
        .tables
        .iter()
        .flat_map(|NetnsPorts { netns, owner, table }| {
            let owner = *owner;
            table.tuples().map(move |(tuple, taken)| Pick { netns, owner, table, tuple, taken })
        })
        .collect();
    let all = picks.len();
    // The ratio of a namespace grows with the number of ports; its two terms are computed once each.
    let ratios: HashMap<u32, (f64, f64)> = port_use
        .tables
        .iter()
        .map(|NetnsPorts { netns, table, .. }| {
            (netns.id, (table.used_ratio(0), table.used_ratio(1) - table.used_ratio(0)))
        })
        .collect();
    let ratio = |pick: &Pick<'_>| {
        let (bound, each) = ratios.get(&pick.netns.id).copied().unwrap_or_default();
        bound + each * pick.taken.len() as f64
    };
    picks.sort_by(|a, b| {
        ratio(b).total_cmp(&ratio(a)).then(b.taken.len().cmp(&a.taken.len())).then(a.tuple.cmp(b.tuple))
    });
    picks.truncate(limit);
    (picks, all)
}

/// The inodes of what `picks` hold.
pub fn inodes(picks: &[Pick<'_>]) -> FxHashSet<u32> {
    picks.iter().flat_map(|pick| pick.taken).map(|taken| taken.inode).filter(|inode| *inode != 0).collect()
}

/// Describes a tuple. `closers`: by cookie.
fn describe(
    pick: &Pick<'_>,
    before: Option<&UsageSample>,
    at_ns: u64,
    owners: &Owners,
    closers: &HashMap<u64, TupleCloser>,
    name_of: NameOf<'_>,
) -> TupleUse {
    let Pick { netns, owner, table, tuple, taken } = *pick;
    let of_kind = |kinds: &[Kind]| taken.iter().filter(|taken| kinds.contains(&taken.kind)).count() as u32;
    let change = before.and_then(|before| before.change(netns.id, tuple, taken, at_ns));
    let mut described = TupleUse {
        netns: netns.inum,
        netns_name: netns.name.clone(),
        netns_owner: Some(owner),
        local: tuple.local.to_canonical(),
        remote: tuple.remote(),
        interface: tuple.interface,
        range: [*table.choice.range.start(), *table.choice.range.end()],
        reserved: table.choice.reserved_in_range(),
        ports: table.choice.ports(),
        used: taken.len() as u32 + table.bound(),
        used_ratio: table.used_ratio(taken.len()),
        bound: table.bound(),
        time_wait: of_kind(&[Kind::TimeWait, Kind::Reusable]),
        reusable: of_kind(&[Kind::Reusable]),
        taken_per_second: change.map(|change| change.taken_per_second()),
        growth_per_second: change.map(|change| change.growth_per_second()),
        seconds_left: None,
        owners: shares_of_owners(taken, owners),
        closed_by: shares_of_closers(taken, closers, name_of),
    };
    described.seconds_left = match described.left() {
        0 => Some(0.0),
        left => change.and_then(|change| change.seconds_left(left)),
    };
    described
}

fn shares_of_owners(taken: &[PortHolder], owners: &Owners) -> Vec<ProcessShare> {
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    for taken in taken.iter().filter(|taken| taken.inode != 0) {
        if let Some(holder) = owners.of(taken.inode).next() {
            *counts.entry(holder.pid).or_default() += 1;
        }
    }
    largest(counts, |pid, sockets| {
        let process = owners.processes.get(&pid).cloned().unwrap_or_default();
        let Process { comm, place, .. } = Arc::unwrap_or_clone(process);
        ProcessShare { pid, comm: Some(comm), unit: place.unit, container_id: place.container_id, sockets }
    })
}

fn shares_of_closers(
    taken: &[PortHolder],
    closers: &HashMap<u64, TupleCloser>,
    name_of: NameOf<'_>,
) -> Vec<ProcessShare> {
    let mut counts: BTreeMap<u32, (u32, u64)> = BTreeMap::new();
    for taken in taken.iter().filter(|taken| taken.kind != Kind::Other) {
        if let Some(&(pid, ago_ns)) = closers.get(&taken.cookie) {
            let (n, longest) = counts.entry(pid).or_default();
            *n += 1;
            *longest = (*longest).max(ago_ns);
        }
    }
    let since: HashMap<u32, u64> = counts.iter().map(|(pid, (_, ago_ns))| (*pid, *ago_ns)).collect();
    largest(counts.into_iter().map(|(pid, (n, _))| (pid, n)).collect(), |pid, sockets| {
        let comm = name_of(pid, since.get(&pid).copied().unwrap_or(0));
        ProcessShare { pid, comm, unit: None, container_id: None, sockets }
    })
}

fn largest(counts: BTreeMap<u32, u32>, share: impl Fn(u32, u32) -> ProcessShare) -> Vec<ProcessShare> {
    let mut counts: Vec<(u32, u32)> = counts.into_iter().collect();
    counts.sort_by_key(|&(pid, n)| (Reverse(n), pid));
    counts.into_iter().take(MOST_PROCESSES).map(|(pid, n)| share(pid, n)).collect()
}

/// The samples that a document compares, and what is known besides.
pub struct ExhaustionInputs<'a> {
    pub port_use: &'a EphemeralUse,
    /// An earlier sample.
    pub before: Option<&'a UsageSample>,
    pub closers: &'a HashMap<u64, TupleCloser>,
    pub at: String,
    pub source: DocumentSource,
    /// Namespaces whose processes this one is not allowed to inspect.
    pub denied: usize,
    /// What the search for namespaces skipped, in words.
    pub unread: Option<String>,
}

/// Tells the name of a process that closed something so many nanoseconds ago; `None` when it has ended since.
pub type NameOf<'a> = &'a dyn Fn(u32, u64) -> Option<String>;

/// Describes `picks`, some of the `tuples_in_use`. `missing`: the capabilities that the search for owners lacked.
pub fn assemble(
    inputs: &ExhaustionInputs<'_>,
    (picks, tuples_in_use): (&[Pick<'_>], usize),
    (owners, missing): (&Owners, &[Capability]),
    name_of: NameOf<'_>,
    envelope: Envelope,
) -> ExhaustionDocument {
    let ExhaustionInputs { port_use, before, closers, source, denied, unread, .. } = inputs;
    let tuples: Vec<TupleUse> =
        picks.iter().map(|pick| describe(pick, *before, port_use.at_ns, owners, closers, name_of)).collect();
    let refused = port_use.failed.iter().filter(|(_, why)| why.kind() == ErrorKind::PermissionDenied).count();
    let mut incomplete = not_inspected("sockets", refused, *denied);
    incomplete.extend(unread.clone());
    if port_use.left > 0 {
        incomplete.push(format!(
            "{} network namespaces with few sockets were skipped: dumping all would take more than {BUDGET:?} of CPU time",
            port_use.left
        ));
    }
    if port_use.imperfect {
        incomplete.push("the kernel's table changed during the dump: sockets may be missing".to_owned());
    }
    let forgotten = port_use.tables.iter().map(|ports| ports.table.forgotten).max().unwrap_or(0);
    if forgotten > 0 {
        incomplete
            .push(format!("too many destinations: up to {forgotten} ports per destination may be missing"));
    }
    let forgotten = port_use.tables.iter().map(|ports| ports.table.locals_forgotten).max().unwrap_or(0);
    if forgotten > 0 {
        incomplete.push(format!(
            "too many local addresses: up to {forgotten} ports per address may be missing in BIND TO"
        ));
    }
    incomplete.extend(unreadable(owners.denied, missing));
    incomplete.extend(unanswered(owners));
    if before.is_none() {
        incomplete.push("no earlier sample: rates are unknown".to_owned());
    }
    if *source == DocumentSource::Snapshot && tuples.iter().any(|tuple| tuple.time_wait > 0) {
        let why = "the processes that closed the TIME-WAITs are unknown: only a running agent sees that";
        incomplete.push(why.to_owned());
    }
    ExhaustionDocument { incomplete, tuples_in_use, tuples, ..ExhaustionDocument::within(envelope) }
}

/// The part of a sample that the next one is compared with.
pub fn remember(port_use: &EphemeralUse) -> UsageSample {
    UsageSample::of(port_use.tables.iter().map(|ports| (ports.netns.id, &ports.table)), port_use.at_ns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::ephemeral_ports::PortSink;
    use crate::linux::proc_fd::FdHolder;
    use crate::linux::sock_diag::Socket;
    use crate::report::exhaustion::port_table::tests::{choice, socket};
    use tcpclose_common::state::TcpState;

    fn port_use() -> EphemeralUse {
        let mut table = PortTable::new(choice(1000..=1009, "1009"));
        table.bind(&socket(TcpState::Listen, "0.0.0.0:1000", "0.0.0.0:0"));
        for port in 1001..1006u32 {
            let full = socket(TcpState::Established, &format!("127.0.0.1:{port}"), "127.0.0.1:80");
            table.take(&Socket { inode: port, ..full });
        }
        for (port, left_s) in [(1006, 59), (1007, 50)] {
            let socket = socket(TcpState::TimeWait, &format!("127.0.0.1:{port}"), "127.0.0.1:80");
            table.take(&Socket { minisocket: true, expires_ns: Some(left_s * 1_000_000_000), ..socket });
        }
        table.take(&socket(TcpState::SynSent, "127.0.0.1:1001", "127.0.0.1:81"));
        table.finish();
        let netns = Netns { id: 7, inum: 77, name: None };
        let tables = vec![NetnsPorts { netns, owner: NetnsOwner::Host, table }];
        EphemeralUse { tables, at_ns: 5_000_000_000, ..EphemeralUse::default() }
    }

    #[test]
    fn a_tuple_is_described_by_what_has_its_ports() {
        let port_use = port_use();
        let (picks, all) = fullest(&port_use, 1);
        assert_eq!((picks.len(), all), (1, 2));
        let holders =
            |pid, inodes: std::ops::Range<u32>| inodes.map(move |inode| (inode, FdHolder { pid, fd: 3 }));
        let held = holders(5, 1001..1003).chain(holders(4, 1003..1006)).collect();
        let processes = [4, 5].map(|pid| (pid, Arc::default())).into_iter().collect();
        let owners = Owners::new(held, processes, 0);
        let closers = HashMap::from([(1006, (u32::MAX, 1)), (1007, (u32::MAX, 2))]);
        let before = UsageSample::default();
        let tuple = describe(&picks[0], Some(&before), port_use.at_ns, &owners, &closers, &|_, _| None);
        assert_eq!((tuple.ports, tuple.reserved, tuple.used, tuple.bound), (9, 1, 8, 1));
        assert_eq!((tuple.time_wait, tuple.reusable, tuple.left()), (2, 2, 3));
        assert_eq!(tuple.taken_per_second, None, "the look before knew of no more than it remembers");
        let shares = |shares: &[ProcessShare]| {
            shares.iter().map(|share| (share.pid, share.sockets)).collect::<Vec<_>>()
        };
        assert_eq!(shares(&tuple.owners), [(4, 3), (5, 2)]);
        assert_eq!(shares(&tuple.closed_by), [(u32::MAX, 2)]);
        assert_eq!(tuple.closed_by[0].comm, None);
        let json = serde_json::to_string(&tuple).unwrap();
        assert_eq!(serde_json::from_str::<TupleUse>(&json).unwrap(), tuple);
        assert!(json.contains(r#""remote":"127.0.0.1:80","range":[1000,1009],"#), "{json}");
    }
}
