//! One socket's life from its first close-phase step to its last trace: a pure state machine.
//!
//! Records of the probe ([`Tracker::record`]) and dumps of the kernel's sockets ([`Tracker::dump`], in [`join`]) go in,
//! [`Fact`]s come out. No fd, no clock, no async: every instant is an argument.
//!
//! * [`life`]: what is known of one socket.
//! * [`ending`]: what a →CLOSE of the tracepoint means. [`over`]: ends that no record told.
//! * [`join`]: what a dump adds: the minisockets, and what the records missed.
//! * [`elsewhere`]: namespaces that are gone, or that no dump reaches.
//! * [`notice`]: what hooks tell of minisockets and resets.
//! * [`find`]: which life is meant, and how lives come and go. [`index`]: lives by what they are kept under.
//! * [`ended`]: minisockets whose end was told already.
//! * [`fact`]: what comes out. [`transition`]: what comes out besides while somebody watches.
//! * [`keep`]: what outlives the agent. [`journal`]: how that is written down.

pub mod elsewhere;
mod ended;
pub mod ending;
pub mod fact;
mod find;
mod index;
pub mod join;
pub mod journal;
pub mod keep;
#[cfg(test)]
mod keep_tests;
pub mod life;
pub mod notice;
mod over;
#[cfg(test)]
mod tests;
pub mod transition;

use std::collections::{HashSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use rustc_hash::{FxBuildHasher, FxHashMap};
use slab::Slab;
use tcpclose_common::event::{Head, Open, Record, flags};
use tcpclose_common::state::TcpState;

use crate::terms::{Age, Flow, Outcome, Phase, Role, Side, address_of};
use ended::JustEnded;
use ending::Ending;
use fact::{Fact, Pair, Sink, Why};
use find::flow_of;
use index::Index;
use life::{Birth, Body, Closer, Life, Since};
use notice::{Settling, Told};
use transition::Step;

/// What the tracker must know of the host.
#[derive(Clone, Debug)]
pub struct Host {
    /// The agent's own network namespace, as a record's [`netns`](Head::netns).
    pub netns: u32,
    /// Dumps see the other namespaces too.
    pub everywhere: bool,
    /// Records tell the namespace (BTF). Where they do not, one flow is one life, whichever namespace it is in.
    pub told: bool,
    /// `ip_local_port_range`.
    pub ephemeral: RangeInclusive<u16>,
}

/// Hashes what others have a choice in with a secret, as std's hash does, for a fifth of its time: nobody outside is
/// shown an order or a hash to learn the secret from.
type Keyed = foldhash::fast::RandomState;

/// All lives.
pub struct Tracker {
    host: Host,
    lives: Slab<Life>,
    /// By cookie (tp_btf) or by address of the full socket (classic door; while that is not known, by cookie too). A
    /// minisocket stands under its cookie's complement: the socket that it was made of may live on in a program that
    /// connects it again, and keeps its cookie (net/ipv4/tcp.c, tcp_disconnect leaves sk_cookie alone, 5.8 to 6.18). The
    /// kernel gives these out and nobody else has a choice in them, so the hash needs no secret.
    by_key: Index<u64, FxBuildHasher>,
    /// By cookie, at the classic door: sockets whose minisocket is born. Should the record of the →CLOSE be lost, the socket's
    /// address leads nowhere any more. (At the tp_btf door the cookie still does.)
    by_birth: FxHashMap<u64, usize>,
    /// By namespace and flow, at the classic door only: what is left when the socket's address is forgotten. Peers
    /// choose half of this key, so it is hashed with a secret.
    by_flow: Index<(u32, u64), Keyed>,
    /// Where somebody listens, by namespace, as of the last dump that looked there.
    listening: HashSet<(u32, Ipv6Addr, u16), Keyed>,
    /// Lives that ended while a dump is under way: what it says of them is no news.
    ended_meanwhile: Option<HashSet<Identity>>,
    /// How long TIME-WAIT lasts here, nanoseconds: measured.
    time_wait_ns: Option<u64>,
    /// Whether lives are keyed by cookie (tp_btf) or by socket address and flow (classic door).
    by_cookie: bool,
    /// Records were lost, at any time: what dumps had to add since may be older than the agent or not, and nothing tells.
    ever_lost: bool,
    /// Records were lost, and what they would have told may still be missing.
    loss: Option<elsewhere::Loss>,
    /// A dump missed more lives than could be looked up.
    unsettled: bool,
    /// What was entered before this was there before the agent, unless its record was lost: when the first dump was
    /// done. `None` until then.
    complete_ns: Option<u64>,
    told: Told,
    just_ended: JustEnded,
    /// In the order of their closes.
    settling: VecDeque<Settling>,
    /// What an agent before this one has kept, until the first dump is in.
    former: Option<keep::Former>,
    /// What is to be kept for the next agent, if anything is.
    changes: Option<keep::Changes>,
    /// Of those few sockets that are bound to one, by cookie.
    interfaces: FxHashMap<u64, u32>,
    /// `ns.inum` by what identifies a namespace.
    inums: FxHashMap<u32, u32>,
    /// The last of these that was told.
    last_inum: (u32, u32),
    /// See [`Self::take_gave_back`].
    gave_back: bool,
}

/// What tells one life from another across records and dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Identity {
    Cookie(u64),
    Flow(u32, u64),
}

