//! What one dump of a socket proves about the time it has spent in its state.
//!
//! The kernel does not record when a state was entered. It records when data and acknowledgments came and went, and those
//! moments lie before or after the entry.
//!
//! Each is a difference of two readings of the tick counter (net/ipv4/tcp.c, `tcp_get_info()`: `tcp_jiffies32` −
//! `lsndtime`, `lrcvtime`, `rcv_tstamp`). A reading is late by up to a tick, and by another one where the processor that
//! counts them is late itself, so a bound is proven only with [`TICKS_NS`] to spare. The difference comes in 32 bits of
//! milliseconds and of ticks: after [`WRAP_NS`] of uptime it is proven modulo that only, which still gives a lower bound but
//! no upper one.

use tcpclose_common::state::TcpState;

use crate::linux::host::TICKS_NS;
use crate::linux::sock_diag::{Socket, Times};
use crate::names::{Age, WriteLook};

/// 2³² ms, the uptime from which the kernel's millisecond ages can have wrapped: 49.7 days, nanoseconds.
pub const WRAP_NS: u64 = (1 << 32) * 1_000_000;

/// The longest that a segment can have been on its way (RFC 9293 §3.4.2: MSL, 2 minutes), nanoseconds.
const SEGMENT_LIFETIME_NS: u64 = 120 * 1_000_000_000;

/// The time in CLOSE-WAIT (and CLOSING) of a socket with these `times`, on a host that has been up for `uptime_ns`:
/// `last_ack_received` ≤ age ≤ `last_data_received`.
///
/// * The FIN acknowledged something: `tcp_ack()` stamps `rcv_tstamp` before `tcp_fin()` changes the state
///   (net/ipv4/tcp_input.c, `tcp_rcv_established()`, 5.8 to 6.18; header prediction never takes a FIN). Later
///   acknowledgments, keepalive answers among them, only weaken the bound.
/// * Data came before the FIN or with it: later data is refused or answered with a RST
///   (`tcp_rcv_state_process()`).
///
/// One thing breaks the lower bound: a FIN that was overtaken by a later acknowledgment, whose own one `tcp_ack()`
/// then finds old and does not stamp. It shows when that FIN carried data, as data younger than the last
/// acknowledgment; nothing is proven then but 0. Without data the bound is off by the time of the overtaking.
pub fn close_wait_age(times: Times, uptime_ns: u64) -> Age {
    let wraps = uptime_ns >= WRAP_NS;
    let (ack, data) = (times.last_ack_received_ns, times.last_data_received_ns);
    let overtaken = data < ack && (!wraps || ack - data <= SEGMENT_LIFETIME_NS);
    Age { min_ns: if overtaken { 0 } else { at_least(ack) }, max_ns: at_most(data, uptime_ns) }
}

/// The time in its state of a dumped `socket` at [`Socket::seen_ns`], as far as the dump alone proves it.
pub fn proven_age(socket: &Socket, uptime_ns: u64) -> Age {
    const UNKNOWN: Age = Age { min_ns: 0, max_ns: None };
    let age = match (socket.state, socket.times) {
        // The end came after the data. How long before the entry is not told: a worker or the program's next call makes it
        // (net/mptcp/protocol.c, `mptcp_check_data_fin()`).
        (TcpState::CloseWait, None) => Age {
            min_ns: 0,
            max_ns: socket
                .mptcp
                .and_then(|mptcp| mptcp.last_data_received_ms)
                .and_then(|ms| at_most(u64::from(ms) * 1_000_000, uptime_ns)),
        },
        (TcpState::CloseWait | TcpState::Closing, Some(times)) => close_wait_age(times, uptime_ns),
        // Entered by close(), after the FIN came and so after the data.
        (TcpState::LastAck, Some(times)) => {
            Age { min_ns: 0, max_ns: at_most(times.last_data_received_ns, uptime_ns) }
        }
        // Entered when everything sent was acknowledged: nothing was sent since, and what acknowledged it came then
        // or later.
        (TcpState::FinWait2, Some(times)) => Age {
            min_ns: at_least(times.last_ack_received_ns),
            max_ns: at_most(times.last_sent_ns, uptime_ns),
        },
        // FIN-WAIT-1 begins at close(), which leaves no trace. How long a minisocket's timer was set for is not in
        // the dump, and a late segment sets it again.
        _ => UNKNOWN,
    };
    // The kernel wrote the answer up to `window_ns` before the moment that the age is given for.
    Age { max_ns: age.max_ns.map(|max| max.saturating_add(socket.window_ns)), ..age }
}

