//! Lives of several network namespaces in one tracker.

use crate::tracker::netns_gone::NetnsSearchResult;
use crate::tracker::tests::*;

const THERE: u32 = 17;

fn everywhere(by_cookie: bool) -> Bench {
    let mut bench = Bench::new(by_cookie, true);
    bench.tracker.set_everywhere(true);
    bench
}

/// Closes [`client`]'s socket of `netns`, whose key is `key`, into a TIME-WAIT that begins at T0.
fn time_wait(bench: &mut Bench, netns: u32, key: u64) {
    bench.netns = netns;
    bench.step(key, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(key, &client(), T0, (FinWait1, FinWait2), DEAD);
    bench.step(key, &client(), T0, (FinWait2, Close), DEAD | DONE);
}

fn view(bench: &mut Bench, netns: &[u32], at: u64, seen: &[DumpedSocket]) -> usize {
    let covers = DumpCoverage { netns: netns.iter().map(|id| (*id, id ^ 1)).collect(), all: false };
    let states = tcpclose_common::state::CLOSE_PHASE | TimeWait.bit() | Listen.bit();
    let view = View { covers: &covers, seen, states, started_ns: at, first: false };
    bench.tracker.dump(&view, 100, &mut bench.heard).len()
}

fn round(bench: &mut Bench, found: &[u32], former: &[u32], (sure, lost): (bool, bool), at: u64) {
    let round = NetnsSearchResult {
        found: &|id| found.contains(&id),
        former: &|id| former.contains(&id),
        sure,
        lost,
        started_ns: at,
        finished_ns: at + MS,
    };
    bench.tracker.round(&round, &mut bench.heard);
}

/// The same addresses in two namespaces, at each backend: two sockets, and a dump speaks for those of its namespace alone.
#[test]
fn the_same_flow_in_two_namespaces_is_two_lives() {
    for by_cookie in [true, false] {
        let mut bench = everywhere(by_cookie);
        time_wait(&mut bench, HERE, 7);
        time_wait(&mut bench, THERE, 8);
        bench.events();
        assert_eq!(bench.tracker.len(), 2);
        let at = T0 + S;
        let here = seen(TimeWait, SocketKind::Minisocket, client(), 7, at, 59 * S);
        let there = DumpedSocket { netns: THERE, cookie: 8, ..here };
        assert_eq!(view(&mut bench, &[HERE, THERE], at, &[here, there]), 0);
        assert_eq!(bench.events(), []);
        let inums: Vec<u32> =
            bench.tracker.sockets().map(|socket| bench.tracker.inum_of(socket.netns)).collect();
        assert_eq!(inums, [HERE ^ 1, THERE ^ 1]);
        // Neither is missed by a dump of the other's namespace.
        let again = DumpedSocket { seen_ns: T0 + 2 * S, expires_ns: 58 * S, ..here };
        assert_eq!(view(&mut bench, &[HERE], T0 + 2 * S, &[again]), 0);
        assert_eq!(view(&mut bench, &[THERE], T0 + 3 * S, &[]), 1);
        view(&mut bench, &[THERE], T0 + 61 * S, &[]);
        let left: Vec<u32> = bench.tracker.sockets().map(|socket| socket.netns).collect();
        assert_eq!(left, [HERE]);
        // Seen once, long before: its end is when its timer was due.
        assert!(bench.events().contains(&TrackerEvent::StateDuration {
            phase: Phase::TimeWait,
            pair: CLIENT,
            ns: 60 * S
        }));
    }
}

#[test]
fn a_listener_counts_in_its_own_namespace_only() {
    let mut bench = everywhere(true);
    let there = DumpedSocket { netns: THERE, ..listener() };
    view(&mut bench, &[HERE, THERE], T0 - S, &[there]);
    for (netns, side) in [(HERE, Side::Unknown), (THERE, Side::Server)] {
        bench.netns = netns;
        bench.step(netns.into(), &server(), T0, (Established, CloseWait), NOT_CONNECTED);
        let socket = bench.tracker.sockets().find(|socket| socket.netns == netns).unwrap();
        assert_eq!(socket.side, side);
    }
}

#[test]
fn a_namespace_that_is_gone_ends_its_minisockets_as_purged() {
    for (found_before, sure) in [(true, true), (false, true), (true, false)] {
        let mut bench = everywhere(true);
        time_wait(&mut bench, THERE, 8);
        let at = T0 + S;
        let there =
            DumpedSocket { netns: THERE, ..seen(TimeWait, SocketKind::Minisocket, client(), 8, at, 59 * S) };
        view(&mut bench, &[THERE], at, &[there]);
        bench.events();
        let former: &[u32] = if found_before { &[THERE] } else { &[] };
        round(&mut bench, &[THERE], former, (sure, false), T0 + 2 * S);
        round(&mut bench, &[], former, (sure, false), T0 + S);
        assert_eq!(bench.events(), [], "found, and heard of since");
        round(&mut bench, &[], former, (sure, false), T0 + 3 * S);
        let reported = bench.events();
        if found_before && sure {
            assert_eq!(
                reported,
                [
                    TrackerEvent::StateDuration { phase: Phase::TimeWait, pair: CLIENT, ns: S },
                    transition(TimeWait, Close),
                    TrackerEvent::TimeWaitEnded { how: TimeWaitEnd::Purged },
                ]
            );
        } else {
            assert_eq!(
                reported,
                [TrackerEvent::Unmeasured { phase: Phase::TimeWait, why: UnmeasuredReason::Namespace }]
            );
        }
        assert!(bench.tracker.is_empty());
    }
}

/// It holds its namespace, though nothing leads there any more: only a loss lets its end have been missed.
#[test]
fn a_full_socket_in_a_namespace_that_nobody_finds_stays_until_its_end_must_have_been_lost() {
    let open = || {
        let mut bench = everywhere(true);
        bench.netns = THERE;
        bench.step(8, &server(), T0, (Established, CloseWait), ACCEPTED);
        bench.events();
        bench
    };
    let mut bench = open();
    for n in 1..5 {
        round(&mut bench, &[], &[], (true, false), T0 + n * S);
        round(&mut bench, &[], &[THERE], (false, true), T0 + n * S);
    }
    assert_eq!((bench.events(), bench.tracker.len()), (vec![], 1));
    round(&mut bench, &[], &[], (true, true), T0 + 9 * S);
    assert_eq!(bench.events()[0], TrackerEvent::Corrected { what: Correction::Vanished });
    assert!(bench.tracker.is_empty());

    for lost in [false, true] {
        let mut bench = open();
        if lost {
            bench.tracker.records_lost(T0);
        }
        round(&mut bench, &[], &[THERE], (true, false), T0 + S);
        assert_eq!(bench.tracker.len(), 1);
        round(&mut bench, &[], &[THERE], (true, false), T0 + 30 * S);
        assert_eq!(bench.tracker.is_empty(), lost);
    }
}

#[test]
fn what_hooks_follow_they_follow_to_the_end_of_its_namespace() {
    let mut bench = hooked(true);
    bench.netns = THERE;
    fin_wait_2_orphan(&mut bench);
    bench.hook(HookKind::Flipped, T0 + S, (FinWait2, TimeWait), 0);
    bench.events();
    round(&mut bench, &[], &[THERE], (true, false), T0 + 2 * S);
    assert_eq!(bench.events(), [], "the notice may be on its way");
    bench.hook(HookKind::Purged, T0 + 3 * S, (TimeWait, Close), 0);
    assert!(bench.events().contains(&TrackerEvent::TimeWaitEnded { how: TimeWaitEnd::Purged }));
    assert!(bench.tracker.is_empty());
}

#[test]
fn other_namespaces_minisockets_are_unseen_but_their_steps_count() {
    let mut bench = Bench::btf();
    bench.netns = HERE + 1;
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD);
    bench.step(7, &client(), T0 + 2 * MS, (FinWait2, Close), DEAD | DONE);
    assert_eq!(
        bench.events()[3..],
        [
            TrackerEvent::StateDuration { phase: Phase::FinWait2, pair: CLIENT, ns: MS },
            transition(FinWait2, TimeWait),
            closed(CLIENT, Role::Active, Outcome::Graceful),
            TrackerEvent::Unmeasured { phase: Phase::TimeWait, why: UnmeasuredReason::Namespace },
        ]
    );
    assert!(bench.tracker.is_empty());
}

