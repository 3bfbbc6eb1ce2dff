//! One socket's life from its first close-phase step to its last trace: a pure state machine.
//!
//! Records of the probe ([`Tracker::record`]) and dumps of the kernel's sockets ([`Tracker::dump_chunk`], in [`reconcile`]) go in,
//! [`TrackerEvent`]s come out. No fd, no clock, no async: every instant is an argument.
//!
//! * [`socket`]: what is known of one socket.
//! * [`first_record`]: how a life begins. [`side`]: which end it is. [`classify_close`]: what a →CLOSE of the tracepoint means. [`implied_end`]: ends that no record told.
//! * [`reconcile`]: what a dump adds: the minisockets, and what the records missed. [`vanished`]: what a dump should have seen and did not.
//! * [`netns_gone`]: namespaces that are gone, or that no dump reaches.
//! * [`hook_records`]: what hooks tell of minisockets and resets.
//! * [`lookup`]: which life is meant, and how lives come and go. [`index`]: lives by what they are kept under.
//! * [`tombstones`]: minisockets whose end was told already.
//! * [`event`]: what comes out. [`transition`]: what comes out besides while somebody watches.
//! * [`persist`]: what outlives the agent. [`state_format`]: how that is written down.

pub mod classify_close;
pub mod event;
mod first_record;
pub mod hook_records;
mod implied_end;
mod index;
mod lookup;
pub mod netns_gone;
pub mod persist;
pub mod reconcile;
mod side;
pub mod socket;
pub mod state_format;
mod tombstones;
pub mod transition;
pub mod vanished;

use std::collections::{HashSet, VecDeque};
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;

use rustc_hash::{FxBuildHasher, FxHashMap};
use slab::Slab;
use tcpclose_common::event::{Record, RecordHeader};
use tcpclose_common::state::TcpState;

use crate::names::{Flow, HookCoverage, Outcome, Phase, Role, UnmeasuredReason};
use crate::tracker::classify_close::CloseKind;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::first_record::closer;
use crate::tracker::hook_records::Settling;
use crate::tracker::index::Index;
use crate::tracker::socket::{EnteredAt, MinisocketState, SocketKind, TrackedSocket};
use crate::tracker::tombstones::Tombstones;
use crate::tracker::transition::PhaseChange;

