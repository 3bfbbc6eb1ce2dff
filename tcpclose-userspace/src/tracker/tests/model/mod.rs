//! The tracker beside a model of the kernel: any order of what sockets can do, on every backend, with and without losses.
//! `PROPTEST_CASES` says how many histories are tried.

mod chaos;
mod dumps;
mod host;

use proptest::prelude::*;

use crate::tracker::socket::EnteredAt;
use crate::tracker::tests::model::host::{Host, Sock};
use crate::tracker::tests::*;

/// What is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    by_cookie: bool,
    events: bool,
    hooks: bool,
}

const BACKENDS: [Backend; 5] = [
    Backend { by_cookie: true, events: true, hooks: true },
    Backend { by_cookie: true, events: true, hooks: false },
    Backend { by_cookie: false, events: true, hooks: true },
    Backend { by_cookie: false, events: true, hooks: false },
    Backend { by_cookie: false, events: false, hooks: false },
];

/// What happens next. A number picks the socket; what it cannot do at the moment does nothing.
#[derive(Clone, Copy, Debug)]
pub enum Move {
    Connect(u8),
    Close(u8),
    Shutdown(u8),
    Fin(u8),
    Ack(u8),
    Reset(u8),
    Data(u8),
    Abort(u8),
    TimeOut(u8),
    Destroy(u8),
    Wait(u64),
    Full(bool),
    Lose(u8),
    Drain,
    /// `skip`: of eight sockets it meets seven, as a dump can.
    BeginDump {
        minisockets: bool,
        skip: u8,
    },
    /// What it has met so far is taken in.
    JoinDump,
    EndDump,
    Reconcile,
}

fn moves(losses: bool) -> impl Strategy<Value = Vec<Move>> {
    let sock = any::<u8>;
    let wait = prop_oneof![0..50 * MS, 0..3 * S, 0..70 * S];
    let one = prop_oneof![
        8 => (0u8..6).prop_map(Move::Connect),
        6 => sock().prop_map(Move::Close),
        2 => sock().prop_map(Move::Shutdown),
        6 => sock().prop_map(Move::Fin),
        6 => sock().prop_map(Move::Ack),
        1 => sock().prop_map(Move::Reset),
        1 => sock().prop_map(Move::Data),
        1 => sock().prop_map(Move::Abort),
        1 => sock().prop_map(Move::TimeOut),
        1 => sock().prop_map(Move::Destroy),
        4 => wait.prop_map(Move::Wait),
        1 => any::<bool>().prop_map(Move::Full),
        3 => (1u8..5).prop_map(move |n| if losses { Move::Lose(n) } else { Move::Drain }),
        3 => (any::<bool>(), 0u8..8).prop_map(|(minisockets, skip)| Move::BeginDump { minisockets, skip }),
        3 => Just(Move::JoinDump),
        3 => Just(Move::EndDump),
        2 => Just(Move::Reconcile),
    ];
    prop::collection::vec(one, 1..80)
}

/// Those of the tracker's sockets that are in the kernel, or should be: by what they are known.
fn tracked(host: &Host) -> Vec<(Flow, Phase, bool, EnteredAt)> {
    let sockets = host.bench.tracker.sockets();
    let mut sockets: Vec<_> = sockets
        .map(|socket| (socket.flow, socket.phase, socket.kind == SocketKind::Minisocket, socket.since))
        .collect();
    sockets.sort_by_key(|&(flow, phase, ..)| (flow, phase));
    sockets
}

/// The sockets of the close phase.
fn there(host: &Host) -> Vec<(&Sock, Phase)> {
    let mut socks: Vec<_> =
        host.socks.iter().filter_map(|sock| Some((sock, Phase::of(sock.state)?))).collect();
    socks.sort_by_key(|&(sock, phase)| (sock.flow, phase));
    socks
}

/// Every socket and no other is tracked, in its state; and what is said of its entry is true.
fn same_lives(host: &Host, exact: impl Fn(&Sock) -> bool) {
    // Where a record was lost and no cookie is known, a later connection of the same ends can pass for the one before it.
    let mistakable = host.truth.lost > 0 && !host.backend.by_cookie;
    let (tracked, there) = (tracked(host), there(host));
    let of_tracker: Vec<_> = tracked.iter().map(|&(flow, phase, mini, _)| (flow, phase, mini)).collect();
    let of_kernel: Vec<_> =
        there.iter().map(|&(sock, phase)| (sock.flow, phase, sock.is_minisocket())).collect();
    let Host { backend, bench, .. } = host;
    assert_eq!(
        of_tracker, of_kernel,
        "the tracker's, and the kernel's: {backend:?} {:?}",
        bench.heard.events
    );
    for ((.., since), (sock, _)) in tracked.into_iter().zip(there) {
        let holds = since.earliest_ns <= sock.entered && (mistakable || sock.entered <= since.latest_ns);
        assert!(holds, "{since:?} of {sock:?}");
        if exact(sock) {
            assert_eq!(since, EnteredAt::exact(sock.entered), "{sock:?}");
        }
    }
}

