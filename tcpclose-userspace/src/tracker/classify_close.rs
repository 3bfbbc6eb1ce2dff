//! The meaning of a →CLOSE of the tracepoint: most of what tells closes apart is here.

use tcpclose_common::event::{RecordHeader, flags};
use tcpclose_common::state::TcpState;

use crate::names::Outcome;

/// What a →CLOSE leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseKind {
    /// Nothing: the connection is over.
    Over(Outcome),
    /// A minisocket in TIME-WAIT (or none, when the kernel's table is full).
    TimeWait,
    /// A minisocket in FIN-WAIT-2, which goes on waiting for the peer's FIN.
    FinWait2,
    /// Nothing, and a record that follows, if any, shows whether a RST came or went out.
    Reset,
    /// Nothing here, and no end of the connection: nothing was sent, and it goes on where it is restored.
    Repair,
    /// One of these; without BTF only a dump can tell.
    Unclear,
}

const EPIPE: u16 = 32;
const ECONNABORTED: u16 = 103;
const ECONNRESET: u16 = 104;
const ETIMEDOUT: u16 = 110;

/// Reads the record of a step `old` → CLOSE. `knows_resets`: [`flags::RESET`] tells whether it was a reset.
/// Function names are those of net/ipv4 in Linux 5.8 to 6.18.
pub fn read(old: TcpState, head: &RecordHeader, knows_resets: bool) -> CloseKind {
    let is = |flag: u16| head.flags & flag != 0;
    if !is(flags::FACTS) {
        return match old {
            TcpState::FinWait2 | TcpState::Closing => CloseKind::Unclear,
            _ => CloseKind::Over(Outcome::Unknown),
        };
    }
    // The peer's FIN or ACK made the step, which no socket waits for that has it (tcp_fin,
    // tcp_rcv_state_process): an error in sk_err is older.
    let is_over = match old {
        TcpState::FinWait2 => is(flags::DONE),
        TcpState::Closing | TcpState::LastAck => is(flags::FIN_ACKED),
        _ => false,
    };
    let is_reset = |err| match knows_resets {
        true => is(flags::RESET),
        false => (err == EPIPE) == (old == TcpState::CloseWait),
    };
    match head.detail.err() {
        0 => without_error(old, is),
        _ if is_over => without_error(old, is),
        // tcp_abort sets it before tcp_done.
        ECONNABORTED => CloseKind::Over(Outcome::Destroyed),
        // An orphan in FIN-WAIT-2 has nothing to send again, and its timer leaves no error (tcp_keepalive_timer).
        ETIMEDOUT if old == TcpState::FinWait2 && is(flags::DEAD) => without_error(old, is),
        // tcp_write_err: sk_err_soft where there is one, else ETIMEDOUT.
        ETIMEDOUT => CloseKind::Over(Outcome::Timeout),
        // tcp_reset: EPIPE in CLOSE-WAIT, ECONNRESET elsewhere. The same function runs for data that arrives after
        // close (tcp_rcv_state_process, TCPABORTONDATA), where no RST came.
        err @ (ECONNRESET | EPIPE) if is_reset(err) => match old {
            TcpState::FinWait1 | TcpState::FinWait2 if is(flags::RCV_SHUTDOWN) => CloseKind::Reset,
            _ => CloseKind::Over(Outcome::ResetReceived),
        },
        err if err == head.detail.err_soft() && !is(flags::OWNED) && !is(flags::FIN_ACKED) => {
            CloseKind::Over(Outcome::Timeout)
        }
        // What an ICMP error (IP_RECVERR), a sockmap or kTLS left in sk_err says nothing about the end.
        _ => without_error(old, is),
    }
}

