//! What the agent says beside what the kernel says: which pairs of numbers mean the same, and by how much they may
//! differ. Pure.
//!
//! * [`samples`]: the agent's metrics, read back.
//! * [`verdict`]: two accounts of one number, and whether they agree.
//! * [`counters`]: what was counted between two looks.
//! * [`gauges`]: what was there at one of them.

pub mod counters;
pub mod gauges;
pub mod samples;
pub mod verdict;

use std::collections::HashSet;

use serde::Serialize;
use tcpclose_common::state::TcpState;

use crate::kernel::mib::{Counters, SockStat};
use crate::kernel::sock_diag::Socket;
use samples::Samples;
use verdict::{Span, Verdict};

/// One line of the audit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub what: String,
    /// The agent's account; of the rows `sock_diag: …`, which check what the others rest on, that of a dump.
    pub agent: Span,
    /// `null` where there is nothing to compare with.
    pub kernel: Option<Span>,
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// The sockets of a dump, in as much detail as is compared.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    /// Cookies by state, minisockets apart.
    pub full: [HashSet<u64>; STATES],
    pub mini: [HashSet<u64>; STATES],
    /// Full sockets that no program holds, in the states that only a close leads to.
    pub orphans: HashSet<u64>,
}

const STATES: usize = 16;

impl Sockets {
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

    /// What /proc/net/sockstat calls in use: full sockets, without requests, which are none yet.
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

/// What was certainly there between two dumps, and what may have been.
pub fn span(before: &HashSet<u64>, after: &HashSet<u64>) -> Span {
    let both = before.intersection(after).count();
    Span { min: both as i64, max: (before.len() + after.len() - both) as i64 }
}

/// What the kernel says of one network namespace: its sums, read next to a dump.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub counters: Counters,
    pub stat: SockStat,
    pub sockets: Sockets,
}

/// The agent's metrics between two views: dump, sums, metrics, sums, dump.
#[derive(Clone, Debug, Default)]
pub struct Look {
    pub before: View,
    pub metrics: Samples,
    pub after: View,
}

/// The rungs in use, as `tcpclose_hook_info` names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rungs {
    pub state: String,
    pub time_wait: String,
}

impl Rungs {
    pub fn of(metrics: &Samples) -> Self {
        let rung = |hook| {
            let rung = metrics.label("tcpclose_hook_info", &[("hook", hook)], "rung");
            rung.unwrap_or_else(|| "unknown".to_owned())
        };
        Self { state: rung("state"), time_wait: rung("time_wait") }
    }

    /// Minisockets are followed by dumps.
    pub fn dumps(&self) -> bool {
        self.time_wait != "hooks"
    }
}

/// Events that the agent has lost since it began: in the ring, in the kernel's refusal to nest, in decoding, and steps that
/// it noticed to be missing.
pub fn lost(metrics: &Samples) -> i64 {
    let unseen = metrics.sum("tcpclose_unseen_phases_total", &[("why", "lost")]);
    (metrics.sum("tcpclose_events_lost_total", &[]) + unseen) as i64
}

/// Minisockets that the agent saw begin in network namespaces where it does not follow them: the proof that there are
/// such namespaces, if no process shows one.
pub fn elsewhere(metrics: &Samples) -> i64 {
    metrics.sum("tcpclose_unseen_phases_total", &[("why", "namespace")]) as i64
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::terms::Flow;

    pub fn socket(state: TcpState, cookie: u64, minisocket: bool) -> Socket {
        Socket {
            state,
            minisocket,
            flow: Flow::new("10.0.0.5:1".parse().unwrap(), "10.0.0.9:2".parse().unwrap()),
            interface: 0,
            cookie,
            expires_ns: None,
            inode: 0,
            uid: 0,
            unread: 0,
            unsent: 0,
            times: None,
            seen_ns: 0,
            window_ns: 0,
        }
    }

    #[test]
    fn sockets_are_told_apart_as_the_kernels_sums_do_it() {
        let sockets = Sockets::new(&[
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
