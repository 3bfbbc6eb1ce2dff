//! The end of its connection that a socket is.

use crate::tracker::tests::*;

const UNKNOWN: PortKey = PortKey { side: Side::Unknown, port: 80 };

fn pair(bench: &Bench) -> PortKey {
    bench.tracker.sockets().next().unwrap().pair()
}

/// A connection from port 80, on which somebody listens, to port 9000.
fn dials_out() -> Flow {
    flow("10.0.0.2:80", "10.0.0.9:9000")
}

fn without_backlog() -> DumpedSocket {
    DumpedSocket { without_backlog: true, ..listener() }
}

/// The end that a record with these flags makes of [`server`]'s flow, with these listeners.
fn recorded(listeners: &[DumpedSocket], flags: u16) -> PortKey {
    let mut bench = Bench::btf();
    bench.dump(T0 - S, true, listeners);
    bench.step(7, &server(), T0, (Established, CloseWait), flags);
    pair(&bench)
}

#[test]
fn who_connects_from_a_port_that_somebody_listens_on_is_a_client() {
    let client = PortKey { side: Side::Client, port: 9000 };
    for listener in [listener(), without_backlog()] {
        for by_cookie in [true, false] {
            let mut bench = Bench::new(by_cookie, true);
            bench.dump(T0 - S, true, &[listener]);
            bench.step(7, &dials_out(), T0, (Established, FinWait1), OWNED | CONNECTED);
            assert_eq!(pair(&bench), client);
            let mut bench = Bench::new(by_cookie, true);
            let connected = DumpedSocket {
                opening: Opening::Connected,
                ..seen(CloseWait, SocketKind::Socket, dials_out(), 7, T0, 0)
            };
            bench.dump(T0, true, &[listener, connected]);
            assert_eq!(pair(&bench), client);
        }
    }
    // Without a backlog, and with counters that prove nothing: not a child of the listener that has one.
    let mut bench = Bench::btf();
    bench.dump(T0 - S, true, &[listener()]);
    bench.step(7, &dials_out(), T0, (Established, FinWait1), OWNED);
    assert_eq!(pair(&bench), client);
}

#[test]
fn a_child_of_a_listener_without_a_backlog_is_no_client() {
    assert_eq!(recorded(&[], ACCEPTED), SERVER, "marked at its opening, and the listener is gone");
    assert_eq!(recorded(&[without_backlog()], NOT_CONNECTED), SERVER);
    assert_eq!(recorded(&[], NOT_CONNECTED), UNKNOWN, "older than the agent, and the listener is gone");
    assert_eq!(recorded(&[without_backlog()], 0), UNKNOWN, "its counters prove nothing");
    // Restored, which leaves it without a backlog.
    assert_eq!(recorded(&[listener()], NOT_CONNECTED), SERVER);
}

#[test]
fn a_dump_alone_proves_no_side_by_a_listener() {
    for opening in [Opening::Unknown, Opening::NotConnected] {
        for kind in [SocketKind::Socket, SocketKind::Minisocket] {
            let state = if kind == SocketKind::Socket { CloseWait } else { TimeWait };
            let seen = DumpedSocket { opening, ..seen(state, kind, server(), 7, T0, 59 * S) };
            let mut bench = Bench::btf();
            bench.dump(T0, true, &[listener(), seen]);
            let expected = if opening == Opening::Unknown { UNKNOWN } else { SERVER };
            assert_eq!(pair(&bench), expected, "{opening:?} {kind:?}");
        }
    }
}

/// The listener has gone when the first dump looks.
#[test]
fn what_a_dump_has_left_open_no_step_without_its_counters_settles() {
    let mut bench = Bench::btf();
    let fin_wait_2 = seen(FinWait2, SocketKind::Socket, server(), 7, T0, 0);
    bench.dump(T0, true, &[fin_wait_2]);
    assert_eq!(pair(&bench), UNKNOWN);
    bench.step(7, &server(), T0 + S, (FinWait2, Close), DONE | DEAD | FIN_ACKED);
    assert_eq!(pair(&bench), UNKNOWN);
    // A step that has them does.
    let mut bench = Bench::btf();
    bench.dump(T0, true, &[seen(CloseWait, SocketKind::Socket, server(), 7, T0, 0)]);
    bench.step(7, &server(), T0 + S, (CloseWait, LastAck), ACCEPTED);
    assert_eq!(pair(&bench), SERVER);
}

#[test]
fn a_later_dump_proves_what_a_record_did_not() {
    for (by_cookie, btf) in [(true, true), (false, true), (false, false)] {
        let mut bench = Bench::new(by_cookie, btf);
        bench.dump(T0 - S, true, &[without_backlog()]);
        bench.step(7, &server(), T0, (Established, CloseWait), 0);
        assert_eq!(pair(&bench), UNKNOWN);
        let seen = seen(CloseWait, SocketKind::Socket, server(), 7, T0 + S, 0);
        bench.dump(T0 + S, false, &[without_backlog(), seen]);
        assert_eq!(pair(&bench), SERVER);
    }
}

/// The record of the first step was lost, and with it the addresses.
#[test]
fn a_socket_without_addresses_is_no_client_where_a_listener_of_its_port_has_no_backlog() {
    for (listener, expected) in [(listener(), Side::Client), (without_backlog(), Side::Unknown)] {
        let mut bench = Bench::btf();
        bench.dump(T0 - S, true, &[listener]);
        bench.step(7, &server(), T0, (CloseWait, LastAck), OWNED);
        assert_eq!(pair(&bench).side, expected);
    }
}
