//! What hooks tell: a minisocket's birth, flip and end, each at its instant and with its cause; and the RST that settles
//! what an ECONNRESET was.

use tcpclose_common::event::{HookKind, HookRecord, RecordHeader, flags};
use tcpclose_common::state::TcpState;

use crate::names::{Flow, Outcome, Phase, PortKey, Role, TimeWaitEnd};

use crate::tracker::Tracker;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::socket::{EnteredAt, MinisocketState, SocketKind};
use crate::tracker::transition;
use crate::tracker::transition::{PhaseChange, Transition};

/// A close by ECONNRESET that waits for a moment: had the kernel sent the RST, the notice of that follows.
#[derive(Clone, Debug)]
pub(super) struct Settling {
    pub(super) key: u64,
    pub(super) closed_ns: u64,
    pub(super) pair: PortKey,
    pub(super) role: Role,
    /// What is told to who watches, with its outcome to come.
    pub(super) unsettled: Option<Box<Transition>>,
}

impl Settling {
    fn settle(self, outcome: Outcome, out: &mut impl EventSink) {
        let Self { closed_ns, pair, role, unsettled, .. } = self;
        if let Some(transition) = unsettled {
            out.transition(Transition { outcome: Some(outcome), ..*transition });
        }
        out.fact(closed_ns, TrackerEvent::Closed { pair, role, outcome });
    }
}

/// How long after →CLOSE the RST goes out at the latest: it follows in the same run of the softirq, some 26 µs later
/// on Linux 6.18 (tcp_v4_do_rcv, label reset).
const SETTLED_NS: u64 = 50_000_000;

impl Tracker {
    /// Says that every record made until `now_ns` has been taken: what waited for one that did not come is settled.
    pub fn settle(&mut self, now_ns: u64, out: &mut impl EventSink) {
        let is_due = |first: &Settling| first.closed_ns + SETTLED_NS <= now_ns;
        while self.settling.front().is_some_and(is_due)
            && let Some(first) = self.settling.pop_front()
        {
            first.settle(Outcome::ResetReceived, out);
        }
    }

    /// What a hook has to say.
    pub(super) fn notice(&mut self, notice: &HookRecord, news: HookKind, out: &mut impl EventSink) {
        let head = &notice.head;
        if head.time_ns < self.told.since_ns {
            return;
        }
        match news {
            HookKind::ResetSent => self.reset_sent(notice, out),
            HookKind::Born => self.birth(notice, MinisocketState::Born),
            // In FIN-WAIT-2 too: then there is nothing that could enter TIME-WAIT. The kernel counts both the same way
            // (net/ipv4/tcp_minisocks.c, tcp_time_wait: TCPTimeWaitOverflow, 5.8 to 6.18).
            HookKind::Unborn => {
                self.birth(notice, MinisocketState::Refused);
                out.fact(head.time_ns, TrackerEvent::TimeWaitOverflow);
            }
            HookKind::Flipped => self.flipped(notice, out),
            HookKind::Expired => self.ended(head, TimeWaitEnd::Expired, Outcome::Timeout, out),
            HookKind::Reused => self.ended(head, TimeWaitEnd::Reused, Outcome::Unknown, out),
            HookKind::Recycled => self.ended(head, TimeWaitEnd::Recycled, Outcome::Unknown, out),
            HookKind::Reset => self.ended(head, TimeWaitEnd::Reset, Outcome::ResetReceived, out),
            HookKind::DataAfterClose => self.ended(head, TimeWaitEnd::Reset, Outcome::ResetSent, out),
            HookKind::Destroyed => self.ended(head, TimeWaitEnd::Destroyed, Outcome::Destroyed, out),
            HookKind::Purged => self.ended(head, TimeWaitEnd::Purged, Outcome::Unknown, out),
            HookKind::Early => self.ended(head, TimeWaitEnd::Early, Outcome::Unknown, out),
        }
    }

    /// What the full socket of a notice is known by at this backend.
    fn key_of_socket(&self, notice: &HookRecord) -> u64 {
        if self.by_cookie { notice.head.key } else { notice.sk }
    }

    fn reset_sent(&mut self, notice: &HookRecord, out: &mut impl EventSink) {
        let key = self.key_of_socket(notice);
        if let Some(at) = self.settling.iter().rposition(|waiting| waiting.key == key)
            && let Some(waiting) = self.settling.remove(at)
        {
            waiting.settle(Outcome::ResetSent, out);
        }
    }