fn dwelt(events: &[TrackerEvent]) -> Vec<(Phase, PortKey, u64)> {
    let dwelt = events.iter().filter_map(|event| match *event {
        TrackerEvent::StateDuration { phase, pair, ns } => Some((phase, pair, ns)),
        _ => None,
    });
    sorted(dwelt)
}

fn closes(events: &[TrackerEvent]) -> Vec<(PortKey, Role, Outcome)> {
    sorted(events.iter().filter_map(|event| match *event {
        TrackerEvent::Closed { pair, role, outcome } => Some((pair, role, outcome)),
        _ => None,
    }))
}

fn sorted<T: Ord>(each: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut each: Vec<T> = each.into_iter().collect();
    each.sort();
    each
}

/// Takes what is in `part` out of `whole`, all of which must be there.
fn without<T: Ord + std::fmt::Debug>(mut whole: Vec<T>, part: impl IntoIterator<Item = T>) -> Vec<T> {
    for each in part {
        let at = whole.iter().position(|other| *other == each);
        whole.remove(at.unwrap_or_else(|| panic!("{each:?} is not told in {whole:?}")));
    }
    whole
}

/// Connections of which the tracker has not told yet that they are closed.
fn open(host: &Host) -> usize {
    let tracker = &host.bench.tracker;
    tracker.sockets().filter(|socket| !socket.counted).count() + tracker.pending_resets.len()
}

/// Nothing was lost: what is told is what was true.
fn exact(backend: Backend, moves: &[Move]) {
    let mut host = Host::new(backend);
    for &what in moves {
        host.go(what);
        assert_eq!(host.bench.tracker.silent_hook(), None);
        if matches!(what, Move::Reconcile) {
            same_lives(&host, |sock| backend.events && (backend.hooks || !sock.is_minisocket()));
        }
    }
    // What is left ends by itself.
    host.reconcile();
    let events = host.bench.heard.events.clone();
    assert_eq!(closes(&events).len() + open(&host), host.truth.opened, "closed and alive, and opened");
    assert_eq!(events.iter().find(|event| matches!(event, TrackerEvent::Corrected { .. })), None);

    let stays = |minisockets: bool| {
        let stays = host.truth.stays.iter();
        stays.filter(move |stay| !stay.3 || minisockets).map(|&(phase, pair, ns, _)| (phase, pair, ns))
    };
    let reported = sorted(closes(&events));
    let true_closes = |all: bool| {
        let closes = host.truth.closes.iter();
        closes.filter(move |close| all || !close.3).map(|&(pair, role, outcome, _)| (pair, role, outcome))
    };
    if backend.hooks {
        assert_eq!(dwelt(&events), sorted(stays(true)));
        assert_eq!(reported, sorted(true_closes(true)));
        let ended = events.iter().filter_map(|event| match event {
            TrackerEvent::TimeWaitEnded { how } => Some(*how),
            _ => None,
        });
        assert_eq!(sorted(ended), sorted(host.truth.ended.iter().copied()));
        let overflows = events.iter().filter(|event| **event == TrackerEvent::TimeWaitOverflow).count();
        assert_eq!(overflows, host.truth.overflows);
        assert!(!events.iter().any(|event| matches!(event, TrackerEvent::Unmeasured { .. })), "{events:?}");
        return;
    }
    if backend.events {
        // FIN-WAIT-2 goes on in the minisocket: its whole length is told at its end, if that is.
        let of_sockets = |phase| !matches!(phase, Phase::FinWait2 | Phase::TimeWait);
        let reported_stays = dwelt(&events).into_iter().filter(|stay| of_sockets(stay.0));
        assert_eq!(sorted(reported_stays), sorted(stays(false).filter(|stay| of_sockets(stay.0))));
        without(reported, true_closes(false));
    }
    // A minisocket that ended early, long after the last dump, cannot be told from one whose timer ran out.
    let stays = host.truth.stays.iter().map(|&(phase, _, ns, _)| (phase, ns));
    let stays: Vec<(Phase, u64)> = stays.chain(host.truth.terms.iter().copied()).collect();
    for (phase, _, ns) in dwelt(&events) {
        let longest = stays.iter().filter(|stay| stay.0 == phase).map(|stay| stay.1).max();
        // Without BTF, what ended in CLOSING or FIN-WAIT-2 may be taken for something that goes on.
        assert!(!backend.events || Some(ns) <= longest, "{phase:?} lasted {ns}");
    }
}

