//! Basic authentication: bcrypt, off the agent's thread.
//!
//! A check takes tens of milliseconds of CPU by design. Checks run one at a time, on a thread of their own,
//! in an order that is fair by address ([`queue`](crate::agent::server::web::password_queue)). The right
//! password of each user is remembered: it waits for no check again, and no request of a stranger can
//! displace it.
//!
//! Every refusal costs as much as a check against the most expensive of all hashes, whatever the cost of the
//! user's own, and whether there is such a user or not. So its duration tells nothing about user names.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bcrypt::HashParts;
use ring::hmac;
use tokio::task::spawn_blocking;

use crate::agent::server::web::config::Users;
use crate::agent::server::web::password_queue::{PasswordQueue, QueueOutcome};
use crate::agent::server::web::source::ClientNetwork;

/// A name and a password as received; they need not be UTF-8.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    name: Vec<u8>,
    password: Vec<u8>,
}

impl Credentials {
    /// The credentials of an `Authorization` header.
    pub fn of(header: &[u8]) -> Option<Self> {
        let (scheme, encoded) = header.split_at_checked(6)?;
        if !scheme.eq_ignore_ascii_case(b"basic ") {
            return None;
        }
        let decoded = STANDARD.decode(encoded.trim_ascii()).ok()?;
        let colon = decoded.iter().position(|byte| *byte == b':')?;
        let (name, password) = decoded.split_at(colon);
        Some(Self { name: name.to_vec(), password: password.get(1..)?.to_vec() })
    }
}

/// Checks passwords, and remembers the right ones by a digest whose key is random and kept in memory only.
pub struct Passwords {
    key: hmac::Key,
    /// By user: the digest of name, password, and the hash that the password was right for.
    right: RefCell<HashMap<String, hmac::Tag>>,
    queue: PasswordQueue,
}

impl Passwords {
    /// `None` if the kernel has no random numbers.
    pub fn new() -> Option<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new()).ok()?;
        Some(Self { key, right: RefCell::default(), queue: PasswordQueue::default() })
    }

    /// Whether `given`, which came from `source`, names one of `users` and has its password.
    pub async fn are_right(&self, given: Credentials, users: &Users, source: ClientNetwork) -> bool {
        let user = std::str::from_utf8(&given.name).ok().and_then(|name| users.0.get_key_value(name));
        let known = user.is_some();
        let (name, hash) = match user {
            Some((name, hash)) => (name.clone(), hash.clone()),
            None => (String::new(), self.decoy_hash(&given.name, users)),
        };
        let length = (given.name.len() as u64).to_le_bytes();
        let message = [&length[..], &given.name, hash.as_bytes(), &given.password].concat();
        if self.was_right(&name, &message) {
            return true;
        }
        let tag = hmac::sign(&self.key, &message);
        let turn = match self.queue.turn(source, tag).await {
            Some(QueueOutcome::PasswordTurn(turn)) => turn,
            Some(QueueOutcome::Verdict(is_right)) => return is_right && known,
            None => return false,
        };
        let highest = highest_cost(users);
        let password = given.password;
        let check = spawn_blocking(move || {
            let is_right = bcrypt::verify(&password, &hash).unwrap_or(false) && known;
            if !is_right {
                for cost in makes_up(cost_of(&hash), highest) {
                    let _ = bcrypt::verify(&password, &hash_of_cost(cost));
                }
            }
            turn.found(&tag, is_right);
            // Not earlier: a client that hangs up must not let the next check begin beside this one.
            drop(turn);
            is_right
        });
        let right = check.await.unwrap_or(false);
        if right {
            let mut all = self.right.borrow_mut();
            all.retain(|name, _| users.0.contains_key(name));
            all.insert(name, tag);
        }
        right
    }

    /// In constant time for a given name.
    fn was_right(&self, name: &str, message: &[u8]) -> bool {
        let right = self.right.borrow();
        right.get(name).is_some_and(|tag| hmac::verify(&self.key, message, tag.as_ref()).is_ok())
    }

    /// A hash for an unknown name. Its cost is that of some user, and always the same for a name, so that the
    /// check goes through the same steps as for a known one.
    fn decoy_hash(&self, name: &[u8], users: &Users) -> String {
        let digest = hmac::sign(&self.key, name);
        let number = digest.as_ref().iter().take(8).fold(0, |number, byte| number << 8 | usize::from(*byte));
        let user = number.checked_rem(users.0.len()).and_then(|nth| users.0.values().nth(nth));
        hash_of_cost(user.map_or(10, |hash| cost_of(hash)))
    }
}

/// The cost of a refusal.
fn highest_cost(users: &Users) -> u32 {
    users.0.values().map(|hash| cost_of(hash)).max().unwrap_or(10)
}

/// The costs of the checks that, after one of `cost`, add up to one of `highest`: each takes twice the time
/// of the one before.
fn makes_up(cost: u32, highest: u32) -> Range<u32> {
    cost..highest
}

