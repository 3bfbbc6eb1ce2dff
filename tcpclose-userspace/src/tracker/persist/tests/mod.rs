//! What one tracker keeps and the next takes up: no kernel, no root, every instant an argument.

mod files;
mod random;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tcpclose_common::event::{HeaderDetail, Numbers, OpenRecord, Record, RecordHeader, StepRecord, flags::*};
use tcpclose_common::state::TcpState::{self, *};

use crate::names::{Age, Flow, Opening, Phase, Role, Side, words_of};
use crate::tracker::dump::{DumpedSocket, MARGIN_NS, TIMER_TICKS_NS};
use crate::tracker::event::TrackerEvent;
use crate::tracker::saved::{SavedSocket, SavedState};
use crate::tracker::socket::{EnteredAt, SocketKind, TrackedSocket};
use crate::tracker::state_format;
use crate::tracker::state_format::{Batch, FORMAT, StateLog, UnusableState};
use crate::tracker::tests::View;
use crate::tracker::vanished::DumpCoverage;
use crate::tracker::{HostParameters, Tracker};

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;
const T0: u64 = 1_000 * S;
const HERE: u32 = 4_026_531_840;
const BOOT: &str = "0d6f2a0e-6c1c-4d6e-9d0a-2f7b7d9f3c11";

fn tracker(by_cookie: bool) -> Tracker {
    let mut tracker = Tracker::new(
        HostParameters { netns: HERE, everywhere: false, netns_known: true, ephemeral: 32768..=60999 },
        by_cookie,
    );
    tracker.set_time_wait_ns(60 * S);
    tracker
}

fn flow(n: u64) -> Flow {
    let remote: SocketAddr = format!("10.0.{}.{}:{}", n / 250, n % 250, 40_000 + n).parse().unwrap();
    Flow::new("10.1.0.1:80".parse().unwrap(), remote)
}

/// A full socket as a test has it.
#[derive(Clone, Copy)]
struct Sock {
    cookie: u64,
    flow: Flow,
}

fn sock(n: u64) -> Sock {
    Sock { cookie: n + 1, flow: flow(n) }
}

/// The record of a step of `sock` at `at`, by the tp_btf backend or the classic one.
fn step(tracker: &mut Tracker, sock: Sock, at: u64, (old, new): (TcpState, TcpState)) -> Vec<TrackerEvent> {
    let by_cookie = tracker.by_cookie;
    let head = RecordHeader {
        key: if by_cookie { sock.cookie } else { 0xffff_8880_0000_0000 + sock.cookie },
        time_ns: at,
        local_port: sock.flow.local_port,
        remote_port: sock.flow.remote_port,
        old: old.raw(),
        new: new.raw(),
        flags: FACTS | ACCEPTED | if by_cookie { COOKIE } else { 0 },
        netns: HERE,
        detail: HeaderDetail::NONE,
    };
    let hash = if by_cookie { 0 } else { sock.flow.hash64() };
    let record = if old == Established {
        let (local, remote) = (words_of(sock.flow.local), words_of(sock.flow.remote));
        Record::Open(OpenRecord {
            head: RecordHeader { flags: head.flags | OPEN, ..head },
            numbers: Numbers::default(),
            local,
            remote,
            inum: HERE,
            spare: 0,
        })
    } else {
        Record::Step(StepRecord { head, numbers: Numbers::default() }, hash)
    };
    let mut events = Vec::new();
    tracker.record(&record, &mut events);
    events
}

fn seen(sock: Sock, state: TcpState, at: u64, age: Age) -> DumpedSocket {
    DumpedSocket {
        state,
        kind: SocketKind::Socket,
        flow: sock.flow,
        cookie: sock.cookie,
        netns: HERE,
        interface: 0,
        seen_ns: at,
        expires_ns: 0,
        age,
        write: None,
        opening: Opening::Unknown,
        without_backlog: false,
    }
}

