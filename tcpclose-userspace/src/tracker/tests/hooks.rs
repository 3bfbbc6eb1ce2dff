//! What hooks tell of minisockets and resets.

use crate::tracker::tests::*;

/// What the hooks tell of a minisocket, at both backends: birth, flip, end and its cause, to the nanosecond.
#[test]
fn hooks_tell_a_minisockets_life() {
    for (hook_kind, how) in [
        (HookKind::Expired, TimeWaitEnd::Expired),
        (HookKind::Reused, TimeWaitEnd::Reused),
        (HookKind::Recycled, TimeWaitEnd::Recycled),
        (HookKind::Reset, TimeWaitEnd::Reset),
        (HookKind::Destroyed, TimeWaitEnd::Destroyed),
        (HookKind::Purged, TimeWaitEnd::Purged),
        (HookKind::Early, TimeWaitEnd::Early),
    ] {
        for by_cookie in [true, false] {
            let mut bench = hooked(by_cookie);
            let key = fin_wait_2_orphan(&mut bench);
            bench.hook(HookKind::Flipped, T0 + 5 * S, (FinWait2, TimeWait), 0);
            bench.hook(hook_kind, T0 + 65 * S, (TimeWait, Close), 0);
            assert_eq!(
                bench.events(),
                [
                    transition(Established, FinWait1),
                    TrackerEvent::StateDuration { phase: Phase::FinWait1, pair: CLIENT, ns: MS },
                    transition(FinWait1, FinWait2),
                    TrackerEvent::StateDuration { phase: Phase::FinWait2, pair: CLIENT, ns: 5 * S - MS },
                    transition(FinWait2, TimeWait),
                    closed(CLIENT, Role::Active, Outcome::Graceful),
                    TrackerEvent::StateDuration { phase: Phase::TimeWait, pair: CLIENT, ns: 60 * S },
                    transition(TimeWait, Close),
                    TrackerEvent::TimeWaitEnded { how },
                ],
                "{hook_kind:?} {key}"
            );
            assert!(bench.tracker.is_empty() && bench.tracker.by_key.is_empty());
        }
    }
}

/// As [`a_socket_that_connects_again_and_its_own_time_wait_are_two_lives`]: the end of the one is none of the other's,
/// not even of a minisocket that is older than the agent.
#[test]
fn hooks_tell_the_end_of_a_time_wait_whose_socket_connected_again() {
    let again = Flow { local_port: client().local_port + 1, ..client() };
    for older in [false, true] {
        let mut bench = hooked(true);
        if !older {
            fin_wait_2_orphan(&mut bench);
            bench.hook(HookKind::Flipped, T0 + S, (FinWait2, TimeWait), 0);
        }
        bench.step(7, &again, T0 + 2 * S, (Established, CloseWait), 0);
        bench.events();
        bench.hook(HookKind::Expired, T0 + 61 * S, (TimeWait, Close), 0);
        assert!(bench.events().contains(&TrackerEvent::TimeWaitEnded { how: TimeWaitEnd::Expired }));
        assert_eq!(
            bench.tracker.find(HERE, 7, &again).map(|socket| socket.phase),
            Some(Phase::CloseWait),
            "{older}"
        );
    }
}

/// A socket in FIN-WAIT-2 that is older than the agent gets its FIN: the birth is told before its first step, and names
/// no flow.
#[test]
fn hooks_tell_the_minisocket_of_a_socket_that_was_there_first() {
    for by_cookie in [true, false] {
        let mut bench = hooked(by_cookie);
        let key = bench.key();
        let there = seen(FinWait2, SocketKind::Socket, client(), 7, T0, 0);
        let there = DumpedSocket { opening: Opening::Connected, ..there };
        bench.dump(T0, true, &[there]);
        bench.hook(HookKind::Born, T0 + S, (FinWait2, TimeWait), key);
        bench.step(key, &client(), T0 + S, (FinWait2, Close), DONE | FIN_ACKED);
        assert_eq!(bench.tracker.len(), 1);
        let then = seen(TimeWait, SocketKind::Minisocket, client(), 7, T0 + 2 * S, 59 * S);
        assert_eq!(bench.dump(T0 + 2 * S, false, &[then]), []);
        bench.hook(HookKind::Expired, T0 + 61 * S, (TimeWait, Close), 0);
        assert!(bench.tracker.is_empty());
        let reported = bench.events();
        assert!(
            !reported.iter().any(|event| matches!(event, TrackerEvent::Corrected { .. })),
            "{reported:?}"
        );
        let stay = TrackerEvent::StateDuration { phase: Phase::TimeWait, pair: CLIENT, ns: 60 * S };
        assert!(reported.contains(&stay), "{reported:?}");
    }
}