impl Tracker {
    /// `by_cookie`: whether the records carry cookies (the tp_btf door).
    pub fn new(host: Host, by_cookie: bool) -> Self {
        Self {
            host,
            lives: Slab::new(),
            by_key: Index::default(),
            by_birth: FxHashMap::default(),
            by_flow: Index::default(),
            listening: HashSet::default(),
            ended_meanwhile: None,
            time_wait_ns: None,
            by_cookie,
            ever_lost: false,
            loss: None,
            unsettled: false,
            complete_ns: None,
            told: Told::default(),
            just_ended: JustEnded::default(),
            settling: VecDeque::new(),
            former: None,
            changes: None,
            interfaces: FxHashMap::default(),
            inums: FxHashMap::default(),
            last_inum: (0, 0),
            gave_back: false,
        }
    }

    /// Says which hooks are in use.
    pub fn set_told(&mut self, told: Told) {
        self.told = told;
    }

    /// Every life, in no order.
    pub fn lives(&self) -> impl Iterator<Item = &Life> {
        self.lives.iter().map(|(_, life)| life)
    }

    /// How many sockets and minisockets are tracked.
    pub fn len(&self) -> usize {
        self.lives.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lives.is_empty()
    }

    /// The life with this cookie, or else the one of this flow in this namespace.
    pub fn find(&self, netns: u32, cookie: u64, flow: &Flow) -> Option<&Life> {
        let at = self.slot_of(netns, cookie, flow)?;
        self.lives.get(at)
    }

    /// TIME-WAIT's measured length, nanoseconds; `None` before the first measurement.
    pub fn time_wait_ns(&self) -> Option<u64> {
        self.time_wait_ns
    }

    pub fn set_time_wait_ns(&mut self, ns: u64) {
        self.time_wait_ns = Some(join::meant_length(ns));
    }

    /// Takes one record of the probe.
    pub fn record(&mut self, record: &Record, out: &mut impl Sink) {
        let head = record.head();
        let (Some(old), Some(new)) = (TcpState::from_raw(head.old), TcpState::from_raw(head.new)) else {
            return;
        };
        match record {
            Record::Open(open) => self.open(open, old, new, out),
            Record::Step(step, flow) => {
                let Some(left) = Phase::of(old) else { return };
                self.make_way(head, *flow, out);
                let at = self
                    .slot_of_step(head, *flow)
                    .unwrap_or_else(|| self.stranger(head, *flow, left, Body::Socket));
                if self.lives[at].flow.hash64() == 0 && *flow != 0 {
                    // A hook's notice was the first that was heard of it.
                    let flow = Flow::of_hash(*flow, head.local_port, head.remote_port);
                    self.change(at, |life| life.flow = flow);
                }
                self.step(at, head, (left, new), transition::Told::by_record(head, step.numbers), out);
            }
            Record::Notice(notice, news) => self.notice(notice, *news, out),
        }
    }

    /// Says that records were lost, as noticed at `now_ns`: from here on a phase without an entry may be one of theirs.
    pub fn records_lost(&mut self, now_ns: u64) {
        self.ever_lost = true;
        self.loss = Some(elsewhere::Loss::new(now_ns));
    }

