//! What lost records leave, and that no order of events breaks anything.

use crate::tracker::tests::*;

#[test]
fn a_reconcile_mends_what_lost_records_left() {
    let mut bench = Bench::btf();
    // Known to be in CLOSE-WAIT; the kernel has it in LAST-ACK. And one that nobody knew.
    bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.step(9, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.events();
    let at = T0 + 10 * S;
    let unknown = flow("10.0.0.2:80", "10.0.0.1:40001");
    let suspects = bench.dump(
        at,
        false,
        &[
            listener(),
            seen(LastAck, SocketKind::Socket, server(), 7, at, 0),
            seen(CloseWait, SocketKind::Socket, unknown, 8, at, 0),
        ],
    );
    assert_eq!(
        bench.events(),
        [
            TrackerEvent::Corrected { what: Correction::State },
            TrackerEvent::Unmeasured { phase: Phase::CloseWait, why: UnmeasuredReason::Lost },
            TrackerEvent::Corrected { what: Correction::Missing },
        ]
    );
    // The third is not in the dump; an exact lookup does not find it either.
    assert_eq!(suspects.len(), 1);
    bench.tracker.gone(&suspects[0], at, &mut bench.heard);
    assert_eq!(
        bench.events(),
        [
            TrackerEvent::Corrected { what: Correction::Vanished },
            TrackerEvent::Unmeasured { phase: Phase::CloseWait, why: UnmeasuredReason::Lost },
            closed(SERVER, Role::Passive, Outcome::Unknown),
        ]
    );
    let mut phases: Vec<Phase> = bench.tracker.sockets().map(|socket| socket.phase).collect();
    phases.sort();
    assert_eq!(phases, [Phase::CloseWait, Phase::LastAck]);
}

/// At the classic tracepoint nothing but the addresses in the first record, or the record of the hand-over, tells which
/// minisocket was a socket's.
#[test]
fn a_close_of_which_a_record_was_lost_counts_once() {
    for lost in 0..3 {
        let mut bench = Bench::new(false, true);
        let key = bench.key();
        bench.dump(T0 - S, true, &[]);
        for (n, (step, flags)) in [
            ((Established, FinWait1), OWNED),
            ((FinWait1, FinWait2), DEAD | FIN_ACKED),
            ((FinWait2, Close), DEAD | DONE | FIN_ACKED),
        ]
        .into_iter()
        .enumerate()
        {
            if n != lost {
                bench.step(key, &client(), T0 + n as u64 * MS, step, flags);
            }
        }
        // Its address is another socket's now.
        let next = flow("10.0.0.1:50000", "10.0.0.2:80");
        bench.step(key, &next, T0 + 9 * MS, (Established, CloseWait), 0);
        let minisocket = seen(TimeWait, SocketKind::Minisocket, client(), 7, T0 + 2 * S, 58 * S);
        let other = seen(CloseWait, SocketKind::Socket, next, 8, T0 + 2 * S, 0);
        bench.dump(T0 + 2 * S, false, &[minisocket, other]);
        let events = bench.events();
        let closes = events.iter().filter(|event| matches!(event, TrackerEvent::Closed { .. })).count();
        assert_eq!(closes, 1, "without record {lost}: {events:?}");
        assert_eq!(bench.tracker.len(), 2, "without record {lost}");
    }
}

/// The steps of the classic tracepoint name the flow by its hash, which is enough to tell which minisocket ended.
#[test]
fn a_close_of_which_the_first_record_was_lost_counts_before_any_dump_sees_it() {
    for by_cookie in [true, false] {
        let mut bench = Bench::new(by_cookie, true);
        bench.dump(T0 - S, true, &[]);
        bench.step(1, &server(), T0, (FinWait1, FinWait2), ACCEPTED | DEAD | FIN_ACKED);
        bench.step(1, &server(), T0 + MS, (FinWait2, Close), ACCEPTED | DEAD | DONE | FIN_ACKED);
        assert_eq!(
            bench.events(),
            [
                TrackerEvent::Unmeasured { phase: Phase::FinWait1, why: UnmeasuredReason::Lost },
                transition(FinWait1, FinWait2),
                TrackerEvent::StateDuration { phase: Phase::FinWait2, pair: SERVER, ns: MS },
                transition(FinWait2, TimeWait),
                closed(SERVER, Role::Active, Outcome::Graceful),
            ]
        );
        let minisocket = seen(TimeWait, SocketKind::Minisocket, server(), 1, T0 + S, 59 * S);
        bench.dump(T0 + S, false, &[minisocket]);
        assert_eq!((bench.events(), bench.tracker.len()), (vec![], 1));
        assert_eq!(bench.tracker.sockets().next().unwrap().flow, server());
        // The next connection of the flow.
        bench.step(2, &server(), T0 + 2 * S, (Established, FinWait1), ACCEPTED | OWNED);
        bench.dump(T0 + 3 * S, false, &[seen(FinWait1, SocketKind::Socket, server(), 2, T0 + 3 * S, 0)]);
        assert_eq!(bench.tracker.len(), 1);
    }
}

/// The next connection of a flow can be accepted, served and closed on another CPU before the last →CLOSE of the
/// connection before it is recorded.
#[test]
fn a_connection_that_closes_before_the_last_step_of_the_one_before_it_takes_nothing_from_that() {
    for mut bench in Bench::backends() {
        bench.dump(T0 - S, true, &[listener()]);
        for (key, at) in [(1, T0), (2, T0 + 2 * MS)] {
            bench.step(key, &server(), at, (Established, FinWait1), ACCEPTED | OWNED);
            bench.step(key, &server(), at + MS, (FinWait1, FinWait2), ACCEPTED | DEAD | FIN_ACKED);
        }
        for (key, at) in [(1, T0 + 4 * MS), (2, T0 + 5 * MS)] {
            bench.step(key, &server(), at, (FinWait2, Close), ACCEPTED | DEAD | DONE | FIN_ACKED);
        }
        bench.dump(T0 + S, false, &[seen(TimeWait, SocketKind::Minisocket, server(), 2, T0 + S, 59 * S)]);
        let events = bench.events();
        let closes = events.iter().filter(|event| matches!(event, TrackerEvent::Closed { .. })).count();
        // Without BTF the first one's →CLOSE may as well have been a RST's, and nothing of it is left to see.
        assert_eq!(closes, 2, "{events:?}");
    }
}

#[test]
fn a_socket_address_that_is_used_again_never_joins_two_lives() {
    let mut bench = Bench::new(false, true);
    let other = flow("10.0.0.2:80", "10.0.0.3:50000");
    bench.step(0xffff_8880, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.events();
    // The end of the first was lost; the slab gave its address to another socket.
    bench.step(0xffff_8880, &other, T0 + S, (Established, CloseWait), ACCEPTED);
    assert_eq!(
        bench.events(),
        [
            TrackerEvent::Unmeasured { phase: Phase::CloseWait, why: UnmeasuredReason::Lost },
            closed(SERVER, Role::Passive, Outcome::Unknown),
            transition(Established, CloseWait),
        ]
    );
    bench.step(0xffff_8880, &other, T0 + 3 * S, (CloseWait, LastAck), ACCEPTED);
    assert_eq!(
        bench.events()[0],
        TrackerEvent::StateDuration { phase: Phase::CloseWait, pair: SERVER, ns: 2 * S }
    );
    assert_eq!(bench.tracker.len(), 1);
}

/// Any order of records and dumps, legal or not: no panic, no negative duration, every opened socket is told of when it
/// ends, and a whole dump of nothing leaves nothing.
#[test]
fn no_order_of_events_breaks_it() {
    struct Check;
    impl EventSink for Check {
        fn event(&mut self, _: u64, event: TrackerEvent) {
            if let TrackerEvent::StateDuration { ns, .. } = event {
                assert!(ns < 1 << 62, "{event:?}");
            }
        }
    }
    let states =
        [Established, FinWait1, FinWait2, Closing, CloseWait, LastAck, Close, TimeWait, Listen, SynRecv];
    // xorshift: the same orders every time.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % n
    };
    let with_hooks = Bench::backends().map(|mut bench| {
        bench.tracker.set_hooks(EVERYTHING);
        bench
    });
    for mut bench in Bench::backends().into_iter().chain(with_hooks) {
        let mut now = T0;
        for _ in 0..60_000 {
            now += next(200) * MS;
            let key = 1 + next(6);
            let flow = flow(&format!("10.0.0.1:{}", 40_000 + next(4)), "10.0.0.2:80");
            let pick = |i: u64| states[i as usize % states.len()];
            if next(8) == 0 {
                bench.tracker.dump_started();
                let seen: Vec<DumpedSocket> = (0..next(4))
                    .map(|_| {
                        let kind = if next(2) == 0 { SocketKind::Minisocket } else { SocketKind::Socket };
                        seen(pick(next(10)), kind, flow, key, now, next(2) * next(70) * S)
                    })
                    .collect();
                let view = View {
                    covers: &here(),
                    seen: &seen,
                    states: u32::MAX,
                    started_ns: now,
                    first: next(50) == 0,
                };
                for suspect in bench.tracker.dump(&view, 100, &mut Check) {
                    if next(2) == 0 {
                        bench.tracker.gone(&suspect, now, &mut Check);
                    }
                }
                continue;
            }
            // The address of a socket is no number that a cookie can be.
            let sk = if bench.by_cookie { 0 } else { 0xffff_8880_0000_0000 | key };
            if next(6) == 0 {
                let hook_kind = HookKind::ALL[next(HookKind::ALL.len() as u64) as usize];
                let head = RecordHeader {
                    flags: HOOK | COOKIE,
                    detail: HeaderDetail::of_hook(hook_kind),
                    ..bench.head(key, &flow, now, (pick(next(10)), pick(next(10))), 0)
                };
                bench.tracker.record(
                    &Record::Hook(
                        HookRecord { head, subject: SocketOrRcvNxt::of_socket(sk * next(2)) },
                        hook_kind,
                    ),
                    &mut Check,
                );
                bench.tracker.settle(now, &mut Check);
                continue;
            }
            let key = if bench.by_cookie { key } else { sk };
            let (old, new) = (pick(next(10)), pick(next(10)));
            if !tcpclose_common::state::is_close_step(old as u32, new as u32) {
                continue;
            }
            let head =
                bench.head(key, &flow, now, (old, new), (next(1 << 10) as u16) & !(OPEN | COOKIE | FACTS));
            let err = [0, 0, 0, 32, 103, 104, 110, 113][next(8) as usize];
            bench.take(RecordHeader { detail: HeaderDetail::of_errors(err, 0), ..head }, &flow);
            assert!(bench.tracker.len() < 100);
            bench.heard = Heard::new();
        }
        for _ in 0..2 {
            now += 1000 * S;
            bench.netns = HERE;
            for suspect in bench.dump(now, false, &[]) {
                bench.tracker.gone(&suspect, now, &mut Check);
            }
        }
        // Without BTF a full socket's namespace is unknown, and no dump may speak for it.
        let left: Vec<_> = bench.tracker.sockets().filter(|socket| socket.netns == HERE).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
