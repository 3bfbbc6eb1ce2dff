//! What no kernel does: records, hooks' notices, dumps, searches and a former agent's sockets in any order, with any clock.
//! Nothing panics, nothing stays, no duration is longer than what the clock went through, and every account adds up.

use proptest::prelude::*;

use crate::metrics::Metrics;
use crate::metrics::gauges::StuckAfter;
use crate::metrics::port_labels::PortLabels;
use crate::tracker::netns_gone::NetnsSearchResult;
use crate::tracker::saved::SavedSocket;
use crate::tracker::socket::{EnteredAt, TrackedSocket};
use crate::tracker::state_format;
use crate::tracker::state_format::{Batch, StateLog};
use crate::tracker::tests::model::{BACKENDS, Backend};
use crate::tracker::tests::*;

const BOOT: &str = "11111111-2222-3333-4444-555555555555";
/// Another network namespace.
const THERE: u32 = HERE + 1;

#[derive(Clone, Debug)]
enum Chaos {
    Step {
        key: u8,
        flow: u8,
        states: (u8, u8),
        flags: u16,
        err: u8,
        there: bool,
    },
    Notice {
        key: u8,
        flow: u8,
        states: (u8, u8),
        hook_kind: u8,
        sk: bool,
        there: bool,
    },
    Begin,
    /// `whole`: nothing of it is to come.
    Dump {
        seen: Vec<(u8, u8, u8, bool, u64)>,
        states: u32,
        first: bool,
        most: u8,
        there: bool,
        whole: bool,
    },
    Round {
        found: bool,
        former: bool,
        sure: bool,
        lost: bool,
    },
    Clock(i64),
    Lost,
    Settle,
    Save,
    Everywhere(bool),
    Scrape,
}

const STATES: [TcpState; 10] =
    [Established, FinWait1, FinWait2, Closing, CloseWait, LastAck, Close, TimeWait, Listen, SynRecv];

const fn state(n: u8) -> TcpState {
    STATES[n as usize % STATES.len()]
}

fn chaos() -> impl Strategy<Value = Vec<Chaos>> {
    let (key, flow, states) = (|| 0u8..6, || 0u8..4, || (0u8..10, 0u8..10));
    let seen = (key(), flow(), 0u8..10, any::<bool>(), 0..70 * S);
    let one = prop_oneof![
        12 => (key(), flow(), states(), any::<u16>(), 0u8..8, any::<bool>()).prop_map(
            |(key, flow, states, flags, err, there)| Chaos::Step { key, flow, states, flags, err, there }
        ),
        4 => (key(), flow(), states(), 0u8..12, any::<bool>(), any::<bool>()).prop_map(
            |(key, flow, states, hook_kind, sk, there)| Chaos::Notice { key, flow, states, hook_kind, sk, there }
        ),
        1 => Just(Chaos::Begin),
        3 => (
            prop::collection::vec(seen, 0..5),
            any::<u32>(),
            prop::bool::weighted(0.1),
            0u8..3,
            any::<bool>(),
            any::<bool>(),
        )
            .prop_map(|(seen, states, first, most, there, whole)| Chaos::Dump {
                seen, states, first, most, there, whole
            }),
        1 => any::<[bool; 4]>()
            .prop_map(|[found, former, sure, lost]| Chaos::Round { found, former, sure, lost }),
        4 => prop_oneof![0..50_000_000i64, -50_000_000..90_000_000_000i64].prop_map(Chaos::Clock),
        1 => Just(Chaos::Lost),
        1 => Just(Chaos::Settle),
        1 => Just(Chaos::Save),
        1 => any::<bool>().prop_map(Chaos::Everywhere),
        1 => Just(Chaos::Scrape),
    ];
    prop::collection::vec(one, 1..120)
}

/// What the agent does with events, and their sums by itself.
struct Books {
    ledger: Metrics,
    closes: u64,
    dwelt: u64,
    /// The longest duration that the clock allows.
    longest: u64,
}

