//! What records alone tell: a socket's steps from first to last.

use crate::tracker::tests::*;

#[test]
fn a_passive_close_is_close_wait_then_last_ack() {
    for mut bench in Bench::backends() {
        bench.dump(T0 - S, true, &[listener()]);
        bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
        bench.step(7, &server(), T0 + 500 * MS, (CloseWait, LastAck), ACCEPTED | OWNED);
        bench.step(7, &server(), T0 + 501 * MS, (LastAck, Close), ACCEPTED | DONE | DEAD | FIN_ACKED);
        let (outcome, pair) = match bench.has_facts() {
            true => (Outcome::Graceful, SERVER),
            false => (Outcome::Unknown, PortKey { side: Side::Unknown, port: 80 }),
        };
        assert_eq!(
            bench.events(),
            [
                transition(Established, CloseWait),
                TrackerEvent::StateDuration { phase: Phase::CloseWait, pair, ns: 500 * MS },
                transition(CloseWait, LastAck),
                TrackerEvent::StateDuration { phase: Phase::LastAck, pair, ns: MS },
                transition(LastAck, Close),
                closed(pair, Role::Passive, outcome),
            ]
        );
        assert!(bench.tracker.is_empty());
    }
}

/// The common active close: the peer's FIN comes later, and the tracepoint says CLOSE at once.
#[test]
fn fin_wait_2_goes_on_in_the_minisocket_until_the_timer_tells_the_flip() {
    for mut bench in Bench::backends() {
        let cookie = if bench.by_cookie { 7 } else { 0x55 };
        let client_side = if bench.has_facts() { CLIENT } else { PortKey { side: Side::Unknown, port: 80 } };
        bench.dump(T0 - S, true, &[]);
        bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
        bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
        bench.step(7, &client(), T0 + MS, (FinWait2, Close), DEAD | FIN_ACKED);
        assert_eq!(
            bench.events(),
            [
                transition(Established, FinWait1),
                TrackerEvent::StateDuration { phase: Phase::FinWait1, pair: client_side, ns: MS },
                transition(FinWait1, FinWait2),
            ]
        );
        let at = T0 + S;
        bench.dump(at, false, &[seen(FinWait2, SocketKind::Minisocket, client(), cookie, at, 59 * S)]);
        assert_eq!(bench.events(), [], "still FIN-WAIT-2, and no transition");
        // The FIN came 4.2 s after the ACK.
        let (at, entry) = (T0 + 5 * S, T0 + MS + 4200 * MS);
        let left = entry + TIME_WAIT - at;
        bench.dump(at, false, &[seen(TimeWait, SocketKind::Minisocket, client(), cookie, at, left)]);
        assert_eq!(
            bench.events(),
            [
                TrackerEvent::StateDuration { phase: Phase::FinWait2, pair: client_side, ns: 4200 * MS },
                transition(FinWait2, TimeWait),
                closed(client_side, Role::Active, Outcome::Graceful),
            ]
        );
        // The timer may have been set anew since the dump before.
        let age = Age { min_ns: at - entry - TICKS, max_ns: Some(4 * S) };
        assert_eq!(bench.tracker.sockets().next().unwrap().since.age(at), age);
        // Last seen a second before it is gone; the timer was due.
        let at = T0 + 64 * S;
        bench.dump(at, false, &[seen(TimeWait, SocketKind::Minisocket, client(), cookie, at, S / 2)]);
        bench.dump(T0 + 66 * S, false, &[]);
        assert_eq!(
            bench.events(),
            [
                TrackerEvent::StateDuration {
                    phase: Phase::TimeWait,
                    pair: client_side,
                    ns: at + S / 2 - entry - TICKS
                },
                transition(TimeWait, Close),
                TrackerEvent::TimeWaitEnded { how: TimeWaitEnd::Expired },
            ]
        );
        assert!(bench.tracker.is_empty());
    }
}

#[test]
fn time_wait_is_entered_at_the_event_when_the_fin_came_with_the_ack() {
    let mut bench = Bench::btf();
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
    bench.step(7, &client(), T0 + MS + 2000, (FinWait2, Close), DEAD | DONE | FIN_ACKED);
    assert_eq!(
        bench.events()[2..],
        [
            transition(FinWait1, FinWait2),
            TrackerEvent::StateDuration { phase: Phase::FinWait2, pair: CLIENT, ns: 2000 },
            transition(FinWait2, TimeWait),
            closed(CLIENT, Role::Active, Outcome::Graceful),
        ]
    );
    let socket = bench.tracker.sockets().next().unwrap();
    assert_eq!((socket.phase, socket.kind), (Phase::TimeWait, SocketKind::Minisocket));
}

