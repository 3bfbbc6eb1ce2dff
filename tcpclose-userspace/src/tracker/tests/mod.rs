//! The tracker driven by made-up records and dumps: no kernel, no root, every instant an argument.

mod dumps;
mod elsewhere;
mod hooks;
mod losses;
mod model;
mod sides;
mod silence;
mod steps;
mod watched;

use std::net::SocketAddr;

use tcpclose_common::event::{
    HeaderDetail, HookKind, HookRecord, Numbers, OpenRecord, Record, RecordHeader, SocketOrRcvNxt,
    StepRecord, flags::*,
};
use tcpclose_common::state::TcpState::{self, *};

use crate::names::{
    Age, Correction, Flow, HookCoverage, Opening, Outcome, Phase, PortKey, Role, Side, TimeWaitEnd,
    UnmeasuredReason, words_of,
};
use crate::tracker::dump::{DumpChunk, DumpScope, DumpedSocket};
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::socket::{Closer, EnteredAt, SocketKind};
use crate::tracker::transition::Transition;
use crate::tracker::vanished::{DumpCoverage, Suspect};
use crate::tracker::{HostParameters, Tracker};

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;
/// Events of these tests begin here, so that "before" exists.
const T0: u64 = 1_000 * S;
const HERE: u32 = 4_026_531_840;
const TIME_WAIT: u64 = 60 * S;
/// A tick or two may be missing of what a timer tells.
const TICKS: u64 = 20 * MS;

const SERVER: PortKey = PortKey { side: Side::Server, port: 80 };
const CLIENT: PortKey = PortKey { side: Side::Client, port: 80 };

/// A whole dump.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) covers: &'a DumpCoverage,
    pub(super) seen: &'a [DumpedSocket],
    pub(super) states: u32,
    pub(super) started_ns: u64,
    pub(super) first: bool,
}

impl Tracker {
    /// Takes a dump, in chunks of one socket: the smallest that there are.
    pub(super) fn dump(&mut self, view: &View<'_>, most: usize, out: &mut impl EventSink) -> Vec<Suspect> {
        let View { covers, states, started_ns, first, .. } = *view;
        let asked = DumpScope { states, started_ns, first };
        let (listeners, others): (Vec<DumpedSocket>, Vec<DumpedSocket>) =
            view.seen.iter().partition(|seen| seen.state == Listen);
        let entered: Vec<(u32, u32)> = covers.netns.iter().map(|(&netns, &inum)| (netns, inum)).collect();
        self.dump_chunk(&asked, &DumpChunk { entered: &entered, seen: &listeners }, out);
        for seen in others.chunks(1) {
            self.dump_chunk(&asked, &DumpChunk { entered: &[], seen }, out);
        }
        self.dump_finished(&asked, covers, most, out)
    }
}

/// Hears everything.
struct Heard {
    events: Vec<TrackerEvent>,
    steps: Vec<Transition>,
    is_watched: bool,
}

impl Heard {
    const fn new() -> Self {
        Self { events: Vec::new(), steps: Vec::new(), is_watched: true }
    }
}

impl EventSink for Heard {
    fn event(&mut self, _at_ns: u64, event: TrackerEvent) {
        self.events.push(event);
    }

    fn is_watched(&self) -> bool {
        self.is_watched
    }

    fn transition(&mut self, transition: Transition) {
        self.steps.push(transition);
    }
}

/// The tracker under test, and what it has told.
struct Bench {
    tracker: Tracker,
    heard: Heard,
    /// What the next record says of sequence numbers.
    numbers: Numbers,
    by_cookie: bool,
    /// Flags that every record of this backend carries.
    backend: u16,
    netns: u32,
}

impl Bench {
    fn new(by_cookie: bool, btf: bool) -> Self {
        let mut tracker = Tracker::new(
            HostParameters { netns: HERE, everywhere: false, netns_known: btf, ephemeral: 32768..=60999 },
            by_cookie,
        );
        tracker.set_time_wait_ns(TIME_WAIT);
        let backend = if by_cookie { COOKIE } else { 0 } | if btf { FACTS } else { 0 };
        Self {
            tracker,
            heard: Heard::new(),
            numbers: Numbers::default(),
            by_cookie,
            backend,
            netns: if btf { HERE } else { 0 },
        }
    }

    fn btf() -> Self {
        Self::new(true, true)
    }

    /// One of each: tp_btf, classic with BTF, classic without.
    fn backends() -> [Self; 3] {
        [Self::new(true, true), Self::new(false, true), Self::new(false, false)]
    }

    fn has_facts(&self) -> bool {
        self.backend & FACTS != 0
    }

    fn head(
        &self,
        key: u64,
        flow: &Flow,
        at: u64,
        (old, new): (TcpState, TcpState),
        more: u16,
    ) -> RecordHeader {
        let more = if self.has_facts() { more } else { 0 };
        RecordHeader {
            key,
            time_ns: at,
            local_port: flow.local_port,
            remote_port: flow.remote_port,
            old: old.raw(),
            new: new.raw(),
            flags: self.backend | more,
            netns: self.netns,
            detail: HeaderDetail::NONE,
        }
    }

