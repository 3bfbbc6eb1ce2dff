//! Datagrams of a dump of sock_diag, one behind the other; the first four bytes are how long the host has been up, seconds.

use std::ops::ControlFlow;

use tcpclose::linux::age::proven_age;
use tcpclose::linux::sock_diag;
use tcpclose::linux::sock_diag::Socket;
use tcpclose_common::state::TcpState;

use super::Bytes;

/// Reads one, and what it proves.
pub fn read(bytes: &[u8]) {
    let mut rest = Bytes(bytes);
    let uptime = rest.take(4).iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    let mut sockets = Vec::new();
    let over = sock_diag::messages(rest.0, |_, payload| {
        sockets.extend(sock_diag::decode(payload));
        ControlFlow::Continue(())
    });
    drop(over);
    assert!(sockets.len() * (16 + 72) <= rest.0.len(), "more sockets than bytes for them");
    for socket in sockets {
        let age = proven_age(&Socket { seen_ns: 1 << 40, ..socket }, uptime * 1_000_000_000);
        assert!(socket.expires_ns.is_none_or(|ns| ns <= u64::from(u32::MAX) * 1_000_000));
        assert!(!socket.minisocket || socket.expires_ns.is_some(), "{socket:?}");
        assert!(TcpState::from_raw(socket.state.raw()) == Some(socket.state));
        // An upper bound is below the lower one where the kernel contradicts itself: a peer's doing, see close_wait_age.
        let _ = age.later(1 << 40);
    }
}
