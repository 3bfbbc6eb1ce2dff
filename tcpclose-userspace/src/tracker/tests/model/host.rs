//! The model: a kernel with some sockets, each moved along the ways of net/ipv4 that the tracker knows, and what is true
//! of it. It makes the records of one backend, and says what an agent that misses none of them must tell.

use std::collections::VecDeque;

use crate::tracker::tests::model::dumps::Dump;
use crate::tracker::tests::model::{Backend, Move};
use crate::tracker::tests::*;

/// FIN-WAIT-2 of a minisocket lasts as long here: `tcp_fin_timeout`.
const FIN_TIMEOUT: u64 = 60 * S;
const ECONNRESET: u16 = 104;

/// One connection, as the kernel has it.
#[derive(Clone, Copy, Debug)]
pub struct Sock {
    pub cookie: u64,
    /// Of the `struct sock`; the slab gives it to the next one.
    pub sk: u64,
    pub flow: Flow,
    pub accepted: bool,
    pub state: TcpState,
    pub kind: SocketKind,
    /// When it came into this state.
    pub entered: u64,
    /// The program has closed it.
    pub dead: bool,
    role: Role,
    /// Of a minisocket: when its timer runs out.
    pub due: u64,
}

impl Sock {
    const fn pair(&self) -> PortKey {
        if self.accepted { SERVER } else { CLIENT }
    }

    pub const fn is_minisocket(&self) -> bool {
        matches!(self.kind, SocketKind::Minisocket)
    }
}

/// What was true so far.
#[derive(Debug, Default)]
pub struct Truth {
    /// Connections that came into the close phase, or were closed without.
    pub opened: usize,
    /// Phases that were left, where, for how long, and by a minisocket.
    pub stays: Vec<(Phase, PortKey, u64, bool)>,
    /// How long each stay of a minisocket could have been, by its timer.
    pub terms: Vec<(Phase, u64)>,
    /// Connections that are over for both programs; and whether only hooks can tell how.
    pub closes: Vec<(PortKey, Role, Outcome, bool)>,
    pub ended: Vec<TimeWaitEnd>,
    pub overflows: usize,
    /// Records made, and those of them that were lost.
    pub made: usize,
    pub lost: usize,
}

pub struct Host {
    pub backend: Backend,
    pub bench: Bench,
    pub now: u64,
    pub socks: Vec<Sock>,
    pub truth: Truth,
    cookies: u64,
    /// Addresses of past sockets, the last one first.
    free: Vec<u64>,
    pub(super) ring: VecDeque<Record>,
    /// So many records find no room from here on.
    pub(super) losing: usize,
    pub(super) lost_untold: bool,
    /// The kernel makes no minisockets.
    full: bool,
    pub(super) dump: Option<Dump>,
    /// The last dump left some out: the next one meets them.
    pub(super) skipped: bool,
}

impl Host {
    pub fn new(backend: Backend) -> Self {
        let mut bench = Bench::new(backend.by_cookie, backend.events);
        if backend.hooks {
            bench.tracker.set_hooks(EVERYTHING);
        }
        bench.dump(T0 - S, true, &[]);
        Self {
            backend,
            bench,
            now: T0,
            socks: Vec::new(),
            truth: Truth::default(),
            cookies: 0,
            free: Vec::new(),
            ring: VecDeque::new(),
            losing: 0,
            lost_untold: false,
            full: false,
            dump: None,
            skipped: false,
        }
    }

    pub fn go(&mut self, what: Move) {
        self.pass(MS / 100);
        match what {
            Move::Connect(nth) => self.connect(nth),
            Move::Wait(ns) => self.pass(ns),
            Move::Lose(records) => self.losing += usize::from(records),
            Move::Full(full) => self.full = full,
            Move::Drain => self.drain(),
            Move::BeginDump { minisockets, skip } => self.begin_dump(minisockets, skip),
            Move::JoinDump => self.join_dump(),
            Move::EndDump => self.end_dump(),
            Move::Reconcile => self.reconcile(),
            Move::Close(nth) | Move::Shutdown(nth) => {
                self.with(nth, |host, at| host.close(at, matches!(what, Move::Close(_))));
            }
            Move::Fin(nth) => self.with(nth, Self::fin),
            Move::Ack(nth) => self.with(nth, Self::ack),
            Move::Reset(nth) => self.with(nth, |host, at| host.reset(at, false)),
            Move::Data(nth) => self.with(nth, |host, at| host.reset(at, true)),
            Move::Abort(nth) => self.with(nth, Self::abort),
            Move::TimeOut(nth) => self.with(nth, Self::time_out),
            Move::Destroy(nth) => self.with(nth, Self::destroy),
        }
    }

    fn with(&mut self, nth: u8, what: impl FnOnce(&mut Self, usize)) {
        if !self.socks.is_empty() {
            let at = usize::from(nth) % self.socks.len();
            what(self, at);
        }
    }

