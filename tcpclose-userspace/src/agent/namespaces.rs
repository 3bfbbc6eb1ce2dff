//! Which network namespaces the dumps look at: those that the last search has found, and where they are.
//!
//! The reconcile goes through all of them, a round; on a host with many that takes several dumps. In between, the
//! namespaces are dumped whose lives need it. Only places are remembered, never a handle.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::ErrorKind;

use crate::linux::host;
use crate::linux::host::Capability;
use crate::linux::netns;
use crate::linux::netns::{Descriptors, FoundNetns, Netns, NetnsPath, Scope};
use crate::linux::netns_dump::NetnsDumps;
use crate::report;

use crate::agent::reconcile::SLICE;
use crate::agent::scheduler::{Backlog, Charge, in_turn};

/// The pause between two looks at all descriptors is this many times the CPU time of one. They are beside the dumps' pace,
/// in which they would be the dearest by far.
const DESCRIPTORS_SHARE: u64 = 1000;

/// Namespaces that are named where nothing leads there; of more, how many there are.
const MOST_NAMED: usize = 5;

/// A namespace that a dump has been in.
#[derive(Clone, Debug)]
pub struct KnownNetns {
    pub netns: Netns,
    pub place: NetnsPath,
    /// CLOCK_MONOTONIC of the last dump that looked at it.
    dumped_ns: u64,
    /// How full its table of TIME-WAITs was then.
    limit_used: Option<f64>,
    /// CPU time of that dump, nanoseconds.
    cpu_ns: u64,
}

/// A search through all namespaces, under way.
#[derive(Debug, Default)]
struct SearchRound {
    /// Where it has not been yet.
    queue: Vec<NetnsPath>,
    found: HashSet<u32>,
    /// Namespaces that may not be entered, and those whose processes may not be looked at.
    refused: u32,
    denied: u32,
    started_ns: u64,
    /// It goes where a search has led, and not to those that were known already.
    searched: bool,
}

/// What a whole round has come to.
#[derive(Debug)]
pub struct Finished {
    pub found: HashSet<u32>,
    /// It has been where a search has led; else only where namespaces were known already.
    pub searched: bool,
    /// Nothing was hidden from it.
    pub sure: bool,
    pub started_ns: u64,
}

pub struct Namespaces {
    scope: Scope,
    own: Netns,
    /// The inode of the host's: that of the first process as /proc shows it. In a pod the agent's own is an empty one.
    host_inum: u32,
    host: Option<u32>,
    /// By what identifies them.
    known: HashMap<u32, KnownNetns>,
    /// Those that a round has found, and that lives may still be of.
    former: HashSet<u32>,
    /// Those that lives are in, and that the last round did not find.
    hidden: HashSet<u32>,
    round: Option<SearchRound>,
    /// CLOCK_MONOTONIC from which on all descriptors may be looked at again.
    descriptors_ns: u64,
    /// Of the last whole round.
    refused: u32,
    denied: u32,
    /// What the last search has left out, in words.
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

    /// What identifies the host's; `None` before the first dump, where it is not the agent's own.
    pub fn host(&self) -> Option<u32> {
        self.host
    }

    /// Where a known one is.
    pub fn place(&self, id: u32) -> Option<&NetnsPath> {
        self.known.get(&id).map(|known| &known.place)
    }

    /// CLOCK_MONOTONIC when the last dump of a known one began; 0 for others.
    pub fn dumped_ns(&self, id: u32) -> u64 {
        self.known.get(&id).map_or(0, |known| known.dumped_ns)
    }

    /// The agent's own.
    pub fn own(&self) -> &Netns {
        &self.own
    }

    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether dumps see other namespaces than the agent's own, as far as can be told beforehand.
    pub fn everywhere(&self) -> bool {
        self.scope == Scope::All && host::has_cap(Capability::SysAdmin)
    }