fn minisocket(sock: Sock, state: TcpState, at: u64, expires_ns: u64) -> DumpedSocket {
    DumpedSocket { kind: SocketKind::Minisocket, expires_ns, ..seen(sock, state, at, UNPROVEN) }
}

const UNPROVEN: Age = Age { min_ns: 0, max_ns: None };

/// The first dump of a tracker that takes up `former`. What it tells is returned: it must be nothing.
fn first_dump(
    tracker: &mut Tracker,
    former: SavedState,
    at: u64,
    seen: &[DumpedSocket],
) -> Vec<TrackerEvent> {
    tracker.set_former(former);
    dump(tracker, at, seen)
}

fn dump(tracker: &mut Tracker, at: u64, seen: &[DumpedSocket]) -> Vec<TrackerEvent> {
    let mut events = Vec::new();
    tracker.dump_started();
    let states = tcpclose_common::state::CLOSE_PHASE | TimeWait.bit() | Listen.bit();
    let covers = DumpCoverage { netns: [(HERE, HERE)].into(), all: true };
    tracker.dump(&View { covers: &covers, seen, states, started_ns: at, first: true }, 100, &mut events);
    tracker.forget_former();
    events
}

/// The file that a [`StateLog`] writes.
#[derive(Default)]
struct OnFile(Vec<u8>);

impl OnFile {
    fn save(&mut self, journal: &mut StateLog, tracker: &mut Tracker, until_ns: u64) {
        match journal.batch(tracker, until_ns) {
            Batch::Nothing => {}
            Batch::Append(bytes) => self.0.extend(bytes),
            Batch::Whole(bytes) => self.0 = bytes,
        }
    }

    fn read(&self, now_ns: u64) -> SavedState {
        state_format::read(&self.0, BOOT, now_ns).unwrap()
    }
}

/// A tracker that keeps, its journal and its file.
fn keeping(by_cookie: bool) -> (Tracker, StateLog, OnFile) {
    let mut tracker = tracker(by_cookie);
    tracker.note_changes();
    (tracker, StateLog::new(BOOT), OnFile::default())
}

fn only(tracker: &Tracker) -> TrackedSocket {
    assert_eq!(tracker.len(), 1);
    *tracker.sockets().next().unwrap()
}

fn between(min: u64, max: u64) -> Age {
    Age { min_ns: min, max_ns: Some(max) }
}

#[test]
fn a_socket_that_stayed_keeps_its_entry_its_side_and_its_role() {
    let (mut a, mut journal, mut file) = keeping(true);
    step(&mut a, sock(1), T0, (Established, FinWait1));
    step(&mut a, sock(1), T0 + S, (FinWait1, FinWait2));
    file.save(&mut journal, &mut a, T0 + 2 * S);

    let mut b = tracker(true);
    let now = T0 + 100 * S;
    let reported =
        first_dump(&mut b, file.read(now), now, &[seen(sock(1), FinWait2, now, between(0, 100 * S))]);
    assert_eq!(reported, [], "what went on while no agent ran is counted by none");
    let socket = only(&b);
    assert_eq!(socket.since, EnteredAt::exact(T0 + S));
    assert_eq!((socket.side, socket.port, socket.role), (Side::Server, 80, Role::Active));

    // It may have become a minisocket, which is the same phase still.
    let mut b = tracker(true);
    first_dump(&mut b, file.read(now), now, &[minisocket(sock(1), FinWait2, now, 5 * S)]);
    assert_eq!((only(&b).since, only(&b).kind), (EnteredAt::exact(T0 + S), SocketKind::Minisocket));
}

