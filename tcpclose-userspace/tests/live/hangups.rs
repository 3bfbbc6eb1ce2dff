//! Clients that hang up, stop reading or never ask: the agent goes on answering the others, and counting.

use crate::common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{Agent, free_port, get_unix};
use socket2::SockRef;

const PATIENCE: Duration = Duration::from_secs(30);

/// Agents on both hooks that have names for `ports`, whatever else closes connections on this host.
fn agents_that_name(ports: &[u16]) -> Vec<(&'static str, Agent)> {
    let names: Vec<String> = ports.iter().map(|port| format!("--name-port={port}")).collect();
    Agent::on_each_hook(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Closes one connection on `port`, the server first, and waits until the agent has counted its ends.
fn still_counts(agent: &Agent, port: u16, what: &str) {
    let labels = [("port", &*port.to_string()), ("outcome", "graceful")];
    let before = agent.metrics().sum("tcpclose_closes_total", &labels);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    drop(listener.accept().unwrap());
    drop(client);
    agent.metrics_when(PATIENCE, what, |metrics| {
        metrics.sum("tcpclose_closes_total", &labels) == before + 2.0
    });
}

/// `GET /metrics` over TCP: the whole answer.
fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Descriptors that the agent has open.
fn descriptors(agent: &Agent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count()
}

/// Waits until the agent has no more descriptors open than `at_most`: it has let go of whoever went away.
fn until_let_go(agent: &Agent, at_most: usize) {
    let until = Instant::now() + PATIENCE;
    while descriptors(agent) > at_most {
        assert!(Instant::now() < until, "{} descriptors are open, {at_most} were", descriptors(agent));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs root"]
fn prometheus_hangs_up_in_the_middle_of_a_scrape() {
    let counted = free_port();
    for (hook, agent) in agents_that_name(&[counted]) {
        let address = agent.address();
        assert!(scrape(&address).starts_with("HTTP/1.1 200 OK\r\n"));
        let before = descriptors(&agent);
        for round in 0..300 {
            let mut stream = TcpStream::connect(&address).unwrap();
            // Little room for the answer, so that the agent is still at it when the client goes.
            SockRef::from(&stream).set_recv_buffer_size(1).unwrap();
            let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\n\r\n");
            let asked = match round % 3 {
                // Not even the whole request.
                0 => &request[..request.len() / 2],
                _ => &request,
            };
            stream.write_all(asked.as_bytes()).unwrap();
            if round % 3 == 2 {
                stream.read_exact(&mut [0; 10]).unwrap();
            }
            if round % 2 == 0 {
                // A RST.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
        assert!(scrape(&address).contains("\ntcpclose_build_info"));
        still_counts(&agent, counted, "a close after the hang-ups");
        until_let_go(&agent, before);
        println!("{hook}: {before} descriptors before and after; it said\n{}", agent.printed());
        agent.metrics().missed_by_the_kernel();
    }
}

/// Asks for every socket in CLOSE-WAIT again and again, without reading an answer, until the agent takes no more: the
/// connection, and how many requests it took.
fn stop_reading(agent: &Agent) -> (UnixStream, usize) {
    let stream = UnixStream::connect(agent.socket()).unwrap();
    stream.set_nonblocking(true).unwrap();
    let request = "GET /v1/sockets?state=close_wait HTTP/1.1\r\nhost: test\r\n\r\n";
    let begun = Instant::now();
    let mut asked = 0;
    let mut refused_since = None;
    loop {
        match (&stream).write(request.as_bytes()) {
            // A part of a request, when there is room for no more: it stays the last one.
            Ok(n) if n < request.len() => return (stream, asked),
            Ok(_) => {
                asked += 1;
                refused_since = None;
            }
            Err(why) if why.kind() == ErrorKind::WouldBlock => {
                // It is at an answer: it takes no more only when no request was taken in all the time of another's.
                let since = *refused_since.get_or_insert_with(Instant::now);
                assert_eq!(get_unix(&agent.socket(), "/v1/sockets?state=close_wait").0, 200);
                if since.elapsed() > Duration::from_secs(1) {
                    return (stream, asked);
                }
            }
            Err(why) => panic!("{why}"),
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "the agent takes {asked} requests, and more, with no answer read"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn a_client_of_the_unix_socket_stops_reading() {
    let counted = free_port();
    let agents = agents_that_name(&[counted]);
    // An answer that no socket buffer holds.
    let port = free_port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let pairs: Vec<_> = (0..3000)
        .map(|_| {
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            let server = listener.accept().unwrap().0;
            client.shutdown(std::net::Shutdown::Write).unwrap();
            (client, server)
        })
        .collect();
    for (hook, agent) in &agents {
        let (status, answer) = agent.get("/v1/sockets?state=close_wait");
        assert_eq!(status, 200);
        assert!(answer.len() > 1 << 20, "{} bytes", answer.len());
        let before = (descriptors(agent), agent.resident());
        let stopped: Vec<_> = (0..10).map(|_| stop_reading(agent)).collect();
        let held = (descriptors(agent), agent.resident());
        let asked: Vec<usize> = stopped.iter().map(|(_, asked)| *asked).collect();
        println!("{hook}: an answer has {} bytes; requests taken {asked:?}", answer.len());
        println!("{hook}: descriptors and memory {before:?}, then {held:?}");
        still_counts(agent, counted, "a close while clients do not read");
        assert!(scrape(&agent.address()).contains("\ntcpclose_build_info"));
        assert_eq!(agent.get("/v1/sockets?state=close_wait").0, 200);
        // What one who stops reading makes the agent hold: an answer or two.
        assert!(held.1 < before.1 + stopped.len() as u64 * 4 * answer.len() as u64);
        drop(stopped);
        until_let_go(agent, before.0);
        still_counts(agent, counted, "a close after they have gone");
        agent.metrics().missed_by_the_kernel();
    }
    drop(pairs);
}

#[test]
#[ignore = "needs root"]
fn two_hundred_idle_clients() {
    let counted = free_port();
    for (hook, agent) in agents_that_name(&[counted]) {
        let address = agent.address();
        let before = descriptors(&agent);
        let on_tcp: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(&address).unwrap()).collect();
        let begun = Instant::now();
        assert!(scrape(&address).contains("\ntcpclose_build_info"));
        println!("{hook}: among 200 idle clients a scrape took {:?}", begun.elapsed());
        assert!(agent.get("/metrics").1.contains("\ntcpclose_build_info"), "the other face is free");
        still_counts(&agent, counted, "a close while clients idle");

        let on_unix: Vec<UnixStream> =
            (0..200).map_while(|_| UnixStream::connect(agent.socket()).ok()).collect();
        println!("{hook}: {} idle clients on the unix socket", on_unix.len());
        let begun = Instant::now();
        still_counts(&agent, counted, "a close while clients idle on the unix socket");
        println!("{hook}: among them an answer took {:?}", begun.elapsed());
        drop((on_tcp, on_unix));
        until_let_go(&agent, before);
        agent.metrics().missed_by_the_kernel();
    }
}
