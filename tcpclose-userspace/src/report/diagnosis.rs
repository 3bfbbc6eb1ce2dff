//! Why a socket in CLOSE-WAIT still exists.

use tcpclose_common::state::TcpState;

use crate::linux::age::write_look;
use crate::linux::sock_diag::Socket;
use crate::names::{Age, Diagnosis, LastWrite};

/// How much too young a write may appear on a busy machine: its age counts in ticks, and those of a virtual machine were seen
/// 71 ms late (6.18). A connection whose FIN came at once was written to, by its handshake, just before.
const LATE_TICKS_NS: u64 = 200_000_000;

/// Why `socket`, in CLOSE-WAIT for `age`, still exists; `None` in other states. A program that is proven to have written within
/// `bound_ns` (`last_write`: how long ago it did last) is at work, unless that was before the FIN came.
pub fn diagnose(socket: &Socket, age: Age, last_write: Option<Age>, bound_ns: u64) -> Option<Diagnosis> {
    if socket.state != TcpState::CloseWait {
        return None;
    }
    if not_accepted(socket) {
        return Some(Diagnosis::NotAccepted);
    }
    let since_the_fin = |ns: u64| age.max_ns.is_none_or(|age| ns.saturating_add(LATE_TICKS_NS) <= age);
    let is_at_work =
        |write: Age| write.max_ns.is_some_and(|max| max < bound_ns) && since_the_fin(write.min_ns);
    if last_write.is_some_and(is_at_work) {
        return Some(Diagnosis::StillSending);
    }
    Some(match (socket.unread, socket.mptcp) {
        (0, None) => Diagnosis::NotClosed,
        // An MPTCP socket does not count the end of the stream among what waits.
        (0, Some(_)) => Diagnosis::Unknown,
        _ => Diagnosis::NotRead,
    })
}

/// For how long a socket that is in its state for `age` has been neglected: not since its program last wrote to it. One that is
/// still sending is counted by its age alone.
pub fn neglected(age: Age, last_write: Option<Age>, diagnosis: Option<Diagnosis>) -> Age {
    match (last_write, diagnosis) {
        (None, _) | (_, Some(Diagnosis::StillSending)) => age,
        (Some(write), _) => age.shorter(write),
    }
}

/// How long ago the program of `socket` last wrote to it, at `now_ns`, by all looks at it: `known` has those before this one.
/// `None` where it is not known, and if it never did.
pub fn last_write(socket: &Socket, known: Option<&LastWrite>, uptime_ns: u64, now_ns: u64) -> Option<Age> {
    let look = write_look(socket, uptime_ns).filter(|_| socket.state == TcpState::CloseWait)?;
    (look.written != 0 || socket.mptcp.is_some()).then(|| LastWrite::seen(known.copied(), look).age(now_ns))
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
        let why = |socket: &Socket, wrote| diagnose(socket, age, Some(Age::exact(wrote)), MINUTE);
        assert_eq!(why(&Socket { inode: 0, ..close_wait(6) }, 0), Some(Diagnosis::NotAccepted));
        assert_eq!(why(&close_wait(6), SECOND), Some(Diagnosis::StillSending));
        assert_eq!(why(&close_wait(6), MINUTE), Some(Diagnosis::NotRead));
        assert_eq!(why(&close_wait(1), MINUTE), Some(Diagnosis::NotRead));
        assert_eq!(why(&close_wait(0), MINUTE), Some(Diagnosis::NotClosed));
        assert_eq!(why(&Socket { state: TcpState::LastAck, ..close_wait(0) }, 0), None);
        // What was written before the FIN came is no sign of a half-close at work.
        for age in [2 * SECOND, 3 * SECOND + SECOND / 10] {
            let wrote = Some(Age::exact(3 * SECOND));
            assert_eq!(diagnose(&close_wait(0), Age::exact(age), wrote, MINUTE), Some(Diagnosis::NotClosed));
        }
    }

    #[test]
    fn a_write_that_is_not_proven_is_no_work_and_makes_the_neglect_unproven() {
        let (age, bound) = (Age::exact(10 * MINUTE), MINUTE);
        for write in [Age { min_ns: SECOND, max_ns: Some(2 * MINUTE) }, Age { min_ns: SECOND, max_ns: None }]
        {
            let why = diagnose(&close_wait(0), age, Some(write), bound);
            assert_eq!(why, Some(Diagnosis::NotClosed));
            let neglected = neglected(age, Some(write), why);
            assert!(!neglected.is_past(bound) && neglected.may_be_past(bound), "{neglected:?}");
        }
        let write = Some(Age { min_ns: MINUTE, max_ns: None });
        assert!(neglected(age, write, diagnose(&close_wait(0), age, write, bound)).is_past(bound));
        assert_eq!(neglected(age, Some(Age::exact(1)), Some(Diagnosis::StillSending)), age);
    }
}
