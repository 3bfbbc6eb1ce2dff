//! Stuck sockets by owner and by diagnosis, which the agent exports.

use std::collections::BTreeMap;

use crate::failure::printable;
use crate::names::Diagnosis;
use crate::report::sockets::{Owner, StuckSocket};

/// Owners with a count of their own; all others share one.
pub const MOST: usize = 32;

/// The owner of a count, as the labels of the metric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerLabels {
    /// `unknown` for sockets without a known owner, `other` for the rest of the owners, `api (shared by 3)` for sockets of three
    /// processes (without a name where theirs differ).
    pub comm: String,
    /// Empty where there is none, like the two below.
    pub unit: String,
    /// As kube-state-metrics writes it.
    pub container_id: String,
    /// The pod's uid, as kube-state-metrics names it.
    pub uid: String,
}

impl OwnerLabels {
    pub(super) fn named(comm: &str) -> Self {
        Self { comm: comm.to_owned(), ..Self::default() }
    }

    /// Of a socket that `owners` hold, in order of pid.
    fn of_all(owners: &[Owner]) -> Self {
        /// The largest number that is exact: workers that come and go do not make a series each.
        const EXACT: usize = 9;
        let [first, others @ ..] = owners else { return Self::named("unknown") };
        let processes = owners.chunk_by(|a, b| a.pid == b.pid).count();
        if processes == 1 {
            return Self::of(first);
        }
        let same = |fact: fn(&Owner) -> Option<&str>| others.iter().all(|other| fact(other) == fact(first));
        let Self { comm, unit, container_id, uid } = Self::of(first);
        let number = match processes {
            ..=EXACT => processes.to_string(),
            _ => format!("{} or more", EXACT + 1),
        };
        let common = |label: String, fact: fn(&Owner) -> Option<&str>| match same(fact) {
            true => label,
            false => String::new(),
        };
        Self {
            comm: match same(|owner| Some(&owner.comm)) {
                true => format!("{comm} (shared by {number})"),
                false => format!("shared by {number}"),
            },
            unit: common(unit, |owner| owner.place.unit.as_deref()),
            container_id: common(container_id, |owner| owner.place.container_id.as_deref()),
            uid: common(uid, |owner| owner.place.pod_uid.as_deref()),
        }
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

/// The stuck sockets of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerCount {
    pub sockets: u64,
    /// The user who made them; of several the lowest id.
    pub uid: u32,
}

/// The last count of stuck sockets; empty where none is stuck.
#[derive(Clone, Debug, Default)]
pub struct StuckCounts {
    pub owners: Vec<(OwnerLabels, u64)>,
    pub diagnoses: BTreeMap<Diagnosis, u64>,
}

/// Those of `sockets` that are stuck: in CLOSE-WAIT for `bound` seconds by the proven minimum, and not at work. Each has its
/// diagnosis.
fn stuck(sockets: &[StuckSocket], bound: f64) -> impl Iterator<Item = (&StuckSocket, Diagnosis)> {
    sockets.iter().filter_map(move |socket| match socket.diagnosis {
        Some(why) if why != Diagnosis::StillSending && socket.is_past(bound) => Some((socket, why)),
        _ => None,
    })
}

/// Counts those of `sockets` that are stuck by what their programs have not done.
pub fn diagnoses(sockets: &[StuckSocket], bound: f64) -> BTreeMap<Diagnosis, u64> {
    let mut counts = BTreeMap::new();
    for (_, why) in stuck(sockets, bound) {
        *counts.entry(why).or_default() += 1;
    }
    counts
}

/// Counts those of `sockets` that are stuck by owner. Each counts once. Several processes that hold it, or may have it in their queue, share it, for nothing proves which of them
/// should act: the labels are what they have in common. One without a known owner counts as `unknown`.
/// [`OwnerSeries`](crate::report::owner_series::OwnerSeries) says which owners are named.
pub fn tally(sockets: &[StuckSocket], bound: f64) -> BTreeMap<OwnerLabels, OwnerCount> {
    let mut counts: BTreeMap<OwnerLabels, OwnerCount> = BTreeMap::new();
    for (socket, _) in stuck(sockets, bound) {
        let labels = OwnerLabels::of_all(&socket.owners);
        let count = counts.entry(labels).or_insert(OwnerCount { sockets: 0, uid: socket.uid });
        count.sockets += 1;
        count.uid = count.uid.min(socket.uid);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::cgroup::Workload;
    use crate::report::fixtures::{in_place, owner, socket};
    use crate::report::owner_series::OwnerSeries;

    fn named(sockets: &[StuckSocket]) -> Vec<(OwnerLabels, u64)> {
        OwnerSeries::default().name(tally(sockets, 60.0), 1)
    }

    #[test]
    fn each_stuck_socket_counts_once_and_the_largest_are_named() {
        let mut sockets = Vec::new();
        for pid in 1..=40_u32 {
            let api = owner(pid, &format!("p{pid}\n"), (1, 2));
            let of_pid =
                || StuckSocket { uid: pid, ..socket(60, &[api.clone(), Owner { fd: 6, ..api.clone() }]) };
            sockets.extend((0..pid).map(|_| of_pid()));
        }
        sockets.push(socket(60, &[]));
        sockets.push(socket(59, &[owner(1, "young", (1, 2))]));
        sockets.push(StuckSocket { diagnosis: Some(Diagnosis::StillSending), ..socket(60, &[]) });
        let whys = diagnoses(&sockets, 60.0);
        assert_eq!(whys.values().sum::<u64>(), (1..=40).sum::<u64>() + 1);
        assert!(!whys.contains_key(&Diagnosis::StillSending));
        let counts = named(&sockets);
        assert_eq!(counts.len(), MOST + 1);
        assert_eq!(counts[0], (OwnerLabels::named(r"p40\n"), 40));
        // p1 to p8, and the one without an owner.
        assert_eq!(counts[MOST], (OwnerLabels::named("other"), 36 + 1));
        assert_eq!(counts.iter().map(|(_, n)| n).sum::<u64>(), (1..=40).sum::<u64>() + 1);
        assert_eq!(named(&sockets[..1]).len(), 1);
        assert!(named(&[]).is_empty());
    }

    #[test]
    fn a_process_that_calls_itself_other_makes_no_series_twice() {
        let one =
            |pid: u32| StuckSocket { uid: pid, ..socket(60, &[owner(pid, &format!("p{pid}"), (1, 2))]) };
        let mut sockets: Vec<StuckSocket> = (1..=40_u32).map(one).collect();
        sockets
            .extend([socket(60, &[owner(99, "other", (1, 2))]), socket(60, &[owner(99, "other", (1, 2))])]);
        let counts = named(&sockets);
        assert_eq!(counts.iter().filter(|(holder, _)| holder.comm == "other").count(), 1);
        assert_eq!(counts.iter().map(|(_, n)| n).sum::<u64>(), 42);
    }

    #[test]
    fn nobody_is_blamed_for_what_several_hold() {
        let in_unit = |pid, comm, unit: &str| {
            let place = Workload { unit: Some(unit.into()), ..Workload::default() };
            in_place(owner(pid, comm, (1, 2)), place)
        };
        let labels = |owners: &[Owner]| {
            let counts = tally(&[socket(60, owners)], 60.0);
            let labels: Vec<&OwnerLabels> = counts.keys().collect();
            let [OwnerLabels { comm, unit, .. }] = labels[..] else { panic!("{labels:?}") };
            (comm.clone(), unit.clone())
        };
        let printed = |comm: &str, unit: &str| (comm.to_owned(), unit.to_owned());
        let workers = [1, 2, 3].map(|pid| in_unit(pid, "nginx", "nginx.service"));
        assert_eq!(labels(&workers), printed("nginx (shared by 3)", "nginx.service"));
        assert_eq!(labels(&workers[1..2]), printed("nginx", "nginx.service"));
        let differ = [in_unit(1, "sshd", "a.service"), in_unit(2, "bash", "a.service")];
        assert_eq!(labels(&differ), printed("shared by 2", "a.service"));
        let differ = [in_unit(1, "api", "a.service"), in_unit(2, "api", "b.service")];
        assert_eq!(labels(&differ), printed("api (shared by 2)", ""));
        let crowd: Vec<Owner> = (1..=50).map(|pid| in_unit(pid, "httpd", "w.service")).collect();
        assert_eq!(labels(&crowd), printed("httpd (shared by 10 or more)", "w.service"));
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
        let [(holder, 1)] = &named(&[socket(60, &[placed])])[..] else { panic!("one") };
        assert_eq!(
            (&*holder.unit, &*holder.container_id, &*holder.uid),
            ("api.service", "containerd://ab", "2c")
        );
    }
}
