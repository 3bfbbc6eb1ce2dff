//! RSTs and the closes that they belong to. The kernel sends a RST before the step to CLOSE, or some microseconds after it.

use std::collections::VecDeque;

use crate::names::{Outcome, PortKey, PortKind, Role, abort_reason};
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::transition::Transition;

/// A close that waits for a moment: if the kernel sent a RST for it, the hook record of that follows.
#[derive(Clone, Debug)]
pub(super) struct PendingReset {
    pub(super) key: u64,
    pub(super) closed_ns: u64,
    /// Of a close by ECONNRESET, whose outcome is still open; others are counted already.
    pub(super) open: Option<OpenClose>,
    /// The transition for watchers; its outcome and reason are added later.
    pub(super) transition: Option<Box<Transition>>,
}

/// A close that is counted when its outcome is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenClose {
    pub(super) pair: PortKey,
    pub(super) kind: PortKind,
    pub(super) role: Role,
}

impl PendingReset {
    /// `sent`: whether a RST was sent, and the kernel's reason.
    pub(super) fn settle(self, sent: Option<Option<&'static str>>, out: &mut impl EventSink) {
        let Self { closed_ns, open, transition, .. } = self;
        let outcome = if sent.is_some() { Outcome::ResetSent } else { Outcome::ResetReceived };
        if let Some(mut transition) = transition {
            if open.is_some() {
                transition.outcome = Some(outcome);
            }
            transition.reset_reason = abort_reason(sent.flatten(), transition.reset_reason);
            out.transition(*transition);
        }
        if let Some(OpenClose { pair, kind, role }) = open {
            out.event_of(closed_ns, TrackerEvent::Closed { pair, role, outcome }, kind);
        }
    }
}

/// RSTs that were sent for sockets whose steps to CLOSE follow: at timeouts and SOCK_DESTROY.
#[derive(Debug, Default)]
pub(super) struct RecentResets(VecDeque<RecentReset>);

#[derive(Clone, Copy, Debug)]
struct RecentReset {
    key: u64,
    at_ns: u64,
    reason: &'static str,
}

impl RecentResets {
    /// More than CPUs that can be between the two at once.
    const MOST: usize = 256;
    /// How long after the RST the step can come. The same socket may connect again.
    const WITHIN_NS: u64 = 50_000_000;

    pub(super) fn push(&mut self, key: u64, at_ns: u64, reason: &'static str) {
        if self.0.len() >= Self::MOST {
            self.0.pop_front();
        }
        self.0.push_back(RecentReset { key, at_ns, reason });
    }

    /// The reason of the RST that came before the step of the socket `key` to CLOSE at `closed_ns`.
    pub(super) fn take(&mut self, key: u64, closed_ns: u64) -> Option<&'static str> {
        let at = self.0.iter().rposition(|reset| reset.key == key)?;
        let reset = self.0.remove(at)?;
        (closed_ns.saturating_sub(reset.at_ns) <= Self::WITHIN_NS).then_some(reset.reason)
    }
}
