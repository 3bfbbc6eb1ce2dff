//! The open connections, the oldest first, and the limit on their number. A new connection is always
//! accepted, and another one closed for it: if new ones waited, clients that send nothing or stop reading
//! would keep Prometheus out until their time is up.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::task::JoinHandle;

use crate::agent::server::timeouts::ConnectionTimeouts;
use crate::agent::server::web::source::ClientNetwork;

pub struct Connection {
    pub task: JoinHandle<()>,
    pub timeouts: Rc<ConnectionTimeouts>,
    pub source: ClientNetwork,
}

pub struct Connections {
    /// The limit.
    most: usize,
    open: VecDeque<Connection>,
}

impl Connections {
    pub const fn new(most: usize) -> Self {
        Self { most, open: VecDeque::new() }
    }

    /// The connection to close before another one is accepted: the oldest idle one of the source that has
    /// most; else the oldest idle one; else the oldest. So a flood from one address closes its own
    /// connections, and a client that waits for an answer gets it.
    fn evict(&mut self) -> Option<Connection> {
        if self.open.len() >= self.most {
            self.open.retain(|connection| !connection.task.is_finished());
        }
        if self.open.len() < self.most {
            return None;
        }
        log::info!("connection limit ({}) reached: closing the oldest idle connection", self.most);
        let candidates: Vec<(ClientNetwork, bool, bool)> = self
            .open
            .iter()
            .map(|open| (open.source, open.timeouts.is_idle(), open.timeouts.is_watching()))
            .collect();
        self.open.remove(victim(&candidates))
    }
}

/// The index of the connection to close, of (source, idle, watching), the oldest first.
fn victim(candidates: &[(ClientNetwork, bool, bool)]) -> usize {
    let count = |source: ClientNetwork| candidates.iter().filter(|(from, ..)| *from == source).count();
    // max_by_key() takes the last of equals, so in reverse the oldest.
    let crowd = candidates.iter().rev().map(|(source, ..)| *source).max_by_key(|source| count(*source));
    let first = |is: &dyn Fn(&(ClientNetwork, bool, bool)) -> bool| candidates.iter().position(is);
    first(&|(source, idle, watching)| Some(*source) == crowd && *idle && !watching)
        .or_else(|| first(&|(_, idle, watching)| *idle && !watching))
        .or_else(|| first(&|(source, _, watching)| Some(*source) == crowd && !watching))
        .or_else(|| first(&|(_, _, watching)| !watching))
        .unwrap_or(0)
}

/// Adds the connection that `begin` starts to serve. At the limit another one is closed first, with its
/// descriptor, of which there may be none to spare.
pub async fn admit(connections: &RefCell<Connections>, begin: impl FnOnce() -> Connection) {
    let victim = connections.borrow_mut().evict();
    if let Some(victim) = victim {
        victim.task.abort();
        // It was aborted, which is no failure.
        let _ = victim.task.await;
    }
    connections.borrow_mut().open.push_back(begin());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn source(text: &str) -> ClientNetwork {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_crowd_closes_its_own_connections_and_pending_answers_are_kept() {
        let (a, b) = (source("10.0.0.1"), source("10.0.0.2"));
        let (idle, busy) = ((true, false), (false, false));
        let victim = |candidates: &[(ClientNetwork, (bool, bool))]| {
            let candidates: Vec<_> =
                candidates.iter().map(|(source, (idle, watching))| (*source, *idle, *watching)).collect();
            super::victim(&candidates)
        };
        assert_eq!(victim(&[(a, idle), (b, idle), (b, idle)]), 1);
        assert_eq!(victim(&[(a, idle), (b, busy), (b, idle)]), 2);
        assert_eq!(victim(&[(a, idle), (b, busy), (b, busy)]), 0);
        assert_eq!(victim(&[(a, busy), (b, busy), (b, busy)]), 1);
        assert_eq!(victim(&[(a, busy), (b, busy)]), 0);
        assert_eq!(victim(&[(a, (false, true)), (a, busy)]), 1);
        assert_eq!(victim(&[(a, (false, true))]), 0);
    }
}
