//! A state hook that reports nothing.

use crate::tracker::tests::*;

/// So many CLOSE-WAITs at `at` that nobody told of, of flows with these ports on.
fn close_waits(ports: std::ops::Range<u16>, at: u64) -> Vec<DumpedSocket> {
    let one = |port: u16| {
        let flow = flow("10.0.0.2:80", &format!("10.0.0.1:{port}"));
        seen(CloseWait, SocketKind::Socket, flow, port.into(), at, 0)
    };
    ports.map(one).collect()
}

fn time_waits(ports: std::ops::Range<u16>, at: u64) -> Vec<DumpedSocket> {
    let kind = SocketKind::Minisocket;
    close_waits(ports, at)
        .into_iter()
        .map(|seen| DumpedSocket { state: TimeWait, kind, expires_ns: 59 * S, ..seen })
        .collect()
}

fn silent(bench: &Bench) -> Option<u32> {
    bench.tracker.silent_hook().map(|silent| silent.sockets)
}

fn backends() -> [Bench; 3] {
    Bench::backends().map(|mut bench| {
        bench.tracker.set_hooks(HookCoverage { since_ns: T0 - MS, ..HookCoverage::default() });
        bench
    })
}

#[test]
fn closes_that_only_dumps_see_are_noticed_at_the_first_reconcile() {
    for of in [close_waits, time_waits] {
        for mut bench in backends() {
            bench.dump(T0, true, &[]);
            assert_eq!(silent(&bench), None);
            bench.dump(T0 + 30 * S, false, &of(1000..1002, T0 + 30 * S));
            assert_eq!(silent(&bench), None, "two");
            bench.dump(T0 + 60 * S, false, &of(1000..1003, T0 + 60 * S));
            assert_eq!(silent(&bench), Some(3));
        }
    }
}

#[test]
fn what_was_there_first_proves_nothing() {
    for mut bench in backends() {
        let all = |at| {
            let left = |seen: DumpedSocket| DumpedSocket { expires_ns: T0 + 59 * S - at, ..seen };
            let minisockets = time_waits(2000..2009, at).into_iter().map(left);
            close_waits(1000..1009, at).into_iter().chain(minisockets).collect::<Vec<_>>()
        };
        for (first, at) in [(true, T0), (true, T0 + S), (false, T0 + 30 * S), (false, T0 + 50 * S)] {
            bench.dump(at, first, &all(at));
            assert_eq!(silent(&bench), None);
        }
        bench.dump(T0 + 90 * S, false, &close_waits(1000..1009, T0 + 90 * S));
        assert_eq!(silent(&bench), None);
    }
}

#[test]
fn a_namespace_that_was_never_dumped_proves_something_by_ages_only() {
    const OTHER: u32 = 4_026_532_000;
    let covers = DumpCoverage { netns: [(OTHER, OTHER)].into(), all: false };
    let states = tcpclose_common::state::CLOSE_PHASE | TimeWait.bit() | Listen.bit();
    let at = T0 + 30 * S;
    for (of, max_ns, expected) in [
        // Entered nobody knows when, or before the hook was attached.
        (close_waits as fn(std::ops::Range<u16>, u64) -> Vec<DumpedSocket>, None, None),
        (close_waits, Some(30 * S), None),
        (close_waits, Some(5 * S), Some(9)),
        // A minisocket's timer proves nothing.
        (time_waits, Some(5 * S), None),
    ] {
        for mut bench in backends() {
            bench.dump(T0, true, &[]);
            let age = Age { min_ns: 0, max_ns };
            let there: Vec<DumpedSocket> = of(1000..1009, at)
                .into_iter()
                .map(|seen| DumpedSocket { netns: OTHER, age, ..seen })
                .collect();
            bench.tracker.dump_started();
            let view = View { covers: &covers, seen: &there, states, started_ns: at, first: false };
            bench.tracker.dump(&view, 100, &mut bench.heard);
            assert_eq!(silent(&bench), expected, "{max_ns:?}");
        }
    }
}

#[test]
fn a_record_or_a_loss_ends_the_silence() {
    for mut bench in backends() {
        bench.dump(T0, true, &[]);
        let at = T0 + 30 * S;
        bench.dump(at, false, &close_waits(1000..1009, at));
        assert_eq!(silent(&bench), Some(9));
        bench.step(77, &client(), at + S, (Established, FinWait1), OWNED);
        assert_eq!(silent(&bench), None);

        // The reconcile before the record is no proof.
        bench.dump(at + 5 * S, false, &close_waits(1000..1019, at + 5 * S));
        assert_eq!(silent(&bench), None);
        let at = at + 35 * S;
        bench.dump(at, false, &close_waits(1000..1022, at));
        assert_eq!(silent(&bench), Some(3));
        bench.tracker.records_lost(at + S);
        assert_eq!(silent(&bench), None);
        bench.dump(at + 2 * S, false, &close_waits(1000..1030, at + 2 * S));
        assert_eq!(silent(&bench), None, "lost");
    }
}

/// Without BTF one flow is one socket, whichever namespace it is in: two of one flow take turns in each dump.
#[test]
fn one_flow_in_two_namespaces_proves_nothing() {
    for mut bench in backends() {
        let two = [7, 8].map(|cookie| DumpedSocket { cookie, ..time_waits(1000..1001, T0)[0] });
        bench.dump(T0, true, &two);
        for n in 1..9 {
            bench.dump(T0 + n * S, false, &two.map(|seen| DumpedSocket { seen_ns: T0 + n * S, ..seen }));
        }
        assert_eq!(silent(&bench), None);
    }
}

#[test]
fn births_of_minisockets_without_a_step_prove_it_too() {
    for by_cookie in [true, false] {
        let mut bench = hooked(by_cookie);
        bench.dump(T0, true, &[]);
        for n in 1..=3 {
            assert_eq!(silent(&bench), None);
            let head = RecordHeader {
                key: n,
                flags: HOOK | COOKIE,
                detail: HeaderDetail::of_hook(HookKind::Born),
                ..bench.head(n, &client(), T0 + n * S, (FinWait2, FinWait2), 0)
            };
            let record = HookRecord { head, subject: SocketOrRcvNxt::of_socket(0xffff_8880_0000_0000 + n) };
            bench.tracker.record(&Record::Hook(record, HookKind::Born), &mut bench.heard);
        }
        assert_eq!(silent(&bench), Some(3));

        let mut bench = hooked(by_cookie);
        bench.dump(T0, true, &[]);
        fin_wait_2_orphan(&mut bench);
        assert_eq!(silent(&bench), None, "of a socket that has stepped");
    }
}