    /// Which namespaces dumps look at: `all`, `found` (all to which something leads, and there are others), `some` (others may
    /// not be entered) or `own`.
    pub fn dumped(&self) -> &'static str {
        match self.everywhere() {
            false => "own",
            true if self.refused > 0 || self.denied > 0 => "some",
            true if !self.hidden.is_empty() => "found",
            true => "all",
        }
    }

    /// Whether dumps look at this one, or will when it has been found.
    pub fn reaches(&self, id: u32) -> bool {
        id == self.own.id
            || self.known.contains_key(&id)
            || id != 0 && self.scope == Scope::All && !self.hidden.contains(&id)
    }

    /// Whether it is not known where this one is, and worth a search.
    pub fn is_new(&self, id: u32) -> bool {
        !self.known.contains_key(&id) && self.reaches(id)
    }

    /// What is known of a namespace.
    pub fn get(&self, id: u32) -> Option<&Netns> {
        if id == self.own.id { Some(&self.own) } else { self.known.get(&id).map(|known| &known.netns) }
    }

    /// Where those of `ids` are that are known, or all that are known for `None`: the host's first, then each user's in
    /// turn, of those first the ones that no dump has looked at for longest.
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

    /// How full the table of TIME-WAITs is where it is fullest: in the agent's own namespace now, in the others as of the last
    /// dump there.
    pub fn time_wait_limit_used(&self) -> Option<f64> {
        let others = self.known.values().filter(|known| known.netns.id != self.own.id);
        let others = others.filter_map(|known| known.limit_used);
        others.chain(host::time_wait_limit_used()).reduce(f64::max)
    }

    /// Which descriptors a search at `now_ns` is to look at.
    pub fn descriptors(&self, now_ns: u64) -> Descriptors {
        if now_ns >= self.descriptors_ns {
            return Descriptors::All;
        }
        self.descriptors_known()
    }

    /// Those by which namespaces were found.
    pub fn descriptors_known(&self) -> Descriptors {
        let held = self.known.values().filter(|known| known.place.is_held_open());
        Descriptors::Those(held.map(|known| known.place.clone()).collect())
    }

    /// All descriptors were looked at until `now_ns`, for `cpu_ns` of CPU time.
    pub fn looked_at_descriptors(&mut self, cpu_ns: u64, now_ns: u64) {
        self.descriptors_ns = now_ns.saturating_add(cpu_ns.saturating_mul(DESCRIPTORS_SHARE));
    }

    /// Whether a round is under way.
    pub fn is_under_way(&self) -> bool {
        self.round.is_some()
    }

    /// What a search would find that finds nothing new.
    pub fn known(&self) -> FoundNetns {
        let places = self.places(None).into_iter().map(|(_, place)| place).collect();
        FoundNetns { places, denied: self.denied, ..FoundNetns::default() }
    }

    /// Begins a round over what a search has found, or over what is known already. After the host's and our own come each
    /// user's in turn: first the places that nobody has been to, then those that lives are in.
    pub fn begin(&mut self, found: FoundNetns, searched: bool, with_lives: &HashSet<u32>, started_ns: u64) {
        if searched {
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
            Some(known) if with_lives.contains(&known.netns.id) => 1,
            Some(_) => 2,
        });
        let cost = |place: &NetnsPath| by_inum.get(&place.inum).map_or(0, |known| known.cpu_ns);
        let others = others.into_iter().map(|place| (place.user, cost(&place), place)).collect();
        queue.extend(in_turn(others));
        self.round =
            Some(SearchRound { queue, denied: found.denied, started_ns, searched, ..SearchRound::default() });
    }

    /// Takes in what dumps have cost.
    pub fn cost(&mut self, charges: &[Charge]) {
        for charge in charges {
            if let Some(known) = self.known.get_mut(&charge.id) {
                known.cpu_ns = charge.cpu_ns;
            }
        }
    }

    /// What is left to do besides the host's at `now_ns`: where the round has not been, and those of `needing` whose last
    /// dump is more than half of `max_ns` ago.
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

    /// How many places the round has not been to.
    pub fn left(&self) -> usize {
        self.round.as_ref().map_or(0, |round| round.queue.len())
    }

    /// Where the round has not been yet.
    pub fn unvisited(&mut self) -> Vec<NetnsPath> {
        self.round.as_mut().map(|round| std::mem::take(&mut round.queue)).unwrap_or_default()
    }

    /// Takes in where dumps have been, and where they could not go.
    pub fn took(&mut self, survey: &NetnsDumps) {
        for looked in &survey.looked {
            let netns = looked.netns.clone();
            if netns.id == self.own.id {
                self.own.name.clone_from(&netns.name);
            }
            if netns.inum == self.host_inum {
                self.host = Some(netns.id);
            }
            let known = KnownNetns {
                netns,
                place: looked.place.clone(),
                dumped_ns: survey.started_ns,
                limit_used: looked.limit_used,
                cpu_ns: looked.cpu_ns,
            };
            self.former.insert(known.netns.id);
            // Its inode is another namespace's now.
            self.known.retain(|id, former| *id == known.netns.id || former.netns.inum != known.netns.inum);
            if let Some(round) = &mut self.round {
                round.found.insert(known.netns.id);
            }
            self.known.insert(known.netns.id, known);
        }
        for (place, why) in &survey.failed {
            if let Some(round) = &mut self.round {
                round.refused += u32::from(why.kind() == ErrorKind::PermissionDenied);
                // The threads that led there may have ended and others be there: the next search tells.
                let there = self.known.values().filter(|known| known.netns.inum == place.inum);
                round.found.extend(there.map(|known| known.netns.id));
            }
            log::debug!("the network namespace {} is not dumped: {why}", place.inum);
            self.known.retain(|_, known| known.place != *place);
        }
    }

    /// Takes in what a slice of the round has left. Returns what the round has come to when that is nothing.
    pub fn went_on(&mut self, rest: Vec<NetnsPath>, with_lives: &HashSet<u32>) -> Option<Finished> {
        let round = self.round.as_mut()?;
        round.queue = rest;
        if !round.queue.is_empty() {
            return None;
        }
        let SearchRound { found, refused, denied, started_ns, searched, .. } = self.round.take()?;
        (self.refused, self.denied) = (refused, denied);
        if !searched {
            // What it has not met may be where no search has been yet.
            return Some(Finished { found, searched, sure: false, started_ns });
        }
        self.known.retain(|id, _| found.contains(id));
        self.hidden = with_lives.difference(&found).copied().collect();
        // What may not be looked at even with the capability for it could not be before either.
        let sure =
            self.scope == Scope::All && refused == 0 && (denied == 0 || host::has_cap(Capability::SysPtrace));
        Some(Finished { found, searched, sure, started_ns })
    }

    /// Gives a round up that could not go on.
    pub fn give_up(&mut self) {
        self.round = None;
    }

    /// Whether a round had found it once.
    pub fn was_found(&self, id: u32) -> bool {
        self.former.contains(&id)
    }

    /// Forgets those that are not there and have no lives left.
    pub fn forget(&mut self, with_lives: &HashSet<u32>) {
        let Self { former, known, own, .. } = self;
        former.retain(|id| *id == own.id || known.contains_key(id) || with_lives.contains(id));
    }

    /// Whether the last round has not found this one, which lives are in.
    pub fn is_hidden(&self, id: u32) -> bool {
        self.hidden.contains(&id)
    }

    /// Says in words where the last round was not allowed to look.
    pub fn refusals(&self) -> Vec<String> {
        let sockets = "sockets that are older than the agent";
        report::incomplete::not_looked_at(sockets, self.refused as usize, self.denied as usize)
    }

    /// Says in words what no round can find.
    pub fn unsearched(&self) -> Option<String> {
        (self.everywhere() && !host::has_cap(Capability::DacReadSearch)).then(|| {
            "network namespaces that only descriptors of other users' processes hold are not found: \
             CAP_DAC_READ_SEARCH is needed to see those"
                .to_owned()
        })
    }

    /// Says in words what the last round was not allowed to see. `elsewhere`: namespaces that only records tell of, by inode,
    /// and how many of the sockets asked for are in each.
    pub fn incomplete(&self, elsewhere: &BTreeMap<u32, usize>) -> Vec<String> {
        let mut incomplete = self.refusals();
        incomplete.extend(self.unsearched());
        incomplete.extend(self.unread.clone());
        if elsewhere.is_empty() {
            return incomplete;
        }
        let sockets = match elsewhere.values().sum::<usize>() {
            0 => "sockets that are older than the agent may be".to_owned(),
            1 => "1 socket is".to_owned(),
            n => format!("{n} sockets are"),
        };
        let why = match self.scope {
            Scope::Current => "--netns current looks at the agent's own alone",
            Scope::All if self.refused > 0 || self.denied > 0 => "where dumps may not look",
            Scope::All => "to which no process, file in /run/netns, mount or descriptor leads",
        };
        let unknown = match elsewhere.values().any(|&n| n > 0) {
            true => "their owners, queues and diagnosis are unknown, and older sockets there are missing",
            false => "they are missing",
        };
        incomplete.push(format!(
            "{sockets} in other network namespaces{}, {why}: {unknown}",
            named(elsewhere.keys().copied())
        ));
        incomplete
    }
}

