//! Which (side, port) pairs have a series of their own.
//!
//! Peers must not be able to make more series. So at most `max` pairs have a name; all others share `port="other"`. The
//! names are divided into pools, so that what comes often or early leaves names for what matters more:
//!
//! * a quarter is for pairs with stuck sockets, and a quarter for ports that somebody listens on. Of each of those, one
//!   user or container ([`Charge`]) has at most half;
//! * an eighth is for pairs that are less certain to be a service's: ports of the local port range, and unknown sides;
//! * the rest is for every pair of a known side and a port outside that range.
//!
//! Within a pool the first to come are named; [`Gauges`](crate::metrics::gauges::Gauges) asks for the largest leak first. A
//! port inside the local port range of its namespace gets a name only after 100 closes, since most such ports are the random
//! ports of clients; or once it has stuck sockets, since a leak closes nothing. A pair loses its name only to another pair
//! of the same pool, after an idle hour; then its series disappear. No series ever changes its meaning, and no more than
//! `max` names come up in an hour.
//!
//! A name comes with a slot, a small number that is the index of its counters. Peers choose ports, and every event needs
//! a slot: so slots are in a flat table of all ports, where no choice of ports is slower than another, as it could be with
//! a hash. Its pages without a named port take no memory.

use std::collections::{HashMap, HashSet};

use crate::metrics::charge::{Charge, PortFacts};
use crate::names::{PortKey, PortKind, Side};

/// Closes after which a port of the local port range may ask for a name.
const CLOSES_IN_RANGE: u32 = 100;

/// A pair without an event for this long gives its name to one that asks.
const IDLE_NS: u64 = 3_600_000_000_000;

/// Pairs of the local port range that are counted towards a name at the same time. When there are more, the counts
/// start again: a port with a real service reaches 100 soon.
const MOST_COUNTED: usize = 16_384;

/// The `side` and `port` labels of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortLabel {
    pub side: Side,
    /// `None` is written `other`.
    pub port: Option<u16>,
}

/// A pair that needs a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelRequest {
    pub pair: PortKey,
    pub kind: PortKind,
    /// It has stuck sockets.
    pub stuck: bool,
}

/// The slots of the three `other`; named pairs come after them.
const OTHERS: usize = Side::ALL.len();

const PORTS: usize = 1 << 16;

/// The names that one sort of pairs can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pool {
    /// `--name-port`: as many as there are.
    Always,
    /// Ports of the local port range, unknown sides.
    Uncertain,
    /// Known sides and ports outside the range.
    Service,
    /// Ports that somebody listens on.
    Listened,
    Stuck,
}

const POOLS: usize = Pool::Stuck as usize + 1;

/// The pairs that have a name.
pub struct PortLabels {
    max: usize,
    always: HashSet<u16>,
    /// The number of names in each pool.
    sizes: [usize; POOLS],
    /// Those that are taken.
    taken: [usize; POOLS],
    /// Of those, by user or container, where that matters.
    charged: HashMap<(Pool, Charge), usize>,
    /// The slot of each pair, 0 where it has no name: then it has its side's `other`.
    slots: Vec<u32>,
    /// The pairs of the slots from [`OTHERS`] on.
    named: Vec<NamedPort>,
    counted: HashMap<PortKey, u32>,
    facts: PortFacts,
    retired: Vec<Retired>,
    /// No named pair of a pool can have been idle for an hour before this.
    none_idle_until_ns: [u64; POOLS],
}

struct NamedPort {
    pair: PortKey,
    /// Its last event.
    last_ns: u64,
    pool: Pool,
    charge: Charge,
}

/// A label whose name is lost, and with it its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retired {
    pub label: PortLabel,
    /// Its former slot: another pair has it now.
    pub slot: usize,
}

impl PortLabels {
    /// `max` pairs have a name; ports of `always` have one on top of that.
    pub fn new(max: usize, always: &[u16]) -> Self {
        // Of a single name nothing can be kept.
        let stuck = if max > 1 { (max / 4).max(1) } else { 0 };
        let (listened, uncertain) = (max / 4, if max > 3 { (max / 8).max(1) } else { 0 });
        let service = max - stuck - listened - uncertain;
        Self {
            max,
            always: always.iter().copied().collect(),
            sizes: [usize::MAX, uncertain, service, listened, stuck],
            taken: [0; POOLS],
            charged: HashMap::new(),
            slots: vec![0; Side::ALL.len() * PORTS],
            named: Vec::new(),
            counted: HashMap::new(),
            facts: PortFacts::default(),
            retired: Vec::new(),
            none_idle_until_ns: [0; POOLS],
        }
    }

    /// The most pairs that can have a name.
    pub fn most(&self) -> usize {
        self.max + self.always.len() * Side::ALL.len()
    }

    /// What dumps show of ports and the users that have them.
    pub fn facts(&mut self) -> &mut PortFacts {
        &mut self.facts
    }

    /// Every pair that has a name.
    pub fn named(&self) -> impl Iterator<Item = PortKey> {
        self.named.iter().map(|named| named.pair)
    }

    pub fn is_named(&self, pair: PortKey) -> bool {
        self.slot_of(pair).is_some()
    }

    /// Every label with its slot, in the order of labels.
    pub fn labels(&self) -> Vec<(PortLabel, usize)> {
        let others = Side::ALL.into_iter().map(|side| PortLabel { side, port: None });
        let mut labels: Vec<_> = others.chain(self.named().map(label_of)).zip(0..).collect();
        labels.sort_unstable();
        labels
    }

    /// Counts a close towards a name for a port of the local port range.
    pub fn closed(&mut self, pair: PortKey, kind: PortKind) {
        if kind == PortKind::Chance && self.slot_of(pair).is_none() {
            if self.counted.len() >= MOST_COUNTED && !self.counted.contains_key(&pair) {
                self.counted.clear();
            }
            *self.counted.entry(pair).or_default() += 1;
        }
    }

