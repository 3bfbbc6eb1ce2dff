//! Each kind of close, from its steps to its drawing. The numbers are those of the textbook: u = 1000, v = 4995, w = 5000.

use crate::names::{Age, Role, Side};
use crate::report::watch::line::tests::sample;
use crate::report::watch::line::{CloserLine, More};
use crate::ui::drawing::*;
use TcpState::{Close, CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, TimeWait};

const OWN: u32 = 1;

/// A step, the time spent before it in microseconds, and its numbers.
type Step = (TcpState, TcpState, Option<u64>, Option<u32>, Option<u32>);

fn connection(role: Role, steps: &[Step], outcome: Option<Outcome>) -> ClosedConnection {
    let line = |(from, to, us, snd, rcv): &Step| {
        let us = us.map(|us| us as f64 / 1e6);
        Line {
            from: *from,
            to: *to,
            min_seconds: us.unwrap_or(0.0),
            max_seconds: us,
            role,
            side: Side::Client,
            netns: OWN,
            owner: None,
            more: Some(More { netns_name: None, snd: *snd, rcv: *rcv, time_wait_ms: Some(60_000) }),
            outcome: outcome.filter(|_| *to == Close),
            ..sample()
        }
    };
    ClosedConnection { steps: steps.iter().map(line).collect() }
}

/// The drawing without the line that names the connection.
fn drawn(role: Role, steps: &[Step], outcome: Option<Outcome>) -> String {
    let text = draw(&connection(role, steps, outcome), OWN);
    let (header, drawing) = text.split_once('\n').unwrap();
    assert!(
        header
            .starts_with("2026-11-22T11:00:00.123456789Z  local 10.0.0.9:41234  peer 10.0.0.5:8080  client")
    );
    drawing.to_owned()
}

#[test]
fn the_active_closer() {
    let steps = [
        (Established, FinWait1, None, Some(1000), Some(4995)),
        (FinWait1, FinWait2, Some(61), Some(1001), Some(4995)),
        (FinWait2, TimeWait, Some(1_203_000), Some(1001), Some(5001)),
    ];
    let drawing = drawn(Role::Active, &steps, None);
    assert_eq!(
        drawing,
        "                    active closer (this side)   passive closer (peer)
                    ESTABLISHED
 ①                  FIN sent      ── seq=1000 ──────────────────────▶
                    FIN-WAIT-1
 ②  +61µs           ACK received  ◀────────────────────── ack=1001 ──
                    FIN-WAIT-2
                      half-close: 5 bytes received in FIN-WAIT-2
 ③  +1.203s         FIN received  ◀────────────────────── seq=5000 ──
 ④                  ACK sent      ── ack=5001 ──────────────────────▶
                    TIME-WAIT, 2MSL (60s here)
"
    );
}

#[test]
fn the_passive_closer() {
    let steps = [
        (Established, CloseWait, None, Some(4995), Some(1001)),
        (CloseWait, LastAck, Some(2_000), Some(5000), Some(1001)),
        (LastAck, Close, Some(40), Some(5001), Some(1001)),
    ];
    assert_eq!(
        drawn(Role::Passive, &steps, Some(Outcome::Graceful)),
        "                    passive closer (this side)   active closer (peer)
                    ESTABLISHED
 ①                  FIN received  ◀────────────────────── seq=1000 ──
 ②                  ACK sent      ── ack=1001 ──────────────────────▶
                    CLOSE-WAIT
                      half-close: 5 bytes sent in CLOSE-WAIT
 ③  +2.000ms        FIN sent      ── seq=5000 ──────────────────────▶
                    LAST-ACK
 ④  +40µs           ACK received  ◀────────────────────── ack=5001 ──
                    CLOSED
"
    );
}

#[test]
fn both_at_once() {
    let steps = [
        (Established, FinWait1, None, Some(1000), Some(5000)),
        (FinWait1, Closing, Some(500), Some(1000), Some(5001)),
        (Closing, TimeWait, Some(70), Some(1001), Some(5001)),
    ];
    let drawing = drawn(Role::Simultaneous, &steps, None);
    assert_eq!(
        drawing,
        "                    simultaneous closer (this side)  simultaneous closer (peer)
                    ESTABLISHED
 ①                  FIN sent      ── seq=1000 ──────────────────────▶
                    FIN-WAIT-1
 ②  +500µs          FIN received  ◀────────────────────── seq=5000 ──
 ③                  ACK sent      ── ack=5001 ──────────────────────▶
                    CLOSING
 ④  +70µs           ACK received  ◀────────────────────── ack=1001 ──
                    TIME-WAIT, 2MSL (60s here)
"
    );
}

