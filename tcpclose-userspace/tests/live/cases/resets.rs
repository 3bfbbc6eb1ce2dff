//! A RST ends the connection: the peer's, in each state, or the kernel's own, for data that nobody will read.

use std::io::ErrorKind;
use std::net::Shutdown;

use super::active::{closed, half_closed};
use super::scene::{Scene, dwell, long};
use super::stay::*;
use super::wire::{ACK, FIN, RST};

pub fn established(s: &mut Scene) {
    s.accepted();
    s.end(|s| s.peer.rst());
    s.read_fails(ErrorKind::ConnectionReset);
}

pub fn fin_wait_1(s: &mut Scene) {
    half_closed(s);
    s.end(|s| s.peer.rst());
    s.close();
}

pub fn fin_wait_1_closed(s: &mut Scene) {
    closed(s);
    s.end(|s| s.peer.rst());
}

pub fn fin_wait_2(s: &mut Scene) {
    half_closed(s);
    s.enter(FIN_WAIT_2_CUT, |s| s.peer.ack());
    long();
    s.end(|s| s.peer.rst());
    s.close();
}

pub fn fin_wait_2_minisocket(s: &mut Scene) {
    closed(s);
    s.enter(ORPHAN_CUT, |s| s.peer.ack());
    long();
    s.end(|s| s.peer.rst());
}

pub fn closing(s: &mut Scene) {
    closed(s);
    s.enter(CLOSING, |s| s.peer.fin());
    dwell();
    s.end(|s| s.peer.rst());
}

pub fn close_wait(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    dwell();
    s.end(|s| s.peer.rst());
    s.close();
}

pub fn last_ack(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    dwell();
    s.enter(LAST_ACK, |s| s.close());
    s.peer.expect(FIN | ACK);
    dwell();
    s.end(|s| s.peer.rst());
}

/// Data that nobody will read any more is answered with a RST.
pub fn data_in_fin_wait_1(s: &mut Scene) {
    closed(s);
    s.end(|s| s.peer.data(b"late"));
    s.peer.expect(RST);
}

/// The descriptor is open, but reading was ended too.
pub fn data_in_fin_wait_2(s: &mut Scene) {
    s.accepted();
    s.enter(FIN_WAIT_1, |s| s.app().shutdown(Shutdown::Both).unwrap());
    s.peer.expect(FIN | ACK);
    dwell();
    s.enter(FIN_WAIT_2_CUT, |s| s.peer.ack());
    long();
    s.end(|s| s.peer.data(b"late"));
    s.peer.expect(RST);
    s.close();
}

pub fn data_on_minisocket(s: &mut Scene) {
    closed(s);
    s.enter(ORPHAN_CUT, |s| s.peer.ack());
    long();
    s.end(|s| s.peer.data(b"late"));
    s.peer.expect(RST);
}

/// In FIN-WAIT-2 a minisocket takes a bare FIN only.
pub fn fin_with_data_on_minisocket(s: &mut Scene) {
    closed(s);
    s.enter(ORPHAN_CUT, |s| s.peer.ack());
    long();
    s.end(|s| s.peer.fin_with(b"late"));
    s.peer.expect(RST);
}

pub fn syn_on_minisocket(s: &mut Scene) {
    closed(s);
    s.enter(ORPHAN_CUT, |s| s.peer.ack());
    long();
    s.peer.take_all();
    s.end(|s| s.peer.syn());
    s.peer.expect(RST);
}