    /// The minisocket is made, or not, while the socket still stands; its →CLOSE follows.
    fn birth(&mut self, notice: &HookRecord, birth: MinisocketState) {
        let head = &notice.head;
        let key = self.key_of_socket(notice);
        let phase = TcpState::from_raw(head.old).and_then(Phase::of);
        let Some(phase) = phase.filter(|_| key != 0) else { return };
        // At the classic tracepoint a dump's socket is known by its cookie until it steps, and this comes first.
        let at = match self.at(key).or_else(|| self.at(head.key)) {
            Some(at) => at,
            None => {
                let backend = if self.by_cookie { flags::COOKIE } else { 0 };
                self.stranger(&RecordHeader { key, flags: backend, ..*head }, 0, phase, SocketKind::Socket)
            }
        };
        let sk = if self.by_cookie { 0 } else { notice.sk };
        self.change(at, |life| {
            (life.birth, life.cookie) = (birth, head.key);
            if life.body == SocketKind::Socket {
                life.mark = sk;
            }
        });
        if !self.by_cookie && birth == MinisocketState::Born {
            self.by_birth.insert(head.key, at);
        }
    }

    /// The life of the minisocket that a notice speaks of; of one older than the agent, in another network namespace,
    /// a new one. `None` when the notice names no state that a minisocket can be in, and when its end was told already.
    fn minisocket_of(&mut self, head: &RecordHeader) -> Option<(usize, Phase)> {
        let phase = TcpState::from_raw(head.old).and_then(Phase::of)?;
        if head.key != 0 {
            // The same socket may have connected again, and keeps its cookie.
            let same = |at: &usize| {
                let Flow { local_port, remote_port, .. } = self.lives[*at].flow;
                (local_port, remote_port) == (head.local_port, head.remote_port)
            };
            let of_socket = || match self.by_cookie {
                true => self.at(head.key).filter(same),
                false => self.by_birth.get(&head.key).copied(),
            };
            if let Some(at) = self.at(!head.key).or_else(of_socket) {
                // Before its socket's →CLOSE: the record of that was lost, or another CPU was faster.
                if self.lives[at].body == SocketKind::Socket {
                    self.outlive_socket(at);
                }
                return Some((at, phase));
            }
        }
        if head.key != 0 && self.just_ended.contains(head.key) {
            return None;
        }
        // As a socket it would for a moment stand under the key of one that has the same cookie, and take that away.
        let at = self.stranger(head, 0, phase, SocketKind::Minisocket);
        // A TIME-WAIT's close was before the agent.
        self.lives[at].counted = phase == Phase::TimeWait;
        Some((at, phase))
    }

    /// FIN-WAIT-2 → TIME-WAIT: the peer's FIN came.
    fn flipped(&mut self, notice: &HookRecord, out: &mut impl EventSink) {
        let head = &notice.head;
        // Without a cookie nothing more would be heard of it.
        if head.key == 0 {
            return;
        }
        let Some((at, _)) = self.minisocket_of(head) else { return };
        (self.lives[at].event_ns, self.lives[at].missed) = (head.time_ns, false);
        if self.lives[at].phase != Phase::TimeWait {
            self.leave(at, Phase::FinWait2, head.time_ns, out);
            let told = transition::Evidence { rcv: Some(notice.sk as u32), ..transition::Evidence::BY_HOOK };
            self.enter_time_wait(at, Phase::FinWait2, EnteredAt::exact(head.time_ns), told, out);
        }
    }

    /// The minisocket is gone. `outcome` is that of a connection that was still in FIN-WAIT-2.
    fn ended(&mut self, head: &RecordHeader, how: TimeWaitEnd, outcome: Outcome, out: &mut impl EventSink) {
        let now = head.time_ns;
        let Some((at, phase)) = self.minisocket_of(head) else { return };
        self.leave(at, phase, now, out);
        let (from, to, told) = (phase.state(), TcpState::Close, transition::Evidence::BY_HOOK);
        let settled = Some(if phase == Phase::TimeWait { Outcome::Graceful } else { outcome });
        let spent = self.spent(at, phase, EnteredAt::exact(now));
        self.tell(&self.lives[at], PhaseChange { at_ns: now, from, to, spent, outcome: settled, told }, out);
        if phase == Phase::TimeWait {
            out.fact(now, TrackerEvent::TimeWaitEnded { how });
            // Counted at its entry, unless the record of that was lost.
            self.count(at, now, Outcome::Graceful, out);
        }
        self.count(at, now, outcome, out);
        self.remove(at);
    }
}