/// `sk_err` says nothing: the socket's flags decide.
fn without_error(old: TcpState, is: impl Fn(u16) -> bool) -> CloseKind {
    match old {
        // __tcp_close disconnects a socket in repair mode, whatever it has unread.
        _ if is(flags::REPAIR) && is(flags::OWNED) && !is(flags::DEAD) => CloseKind::Repair,
        // tcp_fin sets SOCK_DONE, then tcp_time_wait(TIME_WAIT).
        TcpState::FinWait2 if is(flags::DONE) => CloseKind::TimeWait,
        // tcp_close and tcp_rcv_state_process hand an orphan to a minisocket, or with TCP_LINGER2 < 0 reset it. With
        // the fd still open only tcp_disconnect (linger 0, connect(AF_UNSPEC)) comes here.
        TcpState::FinWait2 if is(flags::DEAD) && !is(flags::LINGER2_NEGATIVE) => CloseKind::FinWait2,
        TcpState::FinWait2 => CloseKind::Over(Outcome::Aborted),
        // The ACK of our FIN ends both; without it, it was tcp_disconnect or the kernel gave up on an orphan.
        TcpState::Closing if is(flags::FIN_ACKED) => CloseKind::TimeWait,
        TcpState::LastAck if is(flags::FIN_ACKED) => CloseKind::Over(Outcome::Graceful),
        // tcp_check_oom, tcp_out_of_resources: the kernel resets an orphan and leaves no error.
        _ if is(flags::DEAD) => CloseKind::Over(Outcome::Unknown),
        // __tcp_close with unread data or linger 0, tcp_disconnect, inet_csk_listen_stop: before sock_orphan.
        _ => CloseKind::Over(Outcome::Aborted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcpclose_common::event::HeaderDetail;
    use tcpclose_common::event::flags::*;

    fn head(flags: u16, err: u16) -> RecordHeader {
        let detail = HeaderDetail::of_errors(err, 0);
        RecordHeader { flags: flags | FACTS, detail, ..RecordHeader::default() }
    }

    fn close_of(old: TcpState, flags: u16, err: u16) -> CloseKind {
        read(old, &head(flags, err), false)
    }

    #[test]
    fn the_kernels_table_of_closes() {
        use Outcome::*;
        use TcpState::*;
        for (old, flags, err, want) in [
            (FinWait2, DONE | DEAD, 0, CloseKind::TimeWait),
            (FinWait2, DONE, 0, CloseKind::TimeWait),
            (FinWait2, DEAD, 0, CloseKind::FinWait2),
            (FinWait2, DEAD | LINGER2_NEGATIVE, 0, CloseKind::Over(Aborted)),
            (FinWait2, OWNED, 0, CloseKind::Over(Aborted)),
            (Closing, DONE | DEAD | FIN_ACKED, 0, CloseKind::TimeWait),
            (Closing, DONE | OWNED, 0, CloseKind::Over(Aborted)),
            (LastAck, DONE | DEAD | FIN_ACKED, 0, CloseKind::Over(Graceful)),
            (LastAck, DONE | DEAD | OWNED | FIN_ACKED, 0, CloseKind::Over(Graceful)),
            (LastAck, DONE | OWNED, 0, CloseKind::Over(Aborted)),
            (LastAck, DONE | DEAD, ETIMEDOUT, CloseKind::Over(Timeout)),
            (LastAck, DONE | DEAD, ECONNRESET, CloseKind::Over(ResetReceived)),
            (CloseWait, DONE, EPIPE, CloseKind::Over(ResetReceived)),
            (CloseWait, DONE | OWNED, 0, CloseKind::Over(Aborted)),
            (Established, OWNED, 0, CloseKind::Over(Aborted)),
            (Established, 0, 0, CloseKind::Over(Aborted)),
            (Established, 0, ECONNRESET, CloseKind::Over(ResetReceived)),
            (Established, 0, ETIMEDOUT, CloseKind::Over(Timeout)),
            (Established, 0, ECONNABORTED, CloseKind::Over(Destroyed)),
            (FinWait1, DEAD | RCV_SHUTDOWN, ECONNRESET, CloseKind::Reset),
            (FinWait2, 0, ECONNRESET, CloseKind::Over(ResetReceived)),
            (FinWait1, DEAD, 0, CloseKind::Over(Unknown)),
        ] {
            assert_eq!(close_of(old, flags, err), want, "{old:?} flags {flags:#x} err {err}");
            // The same where the reset itself is seen.
            let is_reset = matches!(err, ECONNRESET | EPIPE);
            let seen = head(flags | if is_reset { RESET } else { 0 }, err);
            assert_eq!(read(old, &seen, true), want, "{old:?} flags {flags:#x} err {err}, resets seen");
        }
    }

    #[test]
    fn an_error_that_was_there_before_ends_nothing() {
        use Outcome::*;
        use TcpState::*;
        for err in [EPIPE, ECONNRESET, ETIMEDOUT, ECONNABORTED, 71] {
            for (old, flags) in
                [(FinWait2, DONE), (FinWait2, DONE | DEAD | RCV_SHUTDOWN), (Closing, FIN_ACKED | DEAD)]
            {
                assert_eq!(close_of(old, flags, err), CloseKind::TimeWait, "{old:?} {flags:#x} {err}");
            }
            let graceful = close_of(LastAck, DONE | DEAD | FIN_ACKED, err);
            assert_eq!(graceful, CloseKind::Over(Graceful), "{err}");
        }
        // tcp_reset has another error for these states.
        assert_eq!(close_of(FinWait2, DEAD | RCV_SHUTDOWN, EPIPE), CloseKind::FinWait2);
        assert_eq!(close_of(Established, OWNED, EPIPE), CloseKind::Over(Aborted));
        assert_eq!(close_of(CloseWait, OWNED, ECONNRESET), CloseKind::Over(Aborted));
        assert_eq!(close_of(FinWait2, DEAD, ETIMEDOUT), CloseKind::FinWait2);
        // Where resets are seen, this was none.
        for err in [EPIPE, ECONNRESET] {
            let close = |old, flags| read(old, &head(flags, err), true);
            assert_eq!(close(FinWait2, DEAD | RCV_SHUTDOWN), CloseKind::FinWait2);
            assert_eq!(close(Established, OWNED), CloseKind::Over(Aborted));
            assert_eq!(close(CloseWait, OWNED), CloseKind::Over(Aborted));
        }
    }

    #[test]
    fn a_close_in_repair_mode_is_no_end() {
        use TcpState::*;
        for old in [Established, CloseWait, FinWait1, FinWait2, LastAck, Closing] {
            assert_eq!(close_of(old, REPAIR | OWNED, 0), CloseKind::Repair, "{old:?}");
            // An error that was left in it changes nothing.
            assert_eq!(close_of(old, REPAIR | OWNED, 71), CloseKind::Repair, "{old:?}");
        }
        assert_eq!(close_of(Established, REPAIR, ECONNRESET), CloseKind::Over(Outcome::ResetReceived));
        assert_eq!(close_of(Established, REPAIR | OWNED, ECONNABORTED), CloseKind::Over(Outcome::Destroyed));
    }

    #[test]
    fn a_soft_error_ends_by_timeout_and_a_stale_one_does_not() {
        const EHOSTUNREACH: u16 = 113;
        let head = RecordHeader {
            flags: FACTS | DEAD,
            detail: HeaderDetail::of_errors(EHOSTUNREACH, EHOSTUNREACH),
            ..RecordHeader::default()
        };
        assert_eq!(read(TcpState::LastAck, &head, false), CloseKind::Over(Outcome::Timeout));
        let acked = RecordHeader { flags: head.flags | FIN_ACKED, ..head };
        assert_eq!(read(TcpState::LastAck, &acked, false), CloseKind::Over(Outcome::Graceful));
    }

    #[test]
    fn without_btf_nothing_is_made_up() {
        let head = RecordHeader { detail: HeaderDetail::of_errors(ECONNRESET, 0), ..RecordHeader::default() };
        assert_eq!(read(TcpState::LastAck, &head, false), CloseKind::Over(Outcome::Unknown));
        assert_eq!(read(TcpState::FinWait2, &head, false), CloseKind::Unclear);
    }
}
