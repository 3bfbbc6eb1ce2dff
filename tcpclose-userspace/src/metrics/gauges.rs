//! The gauges: the sockets in each state, the age of the oldest, and the number of stuck ones. They are counted over the
//! tracker's sockets at each request, so that they cannot drift from them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::names::{LastWrite, Phase, PortKey, PortKind};
use crate::tracker::socket::TrackedSocket;

use crate::metrics::port_labels::{LabelRequest, PortLabel, PortLabels};

/// When a CLOSE-WAIT is stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckAfter {
    /// Ascending bounds, nanoseconds; never empty.
    bounds_ns: Vec<u64>,
}

/// Whether one socket is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuckness {
    /// Longer than the bound of this index, and no longer than the next.
    Stuck(usize),
    /// Perhaps longer than the first bound; or its program may have written to it within the bound before the last dump.
    Unproven,
    /// Younger, or written to within the bound at the last dump, or in no dump since it passed the bound.
    Not,
}

/// A minute, ten minutes, an hour.
impl Default for StuckAfter {
    fn default() -> Self {
        const MINUTE_NS: u64 = 60_000_000_000;
        Self { bounds_ns: vec![MINUTE_NS, 10 * MINUTE_NS, 60 * MINUTE_NS] }
    }
}

impl StuckAfter {
    /// # Errors
    /// When there is no bound, one is zero, or they do not ascend; the message says which.
    pub fn new(bounds_ns: Vec<u64>) -> Result<Self, &'static str> {
        match bounds_ns.as_slice() {
            [] => Err("no bound is given"),
            [0, ..] => Err("a bound of 0 would call every CLOSE-WAIT stuck"),
            bounds if !bounds.is_sorted_by(|a, b| a < b) => Err("the bounds must ascend"),
            _ => Ok(Self { bounds_ns }),
        }
    }

    pub fn bounds_ns(&self) -> &[u64] {
        &self.bounds_ns
    }

    /// The bound from which a socket is stuck.
    pub fn first_ns(&self) -> u64 {
        self.bounds_ns.first().copied().unwrap_or(u64::MAX)
    }

    /// Judges one socket at `now_ns`. `written`: its program's last write, if a dump has seen the socket. `dumped` says whether
    /// dumps look at a network namespace.
    pub fn judge(
        &self,
        socket: &TrackedSocket,
        written: Option<&LastWrite>,
        now_ns: u64,
        dumped: impl Fn(u32) -> bool,
    ) -> Stuckness {
        if socket.phase != Phase::CloseWait {
            return Stuckness::Not;
        }
        let first = self.first_ns();
        let age = socket.since.age(now_ns);
        // A program that had written within the bound at the last dump was at work on a half-close. Only the next dump can
        // show that it has been silent since.
        let silence = written.map(|write| write.age(socket.seen_ns));
        if silence.is_some_and(|silence| silence.max_ns.is_some_and(|max| max < first)) {
            return Stuckness::Not;
        }
        if age.may_be_past(first) {
            return Stuckness::Unproven;
        }
        if !age.is_past(first) {
            return Stuckness::Not;
        }
        // Where dumps can look, a socket is stuck only once a dump has seen it past the bound: only a dump can show that the
        // program still writes to it.
        let checked = socket.seen_ns >= socket.since.latest_ns.saturating_add(first);
        if !checked && dumped(socket.netns) {
            return Stuckness::Not;
        }
        if silence.is_some_and(|silence| !silence.is_past(first)) {
            return Stuckness::Unproven;
        }
        Stuckness::Stuck(self.bounds_ns.partition_point(|&bound| bound <= age.min_ns) - 1)
    }
}

/// The sockets of one label in one state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub sockets: u64,
    /// Proven minimum age of the oldest, nanoseconds; 0 where there is none.
    pub oldest_ns: u64,
}

/// The gauges at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    pub standing: BTreeMap<(PortLabel, Phase), Standing>,
    /// One count per bound, for every named pair and for `other` once it was not zero.
    pub stuck: BTreeMap<PortLabel, Vec<u64>>,
    pub unproven: BTreeMap<PortLabel, u64>,
}

