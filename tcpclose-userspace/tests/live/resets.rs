//! Why a RST was sent: twelve causes, each named as the kernel names it, or not at all.

use crate::cases::peer::Peer;
use crate::cases::place::Tun;
use crate::common::Agent;
use crate::common::apart::{CLOSE_WAIT, PATIENCE, apart, set, until_state};
use crate::common::reader::Reader;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tcpclose::linux::sock_diag;
use tcpclose::linux::sock_diag::Socket;
use tcpclose_common::state::TcpState;

/// What closes a socket, on which side of a port of its own, and what is to be said of it.
struct Cause {
    name: &'static str,
    side: &'static str,
    outcome: &'static str,
    /// The kernel's reason; `None` where no RST is sent, or where it gives none.
    reason: Option<&'static str>,
    /// In the namespace of the calling thread.
    play: fn(u16),
}

const CAUSES: [Cause; 12] = [
    Cause {
        name: "closed with unread data",
        side: "server",
        outcome: "aborted",
        reason: Some("tcp_abort_on_close"),
        play: |port| {
            let (mut client, server) = pair(port);
            client.write_all(b"unread").unwrap();
            assert_eq!(server.peek(&mut [0]).unwrap(), 1);
            drop(server);
        },
    },
    Cause {
        name: "closed with linger 0",
        side: "server",
        outcome: "aborted",
        reason: Some("linger_0"),
        play: |port| {
            let (_client, server) = pair(port);
            SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
            drop(server);
        },
    },
    Cause {
        name: "disconnected",
        side: "client",
        outcome: "aborted",
        reason: Some("tcp_state"),
        play: |port| {
            let (client, _server) = pair(port);
            let unspecified =
                libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
            // SAFETY: an address of the family AF_UNSPEC, which lives for the call.
            let done = unsafe {
                libc::connect(
                    client.as_raw_fd(),
                    &raw const unspecified,
                    size_of::<libc::sockaddr>() as libc::socklen_t,
                )
            };
            assert_eq!(done, 0);
        },
    },
    Cause {
        name: "data after close",
        side: "server",
        outcome: "reset_sent",
        reason: Some("tcp_abort_on_data"),
        play: |port| {
            let (mut client, server) = pair(port);
            // Longer than TIME-WAIT: the socket stays a full one.
            set(&SockRef::from(&server), libc::TCP_LINGER2, 90);
            drop(server);
            until_state(&client, CLOSE_WAIT);
            client.write_all(b"too late").unwrap();
        },
    },
    Cause {
        name: "data for a minisocket",
        side: "server",
        outcome: "reset_sent",
        reason: Some("tcp_timewait_socket"),
        play: |port| {
            let (mut client, server) = pair(port);
            drop(server);
            until_state(&client, CLOSE_WAIT);
            // Its acknowledgment can take some milliseconds.
            let until = Instant::now() + PATIENCE;
            while found(port, TcpState::FinWait2).is_none_or(|socket| !socket.minisocket) {
                assert!(Instant::now() < until, "no minisocket");
            }
            client.write_all(b"too late").unwrap();
        },
    },
    Cause {
        name: "a write that the peer resets",
        side: "client",
        outcome: "reset_received",
        reason: None,
        play: |port| {
            let (mut client, server) = pair(port);
            drop(server);
            until_state(&client, CLOSE_WAIT);
            client.write_all(b"too late").unwrap();
        },
    },
    Cause {
        name: "the peer's reset",
        side: "client",
        outcome: "reset_received",
        reason: None,
        play: |port| {
            let (_client, server) = pair(port);
            SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
            drop(server);
        },
    },
    Cause {
        name: "a graceful close",
        side: "client",
        outcome: "graceful",
        reason: None,
        play: |port| {
            let (client, mut server) = pair(port);
            drop(client);
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
        },
    },
    Cause {
        name: "destroyed",
        side: "server",
        outcome: "destroyed",
        reason: Some("tcp_state"),
        play: |port| {
            let (_client, server) = pair(port);
            let socket = found(port, TcpState::Established).unwrap();
            sock_diag::destroy(&socket.flow, 0, socket.cookie).unwrap();
            drop(server);
        },
    },
    Cause {
        name: "the listener closes",
        side: "server",
        outcome: "aborted",
        reason: Some("tcp_state"),
        play: |port| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            drop((listener, client));
        },
    },
    Cause {
        name: "keepalive",
        side: "server",
        outcome: "timeout",
        reason: Some("tcp_keepalive_timeout"),
        play: |port| {
            let (server, _peer) = silent(port, 1);
            let socket = SockRef::from(&server);
            socket.set_keepalive(true).unwrap();
            set(&socket, libc::TCP_KEEPIDLE, 1);
            set(&socket, libc::TCP_KEEPINTVL, 1);
            set(&socket, libc::TCP_KEEPCNT, 1);
            until_error(&server);
        },
    },
    Cause {
        name: "user timeout",
        side: "server",
        outcome: "timeout",
        reason: None,
        play: |port| {
            let (mut server, _peer) = silent(port, 2);
            set(&SockRef::from(&server), libc::TCP_USER_TIMEOUT, 500);
            server.write_all(b"are you there?").unwrap();
            until_error(&server);
        },
    },
];