/// What is saved for the next agent may say again until when every step is known.
#[test]
fn a_loss_is_corrected_when_two_whole_rounds_have_compared_every_life() {
    let lossy = || {
        let mut bench = everywhere(true);
        bench.netns = HERE;
        bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
        bench.tracker.records_lost(T0 + S);
        bench
    };
    let mut bench = lossy();
    round(&mut bench, &[HERE], &[], (true, true), T0 + S);
    round(&mut bench, &[HERE], &[], (true, false), T0 + 2 * S);
    assert!(bench.tracker.loss.is_some(), "the first began before it was noticed");
    round(&mut bench, &[HERE], &[], (true, false), T0 + 3 * S);
    assert!(bench.tracker.loss.is_none() && bench.tracker.ever_lost);
    bench.tracker.records_lost(T0 + 4 * S);
    assert!(bench.tracker.loss.is_some());

    // One more loss in between, a round that may not have seen all, a socket where none looks.
    let mut bench = lossy();
    round(&mut bench, &[HERE], &[], (true, true), T0 + 2 * S);
    bench.tracker.records_lost(T0 + 3 * S);
    round(&mut bench, &[HERE], &[], (true, true), T0 + 4 * S);
    round(&mut bench, &[HERE], &[], (false, false), T0 + 5 * S);
    round(&mut bench, &[HERE], &[], (true, false), T0 + 6 * S);
    assert!(bench.tracker.loss.is_some());
    bench.netns = THERE;
    bench.step(8, &server(), T0 + 2 * S, (Established, CloseWait), ACCEPTED);
    for n in 7..10 {
        round(&mut bench, &[HERE], &[], (true, false), T0 + n * S);
    }
    assert!(bench.tracker.loss.is_some());
    bench.step(8, &server(), T0 + 10 * S, (CloseWait, Close), DONE | OWNED);
    for n in 11..13 {
        round(&mut bench, &[HERE], &[], (true, false), T0 + n * S);
    }
    assert!(bench.tracker.loss.is_none());
}
