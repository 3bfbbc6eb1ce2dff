//! The kernel's end closes first, or both at once: FIN-WAIT-1, FIN-WAIT-2, CLOSING, TIME-WAIT.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::Socket;

use super::common::fence;
use super::diag;
use super::scene::{Moment, Scene, dwell, long, now_ns};
use super::stay::*;
use super::wire::{ACK, FIN};

const FIN_WAIT_2_STATE: u8 = 5;
const TIME_WAIT_STATE: u8 = 6;
const PATIENCE: Duration = Duration::from_secs(10);

/// An accepted connection that the program has closed; the peer has the FIN and says nothing.
pub fn closed(s: &mut Scene) {
    s.accepted();
    s.enter(FIN_WAIT_1, |s| s.close());
    s.peer.expect(FIN | ACK);
    dwell();
}

/// As [`closed`], with the descriptor kept: the program has only ended its half.
pub fn half_closed(s: &mut Scene) {
    s.accepted();
    s.enter(FIN_WAIT_1, |s| s.shutdown_write());
    s.peer.expect(FIN | ACK);
    dwell();
}

/// In TIME-WAIT, by one segment that is the FIN and acknowledges ours.
pub fn waiting(s: &mut Scene) {
    closed(s);
    s.enter_all(&[FIN_WAIT_2, TIME_WAIT], |s| s.peer.fin_and_ack());
}

/// The common close: the peer takes its time.
pub fn fin_comes_later(s: &mut Scene) {
    closed(s);
    s.enter(ORPHAN, |s| s.peer.ack());
    long();
    s.enter(TIME_WAIT, |s| s.peer.fin());
    s.will_expire();
}

pub fn fin_comes_later_to_a_client(s: &mut Scene) {
    s.connected();
    s.enter(FIN_WAIT_1, |s| s.close());
    s.peer.expect(FIN | ACK);
    dwell();
    s.enter(ORPHAN, |s| s.peer.ack());
    long();
    s.enter(TIME_WAIT, |s| s.peer.fin());
    s.will_expire();
}

pub fn fin_and_ack_in_one(s: &mut Scene) {
    waiting(s);
    s.will_expire();
}

pub fn half_close(s: &mut Scene) {
    half_closed(s);
    s.enter(FIN_WAIT_2, |s| s.peer.ack());
    dwell();
    s.peer.data(b"still talking");
    s.read();
    dwell();
    s.enter(TIME_WAIT, |s| s.peer.fin());
    s.will_expire();
    dwell();
    s.close();
}

/// FIN-WAIT-2 begins as a full socket's and ends as a minisocket's.
pub fn half_close_then_close(s: &mut Scene) {
    half_closed(s);
    s.enter(ORPHAN, |s| s.peer.ack());
    dwell();
    s.close();
    long();
    s.enter(TIME_WAIT, |s| s.peer.fin());
    s.will_expire();
}

/// FIN-WAIT-1 begins with close(), not when the FIN can leave.
pub fn window_shut(s: &mut Scene) {
    s.peer.window = 10;
    s.accepted();
    s.write(&[7; 100]);
    s.enter(FIN_WAIT_1, |s| s.close());
    dwell();
    s.peer.take_all();
    s.peer.window = 60_000;
    s.peer.ack();
    s.peer.expect_fin_after_data();
    s.enter_all(&[FIN_WAIT_2, TIME_WAIT], |s| s.peer.fin_and_ack());
    s.will_expire();
}

/// The FIN comes again, since our ACK was lost: TIME-WAIT starts over.
pub fn fin_retransmitted(s: &mut Scene) {
    waiting(s);
    std::thread::sleep(Duration::from_secs(2));
    s.rearm(|s| s.peer.again());
}

/// Both FINs are under way at once.
pub fn crossing(s: &mut Scene) {
    closed(s);
    s.enter(CLOSING, |s| s.peer.fin());
    dwell();
    s.enter(TIME_WAIT, |s| s.peer.ack());
    s.will_expire();
}

pub fn crossing_half_closed(s: &mut Scene) {
    half_closed(s);
    s.enter(CLOSING, |s| s.peer.fin());
    dwell();
    s.enter(TIME_WAIT, |s| s.peer.ack());
    s.will_expire();
    dwell();
    s.close();
}

/// A socket connected to itself meets its own FIN.
pub fn self_connect(s: &mut Scene) {
    let here = SocketAddr::new(s.peer.kernel.ip(), s.port);
    let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&here.into()).unwrap();
    socket.connect(&here.into()).unwrap();
    (s.peer.kernel, s.peer.here) = (here, here);
    dwell();
    s.enter_all(&[FIN_WAIT_1, CLOSING, TIME_WAIT], |s| {
        drop(socket);
        s.when(PATIENCE, |state| state == Some(TIME_WAIT_STATE));
    });
    s.will_expire();
}

/// Both ends are the kernel's: two lives. The accepted end closes first.
pub fn two_ended(s: &mut Scene) {
    let to = SocketAddr::new(s.peer.kernel.ip(), s.port);
    let client = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    client.connect(&to.into()).unwrap();
    let from = client.local_addr().unwrap().as_socket().unwrap();
    s.accept();
    s.peer.here = from;
    dwell();
    let server_is = |state| {
        while diag::state(to, from) != Some(state) {
            std::thread::yield_now();
        }
        fence();
    };
    let before_ns = now_ns();
    s.enter_all(&[FIN_WAIT_1, ORPHAN], |s| {
        s.close();
        assert_eq!((&client).read(&mut [0]).unwrap(), 0);
        server_is(FIN_WAIT_2_STATE);
    });
    s.next_life();
    s.entered(CLOSE_WAIT, Moment { before_ns, after_ns: now_ns() });
    long();
    s.pass(&[LAST_ACK], |s| {
        s.life(0);
        s.enter(TIME_WAIT, |_| {
            drop(client);
            server_is(TIME_WAIT_STATE);
        });
        s.will_expire();
        s.life(1);
        while diag::state(from, to).is_some() {
            std::thread::yield_now();
        }
    });
}

/// The same socket connects again while the TIME-WAIT of its first connection is there, under the same cookie
/// (net/ipv4/tcp.c, tcp_disconnect leaves sk_cookie alone).
pub fn same_socket_again(s: &mut Scene) {
    s.connected();
    s.enter(FIN_WAIT_1, |s| s.shutdown_write());
    s.peer.expect(FIN | ACK);
    dwell();
    s.enter(FIN_WAIT_2, |s| s.peer.ack());
    dwell();
    s.enter(TIME_WAIT, |s| s.peer.fin());
    s.will_expire();
    long();
    s.disconnect();
    s.next_life();
    s.connect_again();
    s.enter(CLOSE_WAIT, |s| s.peer.fin());
    long();
    s.enter(LAST_ACK, |s| s.close());
    s.peer.expect(FIN | ACK);
    dwell();
    s.end(|s| s.peer.ack());
}