    /// Time passes; timers run out at their instants.
    pub(super) fn pass(&mut self, ns: u64) {
        let until = self.now + ns;
        while let Some(at) = (0..self.socks.len())
            .filter(|&at| self.socks[at].is_minisocket() && self.socks[at].due <= until)
            .min_by_key(|&at| self.socks[at].due)
        {
            self.now = self.now.max(self.socks[at].due);
            self.end_minisocket(at, HookKind::Expired);
        }
        self.now = until;
    }

    /// The flow of the `nth` pair of ends, and whether the connection is accepted here.
    fn flow(nth: u8) -> (Flow, bool) {
        let (nth, accepted) = (nth / 2 % 3, nth.is_multiple_of(2));
        let peer = format!("10.0.0.9:{}", 40_000 + u16::from(nth));
        (if accepted { flow("10.0.0.2:80", &peer) } else { flow(&peer, "10.0.0.2:80") }, accepted)
    }

    fn connect(&mut self, nth: u8) {
        let (flow, accepted) = Self::flow(nth);
        if let Some(at) = self.socks.iter().position(|sock| sock.flow == flow) {
            if self.socks[at].state != TimeWait {
                return;
            }
            self.end_minisocket(at, if accepted { HookKind::Recycled } else { HookKind::Reused });
        }
        self.cookies += 1;
        let fresh = 0xffff_8880_0000_0000 + 0x1000 * self.cookies;
        self.socks.push(Sock {
            cookie: self.cookies,
            sk: self.free.pop().unwrap_or(fresh),
            flow,
            accepted,
            state: Established,
            kind: SocketKind::Socket,
            entered: self.now,
            dead: false,
            role: Role::None,
            due: 0,
        });
    }

    /// close(), or shutdown() of this side's direction.
    fn close(&mut self, at: usize, whole: bool) {
        let Sock { state, dead, kind, .. } = self.socks[at];
        if kind == SocketKind::Minisocket || dead {
            return;
        }
        match state {
            Established => self.step(at, FinWait1, OWNED),
            CloseWait => self.step(at, LastAck, OWNED),
            _ if !whole => return,
            _ => {}
        }
        self.socks[at].dead = whole;
        if whole && state == FinWait2 {
            self.hand_over(at, FinWait2, OWNED | FIN_ACKED);
        }
    }

    /// The peer's FIN.
    fn fin(&mut self, at: usize) {
        let Sock { state, kind, .. } = self.socks[at];
        match (kind, state) {
            (SocketKind::Socket, Established) => self.step(at, CloseWait, 0),
            (SocketKind::Socket, FinWait1) => self.step(at, Closing, 0),
            (SocketKind::Socket, FinWait2) => self.hand_over(at, TimeWait, DONE | FIN_ACKED),
            (SocketKind::Minisocket, FinWait2) => {
                self.hook(at, HookKind::Flipped, TimeWait, 0);
                self.enter(at, TimeWait);
                self.set_timer(at, TIME_WAIT);
                self.over(at, Outcome::Graceful, true);
            }
            _ => {}
        }
    }

    /// The peer's ACK of this side's FIN.
    fn ack(&mut self, at: usize) {
        let Sock { state, kind, dead, .. } = self.socks[at];
        match (kind, state) {
            (SocketKind::Socket, FinWait1) => {
                self.step(at, FinWait2, 0);
                if dead {
                    self.hand_over(at, FinWait2, FIN_ACKED);
                }
            }
            (SocketKind::Socket, Closing) => self.hand_over(at, TimeWait, DONE | FIN_ACKED),
            (SocketKind::Socket, LastAck) => self.end(at, DONE | FIN_ACKED, 0, Outcome::Graceful),
            _ => {}
        }
    }

    /// The peer's RST; or data after close, which the kernel answers with one.
    fn reset(&mut self, at: usize, data: bool) {
        let Sock { state, kind, dead, .. } = self.socks[at];
        match (kind, state) {
            (SocketKind::Minisocket, TimeWait) if data => {}
            (SocketKind::Minisocket, _) => {
                self.end_minisocket(at, if data { HookKind::DataAfterClose } else { HookKind::Reset });
            }
            (SocketKind::Socket, FinWait1 | FinWait2) if dead => {
                let outcome = match (self.backend.hooks, data) {
                    (false, _) => Outcome::Unknown,
                    (true, true) => Outcome::ResetSent,
                    (true, false) => Outcome::ResetReceived,
                };
                let sock = self.socks[at];
                self.end(at, RCV_SHUTDOWN, ECONNRESET, outcome);
                if data {
                    self.now += MS / 50;
                    self.send_hook(&sock, HookKind::ResetSent, (Close, Close), sock.sk);
                }
            }
            _ if data => {}
            (SocketKind::Socket, CloseWait) => self.end(at, DONE, 32, Outcome::ResetReceived),
            (SocketKind::Socket, _) => self.end(at, 0, ECONNRESET, Outcome::ResetReceived),
        }
    }

