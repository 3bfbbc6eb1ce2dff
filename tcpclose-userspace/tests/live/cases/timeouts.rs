//! Nobody answers, until the kernel gives up.

use std::time::Duration;

use super::active::closed;
use super::scene::{Scene, dwell};
use super::stay::*;
use super::wire::{ACK, FIN};

/// The kernel gives up within this.
const PATIENCE: Duration = Duration::from_secs(30);

/// tcp_orphan_retries is 3 here: it is over after some 3 s.
pub fn orphan_in_fin_wait_1(s: &mut Scene) {
    closed(s);
    s.ends_by_itself(PATIENCE);
}

pub fn orphan_in_closing(s: &mut Scene) {
    closed(s);
    s.enter(CLOSING, |s| s.peer.fin());
    s.ends_by_itself(PATIENCE);
}

pub fn orphan_in_last_ack(s: &mut Scene) {
    s.accepted();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    dwell();
    s.enter(LAST_ACK, |s| s.close());
    s.ends_by_itself(PATIENCE);
}

pub fn user_timeout(s: &mut Scene) {
    s.accepted();
    s.tcp_option(libc::TCP_USER_TIMEOUT, 300);
    s.write(b"anybody?");
    s.ends_by_itself(PATIENCE);
}

pub fn user_timeout_in_fin_wait_1(s: &mut Scene) {
    s.accepted();
    s.tcp_option(libc::TCP_USER_TIMEOUT, 300);
    s.enter(FIN_WAIT_1, |s| s.shutdown_write());
    s.ends_by_itself(PATIENCE);
}

/// The first probe after `idle` seconds, the only other one a second later.
fn keep_alive(s: &mut Scene, idle: i32) {
    s.option(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    s.tcp_option(libc::TCP_KEEPIDLE, idle);
    s.tcp_option(libc::TCP_KEEPINTVL, 1);
    s.tcp_option(libc::TCP_KEEPCNT, 1);
}

pub fn keepalive(s: &mut Scene) {
    s.accepted();
    keep_alive(s, 1);
    s.ends_by_itself(PATIENCE);
}

pub fn keepalive_in_close_wait(s: &mut Scene) {
    s.accepted();
    keep_alive(s, 1);
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    s.ends_by_itself(PATIENCE);
}

pub fn keepalive_in_fin_wait_2(s: &mut Scene) {
    s.accepted();
    keep_alive(s, 4);
    s.enter(FIN_WAIT_1, |s| s.shutdown_write());
    s.peer.expect(FIN | ACK);
    s.enter(FIN_WAIT_2_CUT, |s| s.peer.ack());
    s.ends_by_itself(PATIENCE);
}

/// The FIN never comes: tcp_fin_timeout is 5 s here.
pub fn fin_wait_2(s: &mut Scene) {
    closed(s);
    s.enter(ORPHAN_CUT, |s| s.peer.ack());
    s.ends_by_itself(PATIENCE);
}

pub fn fin_wait_2_by_linger2(s: &mut Scene) {
    s.accepted();
    s.tcp_option(libc::TCP_LINGER2, 4);
    s.enter(FIN_WAIT_1, |s| s.close());
    s.peer.expect(FIN | ACK);
    s.enter(ORPHAN_CUT, |s| s.peer.ack());
    s.ends_by_itself(PATIENCE);
}

/// Beyond 60 s the orphan stays a full socket for what exceeds them, and then a minisocket for as long once more
/// (net/ipv4/tcp_input.c, tcp_rcv_state_process; net/ipv4/tcp_timer.c, tcp_keepalive_timer).
pub fn fin_wait_2_in_two_halves(s: &mut Scene) {
    s.accepted();
    s.tcp_option(libc::TCP_LINGER2, 64);
    s.enter(FIN_WAIT_1, |s| s.close());
    s.peer.expect(FIN | ACK);
    s.enter(ORPHAN_CUT, |s| s.peer.ack());
    s.ends_by_itself(PATIENCE);
}