#[test]
fn a_simultaneous_close_ends_in_time_wait_once() {
    for mut bench in Bench::backends() {
        let events = bench.has_facts();
        let pair = if events { CLIENT } else { PortKey { side: Side::Unknown, port: 80 } };
        let cookie = if bench.by_cookie { 7 } else { 0x55 };
        bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
        bench.step(7, &client(), T0 + MS, (FinWait1, Closing), DONE | DEAD);
        bench.step(7, &client(), T0 + 2 * MS, (Closing, Close), DONE | DEAD | FIN_ACKED);
        let at = T0 + S;
        bench.dump(at, false, &[seen(TimeWait, SocketKind::Minisocket, client(), cookie, at, 59 * S)]);
        assert_eq!(
            bench.events(),
            [
                transition(Established, FinWait1),
                TrackerEvent::StateDuration { phase: Phase::FinWait1, pair, ns: MS },
                transition(FinWait1, Closing),
                TrackerEvent::StateDuration { phase: Phase::Closing, pair, ns: MS },
                transition(Closing, TimeWait),
                closed(pair, Role::Simultaneous, Outcome::Graceful),
            ]
        );
    }
}

/// Nothing was sent: the connection goes on elsewhere, and counts where it ends.
#[test]
fn a_close_in_repair_mode_is_a_step_and_no_close() {
    let mut bench = Bench::btf();
    bench.step(7, &server(), T0, (Established, Close), ACCEPTED | REPAIR | OWNED);
    assert_eq!(bench.events(), [transition(Established, Close)]);
    bench.step(8, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.step(8, &server(), T0 + S, (CloseWait, Close), ACCEPTED | REPAIR | OWNED);
    let stay = TrackerEvent::StateDuration { phase: Phase::CloseWait, pair: SERVER, ns: S };
    assert_eq!(bench.events()[1..], [stay, transition(CloseWait, Close)]);
    assert!(bench.tracker.is_empty());
    assert!(bench.watched().iter().all(|step| step.outcome.is_none()));
}

/// ECONNRESET was in the socket before, and no reset came: the orphan goes on as a minisocket, and counts once.
#[test]
fn a_socket_with_an_error_left_in_it_counts_once() {
    let mut bench = Bench::btf();
    bench.tracker.set_hooks(HookCoverage { received_resets: true, resets: true, ..HookCoverage::default() });
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED | CONNECTED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
    let head = bench.head(7, &client(), T0 + MS, (FinWait2, Close), DEAD | RCV_SHUTDOWN | FIN_ACKED);
    bench.take(RecordHeader { detail: HeaderDetail::of_errors(104, 0), ..head }, &client());
    bench.dump(T0 + 2 * S, false, &[seen(TimeWait, SocketKind::Minisocket, client(), 7, T0 + 2 * S, 59 * S)]);
    let closes: Vec<TrackerEvent> =
        bench.events().into_iter().filter(|event| matches!(event, TrackerEvent::Closed { .. })).collect();
    assert_eq!(closes, [closed(CLIENT, Role::Active, Outcome::Graceful)]);
}

#[test]
fn a_reset_or_timeout_ends_a_life_and_leaves_nothing() {
    for (err, outcome) in [
        (32, Outcome::ResetReceived),
        (110, Outcome::Timeout),
        (103, Outcome::Destroyed),
        (0, Outcome::Aborted),
    ] {
        let mut bench = Bench::btf();
        bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
        let head = bench.head(7, &server(), T0 + S, (CloseWait, Close), ACCEPTED | DONE);
        bench.take(RecordHeader { detail: HeaderDetail::of_errors(err, 0), ..head }, &server());
        assert_eq!(
            bench.events()[1..],
            [
                TrackerEvent::StateDuration { phase: Phase::CloseWait, pair: SERVER, ns: S },
                transition(CloseWait, Close),
                closed(SERVER, Role::Passive, outcome),
            ]
        );
        assert!(bench.tracker.is_empty());
    }
}

#[test]
fn a_connection_that_ends_without_a_fin_has_no_role() {
    let mut bench = Bench::btf();
    bench.step(7, &server(), T0, (Established, Close), ACCEPTED);
    assert_eq!(
        bench.events(),
        [transition(Established, Close), closed(SERVER, Role::None, Outcome::Aborted)]
    );
    assert!(bench.tracker.is_empty());
}

#[test]
fn clocks_of_two_cpus_may_invert_and_no_duration_is_negative() {
    let mut bench = Bench::btf();
    bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.step(7, &server(), T0 - 300, (CloseWait, LastAck), ACCEPTED);
    assert!(bench.events().contains(&TrackerEvent::StateDuration {
        phase: Phase::CloseWait,
        pair: SERVER,
        ns: 0
    }));
}

#[test]
fn a_stranger_of_which_only_the_end_is_seen_counts_and_makes_no_duration() {
    let mut bench = Bench::btf();
    bench.step(7, &server(), T0, (LastAck, Close), ACCEPTED | DONE | DEAD | FIN_ACKED);
    assert_eq!(
        bench.events(),
        [
            TrackerEvent::Unmeasured { phase: Phase::LastAck, why: UnmeasuredReason::BeforeAgent },
            transition(LastAck, Close),
            closed(SERVER, Role::Passive, Outcome::Graceful),
        ]
    );
    bench.tracker.records_lost(T0);
    bench.step(8, &server(), T0, (CloseWait, LastAck), ACCEPTED);
    assert_eq!(
        bench.events()[0],
        TrackerEvent::Unmeasured { phase: Phase::CloseWait, why: UnmeasuredReason::Lost }
    );
}

#[test]
fn a_reset_that_looks_like_a_hand_over_ends_a_long_phase_at_its_record() {
    let mut bench = Bench::new(false, false);
    bench.step(7, &client(), T0, (Established, FinWait1), 0);
    bench.step(7, &client(), T0, (FinWait1, FinWait2), 0);
    bench.step(7, &client(), T0 + 3 * S, (FinWait2, Close), 0);
    bench.events();
    let suspects = bench.dump(T0 + 4 * S, false, &[]);
    bench.tracker.gone(&suspects[0], T0 + 4 * S + MS, &mut bench.heard);
    let reported = bench.events();
    assert!(
        matches!(reported[0], TrackerEvent::StateDuration { phase: Phase::FinWait2, ns, .. } if ns == 3 * S),
        "{reported:?}"
    );
}

#[test]
fn fin_wait_2_that_runs_out_is_a_timeout() {
    let mut bench = Bench::btf();
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0, (FinWait1, FinWait2), DEAD);
    bench.step(7, &client(), T0, (FinWait2, Close), DEAD);
    for second in [1, 30, 60] {
        let at = T0 + second * S;
        bench.dump(at, false, &[seen(FinWait2, SocketKind::Minisocket, client(), 7, at, (60 - second) * S)]);
    }
    bench.events();
    // Its timer was due, but the peer's FIN may have set it anew: a lookup tells.
    let suspects = bench.dump(T0 + 62 * S, false, &[]);
    assert_eq!((suspects.len(), bench.events().len()), (1, 0));
    bench.tracker.gone(&suspects[0], T0 + 62 * S, &mut bench.heard);
    assert_eq!(
        bench.events(),
        [
            TrackerEvent::StateDuration { phase: Phase::FinWait2, pair: CLIENT, ns: 60 * S },
            transition(FinWait2, Close),
            closed(CLIENT, Role::Active, Outcome::Timeout),
        ]
    );
}