/// While hooks are attached, and the state hook is not yet: the first dump tells what is left of it.
#[test]
fn what_hooks_reported_before_the_state_hook_was_there_is_no_life() {
    for by_cookie in [true, false] {
        let mut bench = hooked(by_cookie);
        bench.tracker.set_hooks(HookCoverage { since_ns: T0, ..EVERYTHING });
        let key = bench.key();
        bench.hook(HookKind::Born, T0 - 1, (FinWait2, FinWait2), key);
        bench.hook(HookKind::Flipped, T0 - 1, (FinWait2, TimeWait), 0);
        bench.hook(HookKind::Expired, T0 - 1, (TimeWait, Close), 0);
        assert!(bench.tracker.is_empty());
        assert_eq!(bench.events(), []);
    }
}

/// The timer's handler runs while another CPU, which found the minisocket before, ends it too, or flips it: one end.
#[test]
fn what_is_reported_of_a_minisocket_after_its_end_is_nothing() {
    let again = [
        HookKind::Expired,
        HookKind::Reset,
        HookKind::Recycled,
        HookKind::Reused,
        HookKind::Destroyed,
        HookKind::Early,
    ];
    for first in [HookKind::Expired, HookKind::Reset, HookKind::Early] {
        for by_cookie in [true, false] {
            let mut bench = hooked(by_cookie);
            fin_wait_2_orphan(&mut bench);
            bench.hook(HookKind::Flipped, T0 + S, (FinWait2, TimeWait), 0);
            bench.hook(first, T0 + 61 * S, (TimeWait, Close), 0);
            let ends = |events: &[TrackerEvent]| {
                events.iter().filter(|event| matches!(event, TrackerEvent::TimeWaitEnded { .. })).count()
            };
            assert_eq!(ends(&bench.events()), 1);
            for hook_kind in again {
                bench.hook(hook_kind, T0 + 61 * S + 1_000, (TimeWait, Close), 0);
                bench.hook(hook_kind, T0 + 61 * S + 1_000, (FinWait2, Close), 0);
            }
            bench.hook(HookKind::Flipped, T0 + 61 * S + 1_000, (FinWait2, TimeWait), 0);
            assert_eq!(bench.events(), [], "{first:?} first, by cookie: {by_cookie}");
            assert!(bench.tracker.is_empty());
            // The cookie's socket may go on: its next minisocket is one like the first.
            fin_wait_2_orphan(&mut bench);
            bench.hook(HookKind::Reset, T0 + 70 * S, (TimeWait, Close), 0);
            assert_eq!(ends(&bench.events()), 1);
        }
    }
}

#[test]
fn hooks_tell_how_fin_wait_2_ended() {
    for (hook_kind, outcome) in [
        (HookKind::Expired, Outcome::Timeout),
        (HookKind::Reset, Outcome::ResetReceived),
        (HookKind::DataAfterClose, Outcome::ResetSent),
        (HookKind::Destroyed, Outcome::Destroyed),
        (HookKind::Purged, Outcome::Unknown),
    ] {
        let mut bench = hooked(true);
        fin_wait_2_orphan(&mut bench);
        bench.events();
        bench.hook(hook_kind, T0 + 2 * S, (FinWait2, Close), 0);
        assert_eq!(
            bench.events(),
            [
                TrackerEvent::StateDuration { phase: Phase::FinWait2, pair: CLIENT, ns: 2 * S - MS },
                transition(FinWait2, Close),
                closed(CLIENT, Role::Active, outcome),
            ]
        );
    }
}

