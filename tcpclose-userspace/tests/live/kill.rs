//! `tcpclose kill` on real sockets: exactly those that it says, with the program's and the peer's view of it.

use crate::common;
pub mod elsewhere;
use crate::namespaces::named;
pub mod stage;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, Metrics, free_port, half_closed_client, listen};
use named::{Named, Service};
use rustix::process::Signal;
use serde_json::Value;
use stage::*;
use tcpclose::linux::sock_diag;
use tcpclose::names::Flow;
use tcpclose_common::state::TcpState;

#[test]
#[ignore = "needs root"]
fn a_dry_run_touches_nothing_and_yes_takes_exactly_the_neglected() {
    let ((listener, port), (other_listener, other_port)) = (listen(), listen());
    let mut not_read = Pair::new(&listener, port, b"hello");
    let mut not_closed = Pair::new(&listener, port, b"hello");
    not_closed.server.read_to_end(&mut Vec::new()).unwrap();
    let (sending_client, sending) = stream_on(&listener, port);
    let other_port_pair = Pair::new(&other_listener, other_port, b"");
    let mut queued = half_closed_client(port, b"hello");
    grow_old();
    let young = {
        // Behind the queued one: it is not accepted either, whatever its age.
        half_closed_client(port, b"")
    };

    let dry = without_agent(port, &[]);
    let printed = text(&dry);
    println!("{printed}");
    assert_eq!(dry.status.code(), Some(0));
    assert!(
        printed.starts_with(&format!("Would destroy 2 sockets (in CLOSE-WAIT, for {BOUND} or longer)\n")),
        "{printed}"
    );
    assert!(printed.contains("left alone: 1 still sending"), "{printed}");
    assert!(printed.contains("not accepted yet") && printed.contains("--yes"), "{printed}");
    not_read.assert_alive();
    not_closed.assert_alive();

    let done = without_agent(port, &["--yes"]);
    let printed = text(&done);
    println!("{printed}");
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(printed.lines().filter(|line| line.starts_with("destroyed  ")).count(), 2, "{printed}");
    assert!(printed.contains("\ndestroyed 2 of 2\n"), "{printed}");
    not_read.assert_destroyed();
    not_closed.assert_destroyed();
    other_port_pair.assert_alive();
    assert!(!sending.is_finished());

    // By name: who is still sending, and who waits to be accepted.
    // A snapshot proves no age of a socket whose peer goes on acknowledging.
    let until = Instant::now() + PATIENCE;
    while !sending.is_finished() {
        let done = without_agent(port, &["--yes", "--diagnosis", "still_sending", "--possibly"]);
        println!("{}", text(&done));
        assert_eq!(done.status.code(), Some(0));
        assert!(Instant::now() < until, "it goes on sending");
        sleep(Duration::from_millis(50));
    }
    assert!(matches!(sending.join().unwrap(), ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe));
    drop(sending_client);
    let done = without_agent(port, &["--yes", "--diagnosis", "not_accepted", "--limit", "1"]);
    println!("{}", text(&done));
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(queued.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    // Its place in the queue it keeps, which is why it does not go unless named.
    let mut accepted = listener.accept().unwrap().0;
    // What was unread is not lost, and the end of the stream was there already; it is writing that fails.
    let mut data = Vec::new();
    accepted.read_to_end(&mut data).unwrap();
    assert_eq!(data, b"hello");
    assert_eq!(accepted.write(b"x").unwrap_err().kind(), ErrorKind::ConnectionAborted);
    let next = listener.accept().unwrap();
    assert_eq!(next.1, young.local_addr().unwrap());

    let nothing = without_agent(port, &["--yes", "--diagnosis", "not_closed"]);
    assert_eq!(nothing.status.code(), Some(0));
    assert!(text(&nothing).starts_with("No socket to destroy"));
}

/// A client that has half-closed waits for the answer of a slow server: nothing of the server's leaks.
#[test]
#[ignore = "needs root"]
fn a_live_half_close_is_left_alone_unless_it_is_named() {
    let (listener, port) = listen();
    let mut pair = Pair::new(&listener, port, b"a question");
    pair.server.read_to_end(&mut Vec::new()).unwrap();
    grow_old();
    let ask = |words: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(["--older-than", BOUND, "--port", &port.to_string(), "--no-agent"]);
        let command = Command::new(BINARY).args(words).args(command.get_args()).output().unwrap();
        text(&command)
    };
    let stuck = ask(&["stuck"]);
    let own = format!("[{}] holds the other end of 1 socket, has sent its FIN", std::process::id());
    assert!(stuck.contains("half-closed: ") && stuck.replace('\n', " ").contains(&own), "{stuck}");
    let killed = ask(&["kill", "--yes"]);
    assert!(
        killed.starts_with("No socket to destroy")
            && killed.contains("left alone: 1 whose local peer may wait for an answer (--half-closed)"),
        "{killed}"
    );
    pair.server.write_all(b"the answer").unwrap();
    let mut answer = [0; 10];
    pair.client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"the answer");

    // By its cookie it goes, whoever waits. The answer's ACK has made what a snapshot proves of its age younger.
    grow_old();
    let cookie = format!("sk:{:x}", pair.socket().unwrap().cookie);
    let killed = ask(&[
        "kill",
        "--yes",
        "--diagnosis",
        "still_sending",
        "--diagnosis",
        "not_closed",
        "--cookie",
        &cookie,
    ]);
    assert!(killed.contains("destroyed 1 of 1"), "{killed}");
    pair.assert_destroyed();
    // A peer that has closed waits for nothing.
    let mut pair = Pair::new(&listener, port, b"");
    drop(std::mem::replace(&mut pair.client, TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap()));
    grow_old();
    let killed = ask(&["kill", "--yes"]);
    assert!(killed.contains("destroyed 1 of 1"), "{killed}");
}

