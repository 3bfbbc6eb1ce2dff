//! Which owners of stuck sockets have a series of their own, so that their number is bounded over time too: a process can take
//! a new name, and a user's manager a new unit, before each count.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::report::owner_counts::{MOST, OwnerCount, OwnerLabels};

const HOUR_NS: u64 = 3_600_000_000_000;
/// New series in an hour: of all, of ordinary users together, and of one user, container, pod or unit. The last of one is
/// kept for what is left of its owners.
const NEW: usize = 64;
const NEW_OF_USERS: usize = 32;
const NEW_OF_ONE: usize = 8;

/// Ids from here on are commonly subordinate ones (subuid(5)), of which one user can have thousands.
const SHARED_IDS: u32 = 1 << 16;

/// Whom a new series is charged to: what a process cannot choose itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Maker {
    Container(String),
    Pod(String),
    User(u32),
    /// Of root's.
    Unit(String),
}

impl Maker {
    fn of(labels: &OwnerLabels, uid: u32) -> Self {
        let OwnerLabels { unit, container_id, uid: pod, .. } = labels;
        match () {
            () if !container_id.is_empty() => Self::Container(container_id.clone()),
            () if !pod.is_empty() => Self::Pod(pod.clone()),
            () if uid != 0 => Self::User(uid.min(SHARED_IDS)),
            () => Self::Unit(unit.clone()),
        }
    }

    /// What is left of the labels of those that have no series of their own.
    fn rest(&self, labels: &OwnerLabels) -> OwnerLabels {
        let OwnerLabels { unit, container_id, uid, .. } = labels;
        let place = match self {
            // The container's own names for its processes and units are gone, the place is sure.
            Self::Container(_) | Self::Pod(_) => (String::new(), container_id.clone(), uid.clone()),
            Self::Unit(_) => (unit.clone(), String::new(), String::new()),
            Self::User(_) => Default::default(),
        };
        let (unit, container_id, uid) = place;
        OwnerLabels { comm: "other".to_owned(), unit, container_id, uid }
    }
}

/// The owners that have a series.
#[derive(Debug, Default)]
pub struct OwnerSeries {
    /// When each was counted last, CLOCK_MONOTONIC. An owner that comes back within an hour is not new.
    known: HashMap<OwnerLabels, u64>,
    /// The new ones of the last hour.
    new: VecDeque<(u64, Maker)>,
}

