//! Closes by ECONNRESET whose outcome is still open.

use crate::names::{Outcome, PortKey, PortKind, Role};
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::transition::Transition;

/// A close by ECONNRESET that waits for a moment: if the kernel sent the RST, the hook record of that follows.
#[derive(Clone, Debug)]
pub(super) struct PendingReset {
    pub(super) key: u64,
    pub(super) closed_ns: u64,
    pub(super) pair: PortKey,
    pub(super) kind: PortKind,
    pub(super) role: Role,
    /// The transition for watchers; its outcome is added later.
    pub(super) transition: Option<Box<Transition>>,
}

impl PendingReset {
    pub(super) fn settle(self, outcome: Outcome, out: &mut impl EventSink) {
        let Self { closed_ns, pair, kind, role, transition, .. } = self;
        if let Some(transition) = transition {
            out.transition(Transition { outcome: Some(outcome), ..*transition });
        }
        out.event_of(closed_ns, TrackerEvent::Closed { pair, role, outcome }, kind);
    }
}