#[test]
#[ignore = "needs root"]
fn the_kernel_takes_no_other_cookie() {
    let (listener, port) = listen();
    let mut pair = Pair::new(&listener, port, b"");
    let socket = pair.socket().unwrap();
    let error = sock_diag::destroy(&socket.flow, 0, socket.cookie + 1).unwrap_err();
    assert!(sock_diag::is_gone(&error), "{error}");
    pair.assert_alive();
    sock_diag::destroy(&socket.flow, 0, socket.cookie).unwrap();
    pair.assert_destroyed();
    assert!(sock_diag::is_gone(&sock_diag::destroy(&socket.flow, 0, socket.cookie).unwrap_err()));
    // The same addresses lead to the listener now, which is not meant.
    assert_eq!(listener.local_addr().unwrap().port(), port);
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
}

#[test]
#[ignore = "needs root"]
fn ipv6_goes_too() {
    let port = free_port();
    let listener = TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, port)).unwrap();
    let client = TcpStream::connect((std::net::Ipv6Addr::LOCALHOST, port)).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut pair = Pair { client, server: listener.accept().unwrap().0 };
    while pair.socket().is_none_or(|socket| socket.state != TcpState::CloseWait) {}
    grow_old();
    let done = without_agent(port, &["--yes"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    pair.assert_destroyed();
}

#[test]
#[ignore = "needs root"]
fn no_more_than_the_rate_go_in_a_second() {
    let (listener, port) = listen();
    let mut pairs: Vec<Pair> = (0..11).map(|_| Pair::new(&listener, port, b"")).collect();
    grow_old();
    let began = Instant::now();
    let done = without_agent(port, &["--yes", "--rate", "10", "--json"]);
    let took = began.elapsed();
    println!("11 at 10 a second: {took:?}");
    assert!(took >= Duration::from_secs(1));
    assert_eq!(done.status.code(), Some(0));
    let report: Value = serde_json::from_str(&text(&done)).unwrap();
    assert_eq!((&report["destroyed"], &report["dry_run"]), (&11.into(), &false.into()));
    assert_eq!(report["source"], "snapshot");
    let sockets = report["sockets"].as_array().unwrap();
    assert_eq!(sockets.len(), 11);
    for socket in sockets {
        assert_eq!((&socket["result"]["outcome"], &socket["port"]), (&"destroyed".into(), &port.into()));
        assert!(socket["tried_at"].is_string() && socket["cookie"].is_string());
    }
    pairs.iter_mut().for_each(Pair::assert_destroyed);
}

#[test]
#[ignore = "needs root"]
fn what_changes_between_the_list_and_its_turn_is_spared() {
    let (listener, port) = listen();
    let mut pairs: Vec<Pair> = (0..3)
        .map(|_| {
            // The oldest goes first.
            sleep(Duration::from_millis(50));
            Pair::new(&listener, port, b"")
        })
        .collect();
    grow_old();
    let mut killing = Killing::start(port, &["--rate", "1"]);
    let first = killing.lines.next().unwrap().unwrap();
    assert!(first.starts_with("destroyed"), "{first}");
    killing.signal(Signal::STOP);
    // The second is closed by its program, the third begins to send.
    let third = pairs.pop().unwrap();
    let Pair { client, server } = pairs.pop().unwrap();
    drop((server, client));
    (&third.server).write_all(b"I am at work").unwrap();
    killing.signal(Signal::CONT);
    // Its turn may come late on a slow machine; the program goes on sending.
    let sender = third.server.try_clone().unwrap();
    std::thread::spawn(move || {
        for _ in 0..1000 {
            if (&sender).write_all(b".").is_err() {
                return;
            }
            sleep(Duration::from_millis(10));
        }
    });
    let (lines, code) = killing.end();
    println!("{first}\n{}", lines.join("\n"));
    assert_eq!(code, Some(1));
    assert!(lines[0].starts_with("spared") && lines[0].contains("it has gone"), "{lines:?}");
    assert!(lines[1].starts_with("spared") && lines[1].contains("it is still_sending now"), "{lines:?}");
    assert!(lines[2].starts_with("destroyed 1, spared 1 (it has gone), spared 1 (it is still_sending now)"));
    third.assert_alive();
    pairs[0].assert_destroyed();
}

#[test]
#[ignore = "needs root"]
fn a_signal_stops_it_between_two_sockets_and_it_says_how_many_went() {
    let (listener, port) = listen();
    let mut pairs: Vec<Pair> = (0..8).map(|_| Pair::new(&listener, port, b"")).collect();
    grow_old();
    for signal in [Signal::INT, Signal::TERM] {
        let mut killing = Killing::start(port, &["--rate", "1"]);
        let first = killing.lines.next().unwrap().unwrap();
        killing.signal(signal);
        let (lines, code) = killing.end();
        println!("{first}\n{}", lines.join("\n"));
        assert_eq!(code, Some(1));
        let all = pairs.iter().filter(|pair| pair.socket().is_some()).count();
        let gone = pairs.len() - all;
        let words =
            lines.iter().find(|line| line.starts_with("interrupted by a signal: destroyed ")).unwrap();
        let went = 1 + lines.iter().filter(|line| line.starts_with("destroyed  ")).count();
        assert!(words.contains(&format!("destroyed {went} of ")) && gone == went, "{words}: {gone}");
        pairs.retain_mut(|pair| {
            let there = pair.socket().is_some();
            if !there {
                pair.assert_destroyed();
            }
            there
        });
    }
    pairs.iter().for_each(Pair::assert_alive);
}

#[test]
#[ignore = "needs root"]
fn last_ack_goes_when_named() {
    let (listener, port) = listen();
    let Pair { client, server } = Pair::new(&listener, port, b"");
    // Its FIN waits behind data that the client has no room for.
    server.set_nonblocking(true).unwrap();
    while (&server).write(&[0; 65536]).is_ok() {}
    let flow = Flow::new(server.local_addr().unwrap(), client.local_addr().unwrap());
    drop(server);
    let state = || sock_diag::lookup(&flow, 0, None).unwrap().map(|socket| socket.state);
    assert_eq!(state(), Some(TcpState::LastAck));
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(["kill", "--half-closed", "--older-than", "0s", "--no-agent", "--yes", "--json"]);
        let output = command.args(["--port", &port.to_string()]).args(arguments).output().unwrap();
        let report: Value = serde_json::from_str(&text(&output)).unwrap();
        println!("{:?} {report}", output.status);
        report
    };
    assert_eq!(ask(&[])["sockets"], Value::Array(Vec::new()));
    assert_eq!(state(), Some(TcpState::LastAck));
    let report = ask(&["--state", "last_ack"]);
    match &report["destroyed"] {
        destroyed if *destroyed == 1 => assert_eq!(state(), None),
        // Before 6.11 an orphan is left, and that is not called destroyed.
        _ => {
            assert_eq!(report["refused"], 1);
            assert_eq!(state(), Some(TcpState::LastAck));
        }
    }
}

