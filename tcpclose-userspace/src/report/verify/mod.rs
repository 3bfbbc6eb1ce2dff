//! Compares the agent's numbers with the kernel's: which pairs mean the same, and by how much they may differ. Pure.
//!
//! * [`samples`]: parses the agent's metrics.
//! * [`verdict`]: two readings of one number, and whether they agree.
//! * [`counters`]: counts between two samples. [`gauges`]: sockets at one sample.

pub mod counters;
pub mod gauges;
pub mod samples;
pub mod verdict;

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use tcpclose_common::state::TcpState;

use crate::linux::netns::Netns;
use crate::linux::proc_net::{MibCounters, SockStat};
use crate::linux::sock_diag::Socket;
use crate::report::verify::samples::Samples;
use crate::report::verify::verdict::{Agreement, Span};

/// One line of the audit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditRow {
    pub what: String,
    /// The agent's number; in the rows `sock_diag: …`, which check the dumps that the others rely on, that of a dump.
    pub agent: Span,
    /// `null` where the kernel has no such number.
    pub kernel: Option<Span>,
    #[serde(flatten)]
    pub verdict: Agreement,
    /// The parts of the kernel's number.
    pub namespaces: Vec<Part>,
}

/// The part of one network namespace in a number; namespaces without a part are left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// The namespace's inode.
    pub netns: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns_name: Option<String>,
    /// Only in the rows `sock_diag: …`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dumped: Option<Span>,
    pub kernel: Span,
}

/// The sockets of a dump, by cookie.
#[derive(Clone, Debug, Default)]
pub struct DumpedSockets {
    /// Cookies by state, minisockets apart.
    pub full: [HashSet<u64>; STATES],
    pub mini: [HashSet<u64>; STATES],
    /// Full sockets that no program holds, in the states that only a close leads to.
    pub orphans: HashSet<u64>,
}

const STATES: usize = 16;

impl DumpedSockets {
    pub fn new(dumped: &[Socket]) -> Self {
        let mut sockets = Self::default();
        for socket in dumped {
            let by_state = if socket.minisocket { &mut sockets.mini } else { &mut sockets.full };
            if let Some(cookies) = by_state.get_mut(usize::from(socket.state.raw())) {
                cookies.insert(socket.cookie);
            }
            let closed = matches!(
                socket.state,
                TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::LastAck
            );
            if closed && !socket.minisocket && socket.inode == 0 {
                sockets.orphans.insert(socket.cookie);
            }
        }
        sockets
    }

    fn of(by_state: &[HashSet<u64>; STATES], state: TcpState) -> impl Iterator<Item = u64> {
        by_state.get(usize::from(state.raw())).into_iter().flatten().copied()
    }

    /// Every socket in `state`, minisockets included.
    pub fn in_state(&self, state: TcpState) -> HashSet<u64> {
        Self::of(&self.full, state).chain(Self::of(&self.mini, state)).collect()
    }

    pub fn full_in(&self, state: TcpState) -> HashSet<u64> {
        Self::of(&self.full, state).collect()
    }

    pub fn minisockets(&self) -> HashSet<u64> {
        self.mini.iter().flatten().copied().collect()
    }

    /// What /proc/net/sockstat calls in use: full sockets, without requests.
    pub fn in_use(&self) -> HashSet<u64> {
        let states = self.full.iter().enumerate();
        let hashed = states.filter(|(state, _)| {
            let request = [TcpState::SynRecv, TcpState::NewSynRecv].map(|s| usize::from(s.raw()));
            let unhashed = [TcpState::Close, TcpState::BoundInactive].map(|s| usize::from(s.raw()));
            !request.contains(state) && !unhashed.contains(state)
        });
        hashed.flat_map(|(_, cookies)| cookies).copied().collect()
    }
}

/// The number of sockets that certainly existed between two dumps, and of those that may have.
pub fn span(before: &HashSet<u64>, after: &HashSet<u64>) -> Span {
    let both = before.intersection(after).count();
    Span { min: both as i64, max: (before.len() + after.len() - both) as i64 }
}

/// The kernel's counters and sums of one network namespace, read next to a dump.
#[derive(Clone, Debug, Default)]
pub struct KernelSample {
    pub counters: MibCounters,
    pub stat: SockStat,
    pub sockets: DumpedSockets,
}

/// One network namespace before and after a reading of the agent's metrics; `None` when it did not exist.
#[derive(Clone, Debug)]
pub struct NetnsSample {
    pub netns: Netns,
    pub before: Option<KernelSample>,
    pub after: Option<KernelSample>,
}

impl NetnsSample {
    /// Counts by `of`; a namespace that did not exist counts nothing.
    fn sockets<T: Default>(&self, of: impl Fn(&DumpedSockets) -> T) -> (T, T) {
        let count =
            |view: &Option<KernelSample>| view.as_ref().map(|view| of(&view.sockets)).unwrap_or_default();
        (count(&self.before), count(&self.after))
    }

    fn part(&self, kernel: Span) -> Part {
        let Netns { inum, name, .. } = &self.netns;
        Part { netns: *inum, netns_name: name.clone(), dumped: None, kernel }
    }
}

/// The agent's metrics between two views of each namespace: dump, sums, metrics, sums, dump.
#[derive(Clone, Debug, Default)]
pub struct AuditSample {
    /// By id; also those that have vanished since an earlier sample.
    pub namespaces: BTreeMap<u32, NetnsSample>,
    pub metrics: Samples,
}

/// The network namespaces that a number of the agent covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    All,
    /// Its own, which is this one, and any part of the others, as hooks report it.
    Own(u32),
    /// Its own only.
    Only(u32),
}

