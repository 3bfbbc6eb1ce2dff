//! Hook records: a minisocket's birth, flip and end, each at its instant and with its cause; the RST that settles
//! what an ECONNRESET was; and what is sent again after a FIN.

use tcpclose_common::event::{HookKind, HookRecord, RecordHeader, flags};
use tcpclose_common::state::TcpState;

use crate::names::{Flow, Outcome, Phase, TIME_WAIT_SOCKET, TimeWaitEnd};
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::pending_reset::PendingReset;
use crate::tracker::socket::{EnteredAt, MinisocketState, SocketKind};
use crate::tracker::table::Tracker;
use crate::tracker::transition::{Evidence, PhaseChange};

/// How long after →CLOSE the RST goes out at the latest: it follows in the same run of the softirq, some 26 µs later
/// on Linux 6.18 (tcp_v4_do_rcv, label reset).
const SETTLED_NS: u64 = 50_000_000;

impl Tracker {
    /// Every record made until `now_ns` has been taken: settles the closes whose hook record did not come.
    pub fn settle(&mut self, now_ns: u64, out: &mut impl EventSink) {
        let is_due = |first: &PendingReset| first.closed_ns + SETTLED_NS <= now_ns;
        while self.pending_resets.front().is_some_and(is_due)
            && let Some(first) = self.pending_resets.pop_front()
        {
            first.settle(None, out);
        }
    }

    /// Takes a hook record.
    pub(super) fn hook(&mut self, record: &HookRecord, kind: HookKind, out: &mut impl EventSink) {
        let head = &record.head;
        if head.time_ns < self.hooks.since_ns {
            return;
        }
        match kind {
            HookKind::ResetSent => self.reset_sent(record, out),
            HookKind::Born => self.minisocket_made(record, MinisocketState::Made),
            // In FIN-WAIT-2 too: then there is nothing that could enter TIME-WAIT. The kernel counts both the same way
            // (net/ipv4/tcp_minisocks.c, tcp_time_wait: TCPTimeWaitOverflow, 5.8 to 6.18).
            HookKind::Unborn => {
                self.minisocket_made(record, MinisocketState::Refused);
                out.event(head.time_ns, TrackerEvent::TimeWaitOverflow);
            }
            HookKind::Flipped => self.flipped(record, out),
            HookKind::Expired => self.ended(head, TimeWaitEnd::Expired, Outcome::Timeout, out),
            HookKind::Reused => self.ended(head, TimeWaitEnd::Reused, Outcome::Unknown, out),
            HookKind::Recycled => self.ended(head, TimeWaitEnd::Recycled, Outcome::Unknown, out),
            HookKind::Reset => self.ended(head, TimeWaitEnd::Reset, Outcome::ResetReceived, out),
            HookKind::DataAfterClose => self.ended(head, TimeWaitEnd::Reset, Outcome::ResetSent, out),
            HookKind::Destroyed => self.ended(head, TimeWaitEnd::Destroyed, Outcome::Destroyed, out),
            HookKind::Purged => self.ended(head, TimeWaitEnd::Purged, Outcome::Unknown, out),
            HookKind::Early => self.ended(head, TimeWaitEnd::Early, Outcome::Unknown, out),
            HookKind::SentAgain => self.sent_again(record, out),
        }
    }

    /// The key of the full socket in a hook record at this backend.
    fn key_of_socket(&self, record: &HookRecord) -> u64 {
        if self.by_cookie { record.head.key } else { record.subject.socket() }
    }

    fn reset_sent(&mut self, record: &HookRecord, out: &mut impl EventSink) {
        let (key, head) = (self.key_of_socket(record), &record.head);
        let reason = self.hooks.reset_reason(head.detail.reset_reason());
        if head.old != TcpState::Close.raw() {
            reason.into_iter().for_each(|reason| self.recent_resets.push(key, head.time_ns, reason));
            return;
        }
        if let Some(at) = self.pending_resets.iter().rposition(|pending| pending.key == key)
            && let Some(pending) = self.pending_resets.remove(at)
        {
            pending.settle(Some(reason), out);
            return;
        }
        // Data that acknowledged the FIN: the socket goes through FIN-WAIT-2, and is done without an error (`tcp_rcv_state_process()`,
        // TCPABORTONDATA, 5.8 to 6.18). The step looked like the hand-over to a minisocket, but there is none.
        let Some(at) = self.slot_of_key(!key).filter(|_| self.by_cookie) else { return };
        let socket = &self.sockets[at];
        let is_recent = head.time_ns.saturating_sub(socket.event_ns) <= SETTLED_NS && !socket.counted;
        if socket.phase == Phase::FinWait2 && socket.minisocket == MinisocketState::Unknown && is_recent {
            self.leave(at, Phase::FinWait2, head.time_ns, out);
            let spent = self.spent(at, Phase::FinWait2, EnteredAt::exact(head.time_ns));
            let (from, to) = (TcpState::FinWait2, TcpState::Close);
            let evidence = Evidence { reset_reason: reason, ..Evidence::BY_HOOK };
            let change = PhaseChange { at_ns: head.time_ns, from, to, spent, outcome: None, evidence };
            self.close(at, change, Outcome::ResetSent, None, out);
        }
    }