/// `POST path`, with an order that makes no sense: the status and the body of the answer.
fn post<S: Read + Write>(stream: S, path: &str) -> (u16, String) {
    post_body(stream, path, "{}")
}

fn post_body<S: Read + Write>(mut stream: S, path: &str, body: &str) -> (u16, String) {
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: {}", body.len());
    // At once: who refuses does not wait for the body.
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
#[ignore = "needs root"]
fn an_agent_destroys_only_where_it_was_allowed_to() {
    let (listener, port) = listen();
    let name_port = port.to_string();
    let strict = Agent::start(&["--name-port", &name_port]);
    let allowing = Agent::on_each_hook(&["--allow-kill", "--name-port", &name_port]);
    let mut pairs: Vec<Pair> = (0..4).map(|_| Pair::new(&listener, port, b"")).collect();
    grow_old();

    // Looking is allowed.
    let dry = through(&strict, port, &[]);
    assert!(text(&dry).contains("Would destroy 4 sockets") && text(&dry).contains("source: agent"));
    let printed = refusal(&through(&strict, port, &["--yes"]));
    assert!(printed.contains("without --allow-kill") && printed.contains("--no-agent"), "{printed}");
    pairs.iter().for_each(Pair::assert_alive);

    let unix = |agent: &Agent| UnixStream::connect(agent.socket()).unwrap();
    let tcp = |agent: &Agent| TcpStream::connect(agent.address()).unwrap();
    let (status, body) = post(unix(&strict), "/v1/kill");
    assert_eq!((status, body.lines().count()), (403, 1), "{body}");
    assert_eq!(post(tcp(&strict), "/v1/kill").0, 404);
    assert_eq!(strict.get("/v1/kill").0, 405);
    for (_, agent) in &allowing {
        assert_eq!(post(tcp(agent), "/v1/kill").0, 404);
        let (status, body) = post(unix(agent), "/v1/kill");
        assert_eq!((status, body.lines().count()), (400, 1), "{body}");
    }

    for (hook, agent) in &allowing {
        let done = through(agent, port, &["--yes", "--limit", "2"]);
        println!("{hook}: {}", text(&done));
        assert_eq!(done.status.code(), Some(0));
        assert!(text(&done).contains("destroyed 2 of 2"));
        let is_logged = |line: &str| {
            line.contains("destroyed 127.0.0.1:") && line.contains("asked by pid ") && line.contains("uid 0")
        };
        let until = Instant::now() + PATIENCE;
        while agent.printed().lines().filter(|line| is_logged(line)).count() != 2 {
            assert!(Instant::now() < until, "{}", agent.printed());
            sleep(Duration::from_millis(10));
        }
    }
    pairs.iter_mut().for_each(Pair::assert_destroyed);
    for (hook, agent) in std::iter::once(&("strict", strict)).chain(&allowing) {
        let labels = [("port", name_port.as_str()), ("side", "server"), ("outcome", "destroyed")];
        let counted = |metrics: &Metrics| metrics.sum("tcpclose_closes_total", &labels) == 4.0;
        agent.metrics_when(PATIENCE, &format!("{hook}: four are counted as destroyed"), counted);
    }
}
