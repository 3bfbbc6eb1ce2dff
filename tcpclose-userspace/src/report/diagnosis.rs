//! Why a socket in CLOSE-WAIT still exists.

use tcpclose_common::state::TcpState;

use crate::linux::sock_diag::Socket;
use crate::names::{Age, Diagnosis};

/// How much too young a write may appear on a busy machine: its age counts in ticks, and those of a virtual machine were seen
/// 71 ms late (6.18). A connection whose FIN came at once was written to, by its handshake, just before.
const LATE_TICKS_NS: u64 = 200_000_000;

/// Why `socket`, in CLOSE-WAIT for `age`, still exists; `None` in other states. A program that sent within `bound_ns` is at
/// work, unless it sent before the FIN came.
pub fn diagnose(socket: &Socket, age: Age, bound_ns: u64) -> Option<Diagnosis> {
    if socket.state != TcpState::CloseWait {
        return None;
    }
    if not_accepted(socket) {
        return Some(Diagnosis::NotAccepted);
    }
    let sent_since_the_fin = |ns: u64| age.max_ns.is_none_or(|age| ns.saturating_add(LATE_TICKS_NS) <= age);
    if socket
        .times
        .is_some_and(|times| times.last_sent_ns < bound_ns && sent_since_the_fin(times.last_sent_ns))
    {
        return Some(Diagnosis::StillSending);
    }
    Some(if socket.unread > 0 { Diagnosis::NotRead } else { Diagnosis::NotClosed })
}

/// A child in the accept queue has no struct socket yet, and so no inode (net/core/sock.c, `sock_i_ino()`, 5.8 to 6.18);
/// an orphan cannot be in CLOSE-WAIT, for close() leads to LAST-ACK.
pub(super) fn not_accepted(socket: &Socket) -> bool {
    socket.state == TcpState::CloseWait && socket.inode == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixtures::{MINUTE, SECOND, close_wait};

    #[test]
    fn each_diagnosis_follows_from_what_the_kernel_shows() {
        let age = Age::exact(10 * MINUTE);
        let why = |socket: &Socket| diagnose(socket, age, MINUTE);
        assert_eq!(why(&Socket { inode: 0, ..close_wait(6, 0) }), Some(Diagnosis::NotAccepted));
        assert_eq!(why(&close_wait(6, SECOND)), Some(Diagnosis::StillSending));
        assert_eq!(why(&close_wait(6, MINUTE)), Some(Diagnosis::NotRead));
        assert_eq!(why(&close_wait(1, MINUTE)), Some(Diagnosis::NotRead));
        assert_eq!(why(&close_wait(0, MINUTE)), Some(Diagnosis::NotClosed));
        assert_eq!(why(&Socket { state: TcpState::LastAck, ..close_wait(0, 0) }), None);
        // What was sent before the FIN came is no sign of a half-close at work.
        for age in [2 * SECOND, 3 * SECOND + SECOND / 10] {
            assert_eq!(
                diagnose(&close_wait(0, 3 * SECOND), Age::exact(age), MINUTE),
                Some(Diagnosis::NotClosed)
            );
        }
    }
}