#[test]
fn one_that_went_on_while_no_agent_ran_has_an_interval_from_the_last_save() {
    let (mut a, mut journal, mut file) = keeping(true);
    step(&mut a, sock(1), T0, (Established, CloseWait));
    file.save(&mut journal, &mut a, T0 + S);
    let saved = T0 + 50 * S;
    file.save(&mut journal, &mut a, saved);

    let mut b = tracker(true);
    let now = T0 + 100 * S;
    first_dump(&mut b, file.read(now), now, &[seen(sock(1), LastAck, now, between(0, 100 * S))]);
    let socket = only(&b);
    assert_eq!(socket.since, EnteredAt { earliest_ns: saved - MARGIN_NS, latest_ns: now });
    assert_eq!((socket.side, socket.role), (Side::Server, Role::Passive));

    // Where records were lost, nobody knows what went on before the save.
    a.records_lost(T0);
    file.save(&mut journal, &mut a, saved + S);
    let mut b = tracker(true);
    first_dump(&mut b, file.read(now), now, &[seen(sock(1), LastAck, now, between(0, 100 * S))]);
    assert_eq!(only(&b).since, EnteredAt { earliest_ns: T0, latest_ns: now });

    // TIME-WAIT was entered no later than its timer was set, and after the save; a role is on no timer.
    let (mut a, mut journal, mut file) = keeping(true);
    step(&mut a, sock(2), T0, (Established, FinWait1));
    file.save(&mut journal, &mut a, T0 + S);
    let mut b = tracker(true);
    first_dump(&mut b, file.read(now), now, &[minisocket(sock(2), TimeWait, now, 40 * S)]);
    let since = EnteredAt { earliest_ns: T0 + S - MARGIN_NS, latest_ns: now - 20 * S + TIMER_TICKS_NS };
    assert_eq!(only(&b).since, since);
    assert_eq!((only(&b).side, only(&b).role, only(&b).counted), (Side::Server, Role::Active, true));
}

#[test]
fn what_the_kernel_proves_of_another_connection_is_not_overruled() {
    let now = T0 + 100 * S;
    for by_cookie in [true, false] {
        let (mut a, mut journal, mut file) = keeping(by_cookie);
        step(&mut a, sock(1), T0, (Established, CloseWait));
        file.save(&mut journal, &mut a, T0 + S);
        assert_eq!(file.read(now).sockets().next().unwrap().cookie != 0, by_cookie);

        // Its last data came after the entry that was saved.
        let younger = seen(sock(1), CloseWait, now, between(0, 10 * S));
        let mut b = tracker(by_cookie);
        first_dump(&mut b, file.read(now), now, &[younger]);
        assert_eq!(only(&b).since, EnteredAt::of_age(younger.age, now));
        assert_eq!(only(&b).side, Side::Unknown);

        // Another cookie, the same flow; or another flow.
        let other = Sock { cookie: 99, ..sock(1) };
        for other in [other, Sock { flow: flow(2), ..sock(1) }] {
            let seen = seen(other, CloseWait, now, between(0, 200 * S));
            let mut b = tracker(by_cookie);
            first_dump(&mut b, file.read(now), now, &[seen]);
            let saved = only(&b).since == EnteredAt::exact(T0);
            // Without cookies the flow is all there is, and its data proves that it is the same connection.
            assert_eq!(saved, !by_cookie && other.flow == flow(1));
        }

        // Without a cookie and a proof: perhaps another connection.
        let mut b = tracker(by_cookie);
        first_dump(&mut b, file.read(now), now, &[seen(sock(1), CloseWait, now, UNPROVEN)]);
        assert_eq!(only(&b).since == EnteredAt::exact(T0), by_cookie);
    }
}