impl AuditSample {
    /// The sum of `of` over all namespaces that `reach` covers, and its parts.
    fn sum(&self, reach: Reach, of: impl Fn(u32, &NetnsSample) -> Span) -> (Span, Vec<Part>) {
        let (mut sum, mut parts) = (Span::exact(0), Vec::new());
        for (id, netns) in &self.namespaces {
            let span = of(*id, netns);
            let counted = match reach {
                Reach::All => span,
                Reach::Own(own) | Reach::Only(own) if own == *id => span,
                Reach::Own(_) => Span { min: 0, max: span.max },
                Reach::Only(_) => continue,
            };
            sum = sum.plus(counted);
            if counted != Span::exact(0) {
                parts.push(netns.part(counted));
            }
        }
        (sum, parts)
    }
}

/// The namespaces that the gauges cover. `own`: the agent's.
pub fn reach(metrics: &Samples, own: u32) -> Reach {
    match dumped(metrics).as_deref() {
        Some("all" | "found") => Reach::All,
        _ => Reach::Own(own),
    }
}

/// Whether the agent tracks sockets in namespaces to which no path leads, neither for it nor for us.
pub fn has_hidden(metrics: &Samples) -> bool {
    dumped(metrics).as_deref() == Some("found")
}

fn dumped(metrics: &Samples) -> Option<String> {
    metrics.label("tcpclose_netns_info", &[], "dumped")
}

/// The backends in use, as `tcpclose_hook_info` names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendsInUse {
    pub state: String,
    pub time_wait: String,
}

impl BackendsInUse {
    pub fn of(metrics: &Samples) -> Self {
        let backend = |hook| {
            // Agents before 0.1.0's release call the label `rung`.
            let backend = ["backend", "rung"]
                .iter()
                .find_map(|label| metrics.label("tcpclose_hook_info", &[("hook", hook)], label));
            backend.unwrap_or_else(|| "unknown".to_owned())
        };
        Self { state: backend("state"), time_wait: backend("time_wait") }
    }

    /// Whether minisockets are followed by dumps.
    pub fn dumps(&self) -> bool {
        self.time_wait != "hooks"
    }
}

/// Events that the agent has lost since its start: in the ring, by the kernel's refusal to nest programs, in decoding, and
/// transitions that it noticed to be missing.
pub fn lost(metrics: &Samples) -> i64 {
    let unseen = metrics.sum("tcpclose_unseen_phases_total", &[("why", "lost")]);
    (metrics.sum("tcpclose_events_lost_total", &[]) + unseen) as i64
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::names::Flow;

    pub fn socket(state: TcpState, cookie: u64, minisocket: bool) -> Socket {
        let flow = Flow::new("10.0.0.5:1".parse().unwrap(), "10.0.0.9:2".parse().unwrap());
        Socket { minisocket, cookie, ..Socket::made_up(state, flow) }
    }

    /// A sample of namespaces with these ids.
    pub fn sample(
        metrics: &str,
        views: impl IntoIterator<Item = (u32, Option<KernelSample>, Option<KernelSample>)>,
    ) -> AuditSample {
        let netns = |(id, before, after)| {
            let netns = Netns { id, inum: 1000 + id, name: None };
            (id, NetnsSample { netns, before, after })
        };
        AuditSample { metrics: Samples::parse(metrics), namespaces: views.into_iter().map(netns).collect() }
    }

    #[test]
    fn what_an_agent_that_dumps_its_own_namespace_counts_lies_between_that_and_all() {
        let sample = sample("", [(1, None, None), (2, None, None), (3, None, None)]);
        let of = |id: u32, _: &NetnsSample| Span { min: i64::from(id), max: 10 * i64::from(id) };
        assert_eq!(sample.sum(Reach::All, of).0, Span { min: 6, max: 60 });
        assert_eq!(sample.sum(Reach::Own(2), of).0, Span { min: 2, max: 60 });
        let (sum, parts) = sample.sum(Reach::Only(2), of);
        assert_eq!((sum, parts.len(), parts[0].netns), (Span { min: 2, max: 20 }, 1, 1002));
        let dumps = |all| Samples::parse(&format!("tcpclose_netns_info{{dumped=\"{all}\"}} 1\n"));
        assert_eq!(reach(&dumps("all"), 7), Reach::All);
        assert_eq!((reach(&dumps("found"), 7), reach(&dumps("some"), 7)), (Reach::All, Reach::Own(7)));
        assert!(has_hidden(&dumps("found")) && !has_hidden(&dumps("all")));
        assert_eq!(reach(&Samples::default(), 7), Reach::Own(7));
    }

    #[test]
    fn sockets_are_distinguished_as_the_kernels_sums_do_it() {
        let sockets = DumpedSockets::new(&[
            socket(TcpState::Listen, 1, false),
            socket(TcpState::SynRecv, 2, false),
            socket(TcpState::FinWait2, 3, false),
            socket(TcpState::FinWait2, 4, true),
            socket(TcpState::TimeWait, 5, true),
            // Waits to be accepted: no orphan.
            socket(TcpState::CloseWait, 6, false),
        ]);
        assert_eq!(sockets.in_use(), HashSet::from([1, 3, 6]));
        assert_eq!(sockets.minisockets(), HashSet::from([4, 5]));
        assert_eq!(sockets.in_state(TcpState::FinWait2), HashSet::from([3, 4]));
        assert_eq!(sockets.full_in(TcpState::FinWait2), HashSet::from([3]));
        assert_eq!(sockets.orphans, HashSet::from([3]));
    }

    #[test]
    fn what_two_dumps_share_was_there_and_what_one_has_may_have_been() {
        let span = span(&HashSet::from([1, 2, 3]), &HashSet::from([2, 3, 4, 5]));
        assert_eq!(span, Span { min: 2, max: 5 });
    }
}