    /// A socket's first step.
    fn open(&mut self, open: &Open, old: TcpState, new: TcpState, out: &mut impl Sink) {
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
        let (at_ns, told) = (head.time_ns, transition::Told::by_record(head, open.numbers));
        let first = Step { at_ns, from: old, to: new, spent: Age::UNKNOWN, outcome: None, told };
        self.told_inum(head.netns, open.inum);
        let Some(phase) = Phase::of(new) else {
            // Straight to CLOSE: no FIN was sent or taken, and no phase was entered.
            let outcome = match ending::read(old, head) {
                Ending::Over(outcome) => outcome,
                Ending::TimeWait | Ending::FinWait2 | Ending::Reset | Ending::Unclear => Outcome::Unknown,
            };
            let pair = Pair { side, port };
            let life = Life { flow, side, port, ..Self::blank(head, Phase::FinWait1) };
            let life = Life { role: Role::None, ..life };
            self.tell(&life, Step { outcome: Some(outcome), ..first }, out);
            out.fact(head.time_ns, Fact::Closed { pair, role: Role::None, outcome });
            return;
        };
        let role = match phase {
            Phase::FinWait1 => Role::Active,
            Phase::CloseWait => Role::Passive,
            _ => Role::Unknown,
        };
        let life = Life { flow, side, port, role, phase, ..Self::blank(head, phase) };
        self.tell(&life, first, out);
        self.insert(Life { since: Since::exact(head.time_ns), ..life });
    }

