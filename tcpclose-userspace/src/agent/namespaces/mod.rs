//! The network namespaces that dumps look at: those that the last search found, and the paths to them.
//!
//! A reconcile goes over all of them in a round, which takes several dumps on a host with many. In between,
//! those are dumped whose sockets need it. Only paths are remembered, never a handle.

mod describe;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::ErrorKind;

use crate::linux::host;
use crate::linux::host::Capability;
use crate::linux::netns;
use crate::linux::netns::{Descriptors, FoundNetns, Netns, NetnsPath, Scope};
use crate::linux::netns_dump::NetnsDumps;
use crate::names::NetnsOwner;
use crate::tracker::socket::TrackedSocket;

use crate::agent::scheduler::{Backlog, NetnsCost, SLICE, in_turn};

/// The pause between two searches through all descriptors is this many times the CPU time of one. They are
/// not charged to the dumps, of which they would be the most expensive by far.
const DESCRIPTORS_SHARE: u64 = 1000;

/// A namespace that has been dumped.
#[derive(Clone, Debug)]
pub struct KnownNetns {
    pub netns: Netns,
    pub place: NetnsPath,
    /// CLOCK_MONOTONIC of the last dump.
    dumped_ns: u64,
    owner: NetnsOwner,
    /// Used ratio of its TIME-WAIT table then.
    limit_used: Option<f64>,
    /// CPU time of that dump, nanoseconds.
    cpu_ns: u64,
}

/// A round over all namespaces, under way.
#[derive(Debug, Default)]
struct SearchRound {
    /// Namespaces that it has not dumped yet.
    queue: Vec<NetnsPath>,
    found: HashSet<u32>,
    /// Namespaces that the agent is not allowed to enter, and processes whose namespaces it is not allowed to read.
    refused: u32,
    denied: u32,
    started_ns: u64,
    /// It goes over the result of a search: the namespaces that had tracked sockets when that began. `None`: it goes
    /// over the known namespaces.
    searched: Option<HashSet<u32>>,
}

/// The result of a complete round.
#[derive(Debug)]
pub struct Finished {
    pub found: HashSet<u32>,
    /// It went over the result of a search, not over the known namespaces.
    pub searched: bool,
    /// No namespace was hidden from it.
    pub sure: bool,
    pub started_ns: u64,
}

pub struct Namespaces {
    scope: Scope,
    own: Netns,
    own_owner: NetnsOwner,
    /// Inode of the host's namespace: that of the first process in /proc. In a pod the agent's own is an
    /// empty one.
    host_inum: u32,
    host: Option<u32>,
    /// By id.
    known: HashMap<u32, KnownNetns>,
    /// Those that a round has found, and that may still have tracked sockets.
    former: HashSet<u32>,
    /// Those with tracked sockets that the last round did not find.
    hidden: HashSet<u32>,
    round: Option<SearchRound>,
    /// CLOCK_MONOTONIC before which a search leaves most descriptors out.
    descriptors_ns: u64,
    /// Of the last complete round.
    refused: u32,
    denied: u32,
    /// What the last search left out, in words.
    unread: Option<String>,
}

impl Namespaces {
    pub fn new(scope: Scope) -> Self {
        let own = netns::own().unwrap_or(Netns { id: 0, inum: 0, name: None });
        let former = HashSet::from([own.id]);
        let first = if scope == Scope::All { netns::place_of(1).ok() } else { None };
        let host_inum = first.map_or(own.inum, |place| place.inum);
        Self {
            scope,
            host: (host_inum == own.inum).then_some(own.id),
            host_inum,
            own,
            own_owner: netns::owner().0,
            known: HashMap::new(),
            former,
            hidden: HashSet::new(),
            round: None,
            descriptors_ns: 0,
            refused: 0,
            denied: 0,
            unread: None,
        }
    }

    /// Id of the host's namespace; `None` before the first dump if that is not the agent's own.
    pub fn host(&self) -> Option<u32> {
        self.host
    }

    /// The path to a known namespace.
    pub fn place(&self, id: u32) -> Option<&NetnsPath> {
        self.known.get(&id).map(|known| &known.place)
    }

    /// CLOCK_MONOTONIC of the last dump's beginning; 0 for unknown namespaces.
    pub fn dumped_ns(&self, id: u32) -> u64 {
        self.known.get(&id).map_or(0, |known| known.dumped_ns)
    }

