//! Which (side, port) pairs have a series of their own.
//!
//! The number of series must not grow with what peers do. So at most `max` pairs have a name, in order of appearance;
//! all others share `port="other"`. A port inside the local port range asks only after 100 closes, since most such
//! ports are the chance ports of clients. A name is lost only to another pair that asks, after an idle hour; then its
//! series disappear. No series ever changes its meaning.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use crate::terms::Side;
use crate::tracker::fact::Pair;

/// Closes after which a port of the local port range may ask for a name.
const CLOSES_IN_RANGE: u32 = 100;

/// A pair that was not heard of for this long gives its name to one that asks.
const IDLE_NS: u64 = 3_600_000_000_000;

/// Pairs of the local port range that are counted towards a name at the same time. When there are more, the counts
/// start again: a port that is really served reaches 100 soon.
const MOST_COUNTED: usize = 16_384;

/// The `side` and `port` labels of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    pub side: Side,
    /// `None` is written `other`.
    pub port: Option<u16>,
}

/// Who has a name.
pub struct Names {
    max: usize,
    always: HashSet<u16>,
    ephemeral: RangeInclusive<u16>,
    /// When each named pair was last heard of. Pairs of `always` are not counted against `max`.
    named: HashMap<Pair, u64>,
    counted: HashMap<Pair, u32>,
    retired: Vec<Label>,
    /// No named pair can have been idle for an hour before this.
    none_idle_until_ns: u64,
}

impl Names {
    /// `max` pairs have a name; ports of `always` have one on top of that. `ephemeral` is `ip_local_port_range`.
    pub fn new(max: usize, always: &[u16], ephemeral: RangeInclusive<u16>) -> Self {
        Self {
            max,
            always: always.iter().copied().collect(),
            ephemeral,
            named: HashMap::new(),
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
    pub fn named(&self) -> impl Iterator<Item = Pair> {
        self.named.keys().copied()
    }

    /// Counts a close towards a name for a port of the local port range.
    pub fn closed(&mut self, pair: Pair) {
        if self.ephemeral.contains(&pair.port) && !self.named.contains_key(&pair) {
            if self.counted.len() >= MOST_COUNTED && !self.counted.contains_key(&pair) {
                self.counted.clear();
            }
            *self.counted.entry(pair).or_default() += 1;
        }
    }

    /// The label of `pair`, heard of at `now_ns`. Gives it a name if it can have one.
    pub fn label(&mut self, pair: Pair, now_ns: u64) -> Label {
        if let Some(last) = self.named.get_mut(&pair) {
            *last = now_ns.max(*last);
            return Label { side: pair.side, port: Some(pair.port) };
        }
        let named = self.always.contains(&pair.port) || (self.may_ask(pair) && self.has_room(now_ns));
        if named {
            self.counted.remove(&pair);
            self.named.insert(pair, now_ns);
        }
        Label { side: pair.side, port: named.then_some(pair.port) }
    }

    /// Labels that lost their name since the last call: their series are to disappear.
    pub fn take_retired(&mut self) -> Vec<Label> {
        std::mem::take(&mut self.retired)
    }

    fn may_ask(&self, pair: Pair) -> bool {
        !self.ephemeral.contains(&pair.port)
            || self.counted.get(&pair).is_some_and(|&closes| closes >= CLOSES_IN_RANGE)
    }

    /// Whether one more pair can have a name, if need be by retiring the one that was idle the longest.
    fn has_room(&mut self, now_ns: u64) -> bool {
        let counts = |pair: &Pair, always: &HashSet<u16>| !always.contains(&pair.port);
        if self.named.keys().filter(|pair| counts(pair, &self.always)).count() < self.max {
            return true;
        }
        if now_ns < self.none_idle_until_ns {
            return false;
        }
        let oldest =
            self.named.iter().filter(|(pair, _)| counts(pair, &self.always)).min_by_key(|&(_, &last)| last);
        let Some((&pair, &last)) = oldest else { return false };
        if now_ns.saturating_sub(last) < IDLE_NS {
            self.none_idle_until_ns = last + IDLE_NS;
            return false;
        }
        self.named.remove(&pair);
        self.retired.push(Label { side: pair.side, port: Some(pair.port) });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = IDLE_NS;

    fn pair(port: u16) -> Pair {
        Pair { side: Side::Server, port }
    }

    #[test]
    fn the_first_to_come_are_named() {
        let mut names = Names::new(2, &[9000], 32768..=60999);
        assert_eq!(names.label(pair(80), 1).port, Some(80));
        assert_eq!(names.label(pair(443), 2).port, Some(443));
        assert_eq!(names.label(pair(8080), 3).port, None);
        assert_eq!(names.label(pair(9000), 4).port, Some(9000), "--name-port");
        assert_eq!(names.label(pair(80), 5).port, Some(80));
        let client = Pair { side: Side::Client, port: 80 };
        assert_eq!(names.label(client, 6).port, None, "a pair is a side and a port");
    }

    #[test]
    fn a_port_of_the_local_range_asks_after_a_hundred_closes() {
        let mut names = Names::new(2, &[], 32768..=60999);
        for _ in 0..99 {
            names.closed(pair(40000));
            assert_eq!(names.label(pair(40000), 1).port, None);
        }
        names.closed(pair(40000));
        assert_eq!(names.label(pair(40000), 1).port, Some(40000));
    }

    #[test]
    fn a_name_is_lost_to_another_after_an_idle_hour_only() {
        let mut names = Names::new(2, &[], 32768..=60999);
        names.label(pair(80), 0);
        names.label(pair(443), HOUR / 2);
        assert_eq!(names.label(pair(8080), HOUR - 1).port, None);
        assert!(names.take_retired().is_empty());
        assert_eq!(names.label(pair(8080), HOUR).port, Some(8080));
        assert_eq!(names.take_retired(), [Label { side: Side::Server, port: Some(80) }]);
        assert_eq!(names.label(pair(80), HOUR + 1).port, None);
        assert_eq!(names.label(pair(443), HOUR + 1).port, Some(443));
    }
}