impl EventSink for Books {
    fn event(&mut self, at_ns: u64, event: TrackerEvent) {
        match event {
            TrackerEvent::Closed { .. } => self.closes += 1,
            TrackerEvent::StateDuration { ns, .. } => {
                self.dwelt += 1;
                assert!(ns <= self.longest, "{event:?}, of {} at the most", self.longest);
            }
            _ => {}
        }
        self.ledger.event(at_ns, event);
    }

    fn is_watched(&self) -> bool {
        true
    }

    fn transition(&mut self, step: Transition) {
        assert!(step.spent.max_ns.is_none_or(|max| step.spent.min_ns <= max), "{step:?}");
    }
}

struct Stage {
    bench: Bench,
    books: Books,
    journal: StateLog,
    file: Vec<u8>,
    now: u64,
    latest: u64,
}

impl Stage {
    fn new(backend: Backend, saved: &[(u8, u8, u8, bool)]) -> Self {
        let mut bench = Bench::new(backend.by_cookie, backend.events);
        if backend.hooks {
            bench.tracker.set_hooks(EVERYTHING);
        }
        let saved: Vec<SavedSocket> = saved
            .iter()
            .filter_map(|&(key, flow, n, mini)| {
                Some(SavedSocket {
                    cookie: u64::from(key),
                    flow: ends(flow),
                    netns: HERE,
                    port: 80,
                    side: Side::Server,
                    role: Role::Passive,
                    phase: Phase::of(state(n))?,
                    kind: if mini { SocketKind::Minisocket } else { SocketKind::Socket },
                    counted: mini,
                    since: EnteredAt { earliest_ns: T0 - S, latest_ns: T0 - S / 2 },
                })
            })
            .collect();
        let file = state_format::write(BOOT, &saved, T0 - S / 4);
        let former = state_format::read(&file, BOOT, T0).unwrap();
        assert!(former.len() <= saved.len());
        bench.tracker.set_former(former);
        bench.tracker.note_changes();
        let books = Books { ledger: Metrics::new(PortLabels::new(64, &[])), closes: 0, dwelt: 0, longest: 0 };
        Self { bench, books, journal: StateLog::new(BOOT), file: Vec::new(), now: T0, latest: T0 }
    }