    /// The agent's own namespace.
    pub fn own(&self) -> &Netns {
        &self.own
    }

    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether dumps can see other namespaces than the agent's own, as far as capabilities tell.
    pub fn everywhere(&self) -> bool {
        self.scope == Scope::All && host::has_cap(Capability::SysAdmin)
    }

    /// What dumps cover: `all` namespaces, `found` (others exist and cannot be found), `some` (the agent
    /// is not allowed to enter others) or the agent's `own`.
    pub fn coverage(&self) -> &'static str {
        match self.everywhere() {
            false => "own",
            true if self.refused > 0 || self.denied > 0 => "some",
            true if !self.hidden.is_empty() => "found",
            true => "all",
        }
    }

    /// Whether dumps cover this namespace, or will once it is found.
    pub fn reaches(&self, id: u32) -> bool {
        id == self.own.id
            || self.known.contains_key(&id)
            || id != 0 && self.scope == Scope::All && !self.hidden.contains(&id)
    }

    /// Whether the path to this namespace is unknown, and a search worth while.
    pub fn is_new(&self, id: u32) -> bool {
        !self.known.contains_key(&id) && self.reaches(id)
    }

    /// A known namespace.
    pub fn get(&self, id: u32) -> Option<&Netns> {
        if id == self.own.id { Some(&self.own) } else { self.known.get(&id).map(|known| &known.netns) }
    }

    /// Paths to the known namespaces of `ids`, or to all known ones for `None`: the host's first, then each
    /// user's in turn, and within a user the one whose last dump is longest ago.
    pub fn places(&self, ids: Option<&HashSet<u32>>) -> Vec<(u32, NetnsPath)> {
        let mut known: Vec<&KnownNetns> =
            self.known.values().filter(|known| ids.is_none_or(|ids| ids.contains(&known.netns.id))).collect();
        known.sort_unstable_by_key(|known| (known.dumped_ns, known.netns.id));
        let (host, others): (Vec<&KnownNetns>, Vec<&KnownNetns>) =
            known.into_iter().partition(|known| Some(known.netns.id) == self.host);
        let others =
            in_turn(others.into_iter().map(|known| (known.place.user, known.cpu_ns, known)).collect());
        host.into_iter().chain(others).map(|known| (known.netns.id, known.place.clone())).collect()
    }

    /// Highest used ratio of a TIME-WAIT table by owner of the namespace: in the agent's own namespace now, in others
    /// as of their last dump.
    pub fn time_wait_limit_used(&self) -> BTreeMap<NetnsOwner, f64> {
        let others = self.known.values().filter(|known| known.netns.id != self.own.id);
        let others = others.filter_map(|known| Some((known.owner, known.limit_used?)));
        let own = host::time_wait_limit_used().map(|used| (self.own_owner, used));
        let mut highest = BTreeMap::new();
        for (owner, used) in others.chain(own) {
            let ratio = highest.entry(owner).or_insert(used);
            *ratio = used.max(*ratio);
        }
        highest
    }

    /// The descriptors that a search at `now_ns` goes through.
    pub fn descriptors(&self, now_ns: u64) -> Descriptors {
        if now_ns >= self.descriptors_ns {
            return Descriptors::All;
        }
        self.descriptors_known()
    }

    /// The descriptors by which namespaces were found.
    pub fn descriptors_known(&self) -> Descriptors {
        let held = self.known.values().filter(|known| known.place.is_held_open());
        Descriptors::Those(held.map(|known| known.place.clone()).collect())
    }

    /// A search through all descriptors ended at `now_ns`, after `cpu_ns` of CPU time.
    pub fn descriptors_searched(&mut self, cpu_ns: u64, now_ns: u64) {
        self.descriptors_ns = now_ns.saturating_add(cpu_ns.saturating_mul(DESCRIPTORS_SHARE));
    }

    /// Whether a round is under way.
    pub fn is_in_round(&self) -> bool {
        self.round.is_some()
    }

    /// The known namespaces, as a search returns them.
    pub fn known(&self) -> FoundNetns {
        let places = self.places(None).into_iter().map(|(_, place)| place).collect();
        FoundNetns { places, denied: self.denied, ..FoundNetns::default() }
    }

    /// Begins a round over the namespaces of `found`. After the host's and our own come each user's in turn:
    /// first those that were never dumped, then those with tracked sockets.
    pub fn begin(
        &mut self,
        found: FoundNetns,
        searched: Option<HashSet<u32>>,
        with_sockets: &HashSet<u32>,
        started_ns: u64,
    ) {
        if searched.is_some() {
            self.unread = found.unread.words();
        }
        let by_inum: HashMap<u32, &KnownNetns> =
            self.known.values().map(|known| (known.netns.inum, known)).collect();
        let first = |place: &NetnsPath| place.inum == self.host_inum || place.inum == self.own.inum;
        let (mut queue, mut others): (Vec<NetnsPath>, Vec<NetnsPath>) =
            found.places.into_iter().partition(first);
        queue.sort_by_key(|place| place.inum != self.host_inum);
        others.sort_by_key(|place| match by_inum.get(&place.inum) {
            None => 0,
            Some(known) if with_sockets.contains(&known.netns.id) => 1,
            Some(_) => 2,
        });
        let cost = |place: &NetnsPath| by_inum.get(&place.inum).map_or(0, |known| known.cpu_ns);
        let others = others.into_iter().map(|place| (place.user, cost(&place), place)).collect();
        queue.extend(in_turn(others));
        self.round =
            Some(SearchRound { queue, denied: found.denied, started_ns, searched, ..SearchRound::default() });
    }

    /// Records the cost of dumps.
    pub fn charge(&mut self, charges: &[NetnsCost]) {
        for charge in charges {
            if let Some(known) = self.known.get_mut(&charge.id) {
                known.cpu_ns = charge.cpu_ns;
            }
        }
    }

    /// Work that is left at `now_ns` besides the host's: the rest of the round, and those of `needing` whose
    /// last dump is more than half of `max_ns` ago.
    pub fn backlog(&self, needing: &HashSet<u32>, now_ns: u64, max_ns: u64) -> Option<Backlog> {
        let others = || self.known.values().filter(|known| Some(known.netns.id) != self.host);
        let mean = others().map(|known| known.cpu_ns).sum::<u64>() / (others().count() as u64).max(1);
        let mut backlog = Backlog { cpu_ns: 0, slices: 0, since_ns: now_ns };
        if let Some(round) = &self.round {
            backlog.cpu_ns += mean.saturating_mul(round.queue.len() as u64);
            backlog.since_ns = round.started_ns;
        }
        let due = |known: &&KnownNetns| {
            needing.contains(&known.netns.id) && now_ns.saturating_sub(known.dumped_ns) > max_ns / 2
        };
        for known in others().filter(due) {
            backlog.cpu_ns += known.cpu_ns;
            backlog.since_ns = backlog.since_ns.min(known.dumped_ns);
        }
        backlog.slices = backlog.cpu_ns.div_ceil(SLICE.as_nanos() as u64);
        (backlog.slices > 0).then_some(backlog)
    }

    /// Namespaces that the round has not dumped yet.
    pub fn left(&self) -> usize {
        self.round.as_ref().map_or(0, |round| round.queue.len())
    }

    /// Takes the namespaces that the round has not dumped yet.
    pub fn unvisited(&mut self) -> Vec<NetnsPath> {
        self.round.as_mut().map(|round| std::mem::take(&mut round.queue)).unwrap_or_default()
    }

    /// Records which namespaces were dumped, and which could not be.
    pub fn dumped(&mut self, dumps: &NetnsDumps) {
        for dumped in &dumps.namespaces {
            let netns = dumped.netns.clone();
            if netns.id == self.own.id {
                self.own.name.clone_from(&netns.name);
            }
            if netns.inum == self.host_inum {
                self.host = Some(netns.id);
            }
            let known = KnownNetns {
                netns,
                place: dumped.place.clone(),
                dumped_ns: dumps.started_ns,
                owner: dumped.owner,
                limit_used: dumped.limit_used,
                cpu_ns: dumped.cpu_ns,
            };
            self.former.insert(known.netns.id);
            // A former namespace had this inode.
            self.known.retain(|id, former| *id == known.netns.id || former.netns.inum != known.netns.inum);
            if let Some(round) = &mut self.round {
                round.found.insert(known.netns.id);
            }
            self.known.insert(known.netns.id, known);
        }
        for (place, why) in &dumps.failed {
            if let Some(round) = &mut self.round {
                round.refused += u32::from(why.kind() == ErrorKind::PermissionDenied);
                // The threads that led there may have ended and others live there: the next search will show
                // that.
                let there = self.known.values().filter(|known| known.netns.inum == place.inum);
                round.found.extend(there.map(|known| known.netns.id));
            }
            log::debug!("cannot dump network namespace net:[{}]: {why}", place.inum);
            self.known.retain(|_, known| known.place != *place);
        }
    }

    /// Takes the namespaces that a slice of the round did not get to. Returns the result of the round when
    /// there are none.
    pub fn slice_done(&mut self, rest: Vec<NetnsPath>, with_sockets: &HashSet<u32>) -> Option<Finished> {
        let round = self.round.as_mut()?;
        round.queue = rest;
        if !round.queue.is_empty() {
            return None;
        }
        let SearchRound { found, refused, denied, started_ns, searched, .. } = self.round.take()?;
        (self.refused, self.denied) = (refused, denied);
        let Some(had_sockets) = searched else {
            // A namespace that it did not meet may be one that no search has found yet.
            return Some(Finished { found, searched: false, sure: false, started_ns });
        };
        self.known.retain(|id, _| found.contains(id));
        // One whose first socket is younger than the search may have been made after it had passed.
        let missed = with_sockets.intersection(&had_sockets).copied();
        self.hidden = missed.filter(|id| !found.contains(id)).collect();
        // A process that CAP_SYS_PTRACE does not open was closed to earlier rounds as well.
        let sure =
            self.scope == Scope::All && refused == 0 && (denied == 0 || host::has_cap(Capability::SysPtrace));
        Some(Finished { found, searched: true, sure, started_ns })
    }

    /// Gives up a round that failed.
    pub fn give_up(&mut self) {
        self.round = None;
    }

    /// Whether a round found it once.
    pub fn was_found(&self, id: u32) -> bool {
        self.former.contains(&id)
    }

    /// Forgets those that are gone and have no tracked sockets left.
    pub fn forget(&mut self, with_sockets: &HashSet<u32>) {
        let Self { former, known, own, .. } = self;
        former.retain(|id| *id == own.id || known.contains_key(id) || with_sockets.contains(id));
    }

    /// Whether tracked sockets are in this namespace, and the last round did not find it.
    pub fn is_hidden(&self, id: u32) -> bool {
        self.hidden.contains(&id)
    }
}

