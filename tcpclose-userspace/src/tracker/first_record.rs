//! The first record of a socket: its first step, or the first of its steps that is known.

use tcpclose_common::event::{OpenRecord, RecordHeader};
use tcpclose_common::state::TcpState;

use crate::names::{Age, Flow, Outcome, Phase, PortKey, Role, address_of};
use crate::tracker::classify_close;
use crate::tracker::classify_close::CloseKind;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::socket::{EnteredAt, SocketKind, TrackedSocket};
use crate::tracker::table::Tracker;
use crate::tracker::transition::{Evidence, PhaseChange};

impl Tracker {
    /// A socket's first step.
    pub(super) fn open(&mut self, open: &OpenRecord, old: TcpState, new: TcpState, out: &mut impl EventSink) {
        let head = &open.head;
        let flow = Flow {
            local: address_of(open.local),
            remote: address_of(open.remote),
            local_port: head.local_port,
            remote_port: head.remote_port,
        };
        self.clear_stale(head, &flow, out);
        let side = self.side_of(head, Some(flow.local));
        let port = self.service_port(head.netns, side, head.local_port, head.remote_port);
        let (at_ns, evidence) = (head.time_ns, Evidence::by_record(head, open.numbers));
        let first = PhaseChange { at_ns, from: old, to: new, spent: Age::UNKNOWN, outcome: None, evidence };
        self.set_inum(head.netns, open.inum);
        let Some(phase) = Phase::of(new) else {
            // Straight to CLOSE: no FIN was sent or taken, and no phase was entered.
            let outcome = match classify_close::read(old, head, self.hooks.received_resets) {
                CloseKind::Over(outcome) => Some(outcome),
                CloseKind::Repair => None,
                CloseKind::TimeWait | CloseKind::FinWait2 | CloseKind::Reset | CloseKind::Unclear => {
                    Some(Outcome::Unknown)
                }
            };
            let pair = PortKey { side, port };
            let socket =
                TrackedSocket { flow, side, port, ..TrackedSocket::of_record(head, Phase::FinWait1) };
            let socket = TrackedSocket { role: Role::None, ..socket };
            let reset_reason = outcome.and_then(|outcome| self.reset_reason(head, outcome));
            let evidence = Evidence { reset_reason, ..evidence };
            let change = PhaseChange { outcome, evidence, ..first };
            match outcome {
                Some(Outcome::Aborted) => self.report_abort(head.key, &socket, change, out),
                _ => self.report(&socket, change, out),
            }
            if let Some(outcome) = outcome {
                let kind = self.port_kind(&socket);
                out.event_of(head.time_ns, TrackerEvent::Closed { pair, role: Role::None, outcome }, kind);
            }
            return;
        };
        let role = match phase {
            Phase::FinWait1 => Role::Active,
            Phase::CloseWait => Role::Passive,
            _ => Role::Unknown,
        };
        let socket = TrackedSocket { flow, side, port, role, phase, ..TrackedSocket::of_record(head, phase) };
        self.report(&socket, first, out);
        self.insert(TrackedSocket { since: EnteredAt::exact(head.time_ns), ..socket });
    }

    /// Clears what stands under the identity of a socket that takes its first step.
    fn clear_stale(&mut self, head: &RecordHeader, flow: &Flow, out: &mut impl EventSink) {
        let former = if self.by_cookie { self.slot_of_key(!head.key) } else { None };
        if let Some(at) = former.filter(|&at| self.sockets[at].flow == *flow) {
            // One flow, one socket: the same one has reused its own TIME-WAIT.
            self.end_minisocket(at, head.time_ns, Evidence::BY_ANOTHER, out);
        }
        if let Some(at) = self.slot_of_key(head.key) {
            if self.by_cookie || self.sockets[at].flow == *flow {
                // A dump that ran between this step and its drain was faster: the record is more exact.
                self.remove(at);
            } else {
                // The slab gave the address to a new socket; the end of the old one was lost.
                self.displaced(at, head.time_ns, out);
            }
        }
        if self.by_cookie {
            return;
        }
        if let Some(at) = self.slot_of_flow(head.netns, flow.hash64()) {
            match &self.sockets[at] {
                // One flow, one socket: the earlier connection's minisocket is gone.
                TrackedSocket { kind: SocketKind::Minisocket, .. } => {
                    self.end_minisocket(at, head.time_ns, Evidence::BY_ANOTHER, out);
                }
                // Known by a dump alone, which ran between this step and its drain: the record is more exact.
                socket if socket.sk() == 0 => {
                    self.remove(at);
                }
                // The earlier connection's socket. Its →CLOSE is on its way from another CPU (tcp_time_wait has the
                // minisocket hashed, where a SYN can take its place, before tcp_done), or lost.
                _ => self.yield_flow(at),
            }
        }
    }

    /// Inserts a socket of which this step is the first that is known: it has been in `left` for an unknown time, or since
    /// the agent before this one saw it enter. `flow_hash`: of its flow, at the classic tracepoint; else 0.
    pub(super) fn insert_unknown(
        &mut self,
        head: &RecordHeader,
        flow_hash: u64,
        left: Phase,
        kind: SocketKind,
    ) -> usize {
        if let Some(socket) = self.former_of(head, left, kind) {
            return self.insert(socket);
        }
        let side = self.side_of(head, None);
        let port = self.service_port(head.netns, side, head.local_port, head.remote_port);
        let flow = Flow::of_hash(flow_hash, head.local_port, head.remote_port);
        let mut socket = TrackedSocket { side, port, flow, ..TrackedSocket::of_record(head, left) };
        socket.set_kind(kind);
        self.insert(socket)
    }
}