#[test]
fn what_the_backend_cannot_see_is_not_observed() {
    // The peer's FIN came to the minisocket, of which a dump told.
    let steps = [
        (Established, FinWait1, None, Some(1000), Some(5000)),
        (FinWait1, FinWait2, Some(61), Some(1001), Some(5000)),
        (FinWait2, TimeWait, Some(990_000), None, None),
    ];
    let drawing = drawn(Role::Active, &steps, None);
    assert!(
        drawing.contains(" ③  +990.000ms      FIN received  ◀────────────── seq not observed ──\n"),
        "{drawing}"
    );
    assert!(
        drawing.contains(" ④                  ACK sent      ── ack not observed ──────────────▶\n"),
        "{drawing}"
    );
    assert!(!drawing.contains("half-close"), "{drawing}");
    // Whoever came late has not seen the first steps at all.
    let late = [(LastAck, Close, None, Some(5001), Some(1001))];
    assert_eq!(
        drawn(Role::Passive, &late, Some(Outcome::Graceful)),
        "                    passive closer (this side)   active closer (peer)
                    ESTABLISHED
 ①                  FIN received  ◀────────────────── not observed ──
 ②                  ACK sent      ── not observed ──────────────────▶
                    CLOSE-WAIT
 ③                  FIN sent      ── not observed ──────────────────▶
                    LAST-ACK
 ④  +unknown        ACK received  ◀────────────────────── ack=5001 ──
                    CLOSED
"
    );
    // One record was lost in the middle.
    let gap = [
        (Established, FinWait1, None, Some(1000), Some(5000)),
        (FinWait2, TimeWait, None, Some(1001), Some(5001)),
    ];
    let drawing = drawn(Role::Active, &gap, None);
    assert_eq!(drawing.matches("ESTABLISHED").count(), 1);
    assert!(
        drawing.contains(" ②                  ACK received  ◀────────────────── not observed ──\n"),
        "{drawing}"
    );
    assert!(
        drawing.contains(" ③  +unknown        FIN received  ◀────────────────────── seq=5000 ──\n"),
        "{drawing}"
    );
}

#[test]
fn a_close_that_was_none_draws_itself_as_what_it_was() {
    let reset = [
        (Established, CloseWait, None, Some(4995), Some(1001)),
        (CloseWait, Close, Some(3_000_000), Some(4995), Some(1001)),
    ];
    for (outcome, line) in [
        (Outcome::ResetReceived, " ✕  +3.000s         RST received  ◀──────────────────────────────────\n"),
        (Outcome::ResetSent, " ✕  +3.000s         RST sent      ──────────────────────────────────▶\n"),
        (
            Outcome::Aborted,
            " ✕  +3.000s         aborted by the program (linger 0, unread data, disconnect)\n",
        ),
        (Outcome::Timeout, " ✕  +3.000s         timed out: no answer from the peer\n"),
        (Outcome::Destroyed, " ✕  +3.000s         destroyed from outside (SOCK_DESTROY)\n"),
        (Outcome::Unknown, " ✕  +3.000s         ended; cause not observed\n"),
    ] {
        let drawing = drawn(Role::Passive, &reset, Some(outcome));
        assert!(drawing.contains(line) && drawing.ends_with("                    CLOSED\n"), "{drawing}");
        assert!(drawing.contains(" ②                  ACK sent      ── ack=1001"), "{drawing}");
    }
    let at_once = [(Established, Close, None, Some(1000), Some(5000))];
    assert_eq!(
        drawn(Role::None, &at_once, Some(Outcome::Aborted)),
        "                    this side, no closer                         peer
                    ESTABLISHED
 ✕                  aborted by the program (linger 0, unread data, disconnect)
                    CLOSED
"
    );
    let full = [
        (Established, FinWait1, None, Some(1000), Some(5000)),
        (FinWait1, FinWait2, Some(61), Some(1001), Some(5000)),
        (FinWait2, Close, Some(7), Some(1001), Some(5001)),
    ];
    let drawing = drawn(Role::Active, &full, Some(Outcome::Graceful));
    assert!(
        drawing.ends_with("CLOSED (TIME-WAIT skipped: tcp_max_tw_buckets or memory exhausted)\n"),
        "{drawing}"
    );
    assert!(drawing.contains(" ④                  ACK sent      ── ack=5001"), "{drawing}");
}

#[test]
fn sequence_numbers_wrap() {
    let steps = [
        (Established, CloseWait, None, Some(u32::MAX - 1), Some(0)),
        (CloseWait, LastAck, Some(1), Some(3), Some(0)),
        (LastAck, Close, Some(1), Some(4), Some(0)),
    ];
    let drawing = drawn(Role::Passive, &steps, Some(Outcome::Graceful));
    assert!(
        drawing.contains("seq=4294967295 ──") && drawing.contains("half-close: 5 bytes sent"),
        "{drawing}"
    );
}

#[test]
fn the_header_says_who_and_how_and_escapes_what_others_named() {
    let steps = [(Established, Close, None, None, None)];
    let mut connection = connection(Role::None, &steps, Some(Outcome::Aborted));
    let line = &mut connection.steps[0];
    line.netns = 7;
    line.owner = Some(CloserLine { pid: 42, comm: Some("a\x1b[2J".to_owned()) });
    line.more = Some(More { netns_name: Some("blue".to_owned()), ..More::default() });
    let text = draw(&connection, OWN);
    let header = text.lines().next().unwrap();
    assert!(header.ends_with(r"client  netns blue  closed by a\u{1b}[2J[42]  aborted"), "{header}");
    assert_eq!(connection.steps[0].spent(), Age { min_ns: 0, max_ns: None });
}
