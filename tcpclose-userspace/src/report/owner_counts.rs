//! Stuck sockets per process, which the agent exports by owner.

use std::collections::BTreeMap;

use crate::failure::printable;
use crate::names::Diagnosis;
use crate::report::sockets::{Owner, StuckSocket};

/// Owners with a count of their own; all others share one.
pub const MOST: usize = 32;

/// The owner of a count, as the labels of the metric.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerLabels {
    /// `unknown` for sockets without a known owner, `other` for the rest of the owners.
    pub comm: String,
    /// Empty where there is none, like the two below.
    pub unit: String,
    /// As kube-state-metrics writes it.
    pub container_id: String,
    /// The pod's uid, as kube-state-metrics names it.
    pub uid: String,
}

impl OwnerLabels {
    fn named(comm: &str) -> Self {
        Self { comm: comm.to_owned(), ..Self::default() }
    }

    fn of(owner: &Owner) -> Self {
        // Control characters are valid in a label, but harm terminals.
        let text = |name: &Option<String>| printable(name.as_deref().unwrap_or_default()).into_owned();
        Self {
            comm: printable(&owner.comm).into_owned(),
            unit: text(&owner.place.unit),
            container_id: text(&owner.place.container_id),
            uid: text(&owner.place.pod_uid),
        }
    }
}

/// Counts those of `sockets` that are stuck: in CLOSE-WAIT for `bound` seconds by the proven minimum, and not at work.
/// Each counts once, for the process with the lowest pid of those that hold it (the parent of a forked server, as a
/// rule); one without a known owner counts as `unknown`. The [`MOST`] largest are named.
pub fn tally(sockets: &[StuckSocket], bound: f64) -> Vec<(OwnerLabels, u64)> {
    let mut counts: BTreeMap<OwnerLabels, u64> = BTreeMap::new();
    let stuck = sockets.iter().filter(|socket| {
        socket.diagnosis.is_some_and(|why| why != Diagnosis::StillSending) && socket.is_past(bound)
    });
    for socket in stuck {
        let owner = socket.owners.iter().min_by_key(|owner| owner.pid);
        *counts.entry(owner.map_or_else(|| OwnerLabels::named("unknown"), OwnerLabels::of)).or_default() += 1;
    }
    let mut counts: Vec<(OwnerLabels, u64)> = counts.into_iter().collect();
    // A stable sort: of two equal counts the same one is named each time.
    counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    if counts.len() > MOST {
        let rest = counts.split_off(MOST).iter().map(|(_, n)| n).sum();
        let other = OwnerLabels::named("other");
        match counts.iter_mut().find(|(holder, _)| *holder == other) {
            // A process may have this name.
            Some((_, n)) => *n += rest,
            None => counts.push((other, rest)),
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::cgroup::Workload;
    use crate::report::fixtures::{in_place, owner, socket};

    #[test]
    fn each_stuck_socket_counts_once_and_the_largest_are_named() {
        let mut sockets = Vec::new();
        for pid in 1..=40_u32 {
            let parent = owner(pid, &format!("p{pid}\n"), (1, 2));
            let child = owner(1000 + pid, "child", (1, 2));
            sockets.extend((0..pid).map(|_| socket(60, &[child.clone(), parent.clone()])));
        }
        sockets.push(socket(60, &[]));
        sockets.push(socket(59, &[owner(1, "young", (1, 2))]));
        sockets.push(StuckSocket { diagnosis: Some(Diagnosis::StillSending), ..socket(60, &[]) });
        let counts = tally(&sockets, 60.0);
        assert_eq!(counts.len(), MOST + 1);
        assert_eq!(counts[0], (OwnerLabels::named(r"p40\n"), 40));
        // p1 to p8, and the one without an owner.
        assert_eq!(counts[MOST], (OwnerLabels::named("other"), 36 + 1));
        assert_eq!(counts.iter().map(|(_, n)| n).sum::<u64>(), (1..=40).sum::<u64>() + 1);
        assert_eq!(tally(&sockets[..1], 60.0).len(), 1);
        assert!(tally(&[], 60.0).is_empty());
    }

    #[test]
    fn a_process_that_calls_itself_other_makes_no_series_twice() {
        let mut sockets: Vec<StuckSocket> =
            (1..=40_u32).map(|pid| socket(60, &[owner(pid, &format!("p{pid}"), (1, 2))])).collect();
        sockets
            .extend([socket(60, &[owner(99, "other", (1, 2))]), socket(60, &[owner(99, "other", (1, 2))])]);
        let counts = tally(&sockets, 60.0);
        assert_eq!(counts.iter().filter(|(holder, _)| holder.comm == "other").count(), 1);
        assert_eq!(counts.iter().map(|(_, n)| n).sum::<u64>(), 42);
    }

    #[test]
    fn places_are_labels() {
        let placed = in_place(
            owner(1, "api", (1, 2)),
            Workload {
                unit: Some("api.service".into()),
                container_id: Some("containerd://ab".into()),
                pod_uid: Some("2c".into()),
            },
        );
        let [(holder, 1)] = &tally(&[socket(60, &[placed])], 60.0)[..] else { panic!("one") };
        assert_eq!(
            (&*holder.unit, &*holder.container_id, &*holder.uid),
            ("api.service", "containerd://ab", "2c")
        );
    }
}