/// The time in TIME-WAIT of a minisocket whose timer has `left_ns` of `length_ns` left: at least what has run. A retransmitted FIN
/// sets it again (net/ipv4/tcp_minisocks.c, `tcp_timewait_state_process()`, 5.8 to 6.18), so the age may be more.
pub const fn time_wait_age(length_ns: u64, left_ns: u64) -> Age {
    Age { min_ns: at_least(length_ns.saturating_sub(left_ns)), max_ns: None }
}

/// What `socket` proves of its program's last write, on a host that has been up for `uptime_ns`; `None` of what has no times.
pub fn write_look(socket: &Socket, uptime_ns: u64) -> Option<WriteLook> {
    let made_ns = socket.seen_ns.saturating_sub(socket.window_ns);
    if let Some(written) = socket.mptcp.and_then(|mptcp| mptcp.write_seq) {
        return Some(WriteLook { made_ns, written, busy_ms: 0, sent_ns: 0, latest_ns: socket.seen_ns });
    }
    let times = socket.times?;
    let sending = times.sending?;
    let sent_ns = at_most(times.last_sent_ns, uptime_ns).map_or(0, |ago| made_ns.saturating_sub(ago));
    let silent_ns = times.last_sent_ns.saturating_add(u64::from(sending.repeating_ms) * 1_000_000);
    let silent_ns = if sending.all_sent { at_least(silent_ns) } else { 0 };
    let latest_ns = socket.seen_ns.saturating_sub(silent_ns);
    Some(WriteLook { made_ns, written: sending.written, busy_ms: sending.busy_ms, sent_ns, latest_ns })
}

const fn at_least(ns: u64) -> u64 {
    ns.saturating_sub(TICKS_NS)
}

fn at_most(ns: u64, uptime_ns: u64) -> Option<u64> {
    (uptime_ns < WRAP_NS).then(|| ns.saturating_add(TICKS_NS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const HOUR: u64 = 3600 * SECOND;

    fn times(ack: u64, data: u64) -> Times {
        Times { last_sent_ns: 0, last_data_received_ns: data, last_ack_received_ns: ack, sending: None }
    }

    #[test]
    fn between_the_last_acknowledgment_and_the_last_data_with_two_ticks_given_away() {
        let age = close_wait_age(times(60 * SECOND, 90 * SECOND), HOUR);
        assert_eq!(age, Age { min_ns: 60 * SECOND - TICKS_NS, max_ns: Some(90 * SECOND + TICKS_NS) });
        // Data and FIN in one segment.
        let age = close_wait_age(times(SECOND, SECOND), HOUR);
        assert_eq!(age, Age { min_ns: SECOND - TICKS_NS, max_ns: Some(SECOND + TICKS_NS) });
        assert_eq!(close_wait_age(times(0, 0), HOUR), Age { min_ns: 0, max_ns: Some(TICKS_NS) });
    }

    #[test]
    fn an_overtaken_fin_proves_no_lower_bound() {
        let age = close_wait_age(times(5 * SECOND, 4 * SECOND), HOUR);
        assert_eq!(age, Age { min_ns: 0, max_ns: Some(4 * SECOND + TICKS_NS) });
    }

    #[test]
    fn fields_that_may_have_wrapped_prove_a_lower_bound_only() {
        let uptime = 60 * 24 * HOUR;
        let age = close_wait_age(times(60 * SECOND, 90 * SECOND), uptime);
        assert_eq!(age, Age { min_ns: 60 * SECOND - TICKS_NS, max_ns: None });
        // The last data is so old that its age has wrapped.
        let age = close_wait_age(times(HOUR, 10 * SECOND), uptime);
        assert_eq!(age, Age { min_ns: HOUR - TICKS_NS, max_ns: None });
        // This may as well be an overtaken FIN.
        let age = close_wait_age(times(20 * SECOND, 10 * SECOND), uptime);
        assert_eq!(age, Age { min_ns: 0, max_ns: None });
        assert_eq!(close_wait_age(times(0, 0), WRAP_NS - 1).max_ns, Some(TICKS_NS));
        assert_eq!(close_wait_age(times(0, 0), WRAP_NS).max_ns, None);
    }
}
