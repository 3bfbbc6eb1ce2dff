//! How a TIME-WAIT ends before its time, or never comes to be.

use std::time::Duration;

use super::active::{closed, waiting};
use super::peer::Peer;
use super::scene::{Scene, dwell, long};
use super::stay::*;
use super::wire::{ACK, FIN};

pub fn reset(s: &mut Scene) {
    waiting(s);
    long();
    s.end(|s| s.peer.rst());
}

/// tcp_rfc1337 is 1 here: the RST neither ends it nor sets its timer anew (tcp_timewait_state_process).
pub fn reset_refused(s: &mut Scene) {
    waiting(s);
    s.will_expire();
    std::thread::sleep(Duration::from_secs(2));
    s.peer.rst();
}

pub fn destroyed(s: &mut Scene) {
    waiting(s);
    long();
    s.end(|s| s.destroy());
}

/// On a kernel whose tcp_abort() ends no minisocket.
pub fn destroy_refused(s: &mut Scene) {
    waiting(s);
    assert_eq!(s.try_destroy().unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
}

pub fn destroyed_in_fin_wait_2(s: &mut Scene) {
    closed(s);
    s.enter(ORPHAN_CUT, |s| s.peer.ack());
    long();
    s.end(|s| s.destroy());
}

/// A SYN beyond what the old connection used opens a new one at once.
fn syn_beyond(peer: &mut Peer) {
    peer.next = peer.next.wrapping_add(100_000);
    peer.syn();
}

pub fn recycled(s: &mut Scene) {
    waiting(s);
    long();
    s.reopened(syn_beyond);
    s.end(|s| s.peer.rst());
}

/// With timestamps a later one is enough: the sequence number may be an old one.
pub fn recycled_by_timestamp(s: &mut Scene) {
    s.peer.timestamps = true;
    waiting(s);
    long();
    s.reopened(|peer| {
        peer.next = peer.next.wrapping_sub(100_000);
        peer.syn();
    });
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    dwell();
    s.enter(LAST_ACK, |s| s.close());
    s.peer.expect(FIN | ACK);
    dwell();
    s.end(|s| s.peer.ack());
}

/// connect() takes the place of its own TIME-WAIT: tcp_tw_reuse is 1 here, and its second has passed.
pub fn reused(s: &mut Scene) {
    /// Inside the local port range, as a client's is.
    const PORT: u16 = 33_333;
    s.peer.timestamps = true;
    s.connected_from(PORT);
    s.enter(FIN_WAIT_1, |s| s.close());
    s.peer.expect(FIN | ACK);
    dwell();
    s.enter_all(&[FIN_WAIT_2, TIME_WAIT], |s| s.peer.fin_and_ack());
    long();
    s.peer.take_all();
    s.end(|s| s.connected_from(PORT));
    s.next_life();
    s.end(|s| s.peer.rst());
}

/// tcp_max_tw_buckets is 0 here.
pub fn no_room(s: &mut Scene) {
    closed(s);
    s.pass(&[FIN_WAIT_2_BRIEF], |s| s.peer.fin_and_ack());
}

pub fn no_room_for_fin_wait_2(s: &mut Scene) {
    closed(s);
    s.pass(&[ORPHAN_SKIPPED], |s| s.peer.ack());
}

/// Its network namespace is about to go.
pub fn purged(s: &mut Scene) {
    s.connected();
    s.enter(FIN_WAIT_1, |s| s.close());
    s.peer.expect(FIN | ACK);
    dwell();
    s.enter_all(&[FIN_WAIT_2_BRIEF, TIME_WAIT_ELSEWHERE], |s| s.peer.fin_and_ack());
    long();
}