/// What the tracker must know of the host.
#[derive(Clone, Debug)]
pub struct HostParameters {
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
    host: HostParameters,
    lives: Slab<TrackedSocket>,
    /// By cookie (tp_btf) or by address of the full socket (classic tracepoint; while that is not known, by cookie too). A
    /// minisocket stands under its cookie's complement: the socket that it was made of may live on in a program that
    /// connects it again, and keeps its cookie (net/ipv4/tcp.c, tcp_disconnect leaves sk_cookie alone, 5.8 to 6.18). The
    /// kernel gives these out and nobody else has a choice in them, so the hash needs no secret.
    by_key: Index<u64, FxBuildHasher>,
    /// By cookie, at the classic tracepoint: sockets whose minisocket is born. Should the record of the →CLOSE be lost, the socket's
    /// address leads nowhere any more. (At the tp_btf backend the cookie still does.)
    by_birth: FxHashMap<u64, usize>,
    /// By namespace and flow, at the classic tracepoint only: what is left when the socket's address is forgotten. Peers
    /// choose half of this key, so it is hashed with a secret.
    by_flow: Index<(u32, u64), Keyed>,
    /// Where somebody listens, by namespace, as of the last dump that looked there.
    listening: HashSet<(u32, Ipv6Addr, u16), Keyed>,
    /// Lives that ended, or whose flow another socket took, while a dump is under way: what it says of them is no news.
    ended_meanwhile: Option<HashSet<Identity>>,
    /// The dump that is under way.
    so_far: reconcile::DumpProgress,
    /// How long TIME-WAIT lasts here, nanoseconds: measured.
    time_wait_ns: Option<u64>,
    /// Whether lives are keyed by cookie (tp_btf) or by socket address and flow (classic tracepoint).
    by_cookie: bool,
    /// Records were lost, at any time: what dumps had to add since may be older than the agent or not, and nothing tells.
    ever_lost: bool,
    /// Records were lost, and what they would have told may still be missing.
    loss: Option<netns_gone::GoneNetns>,
    /// A dump missed more lives than could be looked up.
    unsettled: bool,
    /// What was entered before this was there before the agent, unless its record was lost: when the first dump was
    /// done. `None` until then.
    complete_ns: Option<u64>,
    told: HookCoverage,
    just_ended: Tombstones,
    /// In the order of their closes.
    settling: VecDeque<Settling>,
    /// What an agent before this one has kept, until the first dump is in.
    former: Option<persist::SavedState>,
    /// What is to be kept for the next agent, if anything is.
    changes: Option<persist::ChangedSockets>,
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
    /// `by_cookie`: whether the records carry cookies (the tp_btf backend).
    pub fn new(host: HostParameters, by_cookie: bool) -> Self {
        Self {
            host,
            lives: Slab::new(),
            by_key: Index::default(),
            by_birth: FxHashMap::default(),
            by_flow: Index::default(),
            listening: HashSet::default(),
            ended_meanwhile: None,
            so_far: reconcile::DumpProgress::default(),
            time_wait_ns: None,
            by_cookie,
            ever_lost: false,
            loss: None,
            unsettled: false,
            complete_ns: None,
            told: HookCoverage::default(),
            just_ended: Tombstones::default(),
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
    pub fn set_told(&mut self, told: HookCoverage) {
        self.told = told;
    }

    /// Every life, in no order.
    pub fn lives(&self) -> impl Iterator<Item = &TrackedSocket> {
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
    pub fn find(&self, netns: u32, cookie: u64, flow: &Flow) -> Option<&TrackedSocket> {
        let at = self.slot_of(netns, cookie, flow)?;
        self.lives.get(at)
    }

    /// TIME-WAIT's measured length, nanoseconds; `None` before the first measurement.
    pub fn time_wait_ns(&self) -> Option<u64> {
        self.time_wait_ns
    }

    pub fn set_time_wait_ns(&mut self, ns: u64) {
        self.time_wait_ns = Some(reconcile::meant_length(ns));
    }

    /// Takes one record of the probe.
    pub fn record(&mut self, record: &Record, out: &mut impl EventSink) {
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
                    .unwrap_or_else(|| self.stranger(head, *flow, left, SocketKind::Socket));
                if self.lives[at].flow.hash64() == 0 && *flow != 0 {
                    // A hook's notice was the first that was heard of it.
                    let flow = Flow::of_hash(*flow, head.local_port, head.remote_port);
                    self.change(at, |life| life.flow = flow);
                }
                self.step(at, head, (left, new), transition::Evidence::by_record(head, step.numbers), out);
            }
            Record::Hook(notice, news) => self.notice(notice, *news, out),
        }
    }

    /// Says that records were lost, as noticed at `now_ns`: from here on a phase without an entry may be one of theirs.
    pub fn records_lost(&mut self, now_ns: u64) {
        self.ever_lost = true;
        self.loss = Some(netns_gone::GoneNetns::new(now_ns));
    }

    /// A step of a known life out of `left`.
    fn step(
        &mut self,
        at: usize,
        head: &RecordHeader,
        (left, new): (Phase, TcpState),
        told: transition::Evidence,
        out: &mut impl EventSink,
    ) {
        let now = head.time_ns;
        self.refine(at, head);
        let spent = self.spent(at, left, EnteredAt::exact(now));
        let step = PhaseChange { at_ns: now, from: left.state(), to: new, spent, outcome: None, told };
        let ending = match Phase::of(new) {
            Some(next) => {
                self.leave(at, left, now, out);
                self.enter(at, next, EnteredAt::exact(now));
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
            None if self.lives[at].body == SocketKind::Minisocket
                && self.lives[at].birth == MinisocketState::Born =>
            {
                return;
            }
            None => classify_close::read(left.state(), head),
        };
        match ending {
            CloseKind::Over(outcome) => {
                self.leave(at, left, now, out);
                self.tell(&self.lives[at], PhaseChange { outcome: Some(outcome), ..step }, out);
                self.count(at, now, outcome, out);
                self.remove(at);
                return;
            }
            CloseKind::Reset => {
                self.leave(at, left, now, out);
                if self.told.resets {
                    out.fact(now, TrackerEvent::Transition { from: step.from, to: step.to });
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
                    let step = PhaseChange { outcome: Some(Outcome::Unknown), ..step };
                    self.tell(&self.lives[at], step, out);
                    self.count(at, now, Outcome::Unknown, out);
                }
                self.remove(at);
                return;
            }
            // No minisocket was made: the table is full (TIME-WAIT is skipped), or there was no memory.
            CloseKind::TimeWait | CloseKind::FinWait2 if self.lives[at].birth == MinisocketState::Refused => {
                self.leave(at, left, now, out);
                let graceful = ending == CloseKind::TimeWait;
                let outcome = if graceful { Outcome::Graceful } else { Outcome::Unknown };
                self.tell(&self.lives[at], PhaseChange { outcome: Some(outcome), ..step }, out);
                self.count(at, now, outcome, out);
                self.remove(at);
                return;
            }
            CloseKind::TimeWait => {
                self.leave(at, left, now, out);
                self.enter_time_wait(at, left, EnteredAt::exact(now), told, out);
            }
            // The life goes on in FIN-WAIT-2. If a record was lost on the way there, it says so now.
            CloseKind::FinWait2 | CloseKind::Unclear if left == Phase::FinWait2 => {
                if self.lives[at].phase != left {
                    self.leave(at, self.lives[at].phase, now, out);
                    self.enter(at, left, EnteredAt { earliest_ns: 0, latest_ns: now });
                }
            }
            // Without BTF, CLOSING→CLOSE: most likely TIME-WAIT. It is counted when a dump has seen it.
            CloseKind::FinWait2 | CloseKind::Unclear => {
                self.leave(at, left, now, out);
                self.enter(at, Phase::TimeWait, EnteredAt::exact(now));
            }
        }
        self.hand_over(at, now, out);
    }

    /// Only the minisocket of the life at `at` is left.
    fn outlive_socket(&mut self, at: usize) {
        self.forget_birth(at, self.lives[at].cookie);
        self.change(at, |life| {
            life.become_body(SocketKind::Minisocket);
            life.seen_ns = 0;
        });
    }

    /// The full socket is gone; a minisocket goes on.
    fn hand_over(&mut self, at: usize, now: u64, out: &mut impl EventSink) {
        if !self.by_cookie {
            let life = &self.lives[at];
            if self.slot_of_flow(life.netns, life.flow.hash64()).is_some_and(|taker| taker != at) {
                self.end_minisocket(at, now, transition::Evidence::BY_ANOTHER, out);
                return;
            }
        }
        self.outlive_socket(at);
        if !self.is_dumped(self.lives[at].netns) && !self.told.ends {
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
    fn leave(&mut self, at: usize, left: Phase, now: u64, out: &mut impl EventSink) {
        let life = &self.lives[at];
        let fact = match life.since.until(now) {
            // The step into the phase that is left was never heard of.
            _ if life.phase != left => TrackerEvent::Unmeasured { phase: left, why: UnmeasuredReason::Lost },
            Some(ns) => TrackerEvent::StateDuration { phase: left, pair: life.pair(), ns },
            None => TrackerEvent::Unmeasured { phase: left, why: self.why(life) },
        };
        out.fact(now, fact);
    }

    fn enter(&mut self, at: usize, phase: Phase, since: EnteredAt) {
        self.changed(at);
        let life = &mut self.lives[at];
        life.phase = phase;
        life.since = since;
        if life.body == SocketKind::Minisocket {
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
        since: EnteredAt,
        told: transition::Evidence,
        out: &mut impl EventSink,
    ) {
        let spent = self.spent(at, left, since);
        self.enter(at, Phase::TimeWait, since);
        let (from, to) = (left.state(), TcpState::TimeWait);
        let step = PhaseChange { at_ns: since.latest_ns, from, to, spent, outcome: None, told };
        self.tell(&self.lives[at], step, out);
        self.count(at, since.latest_ns, Outcome::Graceful, out);
    }

    /// Counts the connection as closed, once.
    fn count(&mut self, at: usize, now: u64, outcome: Outcome, out: &mut impl EventSink) {
        let life = &mut self.lives[at];
        if !std::mem::replace(&mut life.counted, true) {
            out.fact(now, TrackerEvent::Closed { pair: life.pair(), role: life.role, outcome });
        }
    }

    /// Why the entry of `life` into its phase is not known well enough. What was in the close phase in the agent's own
    /// namespace before the agent, the first dump has met; of other namespaces dumps may know nothing.
    fn why(&self, life: &TrackedSocket) -> UnmeasuredReason {
        let later = self.complete_ns.is_some_and(|ns| life.since.latest_ns > ns);
        let later = later && life.netns == self.host.netns;
        if self.ever_lost || later { UnmeasuredReason::Lost } else { UnmeasuredReason::BeforeAgent }
    }
}

#[cfg(test)]
mod persist_tests;

#[cfg(test)]
mod tests;
