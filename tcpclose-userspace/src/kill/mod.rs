//! Destroys stuck sockets, one at a time.
//!
//! * [`crate::report::kill::plan`]: which of the sockets that a query found are to go, and why the others are left alone; pure.
//! * [`crate::report::kill::pace`]: when the next one may go; pure.
//! * [`crate::report::kill::summary`]: what became of each, as `--json` prints it and people read it.
//! * [`places`]: where the network namespaces are that orders lead to.
//! * [`execute`]: one order, carried out by the command line or by the agent.

pub mod places;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::kill::places::Places;
use crate::linux::sock_diag;
use crate::linux::sock_diag::Socket;
use crate::names::words::{named, named_list};
use crate::names::{Age, Diagnosis, Flow, Phase};
use crate::report::diagnosis::diagnose;
pub use crate::report::kill::outcome::{KillOutcome, SCHEMA};
use crate::report::sockets::{Cookie, StuckSocket};

/// One socket that is to be destroyed, and what must still be true of it. The body of `POST /v1/kill`.
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
    /// What tells that from a later one with its inode; 0 where it is unknown.
    #[serde(default)]
    pub netns_id: u32,
    /// The state that it must still be in.
    #[serde(with = "named")]
    pub state: Phase,
    /// In CLOSE-WAIT, the diagnoses that it may still have.
    #[serde(with = "named_list")]
    pub diagnoses: Vec<Diagnosis>,
    /// The age from which it was called stuck, which the diagnosis takes.
    pub stuck_after_seconds: f64,
    /// The upper bound of its age when this order is given.
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

    /// Why the socket, as it is `now`, is no longer what was meant; `None` when it is.
    fn changed(&self, now: &Socket) -> Option<String> {
        if now.state != self.state.state() {
            return Some(format!("it is in {} now", now.state.name()));
        }
        let nanoseconds = |seconds: f64| (seconds * 1e9) as u64;
        let age = Age { min_ns: 0, max_ns: self.max_age_seconds.map(nanoseconds) };
        let diagnosis = diagnose(now, age, nanoseconds(self.stuck_after_seconds))?;
        (!self.diagnoses.contains(&diagnosis)).then(|| format!("it is {} now", diagnosis.name()))
    }
}

const GONE: &str = "it has gone";

/// Carries `order` out in the socket's network namespace, which `places` finds.
pub fn execute(order: &KillOrder, places: &mut Places) -> KillOutcome {
    places.inside(order.netns, order.netns_id, || carry_out(order)).unwrap_or_else(|outcome| outcome)
}

/// Carries `order` out in the network namespace of the calling thread.
///
/// The state and the diagnosis are read immediately before. What is left is a race of microseconds: a socket whose program
/// closes it between that look and the kernel's own, which compares the cookie and no state, is destroyed in LAST-ACK.
fn carry_out(order: &KillOrder) -> KillOutcome {
    let flow = Flow::new(order.local, order.peer);
    let look = || sock_diag::lookup(&flow, order.interface, Some(order.cookie.0));
    match look() {
        Ok(Some(now)) => {
            if let Some(why) = order.changed(&now) {
                return KillOutcome::Spared { why };
            }
        }
        Ok(None) => return KillOutcome::Spared { why: GONE.to_owned() },
        Err(error) => return refused(&error),
    }
    match sock_diag::destroy(&flow, order.interface, order.cookie.0) {
        Ok(()) => {}
        Err(error) if sock_diag::is_gone(&error) => return KillOutcome::Spared { why: GONE.to_owned() },
        Err(error) => return refused(&error),
    }
    // Below 6.11 the kernel says done and leaves a socket that no program holds as it is (tcp_abort()).
    match look() {
        Ok(Some(still)) if still.state == order.state.state() => KillOutcome::Refused {
            errno: None,
            why: "the kernel said done and left it (before 6.11 it spares what no program holds)".to_owned(),
        },
        _ => KillOutcome::Destroyed,
    }
}

fn refused(error: &std::io::Error) -> KillOutcome {
    KillOutcome::Refused { errno: error.raw_os_error(), why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::netns;
    use crate::linux::sock_diag::Times;
    use crate::report::fixtures::socket;
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
    fn what_has_changed_since_it_was_listed_is_spared() {
        let order = order(&[Diagnosis::NotClosed, Diagnosis::NotRead]);
        let why = |socket: &Socket| order.changed(socket);
        assert_eq!(why(&now(TcpState::CloseWait, 0, 600 * SECOND)), None);
        assert_eq!(why(&now(TcpState::CloseWait, 1, 600 * SECOND)), None);
        assert_eq!(why(&now(TcpState::LastAck, 0, 600 * SECOND)).unwrap(), "it is in last_ack now");
        assert_eq!(why(&now(TcpState::CloseWait, 0, SECOND)).unwrap(), "it is still_sending now");
        let queued = Socket { inode: 0, ..now(TcpState::CloseWait, 1, 600 * SECOND) };
        assert_eq!(why(&queued).unwrap(), "it is not_accepted now");
        // It was old when it was listed, and has aged since: what was sent 604 s ago was sent after the FIN.
        let bound = KillOrder { stuck_after_seconds: 1000.0, ..order.clone() };
        assert!(bound.changed(&now(TcpState::CloseWait, 0, 604 * SECOND)).is_some());
        assert!(bound.changed(&now(TcpState::CloseWait, 0, 606 * SECOND)).is_none());
    }

    #[test]
    fn an_order_travels_whole() {
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

    #[test]
    fn nothing_is_touched_where_nothing_is() {
        let own = netns::own().unwrap();
        let here = KillOrder { netns: own.inum, netns_id: own.id, ..order(&[Diagnosis::NotClosed]) };
        let mut places = Places::default();
        assert_eq!(execute(&here, &mut places), KillOutcome::Spared { why: GONE.to_owned() });
        // Another namespace has the inode by now: everything that was in the one that is meant has gone with it.
        let later = KillOrder { netns_id: own.id.wrapping_add(1), ..here.clone() };
        let KillOutcome::Spared { why } = execute(&later, &mut places) else { panic!() };
        assert!(why.contains("network namespace has gone"), "{why}");
        // Inodes of namespaces begin at 0xf0000000 (fs/proc/generic.c, PROC_DYNAMIC_FIRST), the first ones' just below.
        let nowhere = KillOrder { netns: 1, ..here };
        let KillOutcome::Refused { errno: None, why } = execute(&nowhere, &mut places) else { panic!() };
        assert!(why.starts_with("nothing leads into its network namespace net:[1]"), "{why}");
    }
}
