//! Which (side, port) pairs have a series of their own.
//!
//! Peers must not be able to make more series. So at most `max` pairs have a name, in order of appearance; all others
//! share `port="other"`. A port inside the local port range gets a name only after 100 closes, since most such ports are
//! the random ports of clients. A pair loses its name only to another pair, after an idle hour; then its series disappear.
//! No series ever changes its meaning.
//!
//! A name comes with a slot, a small number that is the index of its counters. Peers choose ports, and every event needs
//! a slot: so slots are in a flat table of all ports, where no choice of ports is slower than another, as it could be with
//! a hash. Its pages without a named port take no memory.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use crate::names::{PortKey, Side};

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

/// The slots of the three `other`; named pairs come after them.
const OTHERS: usize = Side::ALL.len();

const PORTS: usize = 1 << 16;

/// The pairs that have a name.
pub struct PortLabels {
    max: usize,
    always: HashSet<u16>,
    ephemeral: RangeInclusive<u16>,
    /// The slot of each pair, 0 where it has no name: then it has its side's `other`.
    slots: Vec<u32>,
    /// The pairs of the slots from [`OTHERS`] on.
    named: Vec<NamedPort>,
    /// The number of them that are not in `always`: those count against `max`.
    taken: usize,
    counted: HashMap<PortKey, u32>,
    retired: Vec<Retired>,
    /// No named pair can have been idle for an hour before this.
    none_idle_until_ns: u64,
}

struct NamedPort {
    pair: PortKey,
    /// Its last event.
    last_ns: u64,
}

/// A label whose name is lost, and with it its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retired {
    pub label: PortLabel,
    /// Its former slot: another pair has it now.
    pub slot: usize,
}

impl PortLabels {
    /// `max` pairs have a name; ports of `always` have one on top of that. `ephemeral` is `ip_local_port_range`.
    pub fn new(max: usize, always: &[u16], ephemeral: RangeInclusive<u16>) -> Self {
        Self {
            max,
            always: always.iter().copied().collect(),
            ephemeral,
            slots: vec![0; Side::ALL.len() * PORTS],
            named: Vec::new(),
            taken: 0,
            counted: HashMap::new(),
            retired: Vec::new(),
            none_idle_until_ns: 0,
        }
    }

    /// The most pairs that can have a name.
    pub fn most(&self) -> usize {
        self.max + self.always.len() * Side::ALL.len()
    }

    /// Every pair that has a name.
    pub fn named(&self) -> impl Iterator<Item = PortKey> {
        self.named.iter().map(|named| named.pair)
    }

    /// Every label with its slot, in the order of labels.
    pub fn labels(&self) -> Vec<(PortLabel, usize)> {
        let others = Side::ALL.into_iter().map(|side| PortLabel { side, port: None });
        let mut labels: Vec<_> = others.chain(self.named().map(label_of)).zip(0..).collect();
        labels.sort_unstable();
        labels
    }

    /// Counts a close towards a name for a port of the local port range.
    pub fn closed(&mut self, pair: PortKey) {
        if self.ephemeral.contains(&pair.port) && self.slot_of(pair).is_none() {
            if self.counted.len() >= MOST_COUNTED && !self.counted.contains_key(&pair) {
                self.counted.clear();
            }
            *self.counted.entry(pair).or_default() += 1;
        }
    }

    /// The label of `pair`, seen at `now_ns`. Gives it a name if it can have one.
    pub fn label(&mut self, pair: PortKey, now_ns: u64) -> PortLabel {
        let named = self.slot(pair, now_ns) >= OTHERS;
        PortLabel { side: pair.side, port: named.then_some(pair.port) }
    }

