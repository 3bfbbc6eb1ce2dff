//! An order to destroy a socket, and its result.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::linux::sock_diag::Socket;
use crate::names::words::{named, named_list};
use crate::names::{Age, Diagnosis, Phase};
use crate::report::diagnosis::diagnose;
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
        }
    }

    /// Why the socket, as it is `now`, must be spared; `None` if it is still what was listed.
    pub fn changed(&self, now: &Socket) -> Option<String> {
        if now.state != self.state.state() {
            return Some(format!("it is in {} now", now.state.name()));
        }
        let nanoseconds = |seconds: f64| (seconds * 1e9) as u64;
        let age = Age { min_ns: 0, max_ns: self.max_age_seconds.map(nanoseconds) };
        let diagnosis = diagnose(now, age, nanoseconds(self.stuck_after_seconds))?;
        (!self.diagnoses.contains(&diagnosis)).then(|| format!("it is {} now", diagnosis.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::sock_diag::Times;
    use crate::names::Flow;
    use crate::report::fixtures::socket;
    use crate::report::kill::outcome::KillOutcome;
    use tcpclose_common::state::TcpState;

    const SECOND: u64 = 1_000_000_000;

    fn order(diagnoses: &[Diagnosis]) -> KillOrder {
        KillOrder::new(&socket(600, &[]), diagnoses, 60.0, 5.0)
    }

    fn now(state: TcpState, unread: u32, last_sent_ns: u64) -> Socket {
        let flow = Flow::new("10.0.0.5:8080".parse().unwrap(), "10.0.0.9:41234".parse().unwrap());
        let times = Some(Times { last_sent_ns, last_data_received_ns: 0, last_ack_received_ns: 0 });
        Socket { cookie: 1, inode: 7, unread, times, ..Socket::made_up(state, flow) }
    }

    #[test]
    fn a_socket_that_has_changed_since_it_was_listed_is_spared() {
        let order = order(&[Diagnosis::NotClosed, Diagnosis::NotRead]);
        let why = |socket: &Socket| order.changed(socket);
        assert_eq!(why(&now(TcpState::CloseWait, 0, 600 * SECOND)), None);
        assert_eq!(why(&now(TcpState::CloseWait, 1, 600 * SECOND)), None);
        assert_eq!(why(&now(TcpState::LastAck, 0, 600 * SECOND)).unwrap(), "it is in last_ack now");
        assert_eq!(why(&now(TcpState::CloseWait, 0, SECOND)).unwrap(), "it is still_sending now");
        let queued = Socket { inode: 0, ..now(TcpState::CloseWait, 1, 600 * SECOND) };
        assert_eq!(why(&queued).unwrap(), "it is not_accepted now");
        // It was 600 s old when it was listed, 5 s ago: data sent 604 s ago was sent after the FIN.
        let bound = KillOrder { stuck_after_seconds: 1000.0, ..order.clone() };
        assert!(bound.changed(&now(TcpState::CloseWait, 0, 604 * SECOND)).is_some());
        assert!(bound.changed(&now(TcpState::CloseWait, 0, 606 * SECOND)).is_none());
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