    /// Clears what stands under the identity of a socket that takes its first step.
    fn make_room(&mut self, head: &Head, flow: &Flow, out: &mut impl Sink) {
        let former = if self.by_cookie { self.at(!head.key) } else { None };
        if let Some(at) = former.filter(|&at| self.lives[at].flow == *flow) {
            // One flow, one socket: the same one has reused its own TIME-WAIT.
            self.end_minisocket(at, head.time_ns, transition::Told::BY_ANOTHER, out);
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
                Life { body: Body::Minisocket, .. } => {
                    self.end_minisocket(at, head.time_ns, transition::Told::BY_ANOTHER, out);
                }
                // Known by a dump alone, which ran between this step and its drain: the record knows better.
                life if life.sk() == 0 => {
                    self.remove(at);
                }
                // The earlier connection's socket. Its →CLOSE is on its way from another CPU (tcp_time_wait has the
                // minisocket hashed, where a SYN can take its place, before tcp_done), or lost.
                life => self.forget_flow(at, flow_of(&self.host, false, &life)),
            }
        }
    }

    /// A life for a socket of which this step is the first that is known: it has been in `left` since nobody knows, or
    /// since the agent before this one saw it enter. `flow_hash`: of its flow, at the classic door; else 0.
    fn stranger(&mut self, head: &Head, flow_hash: u64, left: Phase, body: Body) -> usize {
        if let Some(life) = self.former_of(head, left, body) {
            return self.insert(life);
        }
        let side = self.side_of(head, None);
        let port = self.port(side, head.local_port, head.remote_port);
        let flow = Flow::of_hash(flow_hash, head.local_port, head.remote_port);
        let mut life = Life { side, port, flow, ..Self::blank(head, left) };
        life.become_body(body);
        self.insert(life)
    }

    /// A life in `phase` of which only the record is known.
    fn blank(head: &Head, phase: Phase) -> Life {
        let cookie = head.flags & flags::COOKIE != 0;
        let closer = closer(head);
        Life {
            cookie: if cookie { head.key } else { 0 },
            mark: if cookie { 0 } else { head.key },
            flow: Flow::of_hash(0, head.local_port, head.remote_port),
            netns: head.netns,
            port: 0,
            side: Side::Unknown,
            role: role_proven_by(phase),
            phase,
            body: Body::Socket,
            birth: Birth::Untold,
            counted: false,
            since: Since { earliest_ns: 0, latest_ns: head.time_ns },
            event_ns: head.time_ns,
            seen_ns: 0,
            missed: false,
            acted_ns: closer.map_or(0, |closer| closer.at_ns),
            closer_pid: closer.map(|closer| closer.pid),
        }
    }

    /// A step of a known life out of `left`.
    fn step(
        &mut self,
        at: usize,
        head: &Head,
        (left, new): (Phase, TcpState),
        told: transition::Told,
        out: &mut impl Sink,
    ) {
        let now = head.time_ns;
        self.refine(at, head);
        let spent = self.spent(at, left, Since::exact(now));
        let step = Step { at_ns: now, from: left.state(), to: new, spent, outcome: None, told };
        let ending = match Phase::of(new) {
            Some(next) => {
                self.leave(at, left, now, out);
                self.enter(at, next, Since::exact(now));
                if let Some(closer) = closer(head) {
                    self.lives[at].set_closer(closer);
                }
                if next == Phase::Closing {
                    self.lives[at].role = Role::Simultaneous;
                }
                self.tell(&self.lives[at], step, out);
                return;
            }
            // Its minisocket, of which more is known by now than this step can tell.
            None if self.lives[at].body == Body::Minisocket && self.lives[at].birth == Birth::Born => return,
            None => ending::read(left.state(), head),
        };
        match ending {
            Ending::Over(outcome) => {
                self.leave(at, left, now, out);
                self.tell(&self.lives[at], Step { outcome: Some(outcome), ..step }, out);
                self.count(at, now, outcome, out);
                self.remove(at);
                return;
            }
            Ending::Reset => {
                self.leave(at, left, now, out);
                if self.told.resets {
                    out.fact(now, Fact::Transition { from: step.from, to: step.to });
                    let unsettled = out
                        .is_watched()
                        .then(|| Box::new(step.of(&self.lives[at], self.inum_of(self.lives[at].netns))));
                    let life = &mut self.lives[at];
                    life.counted = true;
                    let (pair, role) = (life.pair(), life.role);
                    self.settling.push_back(Settling {
                        key: head.key,
                        closed_ns: now,
                        pair,
                        role,
                        unsettled,
                    });
                } else {
                    let step = Step { outcome: Some(Outcome::Unknown), ..step };
                    self.tell(&self.lives[at], step, out);
                    self.count(at, now, Outcome::Unknown, out);
                }
                self.remove(at);
                return;
            }
            // No minisocket was made: the table is full (TIME-WAIT is skipped), or there was no memory.
            Ending::TimeWait | Ending::FinWait2 if self.lives[at].birth == Birth::Refused => {
                self.leave(at, left, now, out);
                let graceful = ending == Ending::TimeWait;
                let outcome = if graceful { Outcome::Graceful } else { Outcome::Unknown };
                self.tell(&self.lives[at], Step { outcome: Some(outcome), ..step }, out);
                self.count(at, now, outcome, out);
                self.remove(at);
                return;
            }
            Ending::TimeWait => {
                self.leave(at, left, now, out);
                self.enter_time_wait(at, left, Since::exact(now), told, out);
            }
            // The life goes on in FIN-WAIT-2. If a record was lost on the way there, it says so now.
            Ending::FinWait2 | Ending::Unclear if left == Phase::FinWait2 => {
                if self.lives[at].phase != left {
                    self.leave(at, self.lives[at].phase, now, out);
                    self.enter(at, left, Since { earliest_ns: 0, latest_ns: now });
                }
            }
            // Without BTF, CLOSING→CLOSE: most likely TIME-WAIT. It is counted when a dump has seen it.
            Ending::FinWait2 | Ending::Unclear => {
                self.leave(at, left, now, out);
                self.enter(at, Phase::TimeWait, Since::exact(now));
            }
        }
        self.hand_over(at, now, out);
    }

    /// Only the minisocket of the life at `at` is left.
    fn outlive_socket(&mut self, at: usize) {
        self.forget_birth(at, self.lives[at].cookie);
        self.change(at, |life| {
            life.become_body(Body::Minisocket);
            life.seen_ns = 0;
        });
    }

    /// The full socket is gone; a minisocket goes on.
    fn hand_over(&mut self, at: usize, now: u64, out: &mut impl Sink) {
        if !self.by_cookie {
            let life = &self.lives[at];
            if self.slot_of_flow(life.netns, life.flow.hash64()).is_some_and(|taker| taker != at) {
                self.end_minisocket(at, now, transition::Told::BY_ANOTHER, out);
                return;
            }
        }
        self.outlive_socket(at);
        if !self.is_dumped(self.lives[at].netns) && !self.told.lives {
            self.lose_sight(at, now, out);
        }
    }

    /// Whether dumps look at this namespace, as far as is known.
    fn is_dumped(&self, netns: u32) -> bool {
        self.host.everywhere || netns == self.host.netns || netns == 0
    }

    /// Says whether dumps see other namespaces than the agent's own.
    pub fn set_everywhere(&mut self, everywhere: bool) {
        self.host.everywhere = everywhere;
    }

    /// Closes the account of the phase `left`.
    fn leave(&mut self, at: usize, left: Phase, now: u64, out: &mut impl Sink) {
        let life = &self.lives[at];
        let fact = match life.since.until(now) {
            // The step into the phase that is left was never heard of.
            _ if life.phase != left => Fact::Unseen { phase: left, why: Why::Lost },
            Some(ns) => Fact::Dwelt { phase: left, pair: life.pair(), ns },
            None => Fact::Unseen { phase: left, why: self.why(life) },
        };
        out.fact(now, fact);
    }

    fn enter(&mut self, at: usize, phase: Phase, since: Since) {
        self.changed(at);
        let life = &mut self.lives[at];
        life.phase = phase;
        life.since = since;
        if life.body == Body::Minisocket {
            life.mark = 0;
        }
        if life.closer_pid.is_none() {
            life.acted_ns = 0;
        }
    }

    /// TIME-WAIT is where a close is over for both programs.
    fn enter_time_wait(
        &mut self,
        at: usize,
        left: Phase,
        since: Since,
        told: transition::Told,
        out: &mut impl Sink,
    ) {
        let spent = self.spent(at, left, since);
        self.enter(at, Phase::TimeWait, since);
        let (from, to) = (left.state(), TcpState::TimeWait);
        let step = Step { at_ns: since.latest_ns, from, to, spent, outcome: None, told };
        self.tell(&self.lives[at], step, out);
        self.count(at, since.latest_ns, Outcome::Graceful, out);
    }

    /// Counts the connection as closed, once.
    fn count(&mut self, at: usize, now: u64, outcome: Outcome, out: &mut impl Sink) {
        let life = &mut self.lives[at];
        if !std::mem::replace(&mut life.counted, true) {
            out.fact(now, Fact::Closed { pair: life.pair(), role: life.role, outcome });
        }
    }

    /// Why the entry of `life` into its phase is not known well enough. What was in the close phase in the agent's own
    /// namespace before the agent, the first dump has met; of other namespaces dumps may know nothing.
    fn why(&self, life: &Life) -> Why {
        let later = self.complete_ns.is_some_and(|ns| life.since.latest_ns > ns);
        let later = later && life.netns == self.host.netns;
        if self.ever_lost || later { Why::Lost } else { Why::BeforeAgent }
    }

    /// Learns from a record what an adopted life did not know yet.
    fn refine(&mut self, at: usize, head: &Head) {
        if self.lives[at].side == Side::Unknown {
            let known = Some(self.lives[at].flow).filter(Flow::has_addresses).map(|flow| flow.local);
            let side = self.side_of(head, known);
            let port = self.port(side, head.local_port, head.remote_port);
            if side != Side::Unknown {
                (self.lives[at].side, self.lives[at].port) = (side, port);
                self.changed(at);
            }
        }
        let sk = if self.by_cookie { 0 } else { head.key };
        let life = &mut self.lives[at];
        (life.event_ns, life.missed) = (head.time_ns, false);
        let has_moved = life.body == Body::Socket && life.mark != sk;
        if has_moved || life.netns == 0 && head.netns != 0 {
            self.change(at, |life| {
                if has_moved {
                    life.mark = sk;
                }
                if life.netns == 0 {
                    life.netns = head.netns;
                }
            });
        }
    }

    /// Which end a record's socket is, with this local address if it is known. A child inherits its listener's
    /// `sk_max_ack_backlog` (sk_clone_lock); a socket that connected has 0; only `listen(0)` makes children with 0, and
    /// there the listener itself is the proof.
    fn side_of(&self, head: &Head, local: Option<Ipv6Addr>) -> Side {
        let netns = if head.netns == 0 { self.host.netns } else { head.netns };
        let listener = || local.is_some_and(|local| self.is_listening(netns, local, head.local_port));
        if head.flags & flags::ACCEPTED != 0 || listener() {
            Side::Server
        } else if head.flags & flags::FACTS != 0 {
            Side::Client
        } else {
            Side::Unknown
        }
    }

    /// Whether somebody listens for connections to this end: on its address, or on every one of its family's. A port
    /// alone proves nothing: a client can have it on another address.
    fn is_listening(&self, netns: u32, local: Ipv6Addr, port: u16) -> bool {
        const ANY_V4: Ipv6Addr = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
        let on = |address| self.listening.contains(&(netns, address, port));
        on(local) || on(Ipv6Addr::UNSPECIFIED) || (local.to_ipv4_mapped().is_some() && on(ANY_V4))
    }

    fn port(&self, side: Side, local: u16, remote: u16) -> u16 {
        side.service_port(local, remote, &self.host.ephemeral)
    }
}

/// Who closed, where the record tells.
fn closer(head: &Head) -> Option<Closer> {
    head.closer().and_then(NonZeroU32::new).map(|pid| Closer { pid, at_ns: head.time_ns })
}

/// Who sent the first FIN, where the state alone proves it.
fn role_proven_by(phase: Phase) -> Role {
    match phase {
        Phase::FinWait1 | Phase::FinWait2 => Role::Active,
        Phase::CloseWait | Phase::LastAck => Role::Passive,
        Phase::Closing => Role::Simultaneous,
        // By way of FIN-WAIT-2 or of CLOSING.
        Phase::TimeWait => Role::Unknown,
    }
}