/// At the classic tracepoint a minisocket has no key but its flow; a new connection of that flow is its end.
#[test]
fn a_new_connection_on_the_same_flow_ends_the_minisocket() {
    let mut bench = Bench::new(false, true);
    bench.step(1, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(1, &client(), T0, (FinWait1, FinWait2), DEAD);
    bench.step(1, &client(), T0, (FinWait2, Close), DEAD | DONE);
    let at = T0 + S;
    bench.dump(at, false, &[seen(TimeWait, SocketKind::Minisocket, client(), 5, at, 59 * S)]);
    bench.events();
    bench.step(2, &client(), T0 + 2 * S, (Established, CloseWait), 0);
    assert_eq!(
        bench.events(),
        [
            TrackerEvent::StateDuration { phase: Phase::TimeWait, pair: CLIENT, ns: S },
            transition(TimeWait, Close),
            TrackerEvent::TimeWaitEnded { how: TimeWaitEnd::Early },
            transition(Established, CloseWait),
        ]
    );
    assert_eq!(bench.tracker.len(), 1);
}

/// connect(AF_UNSPEC), then connect(): the socket keeps its cookie, which the TIME-WAIT of its first connection has too.
#[test]
fn a_socket_that_connects_again_and_its_own_time_wait_are_two_lives() {
    let mut bench = Bench::btf();
    bench.dump(T0 - S, true, &[]);
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), 0);
    bench.step(7, &client(), T0 + 2 * MS, (FinWait2, Close), DONE);
    let again = Flow { local_port: client().local_port + 1, ..client() };
    bench.step(7, &again, T0 + S, (Established, CloseWait), 0);
    bench.events();
    let at = T0 + 3 * S;
    let waits = seen(TimeWait, SocketKind::Minisocket, client(), 7, at, 57 * S);
    let open = seen(CloseWait, SocketKind::Socket, again, 7, at, 0);
    assert_eq!(bench.dump(at, false, &[waits, open]), []);
    assert_eq!(bench.events(), []);
    assert_eq!(bench.tracker.find(HERE, 7, &client()).unwrap().phase, Phase::TimeWait);
    assert_eq!(bench.tracker.find(HERE, 7, &again).unwrap().phase, Phase::CloseWait);

    bench.step(7, &again, T0 + 4 * S, (CloseWait, LastAck), OWNED);
    bench.step(7, &again, T0 + 5 * S, (LastAck, Close), FIN_ACKED);
    assert_eq!(bench.tracker.len(), 1);
    assert_eq!(bench.dump(T0 + 63 * S, false, &[]), []);
    assert!(bench.tracker.is_empty() && bench.tracker.by_key.is_empty());
    assert!(bench.events().contains(&TrackerEvent::TimeWaitEnded { how: TimeWaitEnd::Expired }));
}

