//! The peer closes first: CLOSE-WAIT, LAST-ACK.

use std::time::Duration;

use super::scene::{Scene, dwell};
use super::stay::*;
use super::wire::{ACK, FIN, RST, SYN};

/// From CLOSE-WAIT to the end, step by step.
fn finish(s: &mut Scene) {
    dwell();
    s.enter(LAST_ACK, |s| s.close());
    s.peer.expect(FIN | ACK);
    dwell();
    s.end(|s| s.peer.ack());
}

pub fn fin(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    finish(s);
}

pub fn fin_to_a_client(s: &mut Scene) {
    s.connected();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    finish(s);
}

pub fn fin_with_data(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin_with(b"last words"));
    assert_eq!(s.read_to_end(), b"last words");
    finish(s);
}

pub fn fin_out_of_order(s: &mut Scene) {
    s.accepted();
    // The FIN is here, but counts only when what comes before it is.
    s.peer.ahead(5, FIN | ACK, b"");
    dwell();
    s.enter(CLOSE_WAIT, |s| s.peer.data(b"hello"));
    s.peer.next = s.peer.next.wrapping_add(1);
    assert_eq!(s.read_to_end(), b"hello");
    finish(s);
}

/// A FIN that comes again finds the connection in CLOSE-WAIT, which goes on.
pub fn fin_retransmitted(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    for _ in 0..2 {
        dwell();
        s.peer.again();
    }
    finish(s);
}

pub fn keepalives_in_close_wait(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(100));
        s.peer.keepalive();
    }
    finish(s);
}

/// A RST that is not exactly where the next byte belongs is answered, not obeyed (RFC 5961).
pub fn rst_not_believed(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    dwell();
    s.peer.ahead(1000, RST | ACK, b"");
    finish(s);
}

/// The segment that completes the handshake is the FIN.
pub fn fin_ends_the_handshake(s: &mut Scene) {
    s.peer.syn();
    s.peer.expect(SYN | ACK);
    s.enter(CLOSE_WAIT, |s| s.peer.fin_and_ack());
    s.accept();
    finish(s);
}

pub fn fin_before_accept(s: &mut Scene) {
    s.peer.connect();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    dwell();
    s.accept();
    finish(s);
}

/// A half-close at work: the peer has sent all it has, and is still being answered.
pub fn goes_on_sending(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin_with(b"request"));
    s.read_to_end();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(60));
        s.write(b"answer");
        s.peer.take_all();
        s.peer.ack();
    }
    finish(s);
}

/// LAST-ACK lasts as long as it takes to get the FIN through.
pub fn fin_lost_in_last_ack(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    dwell();
    s.enter(LAST_ACK, |s| s.close());
    s.peer.expect(FIN | ACK);
    // Once more, by the retransmission timer.
    s.peer.expect(FIN | ACK);
    s.end(|s| s.peer.ack());
}

/// The program ends its half of the stream and keeps the descriptor.
pub fn shutdown_in_close_wait(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    dwell();
    s.enter(LAST_ACK, |s| s.shutdown_write());
    s.peer.expect(FIN | ACK);
    dwell();
    s.end(|s| s.peer.ack());
    s.close();
}