/// Both ends of a connection: the client's, then the server's.
fn pair(port: u16) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    (client, listener.accept().unwrap().0)
}

/// The socket with this local port in `state`.
fn found(port: u16, state: TcpState) -> Option<Socket> {
    let dump = sock_diag::dump(state.bit(), false).unwrap();
    dump.sockets.into_iter().find(|socket| socket.flow.local_port == port)
}

/// A connection whose peer says nothing any more.
fn silent(port: u16, nth: u8) -> (TcpStream, Peer) {
    let v4 = Ipv4Addr::new(10, 84, nth, 1);
    let v6 = Ipv6Addr::new(0xfd84, 0, 0, nth.into(), 0, 0, 0, 1);
    let there = SocketAddr::from((Ipv4Addr::new(10, 84, nth, 2), 40_000));
    let here = SocketAddr::from((v4, port));
    let mut peer = Peer::new(Tun::new(&format!("wire{nth}"), v4, v6).unwrap(), there, here);
    let listener = TcpListener::bind(here).unwrap();
    peer.connect();
    (listener.accept().unwrap().0, peer)
}

fn until_error(stream: &TcpStream) {
    let until = Instant::now() + PATIENCE;
    while stream.take_error().unwrap().is_none() {
        assert!(Instant::now() < until, "no error");
        sleep(Duration::from_millis(20));
    }
}

/// The reasons that no kernel has to give.
const OURS: [&str; 2] = ["linger_0", "tcp_timewait_socket"];

/// The first port of a namespace of its own; each cause has the next.
const FIRST: u16 = 7000;

#[test]
#[ignore = "needs root"]
fn each_reset_has_the_kernels_reason() {
    let gives_reasons = std::fs::read("/sys/kernel/btf/vmlinux")
        .is_ok_and(|btf| btf.windows(14).any(|name| name == b"sk_rst_reason\0"));
    for (hook, agent) in Agent::on_each_hook(&[]) {
        apart(|| play(hook, &agent, gives_reasons));
    }
}

fn play(hook: &str, agent: &Agent, gives_reasons: bool) {
    let netns = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    let ports: Vec<u16> = (FIRST..).take(CAUSES.len()).collect();
    let chosen: Vec<String> = ports.iter().map(|port| format!("--port={port}")).collect();
    let mut watch = Reader::json(agent, &chosen.iter().map(String::as_str).collect::<Vec<_>>());
    for (port, cause) in ports.iter().zip(&CAUSES) {
        (cause.play)(*port);
    }
    // Of a port on which nobody listens.
    let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    let mut wrong = Vec::new();
    for (port, cause) in ports.into_iter().zip(&CAUSES) {
        let line = watch.step_when(PATIENCE, cause.name, |line| {
            let is_over = !line["outcome"].is_null() || line["to"] == "time_wait";
            let is_of_its_end = line["port"] == port && line["side"] == cause.side;
            is_over && is_of_its_end && line["netns"].as_u64() == Some(netns)
        });
        let expected = cause.reason.filter(|reason| gives_reasons || OURS.contains(reason));
        let outcome = if line["to"] == "time_wait" { "graceful" } else { line["outcome"].as_str().unwrap() };
        let got = (outcome, line["reset_reason"].as_str());
        println!("{hook}: {}: {got:?}", cause.name);
        // Of a minisocket only hooks tell how it ended.
        if got != (cause.outcome, expected) && got != ("unknown", None) {
            wrong.push(format!("{}: {got:?}, not {:?}: {line}", cause.name, (cause.outcome, expected)));
        }
    }
    assert!(wrong.is_empty(), "{hook}: {wrong:#?}");

    let metrics = agent.metrics();
    let count = |direction, reason| {
        metrics.sum("tcpclose_resets_total", &[("direction", direction), ("reason", reason)])
    };
    if gives_reasons {
        for reason in ["tcp_abort_on_close", "tcp_abort_on_data", "tcp_keepalive_timeout", "no_socket"] {
            assert!(count("sent", reason) >= 1.0, "{hook}: {reason}");
        }
    }
    assert!(count("received", "stale_write") >= 1.0 && count("received", "unknown") >= 1.0, "{hook}");
}