#[test]
fn who_closed_is_kept_from_the_step_that_reported() {
    let mut bench = Bench::btf();
    let flow = Flow::new("10.0.0.1:80".parse().unwrap(), "10.0.0.2:4000".parse().unwrap());
    let closer = |bench: &Bench| bench.tracker.find(HERE, 7, &flow).unwrap().closer();
    let mut open = bench.head(7, &flow, T0, (Established, FinWait1), 0);
    open.set_closer(4_194_304);
    bench.take(open, &flow);
    let reported = Some(Closer { pid: 4_194_304.try_into().unwrap(), at_ns: T0 });
    assert_eq!(closer(&bench), reported);
    bench.step(7, &flow, T0 + S, (FinWait1, FinWait2), 0);
    assert_eq!(closer(&bench), reported);

    let mut bench = Bench::btf();
    bench.step(7, &flow, T0, (Established, CloseWait), 0);
    assert_eq!(closer(&bench), None);
    let mut step = bench.head(7, &flow, T0 + S, (CloseWait, LastAck), 0);
    step.set_closer(42);
    bench.take(step, &flow);
    assert_eq!(closer(&bench), Some(Closer { pid: 42.try_into().unwrap(), at_ns: T0 + S }));
}

#[test]
fn a_stale_write_is_one_that_the_peers_reset_answers() {
    const EPIPE: u16 = 32;
    for nth in 0..3 {
        let stale = |at_fin, at_end, err| {
            let mut bench = Vec::from(Bench::backends()).swap_remove(nth);
            bench.step(7, &client(), T0, (Established, CloseWait), at_fin);
            let head = bench.head(7, &client(), T0 + 9 * S, (CloseWait, Close), DONE | at_end);
            bench.take(RecordHeader { detail: HeaderDetail::of_errors(err, 0), ..head }, &client());
            let counted = bench.events().contains(&TrackerEvent::StaleWrite { pair: CLIENT });
            let told: Vec<Transition> = bench.watched().into_iter().filter(|step| step.stale_write).collect();
            assert_eq!(counted, !told.is_empty());
            assert!(told.iter().all(|step| step.to == Close && step.spent == Age::exact(9 * S)));
            counted
        };
        let has_facts = nth < 2;
        assert_eq!(stale(FIN_ACKED, 0, EPIPE), has_facts);
        // Written before the FIN came; nothing written since; closed by its program.
        assert!(!stale(0, 0, EPIPE) && !stale(FIN_ACKED, FIN_ACKED, EPIPE) && !stale(FIN_ACKED, OWNED, 0));
    }
}