#[test]
fn a_socket_connected_again_is_not_the_minisocket_that_was_made_of_it() {
    let socket = |kind| SavedSocket {
        cookie: 7,
        flow: flow(1),
        netns: HERE,
        port: 80,
        side: Side::Client,
        role: Role::Active,
        phase: Phase::FinWait2,
        kind,
        counted: false,
        since: EnteredAt::exact(T0),
    };
    let now = T0 + 10 * S;
    let full = seen(Sock { cookie: 7, flow: flow(1) }, FinWait2, now, UNPROVEN);
    let mut b = tracker(true);
    first_dump(&mut b, SavedState::new([socket(SocketKind::Minisocket)], T0 + S), now, &[full]);
    assert_eq!(only(&b).since, EnteredAt { earliest_ns: 0, latest_ns: now });

    // Both at once: each its own.
    let other = SavedSocket { flow: flow(2), since: EnteredAt::exact(T0 + S), ..socket(SocketKind::Socket) };
    let mini = minisocket(Sock { cookie: 7, flow: flow(1) }, FinWait2, now, S);
    let full = seen(Sock { cookie: 7, flow: flow(2) }, FinWait2, now, UNPROVEN);
    let mut b = tracker(true);
    first_dump(&mut b, SavedState::new([socket(SocketKind::Minisocket), other], T0 + S), now, &[mini, full]);
    let entries: Vec<EnteredAt> = b.sockets().map(|socket| socket.since).collect();
    assert_eq!(entries, [EnteredAt::exact(T0), EnteredAt::exact(T0 + S)]);
}

#[test]
fn a_step_before_the_first_dump_ends_the_phase_that_was_kept() {
    let (mut a, mut journal, mut file) = keeping(true);
    step(&mut a, sock(1), T0, (Established, CloseWait));
    file.save(&mut journal, &mut a, T0 + S);

    let mut b = tracker(true);
    let now = T0 + 100 * S;
    b.set_former(file.read(now));
    let reported = step(&mut b, sock(1), now, (CloseWait, LastAck));
    assert!(
        reported.iter()
            .any(|event| matches!(event, TrackerEvent::StateDuration { phase: Phase::CloseWait, ns, .. } if *ns == 100 * S)),
        "{reported:?}"
    );
    // A restored socket that nothing was heard of and no dump sees is not there.
    let mut b = tracker(true);
    first_dump(&mut b, file.read(now), now, &[]);
    assert!(b.is_empty());
}

#[test]
fn only_what_changed_is_written_and_what_came_and_went_is_not() {
    let (mut a, mut journal, mut file) = keeping(true);
    file.save(&mut journal, &mut a, T0);
    assert_eq!(journal.batch(&mut a, T0 + S), Batch::Nothing, "nothing is saved: nothing to write");
    for n in 0..100 {
        step(&mut a, sock(n), T0, (Established, CloseWait));
    }
    for n in 0..99 {
        step(&mut a, sock(n), T0 + MS, (CloseWait, LastAck));
        step(&mut a, sock(n), T0 + MS, (LastAck, Close));
    }
    let Batch::Append(bytes) = journal.batch(&mut a, T0 + S) else { panic!("one has stayed") };
    assert!(bytes.len() < 150, "{}", bytes.len());
    let Batch::Append(bytes) = journal.batch(&mut a, T0 + S) else { panic!("that it is still there") };
    assert!(bytes.len() < 30, "{}", bytes.len());
    // TIME-WAITs are not saved.
    step(&mut a, sock(99), T0 + 2 * S, (CloseWait, LastAck));
    file.save(&mut journal, &mut a, T0 + 2 * S);
    step(&mut a, sock(99), T0 + 3 * S, (LastAck, Close));
    file.save(&mut journal, &mut a, T0 + 3 * S);
    assert!(file.read(T0 + 4 * S).is_empty());

    // What could not be written is written anew, all of it.
    step(&mut a, sock(5), T0 + 4 * S, (Established, CloseWait));
    assert!(matches!(journal.batch(&mut a, T0 + 5 * S), Batch::Append(_)));
    journal.not_written();
    file.save(&mut journal, &mut a, T0 + 5 * S);
    assert_eq!(file.read(T0 + 6 * S).len(), 1);
}

