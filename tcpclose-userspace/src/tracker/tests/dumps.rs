//! What dumps add: what was there first, the minisockets, how long TIME-WAIT lasts.

use crate::names::PortKind;
use crate::tracker::dump;
use crate::tracker::socket::TrackedSocket;
use crate::tracker::tests::*;

#[test]
fn what_was_there_first_has_an_interval_and_makes_a_sample_only_when_it_is_narrow() {
    for (age, sample) in [
        (Age { min_ns: 100 * S, max_ns: Some(101 * S) }, Some(110 * S)),
        (Age { min_ns: 10 * S, max_ns: Some(100 * S) }, None),
        (Age { min_ns: 100 * S, max_ns: None }, None),
    ] {
        for mut bench in Bench::backends() {
            let old = DumpedSocket { age, ..seen(CloseWait, SocketKind::Socket, server(), 7, T0, 0) };
            bench.dump(T0, true, &[listener(), old]);
            assert_eq!(bench.events(), [], "nothing happened yet");
            let socket = bench.tracker.sockets().next().unwrap();
            assert_eq!((socket.pair(), socket.role), (SERVER, Role::Passive));
            assert_eq!(socket.since.age(T0), age);
            bench.step(7, &server(), T0 + 10 * S, (CloseWait, LastAck), ACCEPTED);
            assert_eq!(
                bench.events()[0],
                match sample {
                    Some(ns) => TrackerEvent::StateDuration { phase: Phase::CloseWait, pair: SERVER, ns },
                    None => TrackerEvent::Unmeasured {
                        phase: Phase::CloseWait,
                        why: UnmeasuredReason::BeforeAgent
                    },
                }
            );
            assert_eq!(bench.tracker.len(), 1, "the record found the socket of the dump");
        }
    }
}

#[test]
fn a_time_wait_that_was_there_first_is_as_old_as_its_timer_or_older_and_never_counts_as_a_close() {
    let mut bench = Bench::btf();
    bench.dump(T0, true, &[seen(TimeWait, SocketKind::Minisocket, client(), 7, T0, 20 * S)]);
    let age = bench.tracker.sockets().next().unwrap().since.age(T0);
    assert_eq!(age, Age { min_ns: 40 * S - TICKS, max_ns: None }, "its timer may have been set anew");
    bench.dump(T0 + 19 * S, false, &[seen(TimeWait, SocketKind::Minisocket, client(), 7, T0 + 19 * S, S)]);
    bench.dump(T0 + 21 * S, false, &[]);
    assert_eq!(
        bench.events(),
        [
            TrackerEvent::Unmeasured { phase: Phase::TimeWait, why: UnmeasuredReason::BeforeAgent },
            transition(TimeWait, Close),
            TrackerEvent::TimeWaitEnded { how: TimeWaitEnd::Expired },
        ]
    );
}

/// A client closes at `T0`; by the records its minisocket is in FIN-WAIT-2.
fn closed_first(bench: &mut Bench) {
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD);
    bench.step(7, &client(), T0 + MS, (FinWait2, Close), DEAD);
    bench.events();
}

#[test]
fn a_timer_that_was_set_anew_before_the_first_dump_does_not_hide_the_entry() {
    for mut bench in Bench::backends() {
        closed_first(&mut bench);
        // The peer's FIN comes at 300 ms, and again at 510 ms; the dump is at 1 s.
        let at = T0 + S;
        let left = 60 * S - 490 * MS;
        bench.dump(at, false, &[seen(TimeWait, SocketKind::Minisocket, client(), 7, at, left)]);
        let age = bench.tracker.sockets().next().unwrap().since.age(at);
        assert_eq!(age, Age { min_ns: 490 * MS - TICKS, max_ns: Some(S - MS) });
        // Set anew once more: that shows, and changes nothing.
        let at = T0 + 20 * S;
        bench.dump(at, false, &[seen(TimeWait, SocketKind::Minisocket, client(), 7, at, 50 * S)]);
        let since = bench.tracker.sockets().next().unwrap().since;
        assert_eq!(since, EnteredAt { earliest_ns: T0 + MS, latest_ns: T0 + 510 * MS + TICKS });
    }
}

