//! An order to destroy a socket, and its result.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::linux::sock_diag::Socket;
use crate::names::words::{named, named_list};
use crate::names::{Age, Diagnosis, Phase};
use crate::report::assemble::written_bytes;
use crate::report::diagnosis::{diagnose, last_write};
use crate::report::kill::outcome::SCHEMA;
use crate::report::sockets::{Cookie, StuckSocket};

/// A socket to destroy, and what must still be true of it. The body of `POST /v1/kill`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KillOrder {
    /// [`SCHEMA`].
    pub schema: u32,
    pub cookie: Cookie,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    #[serde(default)]
    pub interface: u32,
    /// The inode of the socket's network namespace.
    pub netns: u32,
    /// Distinguishes it from a later namespace with the same inode; 0 if unknown.
    #[serde(default)]
    pub netns_id: u32,
    /// The socket must still be in this state.
    #[serde(with = "named")]
    pub state: Phase,
    /// In CLOSE-WAIT, the diagnoses that it may have.
    #[serde(with = "named_list")]
    pub diagnoses: Vec<Diagnosis>,
    /// The age from which it was called stuck, for the diagnosis.
    pub stuck_after_seconds: f64,
    /// Upper bound of its age when this order is given.
    pub max_age_seconds: Option<f64>,
    /// Bytes that its program had written when it was listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_bytes: Option<u64>,
}

impl KillOrder {
    /// `elapsed`: seconds since `socket` was listed.
    pub fn new(socket: &StuckSocket, diagnoses: &[Diagnosis], stuck_after: f64, elapsed: f64) -> Self {
        Self {
            schema: SCHEMA,
            cookie: socket.cookie,
            local: socket.local,
            peer: socket.peer,
            interface: socket.interface,
            netns: socket.netns,
            netns_id: socket.netns_id,
            state: socket.state,
            diagnoses: diagnoses.to_vec(),
            stuck_after_seconds: stuck_after,
            max_age_seconds: socket.age.max_seconds.map(|max| max + elapsed),
            written_bytes: socket.written_bytes,
        }
    }

    /// Why the socket, as it is `now` on a host that has been up for `uptime_ns`, must be spared; `None` if it is still what was
    /// listed.
    pub fn changed(&self, now: &Socket, uptime_ns: u64) -> Option<String> {
        if now.state != self.state.state() {
            return Some(format!("it is in {} now", now.state.name()));
        }
        let nanoseconds = |seconds: f64| (seconds * 1e9) as u64;
        let age = Age { min_ns: 0, max_ns: self.max_age_seconds.map(nanoseconds) };
        let bound_ns = nanoseconds(self.stuck_after_seconds);
        let last_write = last_write(now, None, uptime_ns, now.seen_ns);
        let wrote = match (self.written_bytes, written_bytes(now)) {
            (Some(before), Some(now)) => before != now,
            // Listed by an older version.
            _ => last_write.is_some_and(|write| !write.is_past(bound_ns)),
        };
        let diagnosis = match diagnose(now, age, last_write, bound_ns)? {
            Diagnosis::NotRead | Diagnosis::NotClosed if wrote => Diagnosis::StillSending,
            diagnosis => diagnosis,
        };
        (!self.diagnoses.contains(&diagnosis)).then(|| format!("it is {} now", diagnosis.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::sock_diag::{Sending, Times};
    use crate::names::Flow;
    use crate::report::fixtures::socket;
    use crate::report::kill::outcome::KillOutcome;
    use tcpclose_common::state::TcpState;

    const SECOND: u64 = 1_000_000_000;

    fn order(diagnoses: &[Diagnosis]) -> KillOrder {
        KillOrder::new(&socket(600, &[]), diagnoses, 60.0, 5.0)
    }

    const UPTIME: u64 = 10_000 * SECOND;

    /// One whose program last wrote `ago`, and has written `written` bytes.
    fn now(state: TcpState, unread: u32, ago: u64, written: u64) -> Socket {
        let flow = Flow::new("10.0.0.5:8080".parse().unwrap(), "10.0.0.9:41234".parse().unwrap());
        let sending = Some(Sending { written, all_sent: true, ..Sending::default() });
        let times =
            Some(Times { last_sent_ns: ago, last_data_received_ns: 0, last_ack_received_ns: 0, sending });
        Socket { cookie: 1, inode: 7, unread, times, seen_ns: UPTIME, ..Socket::made_up(state, flow) }
    }

    #[test]
    fn a_socket_that_has_changed_since_it_was_listed_is_spared() {
        let order = order(&[Diagnosis::NotClosed, Diagnosis::NotRead]);
        let why = |socket: &Socket| order.changed(socket, UPTIME);
        assert_eq!(why(&now(TcpState::CloseWait, 0, 600 * SECOND, 9)), None);
        assert_eq!(why(&now(TcpState::CloseWait, 1, 600 * SECOND, 9)), None);
        assert_eq!(why(&now(TcpState::LastAck, 0, 600 * SECOND, 9)).unwrap(), "it is in last_ack now");
        assert_eq!(why(&now(TcpState::CloseWait, 0, SECOND, 9)).unwrap(), "it is still_sending now");
        let queued = Socket { inode: 0, ..now(TcpState::CloseWait, 1, 600 * SECOND, 9) };
        assert_eq!(why(&queued).unwrap(), "it is not_accepted now");
        // It was 600 s old when it was listed, 5 s ago: what was written 604 s ago was written after the FIN.
        let bound = KillOrder { stuck_after_seconds: 1000.0, written_bytes: Some(9), ..order.clone() };
        assert!(bound.changed(&now(TcpState::CloseWait, 0, 604 * SECOND, 9), UPTIME).is_some());
        assert!(bound.changed(&now(TcpState::CloseWait, 0, 606 * SECOND, 9), UPTIME).is_none());
    }

    #[test]
    fn a_write_since_it_was_listed_spares_it_and_what_is_sent_again_does_not() {
        let order = KillOrder { written_bytes: Some(9), ..order(&[Diagnosis::NotClosed]) };
        let sent_again = |written| {
            let mut socket = now(TcpState::CloseWait, 0, SECOND, written);
            // It has waited for an acknowledgment for an hour.
            socket.times.as_mut().unwrap().sending.as_mut().unwrap().busy_ms = 3_600_000;
            socket
        };
        assert_eq!(order.changed(&sent_again(9), UPTIME), None);
        assert_eq!(order.changed(&sent_again(10), UPTIME).unwrap(), "it is still_sending now");
        let older = KillOrder { written_bytes: None, ..order };
        assert_eq!(older.changed(&sent_again(9), UPTIME).unwrap(), "it is still_sending now");
    }

    #[test]
    fn an_order_and_its_result_are_read_as_written() {
        let order = order(&[Diagnosis::NotClosed, Diagnosis::StillSending]);
        let text = serde_json::to_string(&order).unwrap();
        assert!(
            text.contains(r#""state":"close_wait","diagnoses":["not_closed","still_sending"]"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<KillOrder>(&text).unwrap(), order);
        let refused = KillOutcome::Refused { errno: Some(1), why: "no".into() };
        let text = serde_json::to_string(&refused).unwrap();
        assert_eq!(text, r#"{"outcome":"refused","errno":1,"why":"no"}"#);
        assert_eq!(serde_json::from_str::<KillOutcome>(&text).unwrap(), refused);
    }
}
