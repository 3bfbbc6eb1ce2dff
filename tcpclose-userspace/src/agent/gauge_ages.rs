//! The age of the gauges.
//!
//! Records keep most of them current. What only dumps tell is as old as the last dump of its namespace:
//! minisockets that no hook reports, and whether a socket in CLOSE-WAIT is stuck. After a loss of records
//! every number is as old as the loss until a dump has corrected it; when the reconcile is overdue, or the
//! state hook reports nothing, every number is as old as the last one.

use crate::names::Phase;

use crate::agent::tracking::Tracking;

/// A reconcile may take this much longer than its interval and the longest pause.
const GRACE_NS: u64 = 30_000_000_000;

/// The age of the oldest gauge, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GaugeAges {
    /// In the host's network namespace.
    pub host_ns: u64,
    /// In all others.
    pub others_ns: u64,
}

impl GaugeAges {
    pub fn oldest_ns(self) -> u64 {
        self.host_ns.max(self.others_ns)
    }
}

/// What besides sockets makes gauges old.
#[derive(Clone, Copy, Debug, Default)]
pub struct ObservedAt {
    pub round_ns: u64,
    pub overdue_ns: u64,
    pub lost_ns: Option<u64>,
    /// No record tells anything.
    pub silent: bool,
}

impl ObservedAt {
    /// The age at `now_ns` of gauges whose oldest socket was known at `sockets_ns`; `None` if records tell
    /// all.
    fn age(self, sockets_ns: Option<u64>, now_ns: u64) -> u64 {
        let ago = |at: u64| now_ns.saturating_sub(at);
        let late = self.silent || ago(self.round_ns) > self.overdue_ns.saturating_add(GRACE_NS);
        let round_ns = late.then_some(self.round_ns);
        [sockets_ns, self.lost_ns, round_ns].into_iter().flatten().map(ago).max().unwrap_or(0)
    }
}

impl Tracking {
    /// The age of the gauges at `now_ns`.
    pub fn ages(&self, now_ns: u64) -> GaugeAges {
        let first = self.stuck_after.first_ns();
        let host = self.namespaces.host();
        let (mut of_host, mut of_others) = (None, None);
        let (mut last, mut dumped_ns) = (0, 0);
        for (socket, written) in self.sockets_and_writes() {
            let known_ns = if self.needs_dumps(socket) {
                if last != socket.netns {
                    (last, dumped_ns) = (socket.netns, self.namespaces.dumped_ns(socket.netns));
                }
                socket.seen_ns.max(socket.event_ns).max(dumped_ns)
            } else if socket.phase == Phase::CloseWait && self.is_check_due(socket, written, now_ns, first) {
                self.check_due_since(socket, written, first)
            } else {
                continue;
            };
            if !self.namespaces.reaches(socket.netns) && socket.netns != 0 {
                continue;
            }
            let oldest =
                if socket.netns == 0 || Some(socket.netns) == host { &mut of_host } else { &mut of_others };
            *oldest = Some(oldest.map_or(known_ns, |oldest: u64| oldest.min(known_ns)));
        }
        let dumps = &self.dumps;
        let observed = |lost_ns| ObservedAt {
            round_ns: dumps.round_ns,
            overdue_ns: dumps.overdue_ns,
            lost_ns,
            silent: self.is_hook_silent(),
        };
        GaugeAges {
            host_ns: observed(dumps.lost_host_ns).age(of_host, now_ns),
            others_ns: observed(dumps.lost_others_ns).age(of_others, now_ns),
        }
    }

    /// Why the gauges are too old to be relied on at `now_ns`; `None` if they are not.
    pub fn staleness(&self, now_ns: u64) -> Option<String> {
        let ages = self.ages(now_ns);
        let bound_ns = self.dumps.max_ns.saturating_mul(2);
        let which = match (ages.host_ns > bound_ns, ages.others_ns > bound_ns) {
            (false, false) => return None,
            (true, _) => "the numbers",
            (false, true) => "the numbers of network namespaces other than the host's",
        };
        let seconds = ages.oldest_ns() / 1_000_000_000;
        Some(format!("{which} are {seconds} s old: no dump of the kernel's sockets has succeeded since"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn numbers_are_as_old_as_their_oldest_part() {
        let observed = ObservedAt { round_ns: 100 * S, overdue_ns: 90 * S, lost_ns: None, silent: false };
        assert_eq!(observed.age(None, 130 * S), 0, "records tell all");
        assert_eq!(observed.age(Some(126 * S), 130 * S), 4 * S);
        let lost = ObservedAt { lost_ns: Some(120 * S), ..observed };
        assert_eq!(lost.age(Some(126 * S), 130 * S), 10 * S);
        assert_eq!(observed.age(None, 220 * S), 0, "the reconcile is not overdue yet");
        assert_eq!(observed.age(None, 221 * S), 121 * S);
        assert_eq!(observed.age(Some(999 * S), 130 * S), 0, "clocks of two CPUs may invert");
        let silent = ObservedAt { silent: true, ..observed };
        assert_eq!(silent.age(Some(126 * S), 130 * S), 30 * S);
    }

    #[test]
    fn the_oldest_namespace_counts() {
        assert_eq!(GaugeAges { host_ns: 3, others_ns: 40 }.oldest_ns(), 40);
    }
}
