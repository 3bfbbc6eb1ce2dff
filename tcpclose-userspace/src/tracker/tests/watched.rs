//! What is told of each step while somebody watches.

use crate::names::TransitionSource;
use crate::tracker::tests::*;

/// From, to and time spent of what was told.
fn steps(bench: &mut Bench) -> Vec<(TcpState, TcpState, Age)> {
    bench.watched().iter().map(|step| (step.from, step.to, step.spent)).collect()
}

const UNKNOWN: Age = Age { min_ns: 0, max_ns: None };

#[test]
fn an_active_close_is_reported_with_its_socket_and_its_numbers() {
    for mut bench in Bench::backends() {
        bench.dump(T0 - S, true, &[]);
        bench.numbers = Numbers { snd: 1000, rcv: 5000 };
        let mut head = bench.head(7, &client(), T0, (Established, FinWait1), OWNED);
        head.set_closer(42);
        bench.take(head, &client());
        bench.numbers.snd = 1001;
        bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), FIN_ACKED);
        bench.numbers.rcv = 5001;
        bench.step(7, &client(), T0 + 3 * MS, (FinWait2, Close), DONE | FIN_ACKED);
        let reported = bench.watched();
        if !bench.has_facts() {
            // The last one may as well be a FIN-WAIT-2 that goes on.
            assert_eq!(reported.len(), 2);
            assert!(reported.iter().all(|step| (step.snd, step.rcv) == (None, None)));
            continue;
        }
        let step = |from, to, at_ns, spent, snd, rcv| {
            (from, to, at_ns, spent, Some(snd), Some(rcv), TransitionSource::Tracepoint)
        };
        assert_eq!(
            reported
                .iter()
                .map(|reported| (
                    reported.from,
                    reported.to,
                    reported.at_ns,
                    reported.spent,
                    reported.snd,
                    reported.rcv,
                    reported.source
                ))
                .collect::<Vec<_>>(),
            [
                step(Established, FinWait1, T0, UNKNOWN, 1000, 5000),
                step(FinWait1, FinWait2, T0 + MS, Age::exact(MS), 1001, 5000),
                step(FinWait2, TimeWait, T0 + 3 * MS, Age::exact(2 * MS), 1001, 5001),
            ]
        );
        for step in &reported {
            let closer = step.closer.map(|closer| closer.pid.get());
            assert_eq!((step.side, step.port, step.role, closer), (Side::Client, 80, Role::Active, Some(42)));
            assert_eq!((step.flow, step.inum, step.outcome), (client(), HERE, None));
        }
    }
}

#[test]
fn the_last_step_tells_the_outcome() {
    let mut bench = Bench::btf();
    bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.step(7, &server(), T0 + MS, (CloseWait, LastAck), ACCEPTED | OWNED);
    bench.step(7, &server(), T0 + 2 * MS, (LastAck, Close), ACCEPTED | DONE | DEAD | FIN_ACKED);
    bench.step(8, &client(), T0 + 3 * MS, (Established, Close), OWNED);
    let outcomes: Vec<_> = bench.watched().iter().map(|step| (step.role, step.outcome)).collect();
    assert_eq!(
        outcomes,
        [
            (Role::Passive, None),
            (Role::Passive, None),
            (Role::Passive, Some(Outcome::Graceful)),
            (Role::None, Some(Outcome::Aborted)),
        ]
    );
}

#[test]
fn a_simultaneous_close_is_reported_as_one_from_closing_on() {
    let mut bench = Bench::btf();
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, Closing), DONE);
    bench.step(7, &client(), T0 + 2 * MS, (Closing, Close), DONE | FIN_ACKED);
    let roles: Vec<_> = bench.watched().iter().map(|step| (step.to, step.role)).collect();
    let both = Role::Simultaneous;
    assert_eq!(roles, [(FinWait1, Role::Active), (Closing, both), (TimeWait, both)]);
}

#[test]
fn a_reset_is_reported_when_its_outcome_is_settled() {
    for resets in [false, true] {
        let mut bench = hooked(true);
        let reset = |bench: &mut Bench, key| {
            bench.step(key, &client(), T0, (Established, FinWait1), OWNED);
            let head = bench.head(key, &client(), T0 + MS, (FinWait1, Close), DEAD | RCV_SHUTDOWN);
            bench.take(RecordHeader { detail: HeaderDetail::of_errors(104, 0), ..head }, &client());
        };
        reset(&mut bench, 7);
        assert_eq!(bench.watched().len(), 1);
        if resets {
            bench.hook(HookKind::ResetSent, T0 + MS, (Close, Close), 0);
        } else {
            bench.tracker.settle(T0 + S, &mut bench.heard);
        }
        let outcome = if resets { Outcome::ResetSent } else { Outcome::ResetReceived };
        let reported = bench.watched();
        assert_eq!((reported.len(), reported[0].outcome, reported[0].at_ns), (1, Some(outcome), T0 + MS));
    }
}

