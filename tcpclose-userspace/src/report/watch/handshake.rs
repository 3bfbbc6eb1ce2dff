//! Collects the transitions of each connection until it is over.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use tcpclose_common::state::TcpState;

use crate::names::Outcome;
use crate::report::watch::line::Line;

/// The most connections that are held; beyond that the oldest is dropped, so that a flood does not fill the memory.
const MOST: usize = 16_384;

/// The transitions, in order, of a connection that is over or waits for its timer only.
#[derive(Clone, Debug, PartialEq)]
pub struct ClosedConnection {
    /// Never empty.
    pub steps: Vec<Line>,
}

impl ClosedConnection {
    /// Its outcome. A connection in TIME-WAIT has exchanged both FINs; of one that was closed in repair mode
    /// nothing is known.
    pub fn outcome(&self) -> Outcome {
        let is_closed = self.steps.iter().any(|step| step.to == TcpState::Close);
        let otherwise = if is_closed { Outcome::Unknown } else { Outcome::Graceful };
        self.steps.iter().rev().find_map(|step| step.outcome).unwrap_or(otherwise)
    }

    /// Whether its transitions show that it has been in `state`.
    pub fn has_been_in(&self, state: TcpState) -> bool {
        self.steps.iter().any(|step| step.from == state || step.to == state)
    }
}

/// One socket, by its network namespace and both ends.
type EndKey = (u32, SocketAddr, SocketAddr);

/// Connections in their close phase.
#[derive(Default)]
pub struct Handshakes {
    open: HashMap<EndKey, (u64, Vec<Line>)>,
    /// By the number of their first transition, the oldest first.
    by_age: BTreeMap<u64, EndKey>,
    begun: u64,
    forgotten: u64,
}

impl Handshakes {
    /// Adds a transition. Returns the connection that it ends.
    pub fn take(&mut self, line: Line) -> Option<ClosedConnection> {
        let key = (line.netns, line.local, line.peer);
        let (from, to) = (line.from, line.to);
        // The close was over when TIME-WAIT began.
        if from == TcpState::TimeWait {
            return None;
        }
        let first = matches!(from, TcpState::Established | TcpState::SynRecv);
        let mut steps = match self.remove(&key) {
            // The end of an earlier connection was not reported.
            Some(_) if first => Vec::new(),
            Some(steps) => steps,
            None => Vec::new(),
        };
        steps.push(line);
        if matches!(to, TcpState::TimeWait | TcpState::Close) {
            return Some(ClosedConnection { steps });
        }
        self.insert(key, steps);
        None
    }

    fn remove(&mut self, key: &EndKey) -> Option<Vec<Line>> {
        let (number, steps) = self.open.remove(key)?;
        self.by_age.remove(&number);
        Some(steps)
    }

    fn insert(&mut self, key: EndKey, steps: Vec<Line>) {
        if self.open.len() >= MOST
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.open.remove(&oldest);
            self.forgotten += 1;
        }
        self.begun += 1;
        self.by_age.insert(self.begun, key);
        self.open.insert(key, (self.begun, steps));
    }

    /// How many connections were dropped since the last call.
    pub fn forgotten(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::watch::line::tests::sample;
    use TcpState::{Close, CloseWait, Established, FinWait1, FinWait2, LastAck, TimeWait};

    fn line(from: TcpState, to: TcpState) -> Line {
        Line { from, to, ..sample() }
    }

    #[test]
    fn the_steps_of_one_socket_make_one_connection() {
        let mut handshakes = Handshakes::default();
        let peer = |from, to| {
            let Line { local, peer, .. } = sample();
            Line { local: peer, peer: local, ..line(from, to) }
        };
        assert_eq!(handshakes.take(line(Established, FinWait1)), None);
        assert_eq!(handshakes.take(peer(Established, CloseWait)), None);
        assert_eq!(handshakes.take(line(FinWait1, FinWait2)), None);
        assert_eq!(handshakes.take(peer(CloseWait, LastAck)), None);
        let active = handshakes.take(line(FinWait2, TimeWait)).unwrap();
        assert_eq!((active.steps.len(), active.outcome()), (3, Outcome::Graceful));
        assert!(active.has_been_in(FinWait1) && !active.has_been_in(CloseWait));
        let outcome = Some(Outcome::ResetReceived);
        let passive = handshakes.take(Line { outcome, ..peer(LastAck, Close) }).unwrap();
        assert_eq!((passive.steps.len(), passive.outcome()), (3, Outcome::ResetReceived));
        assert_eq!(handshakes.take(line(TimeWait, Close)), None);
        assert!(handshakes.open.is_empty() && handshakes.by_age.is_empty());
    }

    #[test]
    fn a_new_connection_does_not_inherit_an_old_ones_steps() {
        let mut handshakes = Handshakes::default();
        handshakes.take(line(Established, CloseWait));
        handshakes.take(line(Established, FinWait1));
        let steps = handshakes.take(line(FinWait1, Close)).unwrap().steps;
        assert_eq!(steps.iter().map(|step| step.from).collect::<Vec<_>>(), [Established, FinWait1]);
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let mut handshakes = Handshakes::default();
        for netns in 0..MOST as u32 + 3 {
            handshakes.take(Line { netns, ..line(Established, FinWait1) });
        }
        assert_eq!((handshakes.open.len(), handshakes.by_age.len()), (MOST, MOST));
        assert_eq!((handshakes.forgotten(), handshakes.forgotten()), (3, 0));
        let late = handshakes.take(Line { netns: 1, ..line(FinWait1, Close) }).unwrap();
        assert_eq!(late.steps.len(), 1, "its first step was forgotten");
    }
}
