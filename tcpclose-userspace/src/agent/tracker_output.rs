//! Where the tracker's events go: into the metrics, and to everybody who watches.

use crate::metrics::Metrics;
use crate::names::PortKind;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::transition::Transition;

use crate::agent::watchers::Watchers;

pub struct TrackerOutput {
    pub metrics: Metrics,
    pub watchers: Watchers,
}

impl EventSink for TrackerOutput {
    fn event(&mut self, at_ns: u64, event: TrackerEvent) {
        self.metrics.event(at_ns, event);
    }

    fn event_of(&mut self, at_ns: u64, event: TrackerEvent, kind: PortKind) {
        self.metrics.event_of(at_ns, event, kind);
    }

    fn is_watched(&self) -> bool {
        self.watchers.is_watched()
    }

    fn transition(&mut self, transition: Transition) {
        self.watchers.send(&transition);
    }
}
