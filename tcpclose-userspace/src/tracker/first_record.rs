//! How a life begins: with a socket's first step, or with the first of its steps that is known.

use std::num::NonZeroU32;

use tcpclose_common::event::{OpenRecord, RecordHeader, flags};
use tcpclose_common::state::TcpState;

use crate::names::{Age, Flow, Outcome, Phase, PortKey, Role, Side, address_of};
use crate::tracker::Tracker;
use crate::tracker::classify_close;
use crate::tracker::classify_close::CloseKind;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::lookup::flow_of;
use crate::tracker::socket::{Closer, EnteredAt, MinisocketState, SocketKind, TrackedSocket};
use crate::tracker::transition;
use crate::tracker::transition::PhaseChange;

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
        self.make_room(head, &flow, out);
        let side = self.side_of(head, Some(flow.local));
        let port = self.port(side, head.local_port, head.remote_port);
        let (at_ns, told) = (head.time_ns, transition::Evidence::by_record(head, open.numbers));
        let first = PhaseChange { at_ns, from: old, to: new, spent: Age::UNKNOWN, outcome: None, told };
        self.told_inum(head.netns, open.inum);
        let Some(phase) = Phase::of(new) else {
            // Straight to CLOSE: no FIN was sent or taken, and no phase was entered.
            let outcome = match classify_close::read(old, head) {
                CloseKind::Over(outcome) => outcome,
                CloseKind::TimeWait | CloseKind::FinWait2 | CloseKind::Reset | CloseKind::Unclear => {
                    Outcome::Unknown
                }
            };
            let pair = PortKey { side, port };
            let life = TrackedSocket { flow, side, port, ..Self::blank(head, Phase::FinWait1) };
            let life = TrackedSocket { role: Role::None, ..life };
            self.tell(&life, PhaseChange { outcome: Some(outcome), ..first }, out);
            out.fact(head.time_ns, TrackerEvent::Closed { pair, role: Role::None, outcome });
            return;
        };
        let role = match phase {
            Phase::FinWait1 => Role::Active,
            Phase::CloseWait => Role::Passive,
            _ => Role::Unknown,
        };
        let life = TrackedSocket { flow, side, port, role, phase, ..Self::blank(head, phase) };
        self.tell(&life, first, out);
        self.insert(TrackedSocket { since: EnteredAt::exact(head.time_ns), ..life });
    }

    /// Clears what stands under the identity of a socket that takes its first step.
    fn make_room(&mut self, head: &RecordHeader, flow: &Flow, out: &mut impl EventSink) {
        let former = if self.by_cookie { self.at(!head.key) } else { None };
        if let Some(at) = former.filter(|&at| self.lives[at].flow == *flow) {
            // One flow, one socket: the same one has reused its own TIME-WAIT.
            self.end_minisocket(at, head.time_ns, transition::Evidence::BY_ANOTHER, out);
        }
        if let Some(at) = self.at(head.key) {
            if self.by_cookie || self.lives[at].flow == *flow {
                // A dump that ran between this step and its drain was faster: the record knows better.
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
            match self.lives[at] {
                // One flow, one socket: the earlier connection's minisocket is gone.
                TrackedSocket { body: SocketKind::Minisocket, .. } => {
                    self.end_minisocket(at, head.time_ns, transition::Evidence::BY_ANOTHER, out);
                }
                // Known by a dump alone, which ran between this step and its drain: the record knows better.
                life if life.sk() == 0 => {
                    self.remove(at);
                }
                // The earlier connection's socket. Its →CLOSE is on its way from another CPU (tcp_time_wait has the
                // minisocket hashed, where a SYN can take its place, before tcp_done), or lost.
                life => {
                    self.no_news_of(&life);
                    self.forget_flow(at, flow_of(&self.host, false, &life));
                }
            }
        }
    }

    /// A life for a socket of which this step is the first that is known: it has been in `left` since nobody knows, or
    /// since the agent before this one saw it enter. `flow_hash`: of its flow, at the classic tracepoint; else 0.
    pub(super) fn stranger(
        &mut self,
        head: &RecordHeader,
        flow_hash: u64,
        left: Phase,
        body: SocketKind,
    ) -> usize {
        if let Some(life) = self.former_of(head, left, body) {
            return self.insert(life);
        }
        let side = self.side_of(head, None);
        let port = self.port(side, head.local_port, head.remote_port);
        let flow = Flow::of_hash(flow_hash, head.local_port, head.remote_port);
        let mut life = TrackedSocket { side, port, flow, ..Self::blank(head, left) };
        life.become_body(body);
        self.insert(life)
    }

    /// A life in `phase` of which only the record is known.
    pub(super) fn blank(head: &RecordHeader, phase: Phase) -> TrackedSocket {
        let cookie = head.flags & flags::COOKIE != 0;
        let closer = closer(head);
        TrackedSocket {
            cookie: if cookie { head.key } else { 0 },
            mark: if cookie { 0 } else { head.key },
            flow: Flow::of_hash(0, head.local_port, head.remote_port),
            netns: head.netns,
            port: 0,
            side: Side::Unknown,
            role: role_proven_by(phase),
            phase,
            body: SocketKind::Socket,
            birth: MinisocketState::Untold,
            counted: false,
            since: EnteredAt { earliest_ns: 0, latest_ns: head.time_ns },
            event_ns: head.time_ns,
            seen_ns: 0,
            missed: false,
            acted_ns: closer.map_or(0, |closer| closer.at_ns),
            closer_pid: closer.map(|closer| closer.pid),
        }
    }
}

/// Who closed, where the record tells.
pub(super) fn closer(head: &RecordHeader) -> Option<Closer> {
    head.closer().and_then(NonZeroU32::new).map(|pid| Closer { pid, at_ns: head.time_ns })
}

/// Who sent the first FIN, where the state alone proves it.
pub(super) fn role_proven_by(phase: Phase) -> Role {
    match phase {
        Phase::FinWait1 | Phase::FinWait2 => Role::Active,
        Phase::CloseWait | Phase::LastAck => Role::Passive,
        Phase::Closing => Role::Simultaneous,
        // By way of FIN-WAIT-2 or of CLOSING.
        Phase::TimeWait => Role::Unknown,
    }
}
