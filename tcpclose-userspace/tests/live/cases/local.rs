//! The local program, or the host's operator, ends the connection without a FIN.

use super::active::half_closed;
use super::scene::{Scene, dwell, long};
use super::stay::*;
use super::wire::{ACK, FIN, RST};

fn in_close_wait(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    dwell();
}

pub fn linger_zero(s: &mut Scene) {
    s.accepted();
    s.end(|s| s.close_linger_zero());
    s.peer.expect(RST);
}

pub fn linger_zero_in_close_wait(s: &mut Scene) {
    in_close_wait(s);
    s.end(|s| s.close_linger_zero());
    s.peer.expect(RST);
}

pub fn unread(s: &mut Scene) {
    s.accepted();
    s.peer.data(b"nobody reads this");
    s.end(|s| s.close());
    s.peer.expect(RST);
}

pub fn unread_in_close_wait(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin_with(b"nobody reads this"));
    dwell();
    s.end(|s| s.close());
    s.peer.expect(RST);
}

pub fn disconnect(s: &mut Scene) {
    s.accepted();
    s.end(|s| s.disconnect());
    s.peer.expect(RST);
}

pub fn disconnect_in_close_wait(s: &mut Scene) {
    in_close_wait(s);
    s.end(|s| s.disconnect());
    s.peer.expect(RST);
}

pub fn disconnect_in_fin_wait_2(s: &mut Scene) {
    half_closed(s);
    s.enter(FIN_WAIT_2_CUT, |s| s.peer.ack());
    long();
    s.end(|s| s.disconnect());
    s.peer.expect(RST);
}

/// One socket, two connections, one cookie.
pub fn disconnect_and_again(s: &mut Scene) {
    s.connected();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    dwell();
    s.end(|s| s.disconnect());
    s.peer.expect(RST);
    s.next_life();
    s.connect_again();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    dwell();
    s.enter(LAST_ACK, |s| s.close());
    s.peer.expect(FIN | ACK);
    dwell();
    s.end(|s| s.peer.ack());
}

/// The listener goes with a connection in its queue that nobody accepted.
pub fn listener_closed(s: &mut Scene) {
    s.peer.connect();
    dwell();
    s.end(|s| drop(s.listener.take()));
    s.peer.expect(RST);
}

pub fn listener_closed_in_close_wait(s: &mut Scene) {
    s.peer.connect();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    dwell();
    s.end(|s| drop(s.listener.take()));
    s.peer.expect(RST);
}

/// TCP_LINGER2 below 0 asks for no FIN-WAIT-2 at all.
pub fn linger2_negative(s: &mut Scene) {
    s.accepted();
    s.tcp_option(libc::TCP_LINGER2, -1);
    s.enter(FIN_WAIT_1, |s| s.close());
    s.peer.expect(FIN | ACK);
    dwell();
    s.pass(&[FIN_WAIT_2_BRIEF], |s| s.peer.ack());
}

pub fn linger2_negative_in_fin_wait_2(s: &mut Scene) {
    half_closed(s);
    s.tcp_option(libc::TCP_LINGER2, -1);
    s.enter(FIN_WAIT_2_CUT, |s| s.peer.ack());
    long();
    s.end(|s| s.close());
    s.peer.expect(RST);
}

pub fn destroy(s: &mut Scene) {
    s.accepted();
    s.end(|s| s.destroy());
}

pub fn destroy_in_fin_wait_1(s: &mut Scene) {
    half_closed(s);
    s.end(|s| s.destroy());
}

pub fn destroy_in_fin_wait_2(s: &mut Scene) {
    half_closed(s);
    s.enter(FIN_WAIT_2_CUT, |s| s.peer.ack());
    long();
    s.end(|s| s.destroy());
}

pub fn destroy_in_closing(s: &mut Scene) {
    half_closed(s);
    s.enter(CLOSING, |s| s.peer.fin());
    dwell();
    s.end(|s| s.destroy());
}

pub fn destroy_in_close_wait(s: &mut Scene) {
    in_close_wait(s);
    s.end(|s| s.destroy());
}

pub fn destroy_in_last_ack(s: &mut Scene) {
    in_close_wait(s);
    s.enter(LAST_ACK, |s| s.shutdown_write());
    s.peer.expect(FIN | ACK);
    dwell();
    s.end(|s| s.destroy());
}