impl Gauges {
    /// Counts `sockets`. A pair that shows up here only (its sockets were there before the agent, or it leaks and so
    /// closes nothing) asks for a name too: the one with the most stuck sockets first, then the one with the most sockets.
    /// A pair with sockets is not idle: those with a name come first, and keep it. `kind`: how surely the port of a socket is a service's.
    pub fn count<'a>(
        sockets: impl Iterator<Item = (&'a TrackedSocket, Option<&'a LastWrite>)>,
        kind: &impl Fn(&TrackedSocket) -> PortKind,
        port_labels: &mut PortLabels,
        stuck_after: &StuckAfter,
        dumped: &impl Fn(u32) -> bool,
        now_ns: u64,
    ) -> Self {
        let mut gauges = Self::default();
        let classes = stuck_after.bounds_ns.len();
        let mut pairs: BTreeMap<PortKey, PairCount> = BTreeMap::new();
        for (socket, written) in sockets {
            let kind = kind(socket);
            let count = pairs.entry(socket.pair()).or_insert_with(|| PairCount::new(kind));
            count.kind = count.kind.min(kind);
            let standing = &mut count.standing[socket.phase as usize];
            standing.sockets += 1;
            standing.oldest_ns = standing.oldest_ns.max(socket.since.age(now_ns).min_ns);
            match stuck_after.judge(socket, written, now_ns, dumped) {
                Stuckness::Stuck(class) => {
                    count.stuck.resize(classes, 0);
                    if let Some(n) = count.stuck.get_mut(class) {
                        *n += 1;
                    }
                }
                Stuckness::Unproven => count.unproven += 1,
                Stuckness::Not => {}
            }
        }
        let mut pairs: Vec<(PortKey, PairCount)> = pairs.into_iter().collect();
        // A stable sort: of two equal pairs the same one is named each time.
        pairs.sort_by_cached_key(|(pair, count)| {
            (!port_labels.is_named(*pair), Reverse(count.stuck.iter().sum::<u64>()), Reverse(count.sockets()))
        });
        let mut others = BTreeSet::new();
        for (pair, count) in pairs {
            let request = LabelRequest { pair, kind: count.kind, stuck: !count.stuck.is_empty() };
            let label = port_labels.label(request, now_ns);
            if label.port.is_none() {
                others.insert(label);
            }
            gauges.add(label, &count, classes);
        }
        let named = port_labels.named().map(|pair| PortLabel { side: pair.side, port: Some(pair.port) });
        for label in named.chain(others) {
            gauges.stuck.entry(label).or_insert_with(|| vec![0; classes]);
            gauges.unproven.entry(label).or_default();
        }
        gauges
    }

    /// Adds the sockets of one pair.
    fn add(&mut self, label: PortLabel, count: &PairCount, classes: usize) {
        for (phase, one) in Phase::ALL.into_iter().zip(&count.standing).filter(|(_, one)| one.sockets > 0) {
            let standing = self.standing.entry((label, phase)).or_default();
            standing.sockets += one.sockets;
            standing.oldest_ns = standing.oldest_ns.max(one.oldest_ns);
        }
        if !count.stuck.is_empty() {
            let stuck = self.stuck.entry(label).or_insert_with(|| vec![0; classes]);
            stuck.iter_mut().zip(&count.stuck).for_each(|(n, one)| *n += one);
        }
        if count.unproven > 0 {
            *self.unproven.entry(label).or_default() += count.unproven;
        }
    }
}

/// The sockets of one pair.
struct PairCount {
    kind: PortKind,
    standing: [Standing; Phase::ALL.len()],
    /// By class of age; empty where none is stuck.
    stuck: Vec<u64>,
    unproven: u64,
}

impl PairCount {
    fn new(kind: PortKind) -> Self {
        Self { kind, standing: Default::default(), stuck: Vec::new(), unproven: 0 }
    }

