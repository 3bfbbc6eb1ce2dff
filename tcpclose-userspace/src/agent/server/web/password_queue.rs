//! The queue for password checks, of which one runs at a time: fair by address.
//!
//! The next check is for the address whose last check was longest ago, so a crowd from one address delays
//! another address by one check. Within an address the oldest of the [`NEWEST`] newest requests is next:
//! clients of new requests still wait for their answer. A guesser sends the next guess when the last was
//! refused, so it adds at most one request for each check, and a scrape from its address has its turn after a
//! few. Requests with the same name and password share one check.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::hmac::Tag;
use tokio::sync::oneshot;

use crate::agent::server::web::source::ClientNetwork;

/// Within an address, the oldest of so many newest requests is next. If it were the very newest, each guess
/// that comes before the end of a check would overtake a scrape.
const NEWEST: usize = 4;

/// Addresses whose last check is remembered.
const REMEMBERED: usize = 1024;

#[derive(Clone, Default)]
pub struct PasswordQueue(Arc<Mutex<QueueState>>);

#[derive(Default)]
struct QueueState {
    is_busy: bool,
    /// The oldest first; at most one for each connection.
    waiting: Vec<Waiting>,
    /// Addresses by their last check, the latest last.
    served: VecDeque<ClientNetwork>,
}

struct Waiting {
    source: ClientNetwork,
    /// Of the name and the password.
    tag: Tag,
    answer: oneshot::Sender<QueueOutcome>,
}

/// The result of waiting.
pub enum QueueOutcome {
    PasswordTurn(PasswordTurn),
    /// Another request with the same name and password was checked: whether they are right.
    Verdict(bool),
}

/// The right to make one check; the next turn begins when it is dropped.
pub struct PasswordTurn(PasswordQueue);

impl PasswordQueue {
    /// Waits for a turn; `None` when the agent ends.
    pub async fn turn(&self, source: ClientNetwork, tag: Tag) -> Option<QueueOutcome> {
        let answer = {
            let mut state = self.state();
            if !state.is_busy {
                state.begin(source);
                return Some(QueueOutcome::PasswordTurn(PasswordTurn(self.clone())));
            }
            let (sender, answer) = oneshot::channel();
            // Without clients that hung up.
            state.waiting.retain(|waiting| !waiting.answer.is_closed());
            state.waiting.push(Waiting { source, tag, answer: sender });
            answer
        };
        answer.await.ok()
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of waiting requests.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.state().waiting.len()
    }
}

impl QueueState {
    fn begin(&mut self, source: ClientNetwork) {
        self.is_busy = true;
        self.served.retain(|served| *served != source);
        self.served.push_back(source);
        if self.served.len() > REMEMBERED {
            self.served.pop_front();
        }
    }

    fn next(&mut self) -> Option<Waiting> {
        self.waiting.retain(|waiting| !waiting.answer.is_closed());
        let sources: Vec<ClientNetwork> = self.waiting.iter().map(|waiting| waiting.source).collect();
        let next = self.waiting.remove(next(&sources, &self.served)?);
        self.begin(next.source);
        Some(next)
    }
}

/// The index of the next request in `waiting`, the oldest first. `served`: the addresses of checks, the
/// latest last.
fn next(waiting: &[ClientNetwork], served: &VecDeque<ClientNetwork>) -> Option<usize> {
    let last_check = |source: &ClientNetwork| served.iter().position(|served| served == source);
    // Of addresses that never had a check, min_by_key() takes the one that waits longest.
    let source = waiting.iter().min_by_key(|source| last_check(source).map_or(0, |at| at + 1))?;
    let newest = (0..waiting.len()).rev().filter(|at| waiting.get(*at) == Some(source));
    newest.take(NEWEST).last()
}

