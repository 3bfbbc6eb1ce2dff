//! Passwords, while others guess.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::pki::{Pki, user};
use super::*;

/// A connection without TLS that stays open.
pub struct Scraper {
    stream: BufReader<TcpStream>,
    credentials: String,
}

impl Scraper {
    pub fn connect(agent: &Agent, credentials: &str) -> Self {
        Self::over(TcpStream::connect(agent.address()).unwrap(), credentials)
    }

    pub fn over(stream: TcpStream, credentials: &str) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { stream: BufReader::new(stream), credentials: STANDARD.encode(credentials) }
    }

    pub fn scrape(&mut self) -> u16 {
        self.try_scrape().unwrap()
    }

    /// The status of an answer; nothing when the connection is closed.
    pub fn try_scrape(&mut self) -> Option<u16> {
        let head = format!(
            "GET /metrics HTTP/1.1\r\nhost: test\r\nauthorization: Basic {}\r\n\r\n",
            self.credentials
        );
        self.stream.get_mut().write_all(head.as_bytes()).ok()?;
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).ok()?;
            if line == "\r\n" {
                break;
            }
            match line.trim_end().split_once(": ") {
                Some(("content-length", n)) => length = n.parse().ok()?,
                Some(_) => {}
                None => status = Some(line.split(' ').nth(1)?.parse().ok()?),
            }
        }
        self.stream.read_exact(&mut vec![0; length]).ok()?;
        status
    }
}

#[test]
#[ignore = "needs root"]
fn guesses_delay_nobody_who_was_right_before() {
    let pki = Pki::new();
    let users = user("alice", "right", 10) + &user("bob", "right", 10);
    let path = pki.write("web.yml", &format!("basic_auth_users:\n{users}"));
    let agent = Agent::start(&["--web-config", path.to_str().unwrap()]);
    let mut kept = Scraper::connect(&agent, "alice:right");
    assert_eq!(kept.scrape(), 200);

    let (over, guesses) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        for guesser in 0..24 {
            let (agent, over, guesses) = (&agent, &over, &guesses);
            scope.spawn(move || {
                let mut guess = 0;
                while !over.load(Ordering::Relaxed) {
                    let name = ["alice", "bob", "carol"][guess % 3];
                    let mut scraper = Scraper::connect(agent, &format!("{name}:{guesser}.{guess}"));
                    assert_eq!(scraper.scrape(), 401);
                    guess += 1;
                    guesses.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Until guesses are being looked at, one after the other.
        while guesses.load(Ordering::Relaxed) < 3 {
            thread::sleep(Duration::from_millis(20));
        }
        // Twenty-four guesses are in line at any time.
        let (start, before) = (Instant::now(), guesses.load(Ordering::Relaxed));
        for _ in 0..10 {
            assert_eq!(kept.scrape(), 200);
            assert_eq!(Scraper::connect(&agent, "alice:right").scrape(), 200);
        }
        let (took, during) = (start.elapsed(), guesses.load(Ordering::Relaxed) - before);
        println!("20 scrapes took {took:?}, {during} guesses were looked at meanwhile");
        // Had each waited its turn, 20 times 24 guesses would have been.
        assert!(during < 240, "{during} guesses were looked at before 20 scrapes");
        // Who was never right before has a turn like everybody.
        assert_eq!(Scraper::connect(&agent, "bob:right").scrape(), 200);
        over.store(true, Ordering::Relaxed);
    });
    println!("{} guesses in all", guesses.load(Ordering::Relaxed));
}

#[test]
#[ignore = "needs root"]
fn the_rate_limit_comes_before_everything() {
    let pki = Pki::new();
    let text =
        format!("rate_limit: {{interval: 1h, burst: 3}}\nbasic_auth_users:\n{}", user("alice", "right", 5));
    let path = pki.write("web.yml", &text);
    let agent = Agent::start(&["--web-config", path.to_str().unwrap()]);
    let mut scraper = Scraper::connect(&agent, "alice:wrong");
    assert_eq!(
        [scraper.scrape(), scraper.scrape(), scraper.scrape(), scraper.scrape()],
        [401, 401, 401, 429]
    );
    assert_eq!(Scraper::connect(&agent, "alice:right").scrape(), 429);
    assert_eq!(agent.get("/metrics").0, 200);
}
