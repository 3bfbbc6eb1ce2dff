//! Who is being served, the oldest first. Whoever comes is let in: if newcomers waited for a place, clients who ask
//! nothing or stop reading would keep Prometheus out until their time is up.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::task::JoinHandle;

use crate::agent::server::timeouts::ConnectionTimeouts;
use crate::agent::server::web::source::ClientNetwork;

/// A connection.
pub struct Connection {
    pub task: JoinHandle<()>,
    pub stage: Rc<ConnectionTimeouts>,
    pub source: ClientNetwork,
}

pub struct Connections {
    /// One more sends another away.
    most: usize,
    served: VecDeque<Connection>,
}

impl Connections {
    pub const fn new(most: usize) -> Self {
        Self { most, served: VecDeque::new() }
    }

    /// The connection that must go before another one is let in: of the source that has most of them, the oldest one that
    /// waits; else the oldest one that waits; else the oldest. So a flood from some addresses drives out itself, and who has
    /// asked gets an answer.
    fn too_many(&mut self) -> Option<Connection> {
        if self.served.len() >= self.most {
            self.served.retain(|connection| !connection.task.is_finished());
        }
        if self.served.len() < self.most {
            return None;
        }
        log::info!("{} connections: one is closed for a new one", self.most);
        let among: Vec<(ClientNetwork, bool, bool)> = self
            .served
            .iter()
            .map(|served| (served.source, served.stage.waits(), served.stage.watches()))
            .collect();
        self.served.remove(who_goes(&among))
    }
}

/// Of connections by age: where each is from, whether it waits, whether it watches.
fn who_goes(among: &[(ClientNetwork, bool, bool)]) -> usize {
    let has = |source: ClientNetwork| among.iter().filter(|(from, ..)| *from == source).count();
    // The last of equals is taken, so that in reverse the oldest is.
    let crowd = among.iter().rev().map(|(source, ..)| *source).max_by_key(|source| has(*source));
    let first = |is: &dyn Fn(&(ClientNetwork, bool, bool)) -> bool| among.iter().position(is);
    first(&|(source, waits, watches)| Some(*source) == crowd && *waits && !watches)
        .or_else(|| first(&|(_, waits, watches)| *waits && !watches))
        .or_else(|| first(&|(source, _, watches)| Some(*source) == crowd && !watches))
        .or_else(|| first(&|(_, _, watches)| !watches))
        .unwrap_or(0)
}

/// Lets a connection into `room`, whose service `begin` begins. When the room is full one is closed first, descriptor
/// and all: there may be none to spare.
pub async fn admit(room: &RefCell<Connections>, begin: impl FnOnce() -> Connection) {
    let goes = room.borrow_mut().too_many();
    if let Some(goes) = goes {
        goes.task.abort();
        // It ends as told, which is no news.
        let _ = goes.task.await;
    }
    room.borrow_mut().served.push_back(begin());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn source(text: &str) -> ClientNetwork {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_crowd_drives_out_itself_and_whoever_has_asked_stays() {
        let (a, b) = (source("10.0.0.1"), source("10.0.0.2"));
        let (waits, asked) = ((true, false), (false, false));
        let goes = |among: &[(ClientNetwork, (bool, bool))]| {
            let among: Vec<_> =
                among.iter().map(|(source, (waits, watches))| (*source, *waits, *watches)).collect();
            who_goes(&among)
        };
        assert_eq!(goes(&[(a, waits), (b, waits), (b, waits)]), 1);
        assert_eq!(goes(&[(a, waits), (b, asked), (b, waits)]), 2);
        assert_eq!(goes(&[(a, waits), (b, asked), (b, asked)]), 0);
        assert_eq!(goes(&[(a, asked), (b, asked), (b, asked)]), 1);
        assert_eq!(goes(&[(a, asked), (b, asked)]), 0);
        assert_eq!(goes(&[(a, (false, true)), (a, asked)]), 1);
        assert_eq!(goes(&[(a, (false, true))]), 0);
    }
}
