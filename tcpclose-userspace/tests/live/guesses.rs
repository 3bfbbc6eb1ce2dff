//! Sixty connections with wrong passwords keep no scrape from an agent that has just started, whose first right password is
//! remembered by nobody yet: not one from another address, and not one from the guesser's own.

use crate::common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use socket2::{Domain, Socket, Type};

use common::Agent;

const GUESSERS: u32 = 60;
/// Tens of milliseconds a check: long beside all else that a request takes.
const COST: u32 = 10;
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const GUESSER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Asks the agent at `to` for its metrics from the address `from`, by a connection of its own. Its status; nothing when the
/// connection is closed without an answer.
fn ask(from: Ipv4Addr, to: SocketAddr, credentials: &str, asked: impl FnOnce()) -> Option<u16> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).ok()?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
    let credentials = STANDARD.encode(credentials);
    let head = format!(
        "GET /metrics HTTP/1.1\r\nhost: test\r\nauthorization: Basic {credentials}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    asked();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

/// The guesses that were refused while a scrape from `from` waited for its answer, with as many more in line as there are
/// guessers; the scrape's password was right.
fn refused_before_a_scrape(from: Ipv4Addr) -> u32 {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.yml");
    let hash = bcrypt::hash("right", COST).unwrap();
    std::fs::write(&path, format!("basic_auth_users:\n  prometheus: {hash}\n")).unwrap();
    let mut agent = Agent::start(&["--web-config", path.to_str().unwrap()]);
    let to: SocketAddr = agent.address().parse().unwrap();
    let (over, asked, refused) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for guesser in 0..GUESSERS {
            let (over, asked, refused) = (&over, &asked, &refused);
            scope.spawn(move || {
                let mut guess = 0;
                while !over.load(SeqCst) {
                    let credentials = format!("prometheus:{guesser}.{guess}");
                    let status = ask(GUESSER, to, &credentials, || {
                        asked.fetch_add(1, SeqCst);
                    });
                    if over.load(SeqCst) {
                        break;
                    }
                    // A slow machine closes those that have waited for too long.
                    assert!(matches!(status, None | Some(401)), "{status:?}");
                    refused.fetch_add(u32::from(status.is_some()), SeqCst);
                    guess += 1;
                }
            });
        }
        // All are in line, and one is being looked at.
        while asked.load(SeqCst) < GUESSERS || refused.load(SeqCst) == 0 {
            thread::sleep(Duration::from_millis(10));
        }
        let before = refused.load(SeqCst);
        let mut statuses = vec![ask(from, to, "prometheus:right", || {})];
        let during = refused.load(SeqCst) - before;
        // From here on it is remembered.
        statuses.extend((0..9).map(|_| ask(from, to, "prometheus:right", || {})));
        over.store(true, SeqCst);
        // Nobody has to wait for sixty checks.
        agent.end(rustix::process::Signal::TERM);
        assert_eq!(statuses, [Some(200); 10]);
        during
    })
}

#[test]
#[ignore = "needs root"]
fn guesses_from_one_address_delay_a_scrape_from_another_by_one_check() {
    let during = refused_before_a_scrape(HERE);
    println!("{during} guesses were refused before the first scrape was answered");
    // The one that was being looked at, and those whose answers were on their way on a busy machine.
    assert!(
        during <= GUESSERS / 2,
        "{during} guesses of {GUESSERS} came before a scrape from another address"
    );
}

#[test]
#[ignore = "needs root"]
fn guesses_do_not_keep_a_scrape_from_their_own_address_waiting_either() {
    let during = refused_before_a_scrape(GUESSER);
    println!("{during} guesses were refused before the first scrape was answered");
    // One of the last to come is next: a few guesses that come at the same time may be before it.
    assert!(during <= GUESSERS / 2, "{during} guesses of {GUESSERS} came before the scrape");
}
