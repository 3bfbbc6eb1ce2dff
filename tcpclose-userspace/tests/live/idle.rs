//! `tcpclose idle`: connections that are silent and have no keepalive, exactly those, and the ones whose peer is gone.

use crate::cases::peer::Peer;
use crate::cases::place::Tun;
use crate::common::{Agent, BINARY, free_port, raise_open_files};
use crate::namespaces::named::Named;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tcpclose::names::{IdleReason, Side};
use tcpclose::report::idle::{IdleDocument, IdleGroup};

const PATIENCE: Duration = Duration::from_secs(60);
const CONNECTIONS: usize = 1000;
const WITH_KEEPALIVE: usize = 300;
/// The shortest silence. A pause is longer, by the ticks in which the kernel counts.
const SILENCE: &str = "1s";
const PAUSE: Duration = Duration::from_millis(1500);

fn idle(source: &[&str], port: u16, more: &[&str]) -> String {
    let port = port.to_string();
    let output =
        Command::new(BINARY).args(["idle", "--port", &port]).args(source).args(more).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn document(source: &[&str], port: u16, more: &[&str]) -> IdleDocument {
    serde_json::from_str(&idle(source, port, &[&["--json"], more].concat())).unwrap()
}

#[test]
#[ignore = "needs root"]
fn exactly_the_silent_connections_without_keepalive_are_listed() {
    raise_open_files(2 * CONNECTIONS as u64 + 200);
    let agent = Agent::start(&[]);
    let socket = agent.socket();
    let by_agent = ["--socket", socket.to_str().unwrap()];
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap();
    let at = listener.local_addr().unwrap();
    let mut pairs: Vec<(TcpStream, TcpStream)> = Vec::new();
    for n in 0..CONNECTIONS {
        let client = TcpStream::connect(at).unwrap();
        SockRef::from(&client).set_keepalive(true).unwrap();
        let server = listener.accept().unwrap().0;
        SockRef::from(&server).set_keepalive(n < WITH_KEEPALIVE).unwrap();
        pairs.push((client, server));
    }
    let expected: BTreeSet<SocketAddr> =
        pairs[WITH_KEEPALIVE..].iter().map(|(client, _)| client.local_addr().unwrap()).collect();
    sleep(PAUSE);

    let pid = std::process::id();
    for source in [&by_agent[..], &["--no-agent"]] {
        let document = document(source, at.port(), &["--silent-for", SILENCE]);
        let [IdleGroup { owners, side, idle: number, local, peer_gone, .. }] = &document.groups[..] else {
            panic!("{:?}", document.groups)
        };
        assert_eq!((*side, *number, *local, *peer_gone), (Side::Server, 700, 700, 0));
        assert_eq!(owners.iter().map(|owner| owner.pid).collect::<Vec<_>>(), [pid]);
        let listed: BTreeSet<SocketAddr> = document.sockets.iter().map(|socket| socket.peer).collect();
        assert!(listed == expected && document.sockets.len() == 700, "{} of 700", listed.len());
        assert!(document.established >= 2 * CONNECTIONS as u64);
        assert!(document.sockets.iter().all(|socket| socket.silent_seconds >= 1.0));

        let text = idle(source, at.port(), &["--silent-for", SILENCE]);
        assert!(text.starts_with("700 connections without keepalive, silent for 1s or longer"), "{text}");
        let (nobody, all) = (["--silent-for", "1h"], ["--silent-for", SILENCE, "--sockets", "--limit", "3"]);
        assert!(idle(source, at.port(), &nobody).starts_with("No connection without keepalive "), "{text}");
        assert!(idle(source, at.port(), &all).contains("… 697 more"), "{text}");
    }
    // Whoever is at work is not silent.
    let (client, server) = pairs.last_mut().unwrap();
    let bound = ["--silent-for", "1s"];
    let until = Instant::now() + PATIENCE;
    loop {
        server.write_all(b"x").unwrap();
        // What it wrote, the other end has not read, and that is told as well.
        let servers = document(&by_agent, at.port(), &bound).sockets;
        if servers.iter().filter(|socket| socket.side == Side::Server).count() == 699 {
            break;
        }
        assert!(Instant::now() < until, "a connection that is written to counts as silent");
    }
    let own = client.local_addr().unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        let listed = document(&by_agent, at.port(), &bound).sockets;
        if listed.iter().any(|socket| socket.local == own && socket.why == IdleReason::NotRead) {
            break;
        }
        assert!(Instant::now() < until, "unread data is not listed");
        sleep(Duration::from_millis(100));
    }
}

#[test]
#[ignore = "needs root"]
fn a_peer_that_vanished_is_remote_and_gone_once_something_is_sent() {
    let agent = Agent::start(&[]);
    let socket = agent.socket();
    let by_agent = ["--socket", socket.to_str().unwrap()];
    let port = free_port();
    let netns = Named::new("idle");
    let (v4, v6) = (Ipv4Addr::new(10, 83, 0, 1), Ipv6Addr::new(0xfd83, 0, 0, 0, 0, 0, 0, 1));
    let there = SocketAddr::from((Ipv4Addr::new(10, 83, 0, 2), 40_000));
    let here = SocketAddr::from((v4, port));
    let (_peer, mut server) = netns.inside(|| {
        let mut peer = Peer::new(Tun::new("wire", v4, v6).unwrap(), there, here);
        let listener = TcpListener::bind(here).unwrap();
        peer.connect();
        (peer, listener.accept().unwrap().0)
    });
    sleep(PAUSE);
    for source in [&by_agent[..], &["--no-agent"]] {
        let document = document(source, port, &["--silent-for", SILENCE]);
        let [group] = &document.groups[..] else { panic!("{:?}", document.groups) };
        assert_eq!((group.idle, group.local, group.peer_gone, u64::from(group.netns)), (1, 0, 0, netns.inum));
        let text = idle(source, port, &["--silent-for", SILENCE]);
        assert!(text.contains("keepalive for ") && text.contains(&netns.name), "{text}");
        let current = idle(source, port, &["--silent-for", SILENCE, "--netns", "current"]);
        assert!(current.starts_with("No connection"), "{current}");
    }
    server.write_all(b"are you there?").unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        let document = document(&by_agent, port, &["--silent-for", SILENCE]);
        if let [IdleGroup { idle: 0, peer_gone: 1, .. }] = document.groups[..] {
            break;
        }
        assert!(Instant::now() < until, "{:?}", document.groups);
        sleep(Duration::from_millis(100));
    }
    let text = idle(&by_agent, port, &["--silent-for", SILENCE]);
    assert!(text.contains("the peer of 1 does not acknowledge what is sent"), "{text}");
}