    /// The slot of `pair`, seen at `now_ns`. Gives it a name if it can have one.
    pub fn slot(&mut self, pair: PortKey, now_ns: u64) -> usize {
        if let Some(slot) = self.slot_of(pair) {
            if let Some(named) = self.named.get_mut(slot - OTHERS) {
                named.last_ns = named.last_ns.max(now_ns);
            }
            return slot;
        }
        self.new_slot(pair, now_ns).unwrap_or(pair.side as usize)
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
    fn new_slot(&mut self, pair: PortKey, now_ns: u64) -> Option<usize> {
        let always = self.always.contains(&pair.port);
        let at = if always || self.may_ask(pair) && self.taken < self.max {
            self.named.push(NamedPort { pair, last_ns: now_ns });
            self.taken += usize::from(!always);
            self.named.len() - 1
        } else if self.may_ask(pair) {
            self.retire_idle(pair, now_ns)?
        } else {
            return None;
        };
        self.counted.remove(&pair);
        let slot = OTHERS + at;
        if let Some(place) = self.slots.get_mut(place_of(pair)) {
            // There are fewer pairs than 2³².
            *place = slot as u32;
        }
        Some(slot)
    }

    fn may_ask(&self, pair: PortKey) -> bool {
        !self.ephemeral.contains(&pair.port)
            || self.counted.get(&pair).is_some_and(|&closes| closes >= CLOSES_IN_RANGE)
    }

    /// Gives the name of the pair that was idle the longest to `pair`, if that was for an hour. Returns its index in
    /// `named`.
    fn retire_idle(&mut self, pair: PortKey, now_ns: u64) -> Option<usize> {
        if now_ns < self.none_idle_until_ns {
            return None;
        }
        let ours =
            self.named.iter_mut().enumerate().filter(|(_, named)| !self.always.contains(&named.pair.port));
        let (at, oldest) = ours.min_by_key(|(_, named)| named.last_ns)?;
        if now_ns.saturating_sub(oldest.last_ns) < IDLE_NS {
            self.none_idle_until_ns = oldest.last_ns + IDLE_NS;
            return None;
        }
        let former = std::mem::replace(oldest, NamedPort { pair, last_ns: now_ns }).pair;
        if let Some(place) = self.slots.get_mut(place_of(former)) {
            *place = 0;
        }
        self.retired.push(Retired { label: label_of(former), slot: OTHERS + at });
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
mod tests {
    use super::*;

    const HOUR: u64 = IDLE_NS;

    fn pair(port: u16) -> PortKey {
        PortKey { side: Side::Server, port }
    }

    #[test]
    fn the_first_to_come_are_named() {
        let mut labels = PortLabels::new(2, &[9000], 32768..=60999);
        assert_eq!(labels.label(pair(80), 1).port, Some(80));
        assert_eq!(labels.label(pair(443), 2).port, Some(443));
        assert_eq!(labels.label(pair(8080), 3).port, None);
        assert_eq!(labels.label(pair(9000), 4).port, Some(9000), "--name-port");
        assert_eq!(labels.label(pair(80), 5).port, Some(80));
        let client = PortKey { side: Side::Client, port: 80 };
        assert_eq!(labels.label(client, 6).port, None, "a pair is a side and a port");
    }

    #[test]
    fn labels_come_in_order() {
        let mut labels = PortLabels::new(3, &[9000], 32768..=60999);
        let client = PortKey { side: Side::Client, port: 65535 };
        let slots = [pair(443), client, pair(9000), pair(80), pair(8080)].map(|pair| labels.slot(pair, 1));
        assert_eq!(slots, [3, 4, 5, 6, 0]);
        let (server, client) = (Side::Server, Side::Client);
        let label = |side, port| PortLabel { side, port };
        assert_eq!(
            labels.labels(),
            [
                (label(server, None), 0),
                (label(server, Some(80)), 6),
                (label(server, Some(443)), 3),
                (label(server, Some(9000)), 5),
                (label(client, None), 1),
                (label(client, Some(65535)), 4),
                (label(Side::Unknown, None), 2),
            ]
        );
        let last = PortKey { side: Side::Unknown, port: 65535 };
        assert_eq!(place_of(last) + 1, labels.slots.len());
    }

    #[test]
    fn a_port_of_the_local_range_asks_after_a_hundred_closes() {
        let mut labels = PortLabels::new(2, &[], 32768..=60999);
        for _ in 0..99 {
            labels.closed(pair(40000));
            assert_eq!(labels.label(pair(40000), 1).port, None);
        }
        labels.closed(pair(40000));
        assert_eq!(labels.label(pair(40000), 1).port, Some(40000));
    }

    #[test]
    fn a_name_is_lost_to_another_after_an_idle_hour_only() {
        let mut labels = PortLabels::new(2, &[], 32768..=60999);
        labels.label(pair(80), 0);
        labels.label(pair(443), HOUR / 2);
        assert_eq!(labels.label(pair(8080), HOUR - 1).port, None);
        assert!(labels.take_retired().is_empty());
        assert_eq!(labels.label(pair(8080), HOUR).port, Some(8080));
        let label = PortLabel { side: Side::Server, port: Some(80) };
        assert_eq!(labels.take_retired(), [Retired { label, slot: 3 }]);
        assert_eq!(labels.label(pair(80), HOUR + 1).port, None);
        assert_eq!(labels.label(pair(443), HOUR + 1).port, Some(443));
    }
}
