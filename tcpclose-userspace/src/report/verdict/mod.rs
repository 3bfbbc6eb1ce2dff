//! The verdict on the stuck sockets of a program: from what looks at them, and records of how others ended, have shown. Pure.
//!
//! * [`history`]: what has been seen of a group. [`rules`]: which verdict that allows. [`words`]: the evidence for people.

pub mod history;
pub mod rules;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::names::{Phase, PortKey, Side, Verdict};
use crate::report::sockets::StuckSocket;
use crate::report::verdict::history::{History, LateEnd, is_stuck};
use crate::report::verdict::rules::{StuckBounds, judge, may_change};
use crate::report::verdict_group::VerdictGroup;

/// Groups that are kept: those with the most stuck sockets.
const MOST_GROUPS: usize = 256;
/// Sockets that are told one from another: of one group, and of all, the smaller groups first. Of other groups the number alone counts.
const MOST_OF_GROUP: usize = 4096;
const MOST_SOCKETS: usize = 32_768;

/// The sockets of the same processes on one side of one port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct VerdictKey {
    pids: Vec<u32>,
    of_children: bool,
    side: Side,
    port: u16,
}

#[derive(Clone, Debug)]
struct Group {
    key: VerdictKey,
    comm: String,
    /// The process to look at first, as of the last look.
    first: u32,
    history: History,
}

/// The groups of stuck sockets, and the verdicts on them.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    groups: Vec<Group>,
    /// Where in `groups` the group of a socket is, and the groups of a process.
    by_cookie: FxHashMap<u64, u32>,
    by_pid: FxHashMap<u32, Vec<u32>>,
    bounds: Option<StuckBounds>,
}

impl Verdicts {
    /// Whether records are of no use to it.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Takes a look at every socket in CLOSE-WAIT, and at those in FIN-WAIT-2 that processes hold.
    pub fn look(
        &mut self,
        close_wait: &[StuckSocket],
        fin_wait_2: &[StuckSocket],
        bounds: StuckBounds,
        now_ns: u64,
    ) {
        let bound = bounds.first_ns as f64 / 1e9;
        let forking = forking(close_wait, bound);
        let mut met: FxHashMap<VerdictKey, Vec<&StuckSocket>> = FxHashMap::default();
        for socket in close_wait {
            if let Some(key) = key_of(socket, &forking) {
                met.entry(key).or_default().push(socket);
            }
        }
        let mut groups: FxHashMap<VerdictKey, Group> =
            std::mem::take(&mut self.groups).into_iter().map(|group| (group.key.clone(), group)).collect();
        met.retain(|key, sockets| {
            groups.contains_key(key) || sockets.iter().any(|socket| is_stuck(socket, bound))
        });
        let mut by_size: Vec<(&VerdictKey, &Vec<&StuckSocket>)> = met.iter().collect();
        by_size.sort_by_key(|(key, sockets)| (sockets.len(), *key));
        let mut room = MOST_SOCKETS;
        for (key, sockets) in by_size {
            let group = groups.entry(key.clone()).or_insert_with(|| Group {
                key: key.clone(),
                comm: comm_of(sockets),
                first: 0,
                history: History::new(now_ns),
            });
            let owner = sockets.first().and_then(|socket| socket.first_owner());
            group.first = owner.map_or(0, |owner| owner.pid);
            let most = room.min(MOST_OF_GROUP);
            group.history.look(sockets, half_closed(key, sockets, fin_wait_2), (bound, most), now_ns);
            room = room.saturating_sub(group.history.known());
        }
        for group in groups.values_mut().filter(|group| !met.contains_key(&group.key)) {
            group.history.look(&[], 0, (bound, 0), now_ns);
        }
        // What has no stuck socket is remembered for a while: those of a pool come again.
        let is_wanted = |group: &Group| {
            let last = group.history.counts.iter().rev().find(|count| count.stuck > 0);
            last.is_some_and(|last| now_ns.saturating_sub(last.at_ns) <= bounds.growth_ns())
        };
        self.groups = groups.into_values().filter(is_wanted).collect();
        self.groups.sort_by(|a, b| {
            let order = |group: &Group| (std::cmp::Reverse(group.history.present.stuck), group.key.clone());
            order(a).cmp(&order(b))
        });
        self.groups.truncate(MOST_GROUPS);
        self.bounds = Some(bounds);
        self.index(&met);
        for Group { key, history, .. } in &mut self.groups {
            let verdict = judge(key.side, history, bounds).verdict;
            if verdict != history.verdict && may_change(history.verdict, verdict, history) {
                history.former = Some(history.verdict).filter(|former| *former != Verdict::Undecided);
                (history.verdict, history.verdict_ns) = (verdict, now_ns);
                history.at_verdict = (history.arrivals, history.ends.all());
            }
        }
    }