#[test]
fn an_ordinary_time_wait_has_a_narrow_age_and_makes_its_samples() {
    for mut bench in Bench::backends() {
        closed_first(&mut bench);
        // Seen in FIN-WAIT-2 at 10 s; the FIN comes at 10.4 s, and the dump at 11 s sees TIME-WAIT.
        let at = T0 + 10 * S;
        bench.dump(at, false, &[seen(FinWait2, SocketKind::Minisocket, client(), 7, at, 50 * S)]);
        let at = T0 + 11 * S;
        bench.dump(at, false, &[seen(TimeWait, SocketKind::Minisocket, client(), 7, at, 60 * S - 600 * MS)]);
        let age = bench.tracker.sockets().next().unwrap().since.age(at);
        assert_eq!(age, Age { min_ns: 600 * MS - TICKS, max_ns: Some(S) });
        let pair = if bench.has_facts() { CLIENT } else { PortKey { side: Side::Unknown, port: 80 } };
        let of = |phase, ns| TrackerEvent::StateDuration { phase, pair, ns };
        assert_eq!(bench.events()[0], of(Phase::FinWait2, 10_399 * MS));
        let at = T0 + 70 * S;
        bench.dump(at, false, &[seen(TimeWait, SocketKind::Minisocket, client(), 7, at, 400 * MS)]);
        bench.dump(T0 + 72 * S, false, &[]);
        assert_eq!(bench.events()[0], of(Phase::TimeWait, 60 * S - TICKS));
    }
}

#[test]
fn a_minisocket_that_no_dump_saw_is_unseen() {
    let mut bench = Bench::btf();
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD);
    bench.step(7, &client(), T0 + MS, (FinWait2, Close), DEAD);
    bench.events();
    let suspects = bench.dump(T0 + S, false, &[]);
    assert_eq!(bench.events(), [], "an absence is a suspicion");
    assert_eq!(suspects.len(), 1);
    bench.tracker.gone(&suspects[0], T0 + S + MS, &mut bench.heard);
    assert_eq!(
        bench.events(),
        [
            TrackerEvent::Unmeasured { phase: Phase::FinWait2, why: UnmeasuredReason::BetweenDumps },
            transition(FinWait2, Close),
            closed(CLIENT, Role::Active, Outcome::Unknown),
        ]
    );
}

#[test]
fn a_minisocket_gone_before_its_timer_ended_early() {
    let mut bench = Bench::btf();
    bench.dump(T0, true, &[seen(TimeWait, SocketKind::Minisocket, client(), 7, T0, 50 * S)]);
    let suspects = bench.dump(T0 + S, false, &[]);
    bench.tracker.gone(&suspects[0], T0 + S, &mut bench.heard);
    assert!(bench.events().contains(&TrackerEvent::TimeWaitEnded { how: TimeWaitEnd::Early }));
}

#[test]
fn a_socket_that_ended_while_the_dump_ran_does_not_come_back() {
    for mut bench in Bench::backends() {
        bench.dump(T0 - S, true, &[listener()]);
        bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
        bench.tracker.dump_started();
        bench.step(7, &server(), T0 + S, (CloseWait, LastAck), ACCEPTED);
        bench.step(7, &server(), T0 + S, (LastAck, Close), ACCEPTED | DONE | DEAD | FIN_ACKED);
        bench.events();
        let seen = [seen(CloseWait, SocketKind::Socket, server(), 7, T0 + S - MS, 0)];
        let view = View {
            covers: &here(),
            seen: &seen,
            states: CloseWait.bit(),
            started_ns: T0 + S - MS,
            first: false,
        };
        bench.tracker.dump(&view, 100, &mut bench.heard);
        assert_eq!(bench.events(), []);
        assert!(bench.tracker.is_empty());
    }
}