    /// The label of the pair of `request`, seen at `now_ns`. Gives it a name if it can have one.
    pub fn label(&mut self, request: LabelRequest, now_ns: u64) -> PortLabel {
        let pair = request.pair;
        let named = self.slot(request, now_ns) >= OTHERS;
        PortLabel { side: pair.side, port: named.then_some(pair.port) }
    }

    /// The slot of the pair of `request`, seen at `now_ns`. Gives it a name if it can have one.
    pub fn slot(&mut self, request: LabelRequest, now_ns: u64) -> usize {
        if let Some(slot) = self.slot_of(request.pair) {
            if let Some(named) = self.named.get_mut(slot - OTHERS) {
                named.last_ns = named.last_ns.max(now_ns);
            }
            return slot;
        }
        self.new_slot(request, now_ns).unwrap_or(request.pair.side as usize)
    }

    /// Whether this is the slot of an `other`.
    pub const fn is_other(slot: usize) -> bool {
        slot < OTHERS
    }

    /// Whether labels lost their name since [`Self::take_retired`] was called last.
    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Labels that lost their name since the last call: their series are to disappear.
    pub fn take_retired(&mut self) -> Vec<Retired> {
        std::mem::take(&mut self.retired)
    }

    fn slot_of(&self, pair: PortKey) -> Option<usize> {
        match self.slots.get(place_of(pair)) {
            None | Some(0) => None,
            Some(&slot) => Some(slot as usize),
        }
    }

    /// A slot for a pair that has none, if it can have one.
    #[cold]
    fn new_slot(&mut self, request: LabelRequest, now_ns: u64) -> Option<usize> {
        let pair = request.pair;
        let at = self.pools(request).into_iter().flatten().find_map(|pool| self.name(pool, pair, now_ns))?;
        self.counted.remove(&pair);
        let slot = OTHERS + at;
        if let Some(place) = self.slots.get_mut(place_of(pair)) {
            // There are fewer pairs than 2³².
            *place = slot as u32;
        }
        Some(slot)
    }

    /// The pools that may name a pair, the least scarce first.
    fn pools(&self, LabelRequest { pair, kind, stuck }: LabelRequest) -> [Option<Pool>; 3] {
        if self.always.contains(&pair.port) {
            return [Some(Pool::Always), None, None];
        }
        let has_closed = || self.counted.get(&pair).is_some_and(|&closes| closes >= CLOSES_IN_RANGE);
        let common = match kind {
            PortKind::Service => Some(Pool::Service),
            PortKind::Unproven => Some(Pool::Uncertain),
            PortKind::Chance => has_closed().then_some(Pool::Uncertain),
        };
        let is_listened = pair.side == Side::Server && common.is_some() && self.facts.is_listened(pair.port);
        [common, is_listened.then_some(Pool::Listened), stuck.then_some(Pool::Stuck)]
    }

    /// Names `pair` within `pool`, if that has room or a name that has been idle for an hour. Returns its index in `named`.
    fn name(&mut self, pool: Pool, pair: PortKey, now_ns: u64) -> Option<usize> {
        let has_room = self.taken[pool as usize] < self.sizes[pool as usize];
        if !has_room && now_ns < self.none_idle_until_ns[pool as usize] {
            return None;
        }
        let charge =
            if matches!(pool, Pool::Listened | Pool::Stuck) { self.facts.charge(pair) } else { Charge::Root };
        let most = (self.sizes[pool as usize] / 2).max(1);
        // One with as many as it may have can only replace one of its own.
        let is_full = self.charged.get(&(pool, charge)).is_some_and(|&names| names >= most);
        let named = NamedPort { pair, last_ns: now_ns, pool, charge };
        let at = if has_room && !is_full {
            self.taken[pool as usize] += 1;
            self.named.push(named);
            self.named.len() - 1
        } else {
            self.retire_idle(named, is_full)?
        };
        if charge != Charge::Root {
            *self.charged.entry((pool, charge)).or_default() += 1;
        }
        Some(at)
    }

    /// Gives `next` the name of the pair of its pool (`own`: and of its charge) that was idle the longest, if that was for
    /// an hour. Returns its index in `named`.
    fn retire_idle(&mut self, next: NamedPort, own: bool) -> Option<usize> {
        let (pool, charge, now_ns) = (next.pool, next.charge, next.last_ns);
        let ours = self.named.iter_mut().enumerate();
        let ours = ours.filter(|(_, named)| named.pool == pool && (!own || named.charge == charge));
        let (at, oldest) = ours.min_by_key(|(_, named)| named.last_ns)?;
        if now_ns.saturating_sub(oldest.last_ns) < IDLE_NS {
            if !own {
                self.none_idle_until_ns[pool as usize] = oldest.last_ns + IDLE_NS;
            }
            return None;
        }
        let former = std::mem::replace(oldest, next);
        if let Some(place) = self.slots.get_mut(place_of(former.pair)) {
            *place = 0;
        }
        if let Some(names) = self.charged.get_mut(&(pool, former.charge)) {
            *names -= 1;
            if *names == 0 {
                self.charged.remove(&(pool, former.charge));
            }
        }
        self.retired.push(Retired { label: label_of(former.pair), slot: OTHERS + at });
        Some(at)
    }
}

/// The index of a pair in the table of slots.
const fn place_of(pair: PortKey) -> usize {
    pair.side as usize * PORTS + pair.port as usize
}

const fn label_of(pair: PortKey) -> PortLabel {
    PortLabel { side: pair.side, port: Some(pair.port) }
}

#[cfg(test)]
mod tests;