    fn go(&mut self, what: &Chaos) {
        // A timer or a proof of age can lie as far before the first event as the longest of them.
        self.latest = self.latest.max(self.now);
        self.books.longest = self.latest - T0 + 200 * S;
        let Self { bench, books, now, .. } = self;
        let (now, backend) = (*now, bench.backend);
        let here = |there: bool| match (backend & FACTS != 0, there) {
            (false, _) => 0,
            (true, false) => HERE,
            (true, true) => THERE,
        };
        match *what {
            Chaos::Step { key, flow, states, flags, err, there } => {
                let (old, new) = (state(states.0), state(states.1));
                if !tcpclose_common::state::is_close_step(old as u32, new as u32) {
                    return;
                }
                let key = if bench.by_cookie { u64::from(key) } else { address(key) };
                let more = flags & !(OPEN | COOKIE | FACTS | HOOK);
                let head = bench.head(key, &ends(flow), now, (old, new), more);
                let err = [0, 0, 0, 32, 103, 104, 110, 113][usize::from(err) % 8];
                let record = bench.record_of(
                    RecordHeader { detail: HeaderDetail::of_errors(err, 0), netns: here(there), ..head },
                    &ends(flow),
                );
                bench.tracker.record(&record, books);
            }
            Chaos::Notice { key, flow, states, hook_kind, sk, there } => {
                let hook_kind = HookKind::ALL[usize::from(hook_kind) % HookKind::ALL.len()];
                let head = bench.head(key.into(), &ends(flow), now, (state(states.0), state(states.1)), 0);
                let head = RecordHeader {
                    flags: HOOK | COOKIE,
                    detail: HeaderDetail::of_hook(hook_kind),
                    netns: here(there),
                    ..head
                };
                let sk = if sk { address(key) } else { 0 };
                bench.tracker.record(
                    &Record::Hook(HookRecord { head, subject: SocketOrRcvNxt::of_socket(sk) }, hook_kind),
                    books,
                );
            }
            Chaos::Begin => bench.tracker.dump_started(),
            Chaos::Dump { ref seen, states, first, most, there, whole } => {
                let seen: Vec<DumpedSocket> = seen
                    .iter()
                    .map(|&(key, flow, n, mini, expires)| {
                        let (kind, expires) =
                            if mini { (SocketKind::Minisocket, expires) } else { (SocketKind::Socket, 0) };
                        DumpedSocket {
                            netns: if there { THERE } else { HERE },
                            age: Age { min_ns: expires / 3, max_ns: mini.then_some(expires) },
                            ..self::seen(state(n), kind, ends(flow), u64::from(key) + 1, now, expires)
                        }
                    })
                    .collect();
                let mut covers = crate::tracker::tests::here();
                if there {
                    covers.netns.insert(THERE, THERE);
                }
                if !whole {
                    let asked = DumpScope { states, started_ns: now, first };
                    let entered = if there { (THERE, THERE) } else { (HERE, HERE) };
                    let chunk = DumpChunk { entered: &[entered], seen: &seen };
                    bench.tracker.dump_chunk(&asked, &chunk, books);
                    return;
                }
                let view = View { covers: &covers, seen: &seen, states, started_ns: now, first };
                for suspect in bench.tracker.dump(&view, most.into(), books) {
                    if suspect.flow.local_port % 2 == 0 {
                        bench.tracker.gone(&suspect, now, books);
                    }
                }
            }
            Chaos::Round { found, former, sure, lost } => {
                let (found, former) = (|_| found, |_| former);
                let round = NetnsSearchResult {
                    found: &found,
                    former: &former,
                    sure,
                    lost,
                    started_ns: now,
                    finished_ns: now,
                };
                bench.tracker.round(&round, books);
            }
            Chaos::Clock(by) => self.now = now.saturating_add_signed(by).max(T0),
            Chaos::Lost => bench.tracker.records_lost(now),
            Chaos::Settle => bench.tracker.settle(now, books),
            Chaos::Save => self.save(),
            Chaos::Everywhere(everywhere) => bench.tracker.set_everywhere(everywhere),
            Chaos::Scrape => self.adds_up(),
        }
    }

    /// As the agent does it; what the file then says is what is tracked.
    fn save(&mut self) {
        match self.journal.batch(&mut self.bench.tracker, self.now) {
            Batch::Nothing => {}
            Batch::Append(bytes) => self.file.extend(bytes),
            Batch::Whole(bytes) => self.file = bytes,
        }
        let saved = state_format::read(&self.file, BOOT, u64::MAX).unwrap();
        let mut on_file: Vec<SavedSocket> = saved.sockets().copied().collect();
        let mut sockets: Vec<SavedSocket> =
            self.bench.tracker.sockets().filter_map(SavedSocket::of).collect();
        // Of two with one cookie, or without one and of one flow, the reader takes one.
        let key = |saved: &SavedSocket| {
            let flow = if saved.cookie == 0 { Some((saved.netns, saved.flow)) } else { None };
            (saved.cookie, saved.kind == SocketKind::Minisocket && saved.cookie != 0, flow)
        };
        on_file.sort_by_key(key);
        sockets.sort_by_key(key);
        sockets.dedup_by_key(|saved| key(saved));
        assert_eq!(on_file.iter().map(key).collect::<Vec<_>>(), sockets.iter().map(key).collect::<Vec<_>>());
    }