#[test]
fn hooks_tell_the_flip_with_the_peers_number_and_the_end() {
    let mut bench = hooked(true);
    fin_wait_2_orphan(&mut bench);
    bench.hook(HookKind::Flipped, T0 + S, (FinWait2, TimeWait), 5001);
    bench.hook(HookKind::Expired, T0 + 61 * S, (TimeWait, Close), 0);
    let reported = bench.watched();
    let (flip, end) = (&reported[2], &reported[3]);
    assert_eq!((flip.source, flip.snd, flip.rcv), (TransitionSource::Hooks, None, Some(5001)));
    assert_eq!((flip.from, flip.to, flip.spent), (FinWait2, TimeWait, Age::exact(S - MS)));
    assert_eq!((end.from, end.to, end.spent), (TimeWait, Close, Age::exact(60 * S)));
    assert_eq!((end.source, end.outcome), (TransitionSource::Hooks, Some(Outcome::Graceful)));
}

#[test]
fn what_dumps_tell_comes_with_its_error() {
    let mut bench = Bench::btf();
    bench.dump(T0 - S, true, &[]);
    fin_wait_2_orphan(&mut bench);
    bench.watched();
    let dump = |bench: &mut Bench, at, state, left| {
        bench.dump(at, false, &[seen(state, SocketKind::Minisocket, client(), 7, at, left)]);
    };
    dump(&mut bench, T0 + S, FinWait2, 59 * S);
    // The timer tells when the FIN came: 1.5 s after the first step.
    dump(&mut bench, T0 + 2 * S, TimeWait, TIME_WAIT - 500 * MS);
    let spent = Age { min_ns: 949 * MS, max_ns: Some(1569 * MS) };
    assert_eq!(steps(&mut bench), [(FinWait2, TimeWait, spent)], "1,499 ms, if the timer was not set anew");
    // It was due at T0 + 61.5 s, and gone by the dump at T0 + 63 s.
    dump(&mut bench, T0 + 61 * S, TimeWait, 500 * MS);
    bench.dump(T0 + 63 * S, false, &[]);
    let spent = Age { min_ns: 59_930 * MS, max_ns: Some(62_050 * MS) };
    assert_eq!(steps(&mut bench), [(TimeWait, Close, spent)]);
}

#[test]
fn a_socket_that_was_there_first_has_an_age_within_bounds() {
    let mut bench = Bench::btf();
    let mut there = seen(CloseWait, SocketKind::Socket, server(), 7, T0, 0);
    there.age = Age { min_ns: 2 * S, max_ns: Some(5 * S) };
    bench.dump(T0, true, &[there]);
    assert_eq!(steps(&mut bench), [], "no step was made");
    bench.step(7, &server(), T0 + S, (CloseWait, LastAck), ACCEPTED | OWNED);
    let spent = Age { min_ns: 3 * S, max_ns: Some(6 * S) };
    assert_eq!(steps(&mut bench), [(CloseWait, LastAck, spent)]);
}

#[test]
fn a_socket_that_vanished_is_reported_to_whoever_watches() {
    let mut bench = Bench::btf();
    bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
    let suspects = bench.dump(T0 + S, false, &[]);
    bench.watched();
    bench.tracker.gone(&suspects[0], T0 + 2 * S, &mut bench.heard);
    let reported = bench.watched();
    assert_eq!(
        (reported[0].from, reported[0].to, reported[0].outcome),
        (CloseWait, Close, Some(Outcome::Unknown))
    );
    assert_eq!(
        (reported[0].source, reported[0].spent),
        (TransitionSource::Diag, Age { min_ns: 0, max_ns: Some(2_050 * MS) })
    );
}

#[test]
fn nothing_is_put_together_for_nobody() {
    let mut bench = Bench::btf();
    bench.heard.is_watched = false;
    bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.step(7, &server(), T0 + MS, (CloseWait, Close), ACCEPTED | OWNED);
    assert!(bench.watched().is_empty());
    assert_eq!(bench.events().len(), 4);
}
