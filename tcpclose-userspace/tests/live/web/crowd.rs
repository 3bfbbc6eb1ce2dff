//! Ten thousand clients who ask for nothing, or take hours to ask.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::passwords::Scraper;
use super::pki::{Pki, user};
use super::*;
use crate::common::raise_open_files;

const CLIENTS: usize = 10_000;

/// What an agent may grow by under the crowd: 64 connections with their TLS, and the steps of all those that it closes, which it
/// watches like everybody's: some 30,000 lives of 112 bytes and their tables.
const GROWTH: u64 = 24 << 20;

/// Descriptors that the agent may have more than before: as many connections as it serves at a time on its addresses, and
/// those of a dump, a lookup and a query.
const MORE_FDS: usize = 64 + 16;

/// A connection from `from` of 127.0.0.0/8; nothing where the queue is full.
fn connect(from: [u8; 4], to: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // So that ten thousand from one address do not wait for each other's TIME-WAIT.
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).ok()?;
    socket.connect_timeout(&to.into(), Duration::from_secs(5)).ok()?;
    socket.set_nonblocking(true).unwrap();
    Some(socket.into())
}

/// A client's part in the crowd.
struct Client {
    stream: Option<TcpStream>,
    sent: usize,
}

/// Half of them send a byte a second, of a request that never ends or of what a TLS handshake begins with.
fn crowd(address: SocketAddr, over: &AtomicBool, closed: &AtomicU64) {
    const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: test\r\nx-slow: ";
    const HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let from = |n: usize| [127, 9, (n / 5000) as u8, 1];
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|n| Client { stream: connect(from(n), address), sent: 0 }).collect();
    while !over.load(Ordering::Relaxed) {
        let start = Instant::now();
        // Who was sent away comes back, some each second.
        let mut back = 200;
        for (n, client) in clients.iter_mut().enumerate() {
            let text = if n % 4 == 1 { HELLO } else { REQUEST };
            let alive = match &mut client.stream {
                Some(stream) if n % 2 == 1 => {
                    let byte = text.get(client.sent).copied().unwrap_or(b'x');
                    client.sent += 1;
                    stream.write_all(&[byte]).is_ok()
                }
                Some(stream) => match stream.read(&mut [0; 64]) {
                    Err(why) => why.kind() == ErrorKind::WouldBlock,
                    Ok(_) => false,
                },
                None => false,
            };
            if !alive {
                closed.fetch_add(u64::from(client.stream.is_some()), Ordering::Relaxed);
                client.stream = None;
                if back > 0 {
                    *client = Client { stream: connect(from(n), address), sent: 0 };
                    back -= 1;
                }
            }
        }
        thread::sleep(Duration::from_secs(1).saturating_sub(start.elapsed()));
    }
}

fn descriptors(agent: &Agent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count()
}

/// Scrapes by connections of their own and by one that stays, while the crowd comes and is sent away.
fn scrapes_in_a_crowd(agent: &Agent, fresh: &dyn Fn() -> bool, kept: &mut dyn FnMut() -> bool) {
    // Descriptors for one crowd are what a process may have.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    raise_open_files(CLIENTS as u64 + 1000);
    // What the first scrapes take is theirs.
    assert!(fresh() && kept());
    let (resident, fds) = (agent.resident(), descriptors(agent));
    let address = agent.address().parse().unwrap();
    let (over, closed) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| crowd(address, &over, &closed));
        let (start, mut slowest, mut most_fds, mut most, mut scrapes) =
            (Instant::now(), Duration::ZERO, 0, 0, 0);
        while start.elapsed() < Duration::from_secs(8) || closed.load(Ordering::Relaxed) < CLIENTS as u64 / 2
        {
            assert!(start.elapsed() < Duration::from_secs(90), "no crowd came");
            let begun = Instant::now();
            let (one, other) = (fresh(), kept());
            if !one || !other {
                over.store(true, Ordering::Relaxed);
                panic!("a scrape failed: fresh {one}, kept {other}: {}", agent.printed());
            }
            slowest = slowest.max(begun.elapsed());
            scrapes += 1;
            (most_fds, most) = (most_fds.max(descriptors(agent)), most.max(agent.resident()));
            thread::sleep(Duration::from_millis(50));
        }
        over.store(true, Ordering::Relaxed);
        println!(
            "{scrapes} pairs of scrapes, the slowest took {slowest:?}; {} clients were sent away; resident {} to {} KiB; {fds} to {most_fds} descriptors",
            closed.load(Ordering::Relaxed),
            resident >> 10,
            most >> 10
        );
        // Prometheus gives a scrape ten seconds; a machine under load has more to do than this.
        assert!(slowest < Duration::from_secs(30));
        assert!(most < resident + GROWTH, "{resident} to {most}");
        assert!(most_fds <= fds + MORE_FDS, "{fds} to {most_fds}");
    });
}

