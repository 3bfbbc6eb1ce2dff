//! Basic authentication: bcrypt, off the agent's thread.
//!
//! A check takes tens of milliseconds of CPU by design. They are made one at a time, on a thread of their own, and what
//! a user was let in by is remembered: so however many wrong passwords come, one that was right before waits for none of
//! them. Nothing that a stranger sends can push it out.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bcrypt::HashParts;
use ring::hmac;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::config::Users;

/// A name and a password as they came. Neither need be text.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    name: Vec<u8>,
    password: Vec<u8>,
}

impl Credentials {
    /// Those of an `Authorization` header, if it has any.
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

/// Checks passwords, and remembers the right ones by a digest under a key that ends with the agent.
pub struct Passwords {
    key: hmac::Key,
    /// By name: of the password, and the hash that it was right for.
    right: RefCell<HashMap<String, hmac::Tag>>,
    turn: Arc<Semaphore>,
}

impl Passwords {
    /// `None` where the kernel has no random numbers.
    pub fn new() -> Option<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new()).ok()?;
        Some(Self { key, right: RefCell::default(), turn: Arc::new(Semaphore::new(1)) })
    }

    /// Whether `given` is one of `users` and has that one's password. A name that nobody has takes as long as a
    /// wrong password.
    pub async fn are_right(&self, given: Credentials, users: &Users) -> bool {
        let user = std::str::from_utf8(&given.name).ok().and_then(|name| users.0.get_key_value(name));
        let known = user.is_some();
        let (name, hash) = match user {
            Some((name, hash)) => (name.clone(), hash.clone()),
            None => (String::new(), nobodys_hash(users)),
        };
        let message = [hash.as_bytes(), &given.password].concat();
        if known && self.right.borrow().get(&name).is_some_and(|tag| self.is(&message, tag)) {
            return true;
        }
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else { return false };
        // Somebody else with the same one may have been before us.
        if known && self.right.borrow().get(&name).is_some_and(|tag| self.is(&message, tag)) {
            return true;
        }
        let password = given.password;
        let check = spawn_blocking(move || {
            let right = bcrypt::verify(password, &hash).unwrap_or(false);
            // Not before: whoever hangs up meanwhile does not let the next check begin beside this one.
            drop(turn);
            right
        });
        let right = check.await.unwrap_or(false) && known;
        if right {
            let mut all = self.right.borrow_mut();
            all.retain(|name, _| users.0.contains_key(name));
            all.insert(name, hmac::sign(&self.key, &message));
        }
        right
    }

    /// In constant time.
    fn is(&self, message: &[u8], tag: &hmac::Tag) -> bool {
        hmac::verify(&self.key, message, tag.as_ref()).is_ok()
    }
}

/// A hash of the users' highest cost that no password is known for.
fn nobodys_hash(users: &Users) -> String {
    let costs = users.0.values().filter_map(|hash| hash.parse::<HashParts>().ok());
    let cost = costs.map(|parts| parts.get_cost()).max().unwrap_or(10);
    format!("$2b${cost:02}${}", ".".repeat(53))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

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
                assert_eq!(passwords.are_right(header(given).unwrap(), &users).await, right, "{given}");
            }
        }
        // Whose password is another now, or who is gone, is not let in by what is remembered.
        let other = Users(BTreeMap::from([("alice".to_owned(), users.0["bob"].clone())]));
        assert!(!passwords.are_right(header("alice:right").unwrap(), &other).await);
        assert!(!passwords.are_right(header("bob:").unwrap(), &other).await);
    }

    #[test]
    fn nobodys_hash_is_one() {
        let hash = nobodys_hash(&users(5));
        assert_eq!(hash.parse::<HashParts>().unwrap().get_cost(), 5);
        assert!(!bcrypt::verify("", &hash).unwrap());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_password_that_was_right_waits_for_no_wrong_one() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let passwords = std::rc::Rc::new(Passwords::new().unwrap());
                let users = std::rc::Rc::new(users(8));
                assert!(passwords.are_right(header("alice:right").unwrap(), &users).await);
                let wrong: Vec<_> = (0..20)
                    .map(|n| {
                        let (passwords, users) = (passwords.clone(), users.clone());
                        let given = header(&format!("alice:{n}")).unwrap();
                        tokio::task::spawn_local(async move { passwords.are_right(given, &users).await })
                    })
                    .collect();
                tokio::task::yield_now().await;
                assert!(passwords.are_right(header("alice:right").unwrap(), &users).await);
                assert!(!wrong.last().unwrap().is_finished(), "it waited for twenty others");
                for wrong in wrong {
                    assert!(!wrong.await.unwrap());
                }
            })
            .await;
    }
}
