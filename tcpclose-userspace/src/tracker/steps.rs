//! Records of the probe: which socket a step belongs to, and what it changes.

use tcpclose_common::event::{Record, RecordHeader, flags};
use tcpclose_common::state::TcpState;

use crate::names::{Flow, LINGER_0, Outcome, Phase, Role, abort_reason};
use crate::tracker::classify_close;
use crate::tracker::classify_close::CloseKind;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::loss::RecordLoss;
use crate::tracker::pending_reset::{OpenClose, PendingReset};
use crate::tracker::socket::{AtFin, Closer, EnteredAt, MinisocketState, SocketKind, TrackedSocket};
use crate::tracker::table::Tracker;
use crate::tracker::transition::{Evidence, PhaseChange};

impl Tracker {
    /// Takes one record of the probe.
    pub fn record(&mut self, record: &Record, out: &mut impl EventSink) {
        let head = record.head();
        let (Some(old), Some(new)) = (TcpState::from_raw(head.old), TcpState::from_raw(head.new)) else {
            return;
        };
        if !matches!(record, Record::Hook(..) | Record::Mptcp(_)) {
            self.silence.ends(head.time_ns);
        }
        match record {
            Record::Open(open) => self.open(open, old, new, out),
            Record::Step(step, flow) => {
                let Some(left) = Phase::of(old) else { return };
                self.clear_stale_for_step(head, *flow, out);
                let at = self
                    .slot_of_step(head, *flow)
                    .unwrap_or_else(|| self.insert_unknown(head, *flow, left, SocketKind::Socket));
                if self.sockets[at].flow.hash64() == 0 && *flow != 0 {
                    // A hook record was the first of this socket.
                    let flow = Flow::of_hash(*flow, head.local_port, head.remote_port);
                    self.change(at, |socket| socket.flow = flow);
                }
                self.step(at, head, (left, new), Evidence::by_record(head, step.numbers), out);
            }
            Record::Hook(hook, kind) => self.hook(hook, *kind, out),
            // Its subflows are tracked.
            Record::Mptcp(_) => {}
        }
    }

    /// Records were lost, as noticed at `now_ns`: from here on a phase without an entry may be due to them.
    pub fn records_lost(&mut self, now_ns: u64) {
        self.ever_lost = true;
        self.silence.ends(now_ns);
        self.loss = Some(RecordLoss::new(now_ns));
    }

    /// The socket that a step belongs to.
    fn slot_of_step(&self, head: &RecordHeader, flow_hash: u64) -> Option<usize> {
        if let Some(at) = self.slot_of_key(head.key) {
            return Some(at);
        }
        if self.by_cookie {
            // A dump that ran between the hash of the minisocket and the →CLOSE of the socket was faster.
            let at = self.slot_of_key(!head.key)?;
            let Flow { local_port, remote_port, .. } = self.sockets[at].flow;
            return ((local_port, remote_port) == (head.local_port, head.remote_port)).then_some(at);
        }
        let at = self.slot_of_flow(head.netns, flow_hash)?;
        // The flow's minisocket does not step; this is a later socket whose first record was lost.
        (self.sockets[at].kind == SocketKind::Socket).then_some(at)
    }

    /// Clears, at the classic tracepoint, what stands under the address or the flow of a socket that steps and whose first
    /// record was lost.
    fn clear_stale_for_step(&mut self, head: &RecordHeader, flow_hash: u64, out: &mut impl EventSink) {
        if self.by_cookie {
            return;
        }
        if let Some(at) = self.slot_of_key(head.key) {
            let known = self.sockets[at].flow.hash64();
            if known != 0 && known != flow_hash {
                // The slab gave the address to another socket; the end of this one was lost, too.
                self.displaced(at, head.time_ns, out);
            } else {
                return;
            }
        }
        // One flow, one socket: the earlier connection's minisocket is gone.
        if let Some(at) = self.slot_of_flow(head.netns, flow_hash)
            && self.sockets[at].kind == SocketKind::Minisocket
        {
            self.end_minisocket(at, head.time_ns, Evidence::BY_ANOTHER, out);
        }
    }

    /// A step of a tracked socket out of `left`.
    fn step(
        &mut self,
        at: usize,
        head: &RecordHeader,
        (left, new): (Phase, TcpState),
        evidence: Evidence,
        out: &mut impl EventSink,
    ) {
        let now = head.time_ns;
        self.refine(at, head);
        let spent = self.spent(at, left, EnteredAt::exact(now));
        let change = PhaseChange { at_ns: now, from: left.state(), to: new, spent, outcome: None, evidence };
        if let Some(next) = Phase::of(new) {
            self.leave(at, left, now, out);
            self.enter(at, next, EnteredAt::exact(now));
            if let Some(closer) = Closer::of(head) {
                self.sockets[at].set_closer(closer);
            }
            if next == Phase::Closing {
                self.sockets[at].role = Role::Simultaneous;
            }
            self.report(&self.sockets[at], change, out);
            return;
        }
        let (kind, minisocket) = (self.sockets[at].kind, self.sockets[at].minisocket);
        // Its minisocket, of which more is known by now than this step has.
        if kind == SocketKind::Minisocket && minisocket == MinisocketState::Made {
            return;
        }
        // Refused: no minisocket was made. The table is full (TIME-WAIT is skipped), or there was no memory.
        let refused = minisocket == MinisocketState::Refused;
        let close = classify_close::read(left.state(), head, self.hooks.received_resets);
        let outcome = match close {
            CloseKind::Over(outcome) => outcome,
            CloseKind::Repair => {
                self.leave(at, left, now, out);
                self.report(&self.sockets[at], change, out);
                self.remove(at);
                return;
            }
            CloseKind::Reset if self.hooks.resets => {
                return self.await_reset(at, left, head.key, change, out);
            }
            CloseKind::Reset => Outcome::Unknown,
            CloseKind::TimeWait if refused => Outcome::Graceful,
            CloseKind::FinWait2 if refused => Outcome::Unknown,
            CloseKind::TimeWait | CloseKind::FinWait2 | CloseKind::Unclear => {
                return self.close_to_minisocket(at, left, close, change, out);
            }
        };
        self.leave(at, left, now, out);
        let reset_reason = self.reset_reason(head, outcome);
        let stale_write = outcome == Outcome::ResetReceived && self.is_stale_write(at, left, head);
        if stale_write {
            let socket = &self.sockets[at];
            let event = TrackerEvent::StaleWrite { pair: socket.pair() };
            out.event_of(now, event, self.port_kind(socket));
        }
        let change = PhaseChange { evidence: Evidence { stale_write, reset_reason, ..evidence }, ..change };
        if outcome == Outcome::Aborted {
            let socket = self.sockets[at];
            self.report_abort(head.key, &socket, PhaseChange { outcome: Some(outcome), ..change }, out);
            self.count(at, now, outcome, out);
            self.remove(at);
            return;
        }
        self.close(at, change, outcome, None, out);
    }