#[test]
#[ignore = "needs root"]
fn ten_thousand_idle_and_slow_clients_stop_no_scrape() {
    let agent = Agent::start(&[]);
    let mut kept = Scraper::connect(&agent, "");
    let fresh = || Scraper::connect(&agent, "").try_scrape() == Some(200);
    scrapes_in_a_crowd(&agent, &fresh, &mut || kept.try_scrape() == Some(200));
}

#[test]
#[ignore = "needs root"]
fn ten_thousand_of_them_stop_no_scrape_over_tls_with_a_password_either() {
    let pki = Pki::new();
    let path = pki.web_config(&("basic_auth_users:\n".to_owned() + &user("alice", "right", 8)));
    let agent = Agent::start(&["--web-config", &path]);
    let url = format!("https://{}/metrics", agent.address());
    let ca = pki.path("ca.pem");
    let scrape = || {
        let answer = curl(&url, &["--cacert", &ca, "-u", "alice:right"]);
        if answer.status != 200 {
            println!("{}", answer.printed);
        }
        answer.status == 200
    };
    scrapes_in_a_crowd(&agent, &scrape, &mut || true);
}

/// When the other end closes, after what has been sent.
fn closed_after(mut stream: TcpStream, begin: &[u8], each_second: &[u8]) -> Duration {
    let start = Instant::now();
    stream.write_all(begin).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    loop {
        match stream.read(&mut [0; 4096]) {
            Err(why) if why.kind() == ErrorKind::WouldBlock => {}
            Err(_) | Ok(0) => return start.elapsed(),
            Ok(_) => continue,
        }
        if stream.write_all(each_second).is_err() {
            return start.elapsed();
        }
        assert!(start.elapsed() < Duration::from_secs(300), "it is still open");
    }
}

#[test]
#[ignore = "needs root"]
fn whoever_is_too_slow_is_sent_away() {
    let pki = Pki::new();
    let (plain, tls) = (Agent::start(&[]), Agent::start(&["--web-config", &pki.web_config("")]));
    const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n";
    let cases: [(&str, &Agent, &[u8], &[u8]); 6] = [
        ("says nothing", &plain, b"", b""),
        ("a byte a second", &plain, b"GET /metrics HTTP/1.1\r\nx: ", b"x"),
        (
            "a second request, a byte a second",
            &plain,
            &[REQUEST, b"GET /metrics HTTP/1.1\r\nx: "].concat(),
            b"x",
        ),
        ("begins no handshake", &tls, b"", b""),
        ("a handshake, a byte a second", &tls, &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], b"x"),
        ("stops in the middle of a handshake", &tls, &[22, 3, 1, 2, 0, 1, 0], b""),
    ];
    thread::scope(|scope| {
        for (what, agent, begin, each) in cases {
            scope.spawn(move || {
                let took = closed_after(TcpStream::connect(agent.address()).unwrap(), begin, each);
                println!("{what}: closed after {took:?}");
                // Ten seconds, and what a machine under load adds.
                assert!(took > Duration::from_secs(9) && took < Duration::from_secs(60), "{what}: {took:?}");
            });
        }
    });
}

#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_who_has_been_answered_may_wait_for_two_minutes() {
    let agent = Agent::start(&[]);
    let stream = TcpStream::connect(agent.address()).unwrap();
    let took = closed_after(stream, b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n", b"");
    println!("closed after {took:?}");
    assert!(took > Duration::from_secs(128) && took < Duration::from_secs(200), "{took:?}");
}