#[test]
fn a_file_grows_to_twice_its_size_and_a_little() {
    let (mut a, mut journal, mut file) = keeping(true);
    let (mut largest, mut anew) = (0, 0);
    for round in 0..4_000 {
        let at = T0 + round * S;
        for n in 0..100 {
            step(&mut a, sock(n), at, (Established, CloseWait));
        }
        let before = file.0.len();
        file.save(&mut journal, &mut a, at + S);
        anew += usize::from(file.0.len() < before);
        largest = largest.max(file.0.len());
    }
    assert!(largest < 2 << 20 && anew > 10, "{largest} bytes, {anew} times anew");
    assert_eq!(file.read(T0 + 5_000 * S).len(), 100);
}

/// Random enough, and the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        // Knuth's MMIX constants.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// `cargo test --release -- --ignored --nocapture what_keeping_costs`: each save of an agent that tracks 100,000
/// TIME-WAITs and 1,000 CLOSE-WAITs under 10,000 closes a second, and a whole file of 100,000 CLOSE-WAITs.
#[test]
#[ignore = "a measurement"]
fn what_keeping_costs() {
    use std::time::Instant;
    let sock = |n: u64| Sock {
        cookie: n + 1,
        flow: Flow {
            local_port: 80,
            remote_port: (n % 50_000) as u16 + 10_000,
            remote: std::net::Ipv6Addr::from(n as u128 / 50_000 + 1),
            ..flow(1)
        },
    };
    let close = |a: &mut Tracker, n: u64, at: u64, flags: u16| {
        step(a, sock(n), at, (Established, FinWait1));
        step(a, sock(n), at, (FinWait1, FinWait2));
        let head = RecordHeader {
            key: sock(n).cookie,
            time_ns: at,
            local_port: 80,
            remote_port: sock(n).flow.remote_port,
            old: FinWait2.raw(),
            new: Close.raw(),
            flags: FACTS | COOKIE | flags,
            netns: HERE,
            detail: HeaderDetail::NONE,
        };
        a.record(&Record::Step(StepRecord { head, numbers: Numbers::default() }, 0), &mut Vec::new());
    };
    let (mut a, mut journal, mut file) = keeping(true);
    (0..100_000).for_each(|n| close(&mut a, n, T0, DONE | DEAD));
    for n in 0..1_000 {
        step(&mut a, sock(1_000_000 + n), T0, (Established, CloseWait));
    }
    assert_eq!(a.len(), 101_000);
    file.save(&mut journal, &mut a, T0);
    for (what, first, flags) in
        [("TIME-WAIT", 2_000_000, DONE | DEAD), ("FIN-WAIT-2 minisockets", 3_000_000, DEAD)]
    {
        let mut spent = std::time::Duration::ZERO;
        for save in 0..20 {
            (0..5_000).for_each(|n| close(&mut a, first + save * 5_000 + n, T0 + S, flags));
            let start = Instant::now();
            file.save(&mut journal, &mut a, T0 + S);
            spent += start.elapsed();
        }
        println!("5,000 closes into {what} between saves: {:?} a save, {} bytes", spent / 20, file.0.len());
    }

    let (mut a, mut journal, mut file) = keeping(true);
    (0..100_000).for_each(|n| drop(step(&mut a, sock(n), T0, (Established, CloseWait))));
    let start = Instant::now();
    file.save(&mut journal, &mut a, T0);
    println!("100,000 CLOSE-WAITs, whole: {:?}, {} bytes", start.elapsed(), file.0.len());
    let start = Instant::now();
    assert_eq!(file.read(T0 + S).len(), 100_000);
    println!("read again: {:?}", start.elapsed());
    let mut spent = std::time::Duration::ZERO;
    for save in 0..20 {
        (0..5_000).for_each(|n| {
            step(&mut a, sock(save * 5_000 + n), T0 + S, (CloseWait, LastAck));
        });
        let start = Instant::now();
        file.save(&mut journal, &mut a, T0 + S);
        spent += start.elapsed();
    }
    println!("5,000 of them step between saves: {:?} a save", spent / 20);
}