    /// What `/metrics` would say.
    fn adds_up(&mut self) {
        let Self { bench: Bench { tracker, .. }, books, now, .. } = self;
        let ledger = &mut books.ledger;
        let kind = |socket: &TrackedSocket| tracker.port_kind(socket);
        let here = |netns| netns == HERE;
        let gauges = ledger.gauges(tracker.sockets_and_writes(), &kind, &StuckAfter::default(), &here, *now);
        for phase in Phase::ALL {
            let standing = gauges.standing.iter().filter(|((_, of), _)| *of == phase);
            let gauge: u64 = standing.map(|(_, standing)| standing.sockets).sum();
            assert_eq!(gauge as usize, tracker.sockets().filter(|socket| socket.phase == phase).count());
        }
        let close_waits = tracker.sockets().filter(|socket| socket.phase == Phase::CloseWait).count() as u64;
        let stuck: u64 = gauges.stuck.values().flatten().chain(gauges.unproven.values()).sum();
        assert!(stuck <= close_waits);
        assert_eq!(ledger.closes().map(|(.., n)| n).sum::<u64>(), books.closes);
        let mut samples = 0;
        for (.., histogram) in ledger.durations() {
            let cumulative: Vec<(f64, u64)> = histogram.cumulative().collect();
            assert!(cumulative.is_sorted_by_key(|(_, n)| *n));
            assert!(cumulative.last().is_some_and(|(_, n)| *n <= histogram.count()));
            samples += histogram.count();
        }
        assert_eq!(samples, books.dwelt);
    }
}

fn address(key: u8) -> u64 {
    // No number that a cookie can be.
    0xffff_8880_0000_0000 | u64::from(key)
}

fn ends(nth: u8) -> Flow {
    flow(&format!("10.0.0.1:{}", 40_000 + u16::from(nth)), "10.0.0.2:80")
}

fn endure(backend: Backend, saved: &[(u8, u8, u8, bool)], chaos: &[Chaos]) {
    let mut stage = Stage::new(backend, saved);
    for what in chaos {
        stage.go(what);
        // A dump brings five at the most, everything else one.
        assert!(stage.bench.tracker.len() <= 5 * chaos.len());
    }
    stage.save();
    stage.adds_up();
    // A host with nothing on it, looked at until what hooks and losses leave open is closed.
    stage.bench.tracker.records_lost(stage.now);
    stage.bench.tracker.forget_former();
    for _ in 0..3 {
        stage.now += 1000 * S;
        stage.go(&Chaos::Settle);
        stage.go(&Chaos::Begin);
        let seen = Vec::new();
        let Stage { bench, books, now, .. } = &mut stage;
        let mut covers = here();
        covers.netns.insert(THERE, THERE);
        let view = View { covers: &covers, seen: &seen, states: u32::MAX, started_ns: *now, first: false };
        for suspect in bench.tracker.dump(&view, 1000, books) {
            bench.tracker.gone(&suspect, *now, books);
        }
        stage.go(&Chaos::Round { found: false, former: true, sure: true, lost: true });
    }
    stage.save();
    stage.adds_up();
    let tracker = &stage.bench.tracker;
    // Without BTF a full socket's namespace is unknown, and no dump may speak for it.
    let left: Vec<_> = tracker.sockets().filter(|socket| socket.netns != 0).collect();
    assert!(left.is_empty(), "{left:?}");
    if tracker.is_empty() {
        assert!(tracker.by_key.is_empty() && tracker.by_flow.is_empty() && tracker.by_minisocket.is_empty());
        assert!(tracker.interfaces.is_empty());
    }
    assert!(tracker.pending_resets.is_empty() && tracker.ended_during_dump.is_none());
}

/// A notice without a socket, and the socket of the minisocket that it speaks of.
#[test]
fn what_once_was_not_saved() {
    let notice = Chaos::Notice { key: 1, flow: 0, states: (1, 0), hook_kind: 2, sk: false, there: false };
    let step = Chaos::Step { key: 0, flow: 3, states: (6, 1), flags: 0, err: 0, there: false };
    let seen = vec![(0, 3, 1, false, 0)];
    let dump = Chaos::Dump { seen, states: 0, first: false, most: 0, there: false, whole: true };
    BACKENDS
        .into_iter()
        .for_each(|backend| endure(backend, &[], &[notice.clone(), step.clone(), Chaos::Save, dump.clone()]));
}

proptest! {
    #![proptest_config(crate::tracker::tests::model::config())]

    #[test]
    fn no_order_of_anything_breaks_it(
        saved in prop::collection::vec((0u8..6, 0u8..4, 0u8..10, any::<bool>()), 0..4),
        chaos in chaos(),
    ) {
        for backend in BACKENDS {
            endure(backend, &saved, &chaos);
        }
    }
}