impl OwnerSeries {
    /// The counts to export at `now_ns`: the [`MOST`] largest owners that may have a series, and the rest under `other`.
    pub fn name(
        &mut self,
        counts: BTreeMap<OwnerLabels, OwnerCount>,
        now_ns: u64,
    ) -> Vec<(OwnerLabels, u64)> {
        let recent = |at_ns: u64| now_ns.saturating_sub(at_ns) < HOUR_NS;
        self.known.retain(|_, &mut at_ns| recent(at_ns));
        while self.new.front().is_some_and(|&(at_ns, _)| !recent(at_ns)) {
            self.new.pop_front();
        }
        let mut counts: Vec<(OwnerLabels, OwnerCount)> = counts.into_iter().collect();
        // A stable sort: of two equal counts the same one is named each time.
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(count.sockets));
        let other = OwnerLabels::named("other");
        let mut named: Vec<(OwnerLabels, u64)> = Vec::new();
        let mut others = 0;
        for (labels, OwnerCount { sockets, uid }) in counts {
            let maker = Maker::of(&labels, uid);
            let rest = Some(maker.rest(&labels)).filter(|rest| *rest != other);
            let choices = [Some((labels, NEW_OF_ONE - 1)), rest.map(|rest| (rest, NEW_OF_ONE))];
            let has_series = choices.into_iter().flatten().any(|(label, most)| {
                if let Some((_, n)) = named.iter_mut().find(|(known, _)| *known == label) {
                    *n += sockets;
                    return true;
                }
                let admitted = named.len() < MOST && self.admit(&label, &maker, most, now_ns);
                if admitted {
                    named.push((label, sockets));
                }
                admitted
            });
            if !has_series {
                others += sockets;
            }
        }
        match named.iter_mut().find(|(label, _)| *label == other) {
            // A process may have this name.
            Some((_, n)) => *n += others,
            None if others > 0 => named.push((other, others)),
            None => {}
        }
        named
    }

    /// Whether an owner may have a series: it has one, or the hour has room for one more, of at most `most` of `maker`.
    fn admit(&mut self, labels: &OwnerLabels, maker: &Maker, most: usize, now_ns: u64) -> bool {
        if let Some(at_ns) = self.known.get_mut(labels) {
            *at_ns = now_ns;
            return true;
        }
        let new = |of: &dyn Fn(&Maker) -> bool| self.new.iter().filter(|(_, maker)| of(maker)).count();
        let is_user = |maker: &Maker| matches!(maker, Maker::User(_));
        let full = self.new.len() >= NEW
            || is_user(maker) && new(&is_user) >= NEW_OF_USERS
            || new(&|other| other == maker) >= most;
        if !full {
            self.known.insert(labels.clone(), now_ns);
            self.new.push_back((now_ns, maker.clone()));
        }
        !full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_NS: u64 = 60_000_000_000;

    fn labels(comm: &str, unit: &str, container_id: &str) -> OwnerLabels {
        let uid = String::new();
        OwnerLabels {
            comm: comm.to_owned(),
            unit: unit.to_owned(),
            container_id: container_id.to_owned(),
            uid,
        }
    }

    fn count(sockets: u64, uid: u32) -> OwnerCount {
        OwnerCount { sockets, uid }
    }

    /// It has a new name, and runs in a new unit of its user's manager, at each count for a day.
    #[test]
    fn a_process_that_renames_itself_makes_few_series() {
        let mut series = OwnerSeries::default();
        let mut seen: Vec<OwnerLabels> = Vec::new();
        let day_ns = 24 * HOUR_NS;
        for now_ns in (HOUR_NS..HOUR_NS + day_ns).step_by(MINUTE_NS as usize / 2) {
            let renamed = labels(&format!("x{now_ns}"), &format!("run-{now_ns}.scope"), "");
            let honest = labels("api", "api.service", "");
            let counts = BTreeMap::from([(renamed, count(50, 1000)), (honest.clone(), count(3, 106))]);
            let named = series.name(counts, now_ns);
            assert_eq!(named.iter().map(|(_, sockets)| sockets).sum::<u64>(), 53);
            assert!(named.contains(&(honest, 3)), "another owner keeps its series");
            seen.extend(named.into_iter().map(|(labels, _)| labels));
            assert!(series.known.len() <= NEW && series.new.len() <= NEW);
        }
        seen.sort_unstable();
        seen.dedup();
        println!("{} series in a day", seen.len());
        assert!(seen.len() <= 2 + 24 * NEW_OF_ONE, "{}", seen.len());
    }

    #[test]
    fn users_with_many_ids_leave_series_for_containers_and_units() {
        let mut series = OwnerSeries::default();
        let attack = (0..500).map(|nth| (labels(&format!("x{nth}"), "", ""), count(9, 100_000 + nth)));
        let more = (0..500).map(|nth| (labels(&format!("y{nth}"), "", ""), count(9, 2000 + nth % 20)));
        let users = series.name(attack.chain(more).collect(), 1);
        assert!(users.len() <= NEW_OF_USERS + 1, "{}", users.len());
        let pod = (labels("api", "", "containerd://ab"), count(1, 0));
        let unit = (labels("nginx", "nginx.service", ""), count(1, 0));
        let named = series.name(BTreeMap::from([pod, unit]), 2);
        assert!(named.iter().all(|(labels, _)| labels.comm != "other"), "{named:?}");
    }

    #[test]
    fn a_container_that_renames_its_processes_is_still_named() {
        let mut series = OwnerSeries::default();
        let names = (0..20).map(|nth| (labels(&format!("x{nth}"), "", "containerd://ab"), count(1, 0)));
        let named = series.name(names.collect(), 1);
        assert_eq!(named.len(), NEW_OF_ONE);
        assert_eq!(named.iter().map(|(_, sockets)| sockets).sum::<u64>(), 20);
        let again = series.name(BTreeMap::from([(labels("z", "", "containerd://ab"), count(7, 0))]), 2);
        assert_eq!(again, [(labels("other", "", "containerd://ab"), 7)]);
    }
}