    /// Whether the program wrote to the socket after the peer's FIN, by the record of a RST that ended it in `left`: all was acknowledged
    /// when the FIN came, and something is not now. `tcp_reset()` comes before the acknowledgment of the segment is taken, and leaves
    /// snd_una and write_seq alone (net/ipv4/tcp_input.c, tcp_validate_incoming(), 5.8 to 6.18).
    fn is_stale_write(&self, at: usize, left: Phase, head: &RecordHeader) -> bool {
        let socket = &self.sockets[at];
        let is_unacknowledged = head.flags & (flags::FACTS | flags::FIN_ACKED) == flags::FACTS;
        left == Phase::CloseWait && socket.at_fin == AtFin::AllAcknowledged && is_unacknowledged
    }

    /// Ends a socket by a RST; the hook record of a RST that was sent settles its outcome.
    fn await_reset(
        &mut self,
        at: usize,
        left: Phase,
        key: u64,
        change: PhaseChange,
        out: &mut impl EventSink,
    ) {
        let now = change.at_ns;
        self.leave(at, left, now, out);
        out.event(now, TrackerEvent::Transition { from: change.from, to: change.to });
        let socket = &mut self.sockets[at];
        socket.counted = true;
        let (pair, role) = (socket.pair(), socket.role);
        let socket = &self.sockets[at];
        let kind = self.port_kind(socket);
        let transition = out.is_watched().then(|| Box::new(change.of(socket, self.inum_of(socket.netns))));
        let open = Some(OpenClose { pair, kind, role });
        self.pending_resets.push_back(PendingReset { key, closed_ns: now, open, transition });
        self.remove(at);
    }

    /// What is known by now of the reason for a RST that this side sent for a socket that steps to CLOSE.
    pub(super) fn reset_reason(&mut self, head: &RecordHeader, outcome: Outcome) -> Option<&'static str> {
        let is_linger_0 = outcome == Outcome::Aborted && head.is_linger_0();
        let before = self.recent_resets.take(head.key, head.time_ns);
        abort_reason(before, is_linger_0.then_some(LINGER_0))
    }

    /// Reports the step to CLOSE of a socket that its program aborted. The RST, and with it the kernel's reason, follows (`tcp_close()`,
    /// `tcp_disconnect()`): whoever watches waits for it.
    pub(super) fn report_abort(
        &mut self,
        key: u64,
        socket: &TrackedSocket,
        change: PhaseChange,
        out: &mut impl EventSink,
    ) {
        let gives_reasons = self.hooks.resets && !self.hooks.reset_reasons.is_empty();
        let is_wanted = out.wants(change.from, change.to);
        if !gives_reasons || !is_wanted {
            return self.report(socket, change, out);
        }
        out.event(change.at_ns, TrackerEvent::Transition { from: change.from, to: change.to });
        let transition = Some(Box::new(change.of(socket, self.inum_of(socket.netns))));
        let pending = PendingReset { key, closed_ns: change.at_ns, open: None, transition };
        self.pending_resets.push_back(pending);
    }

    /// A →CLOSE that leaves a minisocket.
    fn close_to_minisocket(
        &mut self,
        at: usize,
        left: Phase,
        close: CloseKind,
        change: PhaseChange,
        out: &mut impl EventSink,
    ) {
        let now = change.at_ns;
        if close == CloseKind::TimeWait {
            self.leave(at, left, now, out);
            self.enter_time_wait(at, left, EnteredAt::exact(now), change.evidence, out);
        } else if left == Phase::FinWait2 {
            // The socket goes on in FIN-WAIT-2. If a record was lost on the way there, this step shows it.
            if self.sockets[at].phase != left {
                self.leave(at, self.sockets[at].phase, now, out);
                self.enter(at, left, EnteredAt { earliest_ns: 0, latest_ns: now });
            }
        } else {
            // Without BTF, CLOSING→CLOSE: most likely TIME-WAIT. It is counted when a dump has seen it.
            self.leave(at, left, now, out);
            self.enter(at, Phase::TimeWait, EnteredAt::exact(now));
        }
        self.hand_over(at, now, out);
    }
}