impl PasswordTurn {
    /// Hands the result of the check of `tag` to all requests that wait for the same.
    pub fn found(&self, tag: &Tag, is_right: bool) {
        let mut same = Vec::new();
        let mut state = self.0.state();
        for waiting in std::mem::take(&mut state.waiting) {
            // Digests under a secret key: the duration of the comparison tells nothing.
            if waiting.tag.as_ref() == tag.as_ref() {
                same.push(waiting.answer);
            } else {
                state.waiting.push(waiting);
            }
        }
        drop(state);
        for answer in same {
            // The client may have hung up.
            let _ = answer.send(QueueOutcome::Verdict(is_right));
        }
    }
}

impl Drop for PasswordTurn {
    fn drop(&mut self) {
        let next = {
            let mut state = self.0.state();
            state.is_busy = false;
            state.next()
        };
        if let Some(next) = next {
            // If the client has just hung up, this drops the turn, and the next one begins.
            let _ = next.answer.send(QueueOutcome::PasswordTurn(Self(self.0.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::hmac::{HMAC_SHA256, Key, sign};

    const fn address(last: u8) -> ClientNetwork {
        ClientNetwork::V4(std::net::Ipv4Addr::new(10, 0, 0, last))
    }

    fn tag(text: &str) -> Tag {
        sign(&Key::new(HMAC_SHA256, b"key"), text.as_bytes())
    }

    #[test]
    fn the_address_whose_last_check_was_longest_ago_is_next_with_one_of_its_newest_requests() {
        let (a, b, c) = (address(1), address(2), address(3));
        let next = |waiting: &[ClientNetwork], served: &[ClientNetwork]| {
            super::next(waiting, &served.iter().copied().collect())
        };
        assert_eq!(next(&[], &[a]), None);
        assert_eq!(next(&[a, a, a], &[a]), Some(0));
        assert_eq!(next(&[a, a, a, a, a, a], &[a]), Some(2));
        assert_eq!(next(&[a, b, a, b, a], &[b, a]), Some(1));
        assert_eq!(next(&[a, b, c], &[b, a]), Some(2), "it never had a check");
        assert_eq!(next(&[b, a], &[]), Some(0));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_crowd_delays_another_address_by_one_check_and_itself_by_a_few() {
        let queue = PasswordQueue::default();
        let Some(QueueOutcome::PasswordTurn(first)) = queue.turn(address(1), tag("0")).await else {
            panic!("no turn")
        };
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        let mut come = |source: u8, name: &'static str| {
            let (waits, order) = (queue.clone(), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                if let Some(QueueOutcome::PasswordTurn(turn)) = waits.turn(address(source), tag(name)).await {
                    order.lock().unwrap().push(name);
                    drop(turn);
                }
            }));
        };
        for (n, name) in ["1", "2", "3"].into_iter().enumerate() {
            come(1, name);
            while queue.len() <= n {
                tokio::task::yield_now().await;
            }
        }
        come(2, "scrape");
        while queue.len() < 4 {
            tokio::task::yield_now().await;
        }
        tasks[1].abort();
        tokio::task::yield_now().await;
        drop(first);
        for task in tasks {
            let _ = task.await;
        }
        assert_eq!(*order.lock().unwrap(), ["scrape", "1", "3"]);
        assert!(matches!(queue.turn(address(1), tag("free")).await, Some(QueueOutcome::PasswordTurn(_))));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_same_name_and_password_are_checked_once() {
        let queue = PasswordQueue::default();
        let Some(QueueOutcome::PasswordTurn(turn)) = queue.turn(address(1), tag("a")).await else {
            panic!("no turn")
        };
        let waits = |name: &'static str| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.turn(address(2), tag(name)).await })
        };
        let (same, other) = (waits("a"), waits("b"));
        while queue.len() < 2 {
            tokio::task::yield_now().await;
        }
        turn.found(&tag("a"), true);
        assert!(matches!(same.await.unwrap(), Some(QueueOutcome::Verdict(true))));
        assert!(!other.is_finished());
        drop(turn);
        assert!(matches!(other.await.unwrap(), Some(QueueOutcome::PasswordTurn(_))));
    }
}
