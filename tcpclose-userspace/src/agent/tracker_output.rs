//! Where the tracker's events go: into the metrics, to everybody who watches, and to what judges stuck sockets.

use tcpclose_common::state::TcpState;

use crate::metrics::Metrics;
use crate::names::{Outcome, PortKind};
use crate::report::verdict::Verdicts;
use crate::report::verdict::history::LateEnd;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::transition::Transition;

use crate::agent::watchers::Watchers;

pub struct TrackerOutput {
    pub metrics: Metrics,
    pub watchers: Watchers,
    pub verdicts: Verdicts,
}

impl TrackerOutput {
    /// Whether a step says something of stuck sockets, or of what their program does otherwise.
    fn is_judged(&self, from: TcpState, to: TcpState) -> bool {
        let is_by_program = matches!(to, TcpState::FinWait1 | TcpState::LastAck);
        !self.verdicts.is_empty() && (from == TcpState::CloseWait || is_by_program)
    }

    fn judge(&mut self, step: &Transition) {
        let Transition { cookie, closer, .. } = *step;
        if let Some(closer) = closer.filter(|_| matches!(step.to, TcpState::FinWait1 | TcpState::LastAck)) {
            self.verdicts.closed(closer.pid.get(), cookie, step.at_ns);
        }
        if step.from == TcpState::CloseWait {
            let how = match step.to {
                TcpState::LastAck => LateEnd::Closed,
                _ if step.stale_write => LateEnd::ResetAfterWrite,
                _ if step.outcome == Some(Outcome::Aborted) => LateEnd::Closed,
                _ if step.outcome == Some(Outcome::ResetReceived) => LateEnd::ResetByPeer,
                _ if step.outcome == Some(Outcome::Destroyed) => LateEnd::Destroyed,
                _ => LateEnd::Other,
            };
            self.verdicts.left(cookie, how, step.spent.min_ns);
        }
    }
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

    fn wants(&self, from: TcpState, to: TcpState) -> bool {
        self.watchers.is_watched() || self.is_judged(from, to)
    }

    fn transition(&mut self, transition: Transition) {
        if self.is_judged(transition.from, transition.to) {
            self.judge(&transition);
        }
        if self.watchers.is_watched() {
            self.watchers.send(&transition);
        }
    }
}