    /// close() with linger 0, or connect(AF_UNSPEC).
    fn abort(&mut self, at: usize) {
        let Sock { state, kind, dead, .. } = self.socks[at];
        if kind == SocketKind::Socket && !dead {
            let done = if state == CloseWait { DONE } else { 0 };
            self.end(at, OWNED | done, 0, Outcome::Aborted);
        }
    }

    fn time_out(&mut self, at: usize) {
        let Sock { state, kind, .. } = self.socks[at];
        if kind == SocketKind::Socket && state != FinWait2 {
            self.end(at, 0, 110, Outcome::Timeout);
        }
    }

    fn destroy(&mut self, at: usize) {
        match self.socks[at].kind {
            SocketKind::Socket => self.end(at, OWNED, 103, Outcome::Destroyed),
            SocketKind::Minisocket => self.end_minisocket(at, HookKind::Destroyed),
        }
    }

    /// A step of the socket at `at` into a state of the close phase.
    fn step(&mut self, at: usize, new: TcpState, flags: u16) {
        self.send_step(&self.socks[at].clone(), new, flags, 0);
        let sock = &mut self.socks[at];
        if sock.state == Established {
            self.truth.opened += 1;
            sock.role = if new == FinWait1 { Role::Active } else { Role::Passive };
        }
        if new == Closing {
            sock.role = Role::Simultaneous;
        }
        self.enter(at, new);
    }

    fn enter(&mut self, at: usize, new: TcpState) {
        self.leave(at);
        (self.socks[at].state, self.socks[at].entered) = (new, self.now);
    }

    fn leave(&mut self, at: usize) {
        let sock = self.socks[at];
        if let Some(phase) = Phase::of(sock.state) {
            self.truth.stays.push((phase, sock.pair(), self.now - sock.entered, sock.is_minisocket()));
        }
    }

    fn over(&mut self, at: usize, outcome: Outcome, only_hooks: bool) {
        let sock = self.socks[at];
        self.truth.closes.push((sock.pair(), sock.role, outcome, only_hooks));
    }

    /// →CLOSE, and nothing is left.
    fn end(&mut self, at: usize, flags: u16, err: u16, outcome: Outcome) {
        self.truth.opened += usize::from(self.socks[at].state == Established);
        self.send_step(&self.socks[at].clone(), Close, flags, err);
        self.leave(at);
        self.over(at, outcome, false);
        self.free(at);
    }

    fn free(&mut self, at: usize) -> Sock {
        let sock = self.socks.swap_remove(at);
        if sock.kind == SocketKind::Socket {
            self.free.push(sock.sk);
        }
        sock
    }

    /// →CLOSE, and a minisocket in `state` goes on, if one can be made.
    fn hand_over(&mut self, at: usize, state: TcpState, flags: u16) {
        let born = if self.full { HookKind::Unborn } else { HookKind::Born };
        let sock = self.socks[at];
        self.hook(at, born, state, sock.sk);
        self.send_step(&sock, Close, flags, 0);
        if self.full {
            self.leave(at);
            self.truth.overflows += 1;
            let outcome = if state == TimeWait { Outcome::Graceful } else { Outcome::Unknown };
            self.over(at, outcome, state != TimeWait);
            self.free(at);
            return;
        }
        self.free.push(sock.sk);
        if state != sock.state {
            self.enter(at, state);
            self.over(at, Outcome::Graceful, false);
        }
        let length = if state == TimeWait { TIME_WAIT } else { FIN_TIMEOUT };
        (self.socks[at].kind, self.socks[at].sk) = (SocketKind::Minisocket, 0);
        self.set_timer(at, length);
    }

    fn set_timer(&mut self, at: usize, length: u64) {
        let sock = &mut self.socks[at];
        sock.due = self.now + length;
        self.truth.terms.extend(Phase::of(sock.state).map(|phase| (phase, sock.due - sock.entered)));
    }

    fn end_minisocket(&mut self, at: usize, hook_kind: HookKind) {
        self.hook(at, hook_kind, Close, 0);
        self.leave(at);
        let (how, outcome) = match hook_kind {
            HookKind::Expired => (TimeWaitEnd::Expired, Outcome::Timeout),
            HookKind::Reused => (TimeWaitEnd::Reused, Outcome::Unknown),
            HookKind::Recycled => (TimeWaitEnd::Recycled, Outcome::Unknown),
            HookKind::Reset => (TimeWaitEnd::Reset, Outcome::ResetReceived),
            HookKind::DataAfterClose => (TimeWaitEnd::Reset, Outcome::ResetSent),
            _ => (TimeWaitEnd::Destroyed, Outcome::Destroyed),
        };
        if self.socks[at].state == TimeWait {
            self.truth.ended.push(how);
        } else {
            self.over(at, outcome, true);
        }
        self.free(at);
    }
}