    /// A socket that no record and no dump has told of has no pair yet: it is not counted.
    fn sent_again(&self, record: &HookRecord, out: &mut impl EventSink) {
        let head = &record.head;
        // At the classic tracepoint a dump's socket is known by its cookie until it steps.
        let of = |key: u64| if key == 0 { None } else { self.slot_of_key(key) };
        if let Some(at) = of(self.key_of_socket(record)).or_else(|| of(head.key)) {
            let socket = &self.sockets[at];
            let event = TrackerEvent::FinRetransmit { pair: socket.pair() };
            out.event_of(head.time_ns, event, self.port_kind(socket));
        }
    }

    /// The minisocket is made, or refused, while the full socket still stands; its →CLOSE follows.
    fn minisocket_made(&mut self, record: &HookRecord, minisocket: MinisocketState) {
        let head = &record.head;
        let key = self.key_of_socket(record);
        let phase = TcpState::from_raw(head.old).and_then(Phase::of);
        let Some(phase) = phase.filter(|_| key != 0) else { return };
        // At the classic tracepoint a dump's socket is known by its cookie until it steps, and this comes first.
        let at = match self.slot_of_key(key).or_else(|| self.slot_of_key(head.key)) {
            Some(at) => at,
            None => {
                self.silence.birth(head.time_ns, self.hooks.since_ns);
                let backend = if self.by_cookie { flags::COOKIE } else { 0 };
                let head = RecordHeader { key, flags: backend, ..*head };
                self.insert_unknown(&head, 0, phase, SocketKind::Socket)
            }
        };
        let sk = if self.by_cookie { 0 } else { record.subject.socket() };
        self.change(at, |socket| {
            (socket.minisocket, socket.cookie) = (minisocket, head.key);
            socket.set_sk(sk);
        });
        if !self.by_cookie && minisocket == MinisocketState::Made {
            self.by_minisocket.insert(head.key, at);
        }
    }

    /// The slot and the phase of the minisocket in a hook record; of one older than the agent, in another network
    /// namespace, a new slot. `None` when the record has no state that a minisocket can be in, and when its end was
    /// reported already.
    fn slot_of_minisocket(&mut self, head: &RecordHeader) -> Option<(usize, Phase)> {
        let phase = TcpState::from_raw(head.old).and_then(Phase::of)?;
        if head.key != 0 {
            // The same socket may have connected again, and keeps its cookie.
            let same = |at: &usize| {
                let Flow { local_port, remote_port, .. } = self.sockets[*at].flow;
                (local_port, remote_port) == (head.local_port, head.remote_port)
            };
            let of_socket = || match self.by_cookie {
                true => self.slot_of_key(head.key).filter(same),
                false => self.by_minisocket.get(&head.key).copied(),
            };
            if let Some(at) = self.slot_of_key(!head.key).or_else(of_socket) {
                // Before its socket's →CLOSE: the record of that was lost, or another CPU was faster.
                if self.sockets[at].kind == SocketKind::Socket {
                    self.become_minisocket(at);
                }
                return Some((at, phase));
            }
        }
        if head.key != 0 && self.tombstones.contains(head.key) {
            return None;
        }
        // As a full socket it would for a moment take the key of one that has the same cookie.
        let at = self.insert_unknown(head, 0, phase, SocketKind::Minisocket);
        // A TIME-WAIT's close was before the agent.
        self.sockets[at].counted = phase == Phase::TimeWait;
        Some((at, phase))
    }

    /// FIN-WAIT-2 → TIME-WAIT: the peer's FIN came.
    fn flipped(&mut self, record: &HookRecord, out: &mut impl EventSink) {
        let head = &record.head;
        // Without a cookie no later record could be matched to it.
        if head.key == 0 {
            return;
        }
        let Some((at, _)) = self.slot_of_minisocket(head) else { return };
        (self.sockets[at].event_ns, self.sockets[at].missed) = (head.time_ns, false);
        if self.sockets[at].phase != Phase::TimeWait {
            self.leave(at, Phase::FinWait2, head.time_ns, out);
            let evidence = Evidence { rcv: Some(record.subject.rcv_nxt()), ..Evidence::BY_HOOK };
            self.enter_time_wait(at, Phase::FinWait2, EnteredAt::exact(head.time_ns), evidence, out);
        }
    }

    /// The minisocket is gone. `outcome` is that of a connection that was still in FIN-WAIT-2; one in TIME-WAIT was counted
    /// at its entry, unless the record of that was lost.
    fn ended(&mut self, head: &RecordHeader, how: TimeWaitEnd, outcome: Outcome, out: &mut impl EventSink) {
        let now = head.time_ns;
        let Some((at, phase)) = self.slot_of_minisocket(head) else { return };
        self.leave(at, phase, now, out);
        let spent = self.spent(at, phase, EnteredAt::exact(now));
        let is_reset = phase != Phase::TimeWait && outcome == Outcome::ResetSent;
        let reset_reason = is_reset.then_some(TIME_WAIT_SOCKET);
        let (from, to, evidence) =
            (phase.state(), TcpState::Close, Evidence { reset_reason, ..Evidence::BY_HOOK });
        let change = PhaseChange { at_ns: now, from, to, spent, outcome: None, evidence };
        let (outcome, time_wait) = match phase {
            Phase::TimeWait => (Outcome::Graceful, Some(how)),
            _ => (outcome, None),
        };
        self.close(at, change, outcome, time_wait, out);
    }
}