/// The namespaces with these inodes, in brackets; without BTF none is known.
fn named(inums: impl Iterator<Item = u32>) -> String {
    let mut named: Vec<String> =
        inums.filter(|&inum| inum != 0).map(|inum| format!("net:[{inum}]")).collect();
    let more = named.len().saturating_sub(MOST_NAMED);
    if more > 0 {
        named.truncate(MOST_NAMED);
        named.push(format!("and {more} more"));
    }
    if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_leads_to_is_named() {
        let namespaces = Namespaces::new(Scope::All);
        let said = |elsewhere: &[(u32, usize)]| {
            namespaces.incomplete(&elsewhere.iter().copied().collect()).join("; ")
        };
        assert_eq!(said(&[]), "");
        assert_eq!(
            said(&[(4_026_532_001, 2), (4_026_532_008, 1)]),
            "3 sockets are in other network namespaces (net:[4026532001], net:[4026532008]), to which no process, file in \
             /run/netns, mount or descriptor leads: their owners, queues and diagnosis are unknown, and older sockets there \
             are missing"
        );
        assert!(said(&[(7, 0)]).starts_with("sockets that are older than the agent may be in other network"));
        let many: Vec<(u32, usize)> = (1..=7).map(|inum| (inum, 0)).collect();
        assert!(said(&many).contains("net:[5], and 2 more)"));
    }

    #[test]
    fn all_descriptors_are_looked_at_for_a_thousandth_of_the_time() {
        let mut namespaces = Namespaces::new(Scope::All);
        assert!(matches!(namespaces.descriptors(0), Descriptors::All));
        namespaces.looked_at_descriptors(200_000_000, 10_000_000_000);
        assert!(
            matches!(namespaces.descriptors(209_000_000_000), Descriptors::Those(places) if places.is_empty())
        );
        assert!(matches!(namespaces.descriptors(210_000_000_000), Descriptors::All));
    }
}