fn cost_of(hash: &str) -> u32 {
    hash.parse::<HashParts>().map_or(10, |parts| parts.get_cost())
}

/// A hash for which no password is known.
fn hash_of_cost(cost: u32) -> String {
    format!("$2b${cost:02}${}", ".".repeat(53))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    const HERE: ClientNetwork = ClientNetwork::V4(Ipv4Addr::LOCALHOST);

    fn users(cost: u32) -> Users {
        let hash = |password: &str| bcrypt::hash_with_salt(password, cost, [7; 16]).unwrap().to_string();
        Users(BTreeMap::from([("alice".to_owned(), hash("right")), ("bob".to_owned(), hash(""))]))
    }

    fn header(text: &str) -> Option<Credentials> {
        Credentials::of(format!("Basic {}", STANDARD.encode(text)).as_bytes())
    }

    #[test]
    fn headers_of_any_bytes_have_credentials_or_none() {
        let given = header("alice:a:b").unwrap();
        assert_eq!((given.name.as_slice(), given.password.as_slice()), (&b"alice"[..], &b"a:b"[..]));
        assert!(Credentials::of(b"bASIC  YTpi ") == header("a:b"));
        for none in [
            "",
            "Basic",
            "Basic ",
            "Basic YQ==",
            "Basic YTp",
            "Bearer YTpi",
            "Basic \u{e9}",
            "\u{e9}\u{e9}\u{e9}é",
        ] {
            assert!(Credentials::of(none.as_bytes()).is_none(), "{none}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_the_right_password_of_a_known_user_is_right() {
        let (passwords, users) = (Passwords::new().unwrap(), users(4));
        for _ in 0..2 {
            for (given, right) in [
                ("alice:right", true),
                ("bob:", true),
                ("alice:wrong", false),
                ("alice:", false),
                ("bob:right", false),
                ("carol:right", false),
                (":", false),
            ] {
                assert_eq!(passwords.are_right(header(given).unwrap(), &users, HERE).await, right, "{given}");
            }
        }
        // A remembered password is of no use once the user's hash has changed, or the user is gone.
        let other = Users(BTreeMap::from([("alice".to_owned(), users.0["bob"].clone())]));
        assert!(!passwords.are_right(header("alice:right").unwrap(), &other, HERE).await);
        assert!(!passwords.are_right(header("bob:").unwrap(), &other, HERE).await);
    }

    #[test]
    fn every_refusal_costs_as_much_as_the_most_expensive_check() {
        let (cheap, dear) = (users(4), users(7));
        let mixed = Users(BTreeMap::from([
            ("alice".to_owned(), cheap.0["alice"].clone()),
            ("bob".to_owned(), dear.0["bob"].clone()),
        ]));
        let passwords = Passwords::new().unwrap();
        let mut costs_of_decoys = [0; 8];
        for nth in 0..64 {
            let hash = passwords.decoy_hash(format!("nobody{nth}").as_bytes(), &mixed);
            assert_eq!(hash, passwords.decoy_hash(format!("nobody{nth}").as_bytes(), &mixed));
            assert!(!bcrypt::verify("", &hash).unwrap());
            costs_of_decoys[cost_of(&hash) as usize] += 1;
        }
        assert!(costs_of_decoys[4] > 0 && costs_of_decoys[7] > 0, "{costs_of_decoys:?}");
        assert_eq!(costs_of_decoys[4] + costs_of_decoys[7], 64);
        let rounds = |cost: u32| 1_u64 << cost;
        for hash in mixed.0.values() {
            let after = makes_up(cost_of(hash), highest_cost(&mixed));
            assert_eq!(rounds(cost_of(hash)) + after.map(rounds).sum::<u64>(), rounds(7));
        }
        for cost in 4..8 {
            assert_eq!(cost_of(&hash_of_cost(cost)), cost);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_password_that_was_right_waits_for_no_wrong_one() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let passwords = std::rc::Rc::new(Passwords::new().unwrap());
                let users = std::rc::Rc::new(users(8));
                assert!(passwords.are_right(header("alice:right").unwrap(), &users, HERE).await);
                let wrong: Vec<_> = (0..20)
                    .map(|n| {
                        let (passwords, users) = (passwords.clone(), users.clone());
                        let given = header(&format!("alice:{n}")).unwrap();
                        tokio::task::spawn_local(
                            async move { passwords.are_right(given, &users, HERE).await },
                        )
                    })
                    .collect();
                tokio::task::yield_now().await;
                assert!(passwords.are_right(header("alice:right").unwrap(), &users, HERE).await);
                assert!(!wrong.last().unwrap().is_finished(), "it waited for twenty others");
                for wrong in wrong {
                    assert!(!wrong.await.unwrap());
                }
            })
            .await;
    }
}
