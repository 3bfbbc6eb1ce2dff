//! Why a socket that has sent its FIN still exists.

use tcpclose_common::state::TcpState;

use crate::linux::sock_diag::Socket;
use crate::names::Cause;

/// Timeouts in a row from which on the peer is gone: the third is some 1.4 s after the first at the least (RTO 200 ms, doubled
/// each time).
const GONE: u8 = 3;

/// Why `socket` is still in its state; `None` in CLOSE-WAIT and TIME-WAIT, and where nothing is wrong. `peer`: its other end, where that
/// is in the same network namespace.
pub fn cause(socket: &Socket, peer: Option<&Socket>) -> Option<Cause> {
    match socket.state {
        TcpState::FinWait2 if peer.is_some_and(|peer| peer.state == TcpState::CloseWait) => {
            Some(Cause::PeerNotClosing)
        }
        TcpState::FinWait2 if socket.inode == 0 => Some(Cause::Orphaned),
        TcpState::FinWait2 => Some(Cause::HeldOpen),
        TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck => unacknowledged(socket),
        _ => None,
    }
}

/// Whether the peer of `socket` has not acknowledged what was sent again, three times or more.
pub fn is_peer_gone(socket: &Socket) -> bool {
    unacknowledged(socket) == Some(Cause::PeerGone)
}

fn unacknowledged(socket: &Socket) -> Option<Cause> {
    let retries = socket.retries?;
    let has_unsent = socket.unsent > 0;
    match retries.timeouts {
        // The window probes are acknowledged: the peer is there (net/ipv4/tcp_timer.c, tcp_probe_timer(), 5.8 to 6.18).
        _ if has_unsent && retries.window == Some(0) => Some(Cause::PeerNotReading),
        GONE.. => Some(Cause::PeerGone),
        1.. => Some(Cause::SentAgain),
        0 => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::sock_diag::Retries;
    use crate::report::fixtures::dumped_socket;

    #[test]
    fn each_cause_follows_from_what_the_kernel_shows() {
        let socket = |state, inode| dumped_socket(state, "10.0.0.5:1", "10.0.0.9:2", inode);
        let peer = socket(TcpState::CloseWait, 9);
        let held = socket(TcpState::FinWait2, 7);
        assert_eq!(cause(&held, Some(&peer)), Some(Cause::PeerNotClosing));
        assert_eq!(cause(&held, Some(&socket(TcpState::Established, 9))), Some(Cause::HeldOpen));
        assert_eq!(cause(&held, None), Some(Cause::HeldOpen));
        assert_eq!(cause(&socket(TcpState::FinWait2, 0), None), Some(Cause::Orphaned));
        for state in [TcpState::FinWait1, TcpState::Closing, TcpState::LastAck] {
            let why = |timeouts, window, unsent| {
                let retries = Some(Retries { timeouts, again: 0, window });
                cause(&Socket { retries, unsent, ..socket(state, 0) }, None)
            };
            assert_eq!(why(0, Some(64), 1), None);
            assert_eq!(why(2, Some(64), 1), Some(Cause::SentAgain));
            assert_eq!(why(5, None, 1), Some(Cause::PeerGone));
            assert_eq!(why(5, Some(0), 9), Some(Cause::PeerNotReading));
            assert_eq!(cause(&socket(state, 0), None), None);
        }
        assert_eq!(cause(&socket(TcpState::CloseWait, 7), None), None);
        assert_eq!(cause(&socket(TcpState::TimeWait, 0), None), None);
    }
}