    fn sockets(&self) -> u64 {
        self.standing.iter().map(|standing| standing.sockets).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::charge::Charge;
    use crate::names::{Flow, Role, Side, WriteLook};
    use crate::tracker::socket::{AddressOrExpiry, AtFin, EnteredAt, MinisocketState, SocketKind};

    const S: u64 = 1_000_000_000;
    const NETNS: u32 = 7;

    fn dumped(netns: u32) -> bool {
        netns == NETNS
    }

    fn socket(phase: Phase, since: EnteredAt) -> TrackedSocket {
        let flow = Flow::new("10.0.0.1:80".parse().unwrap(), "10.0.0.2:4000".parse().unwrap());
        TrackedSocket {
            cookie: 1,
            address_or_expiry: AddressOrExpiry::NONE,
            flow,
            netns: NETNS,
            port: 80,
            side: Side::Server,
            role: Role::Passive,
            phase,
            kind: SocketKind::Socket,
            minisocket: MinisocketState::Unknown,
            counted: false,
            since,
            event_ns: 0,
            seen_ns: u64::MAX / 2,
            missed: false,
            between_dumps: false,
            at_fin: AtFin::Unknown,
            closed_ns: 0,
            closer_pid: None,
        }
    }

    #[test]
    fn age_classes_are_disjoint_and_named_by_the_bound_last_passed() {
        let bounds = StuckAfter::new(vec![60 * S, 600 * S, 3600 * S]).unwrap();
        let judge = |age: u64| {
            bounds.judge(
                &socket(Phase::CloseWait, EnteredAt::exact(10_000 * S - age * S)),
                None,
                10_000 * S,
                dumped,
            )
        };
        assert_eq!(judge(59), Stuckness::Not);
        assert_eq!(judge(60), Stuckness::Stuck(0));
        assert_eq!(judge(599), Stuckness::Stuck(0));
        assert_eq!(judge(600), Stuckness::Stuck(1));
        assert_eq!(judge(9000), Stuckness::Stuck(2));
    }

    #[test]
    fn stuck_is_proven_dumped_and_silent() {
        let bounds = StuckAfter::new(vec![60 * S]).unwrap();
        let now = 10_000 * S;
        let judge = |socket: &TrackedSocket| bounds.judge(socket, None, now, dumped);
        let sure = socket(Phase::CloseWait, EnteredAt::exact(now - 100 * S));
        assert_eq!(judge(&sure), Stuckness::Stuck(0));
        assert_eq!(judge(&TrackedSocket { phase: Phase::LastAck, ..sure }), Stuckness::Not);
        let checked = TrackedSocket { seen_ns: now - 10 * S, ..sure };
        let after = |earliest: u64, latest: u64| {
            let look =
                WriteLook { made_ns: 0, written: 1, busy_ms: 0, sent_ns: 0, latest_ns: now - latest * S };
            let mut write = LastWrite::seen(None, look);
            write.earliest_ns = now - earliest * S;
            bounds.judge(&checked, Some(&write), now, dumped)
        };
        assert_eq!(after(11, 11), Stuckness::Not, "still sending");
        assert_eq!(after(69, 69), Stuckness::Not, "not known to have stopped");
        assert_eq!(after(70, 70), Stuckness::Stuck(0), "written long ago");
        assert_eq!(after(90, 11), Stuckness::Unproven, "sent again, or written");
        assert_eq!(
            judge(&TrackedSocket { seen_ns: now - 50 * S, ..sure }),
            Stuckness::Not,
            "not looked at since"
        );
        assert_eq!(
            judge(&TrackedSocket { seen_ns: 0, netns: 8, ..sure }),
            Stuckness::Stuck(0),
            "cannot be looked at"
        );
        let interval = EnteredAt { earliest_ns: now - 100 * S, latest_ns: now - 10 * S };
        assert_eq!(judge(&TrackedSocket { since: interval, ..sure }), Stuckness::Unproven);
        let unbounded = EnteredAt { earliest_ns: 0, latest_ns: now - 10 * S };
        assert_eq!(judge(&TrackedSocket { since: unbounded, ..sure }), Stuckness::Unproven);
        let young = EnteredAt { earliest_ns: now - 20 * S, latest_ns: now - 10 * S };
        assert_eq!(judge(&TrackedSocket { since: young, ..sure }), Stuckness::Not);
    }

    #[test]
    fn a_leak_that_nobody_asked_about_for_hours_keeps_its_name() {
        const HOUR: u64 = 3600 * S;
        let bounds = StuckAfter::new(vec![60 * S]).unwrap();
        // One name, which is for any known pair.
        let mut labels = PortLabels::new(1, &[]);
        let on = |port| TrackedSocket { port, ..socket(Phase::CloseWait, EnteredAt::exact(S)) };
        let mut count = |sockets: &[TrackedSocket], now_ns| {
            let sockets = sockets.iter().map(|socket| (socket, None));
            Gauges::count(sockets, &|_| PortKind::Service, &mut labels, &bounds, &|_| false, now_ns);
            labels.named().map(|pair| pair.port).collect::<Vec<u16>>()
        };
        assert_eq!(count(&[on(80)], 2 * S), [80]);
        assert_eq!(count(&[on(80), on(443), on(443)], 2 * HOUR), [80]);
        assert_eq!(count(&[on(443)], 4 * HOUR), [443], "an idle one loses it");
    }

    #[test]
    fn every_named_pair_has_its_stuck_gauges_from_the_first() {
        let bounds = StuckAfter::new(vec![60 * S, 600 * S]).unwrap();
        let mut labels = PortLabels::new(8, &[]);
        let pair = PortKey { side: Side::Client, port: 443 };
        labels.label(LabelRequest { pair, kind: PortKind::Service, stuck: false }, 1);
        let sockets =
            [socket(Phase::CloseWait, EnteredAt::exact(S)), socket(Phase::LastAck, EnteredAt::exact(2 * S))];
        let gauges = Gauges::count(
            sockets.iter().map(|socket| (socket, None)),
            &|_| PortKind::Service,
            &mut labels,
            &bounds,
            &dumped,
            100 * S,
        );
        let server = PortLabel { side: Side::Server, port: Some(80) };
        let client = PortLabel { side: Side::Client, port: Some(443) };
        let one = |age| Standing { sockets: 1, oldest_ns: age };
        assert_eq!(
            gauges.standing,
            BTreeMap::from([
                ((server, Phase::CloseWait), one(99 * S)),
                ((server, Phase::LastAck), one(98 * S))
            ])
        );
        assert_eq!(gauges.stuck, BTreeMap::from([(server, vec![1, 0]), (client, vec![0, 0])]));
        assert_eq!(gauges.unproven, BTreeMap::from([(server, 0), (client, 0)]));
    }

    /// A host whose clients and servers have random ports, and three programs among them that leak: a leak on a fresh port
    /// closes nothing, so that a hundred closes never come.
    #[test]
    fn three_leaks_among_five_thousand_chance_ports_are_named() {
        const LEAKS: [u16; 3] = [34_567, 41_000, 36_001];
        let bounds = StuckAfter::new(vec![60 * S]).unwrap();
        let mut labels = PortLabels::new(32, &[]);
        let on = |port: u16, phase, age_s: u64| {
            let since = EnteredAt::exact((1000 - age_s) * S);
            TrackedSocket { port, ..socket(phase, since) }
        };
        let ports = 33_000..38_000_u16;
        let mut sockets: Vec<TrackedSocket> = ports.map(|port| on(port, Phase::TimeWait, 30)).collect();
        for (nth, leak) in LEAKS.into_iter().enumerate() {
            sockets.extend((0..=nth).map(|_| on(leak, Phase::CloseWait, 100)));
            labels.facts().holds(PortKey { side: Side::Server, port: leak }, Charge::User(1000));
        }
        let kind = |_: &TrackedSocket| PortKind::Chance;
        let gauges = Gauges::count(
            sockets.iter().map(|socket| (socket, None)),
            &kind,
            &mut labels,
            &bounds,
            &dumped,
            1000 * S,
        );
        let stuck: Vec<(Option<u16>, u64)> =
            gauges.stuck.iter().filter(|(_, n)| n[0] > 0).map(|(label, n)| (label.port, n[0])).collect();
        assert_eq!(stuck, [(Some(34_567), 1), (Some(36_001), 3), (Some(41_000), 2)]);
        assert_eq!(labels.named().count(), LEAKS.len());
        let others: u64 = gauges
            .standing
            .iter()
            .filter(|((label, _), _)| label.port.is_none())
            .map(|(_, one)| one.sockets)
            .sum();
        assert_eq!(others, 5000 - 2, "two leaks have a TIME-WAIT too");
    }
}