#[test]
fn more_absences_than_are_looked_up_are_over_when_a_second_dump_confirms_them() {
    let mut bench = Bench::btf();
    for n in 1..=250u16 {
        let flow = flow(&format!("10.0.0.1:{}", 40_000 + n), "10.0.0.2:80");
        bench.step(n.into(), &flow, T0, (Established, FinWait1), OWNED);
        bench.step(n.into(), &flow, T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
        bench.step(n.into(), &flow, T0 + MS, (FinWait2, Close), DEAD | DONE);
    }
    bench.events();
    assert_eq!(bench.dump(T0 + S, false, &[]).len(), 100, "to be looked up");
    assert_eq!((bench.tracker.len(), bench.events().len()), (250, 0), "one dump proves nothing");
    assert_eq!(bench.dump(T0 + 2 * S, false, &[]).len(), 100);
    assert_eq!(bench.tracker.len(), 100);
    assert!(
        !bench.events().iter().any(|event| matches!(event, TrackerEvent::Closed { .. })),
        "counted before"
    );
}

#[test]
fn a_later_connections_minisocket_on_the_same_flow_is_a_life_of_its_own() {
    for (state, cookie) in [(FinWait2, 7), (TimeWait, 8)] {
        let mut bench = Bench::new(false, true);
        let minisocket =
            |state, cookie, at| seen(state, SocketKind::Minisocket, client(), cookie, at, 50 * S);
        bench.dump(T0, true, &[minisocket(TimeWait, 7, T0)]);
        bench.events();
        bench.dump(T0 + S, false, &[minisocket(state, cookie, T0 + S)]);
        assert!(bench.events().contains(&TrackerEvent::TimeWaitEnded { how: TimeWaitEnd::Early }));
        let phases: Vec<Phase> = bench.tracker.sockets().map(|socket| socket.phase).collect();
        assert_eq!(phases, [Phase::of(state).unwrap()]);
    }
}

/// Without BTF a record tells no namespace. A dump that saw the socket here has told it, and may speak for its end.
#[test]
fn what_a_dump_saw_here_it_may_miss_here() {
    let mut bench = Bench::new(false, false);
    bench.dump(T0 - S, true, &[listener()]);
    bench.step(7, &server(), T0, (Established, CloseWait), 0);
    let at = T0 + S;
    bench.dump(at, false, &[listener(), seen(CloseWait, SocketKind::Socket, server(), 0x55, at, 0)]);
    bench.events();
    // Its end was lost.
    let suspects = bench.dump(T0 + 9 * S, false, &[listener()]);
    assert_eq!(suspects.len(), 1);
    bench.tracker.gone(&suspects[0], T0 + 9 * S, &mut bench.heard);
    assert!(bench.events().contains(&TrackerEvent::Corrected { what: Correction::Vanished }));
    assert!(bench.tracker.is_empty());
    // And one that sockets on is still found by its records.
    bench.step(8, &server(), T0 + 10 * S, (Established, CloseWait), 0);
    let at = T0 + 11 * S;
    bench.dump(at, false, &[listener(), seen(CloseWait, SocketKind::Socket, server(), 0x56, at, 0)]);
    bench.step(8, &server(), T0 + 12 * S, (CloseWait, LastAck), 0);
    bench.step(8, &server(), T0 + 13 * S, (LastAck, Close), 0);
    assert!(bench.tracker.is_empty() && bench.tracker.by_flow.is_empty());
}

/// Flows that are used again at once: the dump saw the first connection's minisocket, and by the time it is taken in the
/// second one has closed too.
#[test]
fn a_dump_older_than_a_life_of_its_flow_lends_it_no_cookie() {
    let mut bench = Bench::new(false, true);
    let close = |bench: &mut Bench, sk: u64, at: u64| {
        bench.step(sk, &client(), at, (Established, FinWait1), OWNED);
        bench.step(sk, &client(), at, (FinWait1, FinWait2), DEAD);
        bench.step(sk, &client(), at, (FinWait2, Close), DEAD | DONE);
    };
    close(&mut bench, 1, T0);
    bench.tracker.dump_started();
    close(&mut bench, 2, T0 + S + MS);
    let first = [seen(TimeWait, SocketKind::Minisocket, client(), 0x55, T0 + S, 59 * S)];
    let view =
        View { covers: &here(), seen: &first, states: TimeWait.bit(), started_ns: T0 + S, first: false };
    bench.tracker.dump(&view, 100, &mut bench.heard);
    bench.events();
    let at = T0 + 3 * S;
    bench.dump(at, false, &[seen(TimeWait, SocketKind::Minisocket, client(), 0x66, at, 58 * S)]);
    assert_eq!(bench.events(), [], "the second, and counted already");
    assert_eq!(bench.tracker.len(), 1);
}

#[test]
fn a_life_with_a_later_record_is_left_to_the_next_dump() {
    let mut bench = Bench::btf();
    bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.events();
    let suspects = bench.dump(T0 + 50 * MS, false, &[]);
    assert!(suspects.is_empty());
    bench.dump(T0 + 50 * MS, false, &[seen(LastAck, SocketKind::Socket, server(), 7, T0 + 51 * MS, 0)]);
    assert_eq!(bench.events(), []);
}

#[test]
fn a_minisocket_whose_flow_a_dump_shows_with_another_socket_ends_without_a_lookup() {
    let mut bench = Bench::btf();
    bench.dump(T0 - S, true, &[]);
    for cookie in 1..=300 {
        bench.step(cookie, &client(), T0, (Established, FinWait1), OWNED);
        bench.step(cookie, &client(), T0, (FinWait1, FinWait2), DEAD);
        bench.step(cookie, &client(), T0, (FinWait2, Close), DONE | DEAD);
    }
    let at = T0 + 2 * S;
    // Bound to an interface, the same addresses are another flow.
    let elsewhere =
        DumpedSocket { interface: 3, ..seen(TimeWait, SocketKind::Minisocket, client(), 1000, at, 59 * S) };
    assert_eq!(bench.dump(at, false, &[elsewhere]).len(), 100);
    assert_eq!(bench.tracker.len(), 301);
    bench.events();
    let last = seen(TimeWait, SocketKind::Minisocket, client(), 300, at, 58 * S);
    assert_eq!(bench.dump(at, false, &[last, elsewhere]), []);
    assert_eq!(bench.tracker.len(), 2);
    let unknown = TrackerEvent::TimeWaitEnded { how: TimeWaitEnd::Unknown };
    assert_eq!(bench.events().iter().filter(|event| **event == unknown).count(), 299);
}

#[test]
fn a_length_measured_on_a_busy_machine_means_whole_seconds() {
    let lengths = [(59_910 * MS, 60 * S), (60_120 * MS, 60 * S), (20 * S, 20 * S), (1_100 * MS, S)];
    for (measured, meant) in lengths {
        assert_eq!(dump::meant_length(measured), meant);
    }
    for unusual in [500 * MS, 100 * MS, 2_400 * MS] {
        assert_eq!(dump::meant_length(unusual), unusual);
    }
}

#[test]
fn time_waits_length_is_measured_and_a_rearmed_timer_does_not_stretch_it() {
    let mut bench = Bench::btf();
    let enter = |bench: &mut Bench, key: u64, at: u64| {
        let flow = flow(&format!("10.0.0.1:{}", 40_000 + key), "10.0.0.2:80");
        bench.step(key, &flow, at, (Established, FinWait1), OWNED);
        bench.step(key, &flow, at, (FinWait1, FinWait2), DEAD);
        bench.step(key, &flow, at, (FinWait2, Close), DEAD | DONE);
        flow
    };
    // One, re-armed after 700 ms: still 60 s.
    let flow = enter(&mut bench, 1, T0);
    let at = T0 + S;
    bench.dump(at, false, &[seen(TimeWait, SocketKind::Minisocket, flow, 1, at, 59_700 * MS)]);
    assert_eq!(bench.tracker.time_wait_ns(), Some(60 * S));
    // The host's sysctl says 20 s from now on.
    let flow = enter(&mut bench, 2, T0 + 2 * S);
    let at = T0 + 3 * S;
    bench.dump(at, false, &[seen(TimeWait, SocketKind::Minisocket, flow, 2, at, 19 * S)]);
    assert_eq!(bench.tracker.time_wait_ns(), Some(20 * S));
}

#[test]
fn the_memory_of_a_flood_is_given_back_and_the_rest_is_still_found() {
    for by_cookie in [true, false] {
        let mut bench = Bench::new(by_cookie, true);
        let nth = |i: u64| flow(&format!("10.0.0.2:{}", 1024 + i % 60_000), "10.0.0.1:40000");
        for i in 0..50_000 {
            bench.step(1 + i, &nth(i), T0, (Established, CloseWait), ACCEPTED);
        }
        for i in (0..50_000).filter(|i| i % 1000 != 7) {
            bench.step(1 + i, &nth(i), T0 + S, (CloseWait, Close), ACCEPTED);
        }
        bench.events();
        assert_eq!(bench.tracker.len(), 50);
        let at = T0 + 10 * S;
        let rest: Vec<u64> = (0..50_000).filter(|i| i % 1000 == 7).collect();
        let dump: Vec<DumpedSocket> =
            rest.iter().map(|&i| seen(CloseWait, SocketKind::Socket, nth(i), 1 + i, at, 0)).collect();
        bench.dump(at, false, &dump);
        assert!(bench.tracker.sockets.capacity() < 1024, "{}", bench.tracker.sockets.capacity());
        for i in rest {
            bench.step(1 + i, &nth(i), T0 + 20 * S, (CloseWait, Close), ACCEPTED);
            let pair = PortKey { side: Side::Server, port: nth(i).local_port };
            assert_eq!(
                bench.events()[0],
                TrackerEvent::StateDuration { phase: Phase::CloseWait, pair, ns: 20 * S }
            );
        }
        assert!(
            bench.tracker.is_empty() && bench.tracker.by_key.is_empty() && bench.tracker.by_flow.is_empty()
        );
    }
}

/// The host's range is 32768 to 60999, that of the namespace 2000 to 2100.
#[test]
fn a_port_is_known_by_the_range_of_its_own_namespace() {
    const ELSEWHERE: u32 = 9;
    let adopted = DumpedSocket {
        netns: ELSEWHERE,
        ..seen(CloseWait, SocketKind::Socket, flow("10.0.0.1:2005", "10.0.0.2:443"), 7, T0, 0)
    };
    let service = PortKey { side: Side::Unknown, port: 443 };
    let mut bench = Bench::btf();
    bench.tracker.set_local_ports(ELSEWHERE, 2000..=2100);
    bench.dump(T0, true, &[adopted]);
    assert_eq!(bench.tracker.sockets().next().unwrap().pair(), service);
    // Known only later.
    let mut bench = Bench::btf();
    bench.dump(T0, true, &[adopted]);
    let socket = *bench.tracker.sockets().next().unwrap();
    assert_eq!((socket.port, bench.tracker.port_kind(&socket)), (2005, PortKind::Unproven));
    bench.tracker.set_local_ports(ELSEWHERE, 2000..=2100);
    bench.dump(T0 + S, false, &[DumpedSocket { seen_ns: T0 + S, ..adopted }]);
    let socket = *bench.tracker.sockets().next().unwrap();
    assert_eq!((socket.pair(), bench.tracker.port_kind(&socket)), (service, PortKind::Unproven));
    let here = TrackedSocket { side: Side::Server, port: 2005, netns: HERE, ..socket };
    let there = TrackedSocket { netns: ELSEWHERE, ..here };
    assert_eq!(bench.tracker.port_kind(&here), PortKind::Service);
    assert_eq!(bench.tracker.port_kind(&there), PortKind::Chance);
    assert_eq!(bench.tracker.port_kind(&TrackedSocket { port: 443, ..there }), PortKind::Service);
}