    /// Takes note that no socket is stuck now. What was may have ended, or be used again: nobody has looked.
    pub fn nothing_stuck(&mut self, bounds: StuckBounds, now_ns: u64) {
        let forget =
            |groups: &mut [Group]| groups.iter_mut().for_each(|group| group.history.forget_sockets());
        forget(&mut self.groups);
        self.look(&[], &[], bounds, now_ns);
        forget(&mut self.groups);
    }

    fn index(&mut self, met: &FxHashMap<VerdictKey, Vec<&StuckSocket>>) {
        self.by_cookie.clear();
        self.by_pid.clear();
        for (at, Group { key, history, .. }) in (0..).zip(&self.groups) {
            for socket in met.get(key).into_iter().flatten() {
                if history.has(socket.cookie.0) {
                    self.by_cookie.insert(socket.cookie.0, at);
                }
                for owner in &socket.owners {
                    let groups = self.by_pid.entry(owner.pid).or_default();
                    if !groups.contains(&at) {
                        groups.push(at);
                    }
                }
            }
        }
    }

    /// A socket left CLOSE-WAIT after `time_ns`. One that no look has met says nothing: nobody knows whose it was, and anybody can make
    /// such sockets.
    pub fn left(&mut self, cookie: u64, how: LateEnd, time_ns: u64) {
        let (Some(bounds), Some(at)) = (self.bounds, self.by_cookie.remove(&cookie)) else { return };
        if let Some(group) = self.groups.get_mut(at as usize) {
            group.history.ended(cookie, how, time_ns, bounds.late_ns());
        }
    }

    /// The process `pid` closed a connection, or sent its FIN, that is none of those in CLOSE-WAIT that were met.
    pub fn closed(&mut self, pid: u32, cookie: u64, at_ns: u64) {
        if self.by_cookie.contains_key(&cookie) {
            return;
        }
        for at in self.by_pid.get(&pid).into_iter().flatten() {
            if let Some(group) = self.groups.get_mut(*at as usize) {
                group.history.closed_other(at_ns);
            }
        }
    }

    /// The groups with stuck sockets, the largest first.
    pub fn groups(&self, now_ns: u64) -> Vec<VerdictGroup> {
        let Some(bounds) = self.bounds else { return Vec::new() };
        let present = self.groups.iter().filter(|group| group.history.present.stuck > 0);
        present.map(|group| describe(group, bounds, now_ns)).collect()
    }

    /// Stuck sockets by pair and verdict.
    pub fn counts(&self) -> BTreeMap<(PortKey, Verdict), u64> {
        let mut counts = BTreeMap::new();
        for Group { key, history, .. } in self.groups.iter().filter(|group| group.history.present.stuck > 0) {
            let pair = PortKey { side: key.side, port: key.port };
            *counts.entry((pair, history.verdict)).or_default() += history.present.stuck;
        }
        counts
    }
}

fn describe(group: &Group, bounds: StuckBounds, now_ns: u64) -> VerdictGroup {
    let Group { key, comm, first, history } = group;
    let mut pids = key.pids.clone();
    // A worker rather than its master; those of children are of their parent.
    pids.sort_by_key(|pid| pid != first);
    let seconds = |ns: u64| ns as f64 / 1e9;
    let waits = judge(key.side, history, bounds).waits.filter(|_| history.verdict == Verdict::Undecided);
    VerdictGroup {
        pids,
        of_children: key.of_children,
        comm: comm.clone(),
        side: key.side,
        port: key.port,
        stuck: history.present.stuck,
        verdict: history.verdict,
        for_seconds: seconds(now_ns.saturating_sub(history.verdict_ns)),
        evidence: words::evidence(key.side, history),
        waits_for: waits.map(|waits| words::waits_for(waits, now_ns)),
        advice: words::advice(key.side, history),
        watched_seconds: seconds(history.watched_ns()),
        growth_per_hour: history.growth_per_hour(),
        arrived: history.arrivals,
        closed_late: history.ends.closed,
        reset_after_write: history.ends.reset_after_write,
        reset_by_peer: history.ends.reset_by_peer,
        destroyed: history.ends.destroyed,
        ended_unseen: history.ends.other,
        silent_seconds: history.present.silent_before,
    }
}