    fn record_of(&self, head: RecordHeader, flow: &Flow) -> Record {
        let hash = if self.by_cookie { 0 } else { flow.hash64() };
        if tcpclose_common::state::is_first_step(head.old.into()) {
            Record::Open(OpenRecord {
                head: RecordHeader { flags: head.flags | OPEN, ..head },
                numbers: self.numbers,
                local: words_of(flow.local),
                remote: words_of(flow.remote),
                inum: head.netns,
                spare: 0,
            })
        } else {
            Record::Step(StepRecord { head, numbers: self.numbers }, hash)
        }
    }

    fn take(&mut self, head: RecordHeader, flow: &Flow) {
        let record = self.record_of(head, flow);
        self.tracker.record(&record, &mut self.heard);
    }

    fn step(&mut self, key: u64, flow: &Flow, at: u64, step: (TcpState, TcpState), more: u16) {
        let head = self.head(key, flow, at, step, more);
        self.take(head, flow);
    }

    /// A dump that began at `at` and saw everything at that instant.
    fn dump(&mut self, at: u64, first: bool, seen: &[DumpedSocket]) -> Vec<Suspect> {
        self.tracker.dump_started();
        let states = tcpclose_common::state::CLOSE_PHASE | TimeWait.bit() | Listen.bit();
        let view = View { covers: &here(), seen, states, started_ns: at, first };
        self.tracker.dump(&view, 100, &mut self.heard)
    }

    /// The key of this bench's one socket: its cookie, 7, or the address that the classic tracepoint knows it by.
    fn key(&self) -> u64 {
        if self.by_cookie { 7 } else { 0xffff_8880_0000_0007 }
    }

    /// A hook speaks of the socket with the cookie 7.
    fn hook(&mut self, hook_kind: HookKind, at: u64, (old, new): (TcpState, TcpState), sk: u64) {
        let head = RecordHeader {
            flags: HOOK | COOKIE,
            detail: HeaderDetail::of_hook(hook_kind),
            ..self.head(7, &client(), at, (old, new), 0)
        };
        self.tracker.record(
            &Record::Hook(HookRecord { head, subject: SocketOrRcvNxt::of_socket(sk) }, hook_kind),
            &mut self.heard,
        );
    }

    fn events(&mut self) -> Vec<TrackerEvent> {
        std::mem::take(&mut self.heard.events)
    }

    /// What was told to whoever watches.
    fn watched(&mut self) -> Vec<Transition> {
        std::mem::take(&mut self.heard.steps)
    }
}

/// The agent's own namespace alone is dumped.
fn here() -> DumpCoverage {
    DumpCoverage { netns: [(HERE, HERE)].into(), all: true }
}

fn flow(local: &str, remote: &str) -> Flow {
    let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
    Flow::new(parse(local), parse(remote))
}

/// This end connected to port 80.
fn client() -> Flow {
    flow("10.0.0.1:40000", "10.0.0.2:80")
}

/// This end was accepted on port 80.
fn server() -> Flow {
    flow("10.0.0.2:80", "10.0.0.1:40000")
}

fn seen(
    state: TcpState,
    kind: SocketKind,
    flow: Flow,
    cookie: u64,
    at: u64,
    expires_ns: u64,
) -> DumpedSocket {
    DumpedSocket {
        state,
        kind,
        flow,
        cookie,
        netns: HERE,
        interface: 0,
        seen_ns: at,
        expires_ns,
        age: Age { min_ns: 0, max_ns: None },
        write: None,
        opening: if kind == SocketKind::Socket { Opening::NotConnected } else { Opening::Unknown },
        without_backlog: false,
    }
}

fn listener() -> DumpedSocket {
    seen(Listen, SocketKind::Socket, flow("0.0.0.0:80", "0.0.0.0:0"), 99, T0, 0)
}

const fn transition(from: TcpState, to: TcpState) -> TrackerEvent {
    TrackerEvent::Transition { from, to }
}

const fn closed(pair: PortKey, role: Role, outcome: Outcome) -> TrackerEvent {
    TrackerEvent::Closed { pair, role, outcome }
}

const EVERYTHING: HookCoverage = HookCoverage {
    births: true,
    ends: true,
    resets: true,
    received_resets: false,
    reset_reasons: &["not_specified", "no_socket", "tcp_abort_on_data", "tcp_abort_on_close"],
    since_ns: 0,
};

fn hooked(by_cookie: bool) -> Bench {
    let mut bench = Bench::new(by_cookie, true);
    bench.tracker.set_hooks(EVERYTHING);
    bench
}

/// Takes a socket with the cookie 7 to its minisocket in FIN-WAIT-2, entered at T0 + 1 ms.
fn fin_wait_2_orphan(bench: &mut Bench) -> u64 {
    let key = bench.key();
    bench.step(key, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(key, &client(), T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
    bench.hook(HookKind::Born, T0 + MS, (FinWait2, FinWait2), key);
    bench.step(key, &client(), T0 + MS, (FinWait2, Close), DEAD | FIN_ACKED);
    key
}