/// Records were lost: what is told is less, never more; and what was lost is mended.
fn lossy(backend: Backend, moves: &[Move]) {
    let mut host = Host::new(backend);
    for &what in moves {
        host.go(what);
    }
    host.drain();
    let closed = |host: &Host| closes(&host.bench.heard.events).len();
    // Hooks name a minisocket by its cookie. At the classic tracepoint, where only who asks for it has hooks, the record of its
    // birth alone tells whose that is: without it, its end is counted for itself, and that of the socket, which a dump finds
    // gone, too; and a socket of the same ends can take the place of another.
    let joined = backend.by_cookie || !backend.hooks;
    let twice = if joined { 0 } else { host.truth.lost };
    let most = host.truth.opened + twice;
    assert!(closed(&host) <= most, "{backend:?}: {:?} of {:?}", host.bench.heard.events, host.truth);
    assert!(
        host.truth.opened <= closed(&host) + open(&host) + host.truth.lost,
        "{backend:?}: {:?}",
        host.truth
    );
    // A minisocket that nobody told of is adopted by the first; what that met twice or not at all is left to the second.
    host.reconcile();
    host.reconcile();
    if backend.events && joined {
        same_lives(&host, |_| false);
    }
    let most = host.truth.opened + twice;
    assert!(closed(&host) <= most, "{backend:?}: {:?} of {:?}", host.bench.heard.events, host.truth);
    assert!(host.truth.opened <= closed(&host) + open(&host) + host.truth.lost);
}

/// So many histories as take some seconds, unless `PROPTEST_CASES` says another number.
fn config() -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() {
        config
    } else {
        ProptestConfig { cases: 300, ..config }
    }
}

/// Histories that once went wrong, as they were found.
#[test]
fn what_once_went_wrong() {
    use Move::*;
    let histories: [&[Move]; 8] = [
        // No minisocket was made, and the flow has another socket, which is open.
        &[
            Full(true),
            Connect(2),
            Close(0),
            Connect(0),
            Connect(0),
            Ack(126),
            Connect(0),
            Connect(0),
            Connect(2),
        ],
        // The FIN-WAIT-2 of which only an upper bound was known.
        &[
            Connect(0),
            Ack(0),
            Connect(3),
            Shutdown(14),
            Lose(2),
            Ack(20),
            Connect(0),
            Fin(162),
            Connect(1),
            Close(2),
        ],
        // A socket whose end was lost, of a flow that is in use again.
        &[
            Connect(0),
            Connect(4),
            Connect(2),
            Close(96),
            Lose(2),
            Connect(1),
            Connect(3),
            Ack(35),
            Wait(59_999_980_000),
            Close(3),
            Ack(11),
            Connect(0),
            Shutdown(14),
        ],
        // A minisocket whose flow was taken by a socket of which the first record was lost.
        &[
            Connect(0),
            Connect(5),
            Shutdown(61),
            Connect(1),
            Fin(43),
            Connect(2),
            Ack(29),
            Connect(3),
            Lose(1),
            Connect(5),
            Fin(24),
            TimeOut(37),
            Close(214),
        ],
        // An address that was used again by a socket of which the first record was lost.
        &[
            Connect(3),
            Close(0),
            Lose(3),
            Ack(0),
            Connect(4),
            Connect(1),
            Connect(0),
            Close(85),
            Connect(0),
            Ack(101),
        ],
        // What has no addresses to be looked up by, and was left out of a dump.
        &[
            Connect(1),
            Close(0),
            Fin(0),
            Ack(0),
            Lose(1),
            Connect(1),
            Close(0),
            Ack(0),
            Fin(0),
            Wait(99_970_000),
            BeginDump { minisockets: false, skip: 2 },
            EndDump,
        ],
        // A flow that another socket took while a dump was under way which had met the first there.
        &[
            Connect(1),
            Close(0),
            Connect(3),
            Close(31),
            Ack(20),
            Connect(0),
            Full(true),
            Lose(2),
            BeginDump { minisockets: false, skip: 0 },
            Ack(190),
            TimeOut(127),
            Fin(0),
            Connect(3),
            TimeOut(151),
        ],
        // All of these at once.
        &[
            Connect(2),
            Close(0),
            Lose(1),
            TimeOut(0),
            Connect(0),
            Close(0),
            Connect(4),
            TimeOut(12),
            Lose(4),
            Close(0),
            Fin(0),
            Connect(1),
            Lose(3),
            Connect(0),
            Ack(198),
            Fin(151),
            Close(52),
            Lose(2),
            Connect(2),
            Close(27),
            Connect(4),
            Ack(12),
        ],
    ];
    for moves in histories {
        BACKENDS.into_iter().for_each(|backend| lossy(backend, moves));
    }
}

/// The same of histories in which nothing was lost.
#[test]
fn what_once_went_wrong_without_a_loss() {
    use Move::*;
    let histories: [&[Move]; 1] = [
        // A minisocket that entered TIME-WAIT unseen, at the begin of a dump that did not end.
        &[
            Connect(0),
            Abort(0),
            Connect(0),
            Reset(0),
            Connect(0),
            Close(0),
            Ack(0),
            Wait(12_580_500_065),
            Reconcile,
            Fin(0),
            Wait(46_419_449_935),
            BeginDump { minisockets: false, skip: 3 },
        ],
    ];
    for moves in histories {
        BACKENDS.into_iter().for_each(|backend| exact(backend, moves));
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_reported_is_what_was_true(moves in moves(false)) {
        for backend in BACKENDS {
            exact(backend, &moves);
        }
    }

    #[test]
    fn what_was_lost_is_missing_and_corrected(moves in moves(true)) {
        for backend in BACKENDS {
            lossy(backend, &moves);
        }
    }
}