/// The namespaces of `sockets`, without those whose namespace is unknown.
pub fn ids_of<'a>(sockets: impl Iterator<Item = &'a TrackedSocket>) -> HashSet<u32> {
    let mut ids = HashSet::new();
    let mut last = 0;
    for socket in sockets {
        // Sockets come in runs of one namespace, so most need no hashing.
        if socket.netns != last {
            last = socket.netns;
            ids.insert(last);
        }
    }
    ids.remove(&0);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_through_all_descriptors_takes_a_thousandth_of_the_time() {
        let mut namespaces = Namespaces::new(Scope::All);
        assert!(matches!(namespaces.descriptors(0), Descriptors::All));
        namespaces.descriptors_searched(200_000_000, 10_000_000_000);
        assert!(
            matches!(namespaces.descriptors(209_000_000_000), Descriptors::Those(places) if places.is_empty())
        );
        assert!(matches!(namespaces.descriptors(210_000_000_000), Descriptors::All));
    }

    #[test]
    fn a_namespace_younger_than_the_search_is_new_and_not_hidden() {
        let mut namespaces = Namespaces::new(Scope::All);
        let (older, younger) = (1_000_001, 1_000_002);
        for (had_sockets, hidden) in [([older].into(), false), ([older, younger].into(), true)] {
            let now = HashSet::from([older, younger]);
            namespaces.begin(FoundNetns::default(), Some(had_sockets), &now, 0);
            let finished = namespaces.slice_done(Vec::new(), &now).unwrap();
            assert!(finished.searched && finished.found.is_empty());
            assert!(namespaces.is_hidden(older) && !namespaces.is_new(older));
            assert_eq!((namespaces.is_hidden(younger), namespaces.is_new(younger)), (hidden, !hidden));
        }
    }
}