/// The group that `socket` is in.
pub fn group_of<'a>(socket: &StuckSocket, groups: &'a [VerdictGroup]) -> Option<&'a VerdictGroup> {
    let is_of = |group: &&VerdictGroup| {
        let holds = |pid: u32| group.pids.contains(&pid);
        (group.side, group.port) == (socket.side, socket.port)
            && !socket.owners.is_empty()
            && match group.of_children {
                true => child_of(socket).is_some_and(|(_, parent)| holds(parent)),
                false => socket.owners.iter().all(|owner| holds(owner.pid)),
            }
    };
    groups.iter().find(is_of)
}

fn comm_of(sockets: &[&StuckSocket]) -> String {
    let first = sockets.iter().find_map(|socket| socket.first_owner());
    first.map(|owner| owner.comm.clone()).unwrap_or_default()
}

/// The group of `socket`; `None` where nobody is known to hold it.
fn key_of(socket: &StuckSocket, forking: &FxHashSet<(&str, u32)>) -> Option<VerdictKey> {
    let (side, port) = (socket.side, socket.port);
    if let Some(child) = child_of(socket).filter(|child| forking.contains(child)) {
        return Some(VerdictKey { pids: vec![child.1], of_children: true, side, port });
    }
    let mut pids: Vec<u32> = socket.owners.iter().map(|owner| owner.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    (!pids.is_empty()).then_some(VerdictKey { pids, of_children: false, side, port })
}

/// The name and the parent of the one process that holds `socket`, if its parent is not init, which any process may be left to.
pub fn child_of(socket: &StuckSocket) -> Option<(&str, u32)> {
    let owner = socket.owners.first()?;
    let is_one = socket.owners.iter().all(|other| other.pid == owner.pid) && !owner.candidate;
    let parent = owner.parent.filter(|parent| is_one && *parent != 1)?;
    Some((owner.comm.as_str(), parent))
}

/// Names and parents of processes that are many, and hold few of `sockets` each: children of a server that forks for each connection.
pub fn forking_of<'a>(sockets: impl Iterator<Item = &'a StuckSocket>) -> FxHashSet<(&'a str, u32)> {
    /// Workers of a server are fewer as a rule, and each wants its line.
    const MANY: usize = 10;
    const FEW: usize = 2;
    let mut families: FxHashMap<(&str, u32), (FxHashSet<u32>, usize)> = FxHashMap::default();
    for socket in sockets {
        if let (Some(family), Some(owner)) = (child_of(socket), socket.owners.first()) {
            let (pids, count) = families.entry(family).or_default();
            pids.insert(owner.pid);
            *count += 1;
        }
    }
    let forks = |(pids, count): &(FxHashSet<u32>, usize)| pids.len() >= MANY && *count <= FEW * pids.len();
    families.into_iter().filter(|(_, of)| forks(of)).map(|(family, _)| family).collect()
}

fn forking(sockets: &[StuckSocket], bound: f64) -> FxHashSet<(&str, u32)> {
    forking_of(sockets.iter().filter(|socket| is_stuck(socket, bound)))
}

/// How many of `fin_wait_2` the processes of `sockets` hold on the other side than these are on: a proxy has passed the end on.
fn half_closed(key: &VerdictKey, sockets: &[&StuckSocket], fin_wait_2: &[StuckSocket]) -> u64 {
    if fin_wait_2.is_empty() {
        return 0;
    }
    let pids: FxHashSet<u32> =
        sockets.iter().flat_map(|socket| &socket.owners).map(|owner| owner.pid).collect();
    let is_other = |side: Side| side != Side::Unknown && key.side != Side::Unknown && side != key.side;
    let is_of = |socket: &&StuckSocket| {
        socket.state == Phase::FinWait2
            && is_other(socket.side)
            && socket.owners.iter().any(|owner| pids.contains(&owner.pid))
    };
    fin_wait_2.iter().filter(is_of).count() as u64
}