#[test]
fn a_time_wait_that_was_not_born_is_an_overflow_and_a_graceful_close() {
    let mut bench = hooked(true);
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
    bench.hook(HookKind::Unborn, T0 + 2 * MS, (FinWait2, TimeWait), 0);
    bench.step(7, &client(), T0 + 2 * MS, (FinWait2, Close), DEAD | DONE);
    assert_eq!(
        bench.events()[3..],
        [
            TrackerEvent::TimeWaitOverflow,
            TrackerEvent::StateDuration { phase: Phase::FinWait2, pair: CLIENT, ns: MS },
            transition(FinWait2, Close),
            closed(CLIENT, Role::Active, Outcome::Graceful),
        ]
    );
    assert!(bench.tracker.is_empty());
}

#[test]
fn a_fin_wait_2_minisocket_that_was_not_born_is_an_overflow_too() {
    let mut bench = hooked(true);
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
    bench.hook(HookKind::Unborn, T0 + 2 * MS, (FinWait2, FinWait2), 0);
    assert_eq!(bench.events().last(), Some(&TrackerEvent::TimeWaitOverflow));
}

#[test]
fn what_is_sent_again_counts_for_the_port_of_its_socket() {
    for by_cookie in [true, false] {
        let mut bench = hooked(by_cookie);
        let key = bench.key();
        bench.hook(HookKind::SentAgain, T0 - 1, (FinWait1, FinWait1), key);
        assert_eq!(bench.events(), [], "nobody knows the socket");
        bench.step(key, &client(), T0, (Established, FinWait1), OWNED);
        bench.events();
        bench.hook(HookKind::SentAgain, T0 + MS, (FinWait1, FinWait1), key);
        assert_eq!(bench.events(), [TrackerEvent::FinRetransmit { pair: CLIENT }]);
    }
}

/// Data after close calls tcp_reset() as a RST does; the RST that goes out a moment later tells.
#[test]
fn the_outcome_of_a_reset_settles_a_moment_later() {
    for (by_cookie, sent) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut bench = hooked(by_cookie);
        let key = bench.key();
        bench.step(key, &client(), T0, (Established, FinWait1), OWNED);
        let head = bench.head(key, &client(), T0 + MS, (FinWait1, Close), DEAD | RCV_SHUTDOWN);
        bench.take(RecordHeader { detail: HeaderDetail::of_errors(104, 0), ..head }, &client());
        bench.events();
        bench.tracker.settle(T0 + 2 * MS, &mut bench.heard);
        assert_eq!(bench.events(), [], "too early to tell");
        if sent {
            bench.hook(HookKind::ResetSent, T0 + MS + 26_000, (Close, Close), key);
        }
        bench.tracker.settle(T0 + S, &mut bench.heard);
        let outcome = if sent { Outcome::ResetSent } else { Outcome::ResetReceived };
        assert_eq!(bench.events(), [closed(CLIENT, Role::Active, outcome)]);
    }
}

/// The acknowledgment of the FIN brings data: the socket is done in FIN-WAIT-2 without an error, and a RST goes out.
#[test]
fn data_with_the_acknowledgment_of_the_fin_is_answered_by_a_reset() {
    for sent in [true, false] {
        let mut bench = hooked(true);
        bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
        bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD);
        bench.step(7, &client(), T0 + MS, (FinWait2, Close), DEAD | FIN_ACKED);
        bench.events();
        if sent {
            bench.hook(HookKind::ResetSent, T0 + MS + 26_000, (Close, Close), 7);
        }
        let closes = bench.events().into_iter().filter(|event| matches!(event, TrackerEvent::Closed { .. }));
        let expected = sent.then_some(closed(CLIENT, Role::Active, Outcome::ResetSent));
        assert_eq!(closes.collect::<Vec<_>>(), Vec::from_iter(expected));
    }
}

/// The kernel's reason comes after the step that a program's abort makes, and before the one that a timeout makes.
#[test]
fn a_reset_has_the_kernels_reason() {
    const UNREAD: (u16, &str) = (3, "tcp_abort_on_close");
    const LINGER: u16 = OWNED | RCV_SHUTDOWN | tcpclose_common::event::flags::LINGER_0;
    let reset = |bench: &mut Bench, old: TcpState, reason| {
        let at_ns = T0 + 9;
        let head = bench.head(bench.key(), &client(), at_ns, (old, Close), 0);
        let head = RecordHeader { flags: HOOK | COOKIE, detail: HeaderDetail::of_reset(reason), ..head };
        let hook = HookRecord { head, subject: SocketOrRcvNxt::of_socket(bench.key()) };
        bench.tracker.record(&Record::Hook(hook, HookKind::ResetSent), &mut bench.heard);
    };
    for by_cookie in [true, false] {
        for (flags, err, before, after, expected) in [
            (OWNED | RCV_SHUTDOWN, 0, None, Some(UNREAD.0), Some(UNREAD.1)),
            (LINGER, 0, None, Some(0), Some("linger_0")),
            // Unread data comes first.
            (LINGER, 0, None, Some(UNREAD.0), Some(UNREAD.1)),
            (OWNED, 0, None, None, None),
            (0, 110, Some(UNREAD.0), None, Some(UNREAD.1)),
            (0, 110, None, None, None),
            // A number without a name.
            (OWNED, 0, None, Some(60), None),
        ] {
            let mut bench = hooked(by_cookie);
            if let Some(reason) = before {
                reset(&mut bench, Established, reason);
            }
            let head = bench.head(bench.key(), &client(), T0 + 10, (Established, Close), flags);
            bench.take(RecordHeader { detail: HeaderDetail::of_errors(err, 0), ..head }, &client());
            if let Some(reason) = after {
                reset(&mut bench, Close, reason);
            }
            bench.tracker.settle(T0 + S, &mut bench.heard);
            let steps = bench.watched();
            let [step] = &steps[..] else { panic!("{steps:?}") };
            assert_eq!(step.reset_reason, expected, "{flags:#x} {err} {before:?} {after:?}");
            assert!(step.outcome.is_some());
        }
    }
}

/// Hooks tell of the minisocket all the same, and the connection is counted once, whichever records are lost.
#[test]
fn a_close_of_which_records_were_lost_counts_once_where_hooks_tell() {
    for by_cookie in [true, false] {
        for lost in 0_u32..1 << 5 {
            if !by_cookie && lost & 0b1100 == 0b1100 {
                // Neither birth nor →CLOSE: nothing ties the socket's address to the minisocket's cookie.
                continue;
            }
            let mut bench = hooked(by_cookie);
            let key = bench.key();
            let took = |n: u32| lost & 1 << n == 0;
            bench.dump(T0 - S, true, &[]);
            for (n, (step, flags)) in [
                ((Established, FinWait1), OWNED),
                ((FinWait1, FinWait2), DEAD | FIN_ACKED),
                ((FinWait2, Close), DEAD | FIN_ACKED),
            ]
            .into_iter()
            .enumerate()
            {
                if n == 2 && took(3) {
                    bench.hook(HookKind::Born, T0 + 2 * MS, (FinWait2, FinWait2), key);
                }
                if took(n as u32) {
                    bench.step(key, &client(), T0 + n as u64 * MS, step, flags);
                }
            }
            if took(4) {
                bench.hook(HookKind::Flipped, T0 + 5 * MS, (FinWait2, TimeWait), 0);
            }
            bench.tracker.records_lost(T0);
            let at = T0 + S;
            let minisocket = seen(TimeWait, SocketKind::Minisocket, client(), 7, at, 59 * S);
            let suspects = bench.dump(at, false, &[minisocket]);
            suspects.iter().for_each(|suspect| bench.tracker.gone(suspect, at, &mut bench.heard));
            let events = bench.events();
            let closes = events.iter().filter(|event| matches!(event, TrackerEvent::Closed { .. })).count();
            assert_eq!(closes, 1, "by cookie {by_cookie}, lost {lost:#b}: {events:?}");
            assert_eq!(bench.tracker.len(), 1, "by cookie {by_cookie}, lost {lost:#b}");
            bench.hook(HookKind::Expired, T0 + 61 * S, (TimeWait, Close), 0);
            assert!(bench.tracker.is_empty(), "by cookie {by_cookie}, lost {lost:#b}");
        }
    }
}
