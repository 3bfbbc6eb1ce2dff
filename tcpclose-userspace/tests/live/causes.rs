//! Why sockets that have sent their FIN still exist: FIN-WAIT-2 that a local peer holds, or nobody; FIN-WAIT-1 whose peer does not
//! read; a FIN that is not acknowledged.

use crate::cases::peer::Peer;
use crate::cases::place::Tun;
use crate::cases::wire::FIN;
use crate::common::apart::{CLOSE_WAIT, apart, until_state};
use crate::common::{Agent, BINARY, Metrics, free_port};

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tcpclose::names::Cause;
use tcpclose::report::sockets::{SocketsDocument, StuckSocket};

const PATIENCE: Duration = Duration::from_secs(60);
/// include/net/tcp_states.h
const FIN_WAIT_2: u8 = 5;

fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    (TcpStream::connect(listener.local_addr().unwrap()).unwrap(), listener.accept().unwrap().0)
}

fn ask(source: &[&str], state: &str, port: u16, more: &[&str]) -> String {
    let output = Command::new(BINARY)
        .args([
            "stuck",
            "--older-than",
            "0s",
            "--netns",
            "current",
            "--state",
            state,
            "--port",
            &port.to_string(),
        ])
        .args(source)
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one socket, when it has this `cause`.
fn one(source: &[&str], state: &str, port: u16, cause: Cause) -> StuckSocket {
    let until = Instant::now() + PATIENCE;
    loop {
        let document: SocketsDocument = serde_json::from_str(&ask(source, state, port, &["--json"])).unwrap();
        if let [socket] = &document.sockets[..]
            && socket.cause == Some(cause)
        {
            return socket.clone();
        }
        assert!(Instant::now() < until, "not {}: {:?}", cause.name(), document.sockets);
        sleep(Duration::from_millis(100));
    }
}

#[test]
#[ignore = "needs root"]
fn who_keeps_a_socket_that_has_sent_its_fin_is_named() {
    let agent = Agent::start(&[]);
    let socket = agent.socket();
    let by_agent = ["--socket", socket.to_str().unwrap()];
    let listeners = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap());
    let ports = listeners.each_ref().map(|listener| listener.local_addr().unwrap().port());

    // The server has the end, and does not close.
    let (client, server) = pair(&listeners[0]);
    client.shutdown(Shutdown::Write).unwrap();
    until_state(&server, CLOSE_WAIT);
    until_state(&client, FIN_WAIT_2);
    // The client has closed altogether.
    let (closed, kept) = pair(&listeners[1]);
    drop(closed);
    until_state(&kept, CLOSE_WAIT);
    // The server does not read: what the client has written waits, and its FIN behind it.
    let (mut full, unread) = pair(&listeners[2]);
    full.set_nonblocking(true).unwrap();
    while !full.write(&[0; 1 << 16]).is_err_and(|why| why.kind() == ErrorKind::WouldBlock) {}
    full.shutdown(Shutdown::Write).unwrap();

    let own = std::process::id();
    for source in [&by_agent[..], &["--no-agent"]] {
        let held = one(source, "fin_wait_2", ports[0], Cause::PeerNotClosing);
        assert!(held.owners.iter().any(|owner| owner.pid == own), "{held:?}");
        assert!(held.peer_owners.iter().any(|owner| owner.pid == own), "{held:?}");
        let text = ask(source, "fin-wait-2", ports[0], &[]).replace('\n', " ");
        assert!(text.contains("peer_not_closing") && text.contains("and has not closed"), "{text}");
        let left = one(source, "fin_wait_2", ports[1], Cause::PeerNotClosing);
        assert!(left.owners.is_empty() && left.peer_owners.iter().any(|owner| owner.pid == own), "{left:?}");
        let full = one(source, "fin_wait_1", ports[2], Cause::PeerNotReading);
        assert!(
            full.peer_window == Some(0) && full.unsent_bytes > 0 && full.timer_seconds.is_some(),
            "{full:?}"
        );
    }
    drop((client, server, kept, full, unread));
}

/// FINs that a peer must receive again before it acknowledges them.
const AGAIN: usize = 2;

/// This side's FIN first, then the peer's: FIN-WAIT-1 and LAST-ACK. Returns how often the FIN was sent again.
fn sent_again(port: u16, peer_first: bool) -> usize {
    let v4 = Ipv4Addr::new(10, 85, peer_first.into(), 1);
    let v6 = Ipv6Addr::new(0xfd85, 0, 0, peer_first.into(), 0, 0, 0, 1);
    let (there, here) = (
        SocketAddr::from((Ipv4Addr::new(10, 85, peer_first.into(), 2), 40_000)),
        SocketAddr::from((v4, port)),
    );
    let mut peer =
        Peer::new(Tun::new(&format!("again{}", u8::from(peer_first)), v4, v6).unwrap(), there, here);
    let listener = TcpListener::bind(here).unwrap();
    peer.connect();
    let server = listener.accept().unwrap().0;
    if peer_first {
        peer.fin();
        until_state(&server, CLOSE_WAIT);
    }
    drop(server);
    (0..=AGAIN).for_each(|_| drop(peer.expect(FIN)));
    if peer_first {
        peer.ack()
    } else {
        peer.fin_and_ack()
    }
    // What a busy machine sent before it took the acknowledgment.
    let mut sent = AGAIN;
    while let Some(segment) = peer.receive(Instant::now() + Duration::from_secs(1)) {
        sent += usize::from(segment.has(FIN));
    }
    sent
}

#[test]
#[ignore = "needs root"]
fn a_fin_that_is_sent_again_is_counted() {
    for (hook, agent) in Agent::on_each_hook(&[]) {
        for peer_first in [false, true] {
            let port = free_port();
            let name = port.to_string();
            let labels = [("side", "server"), ("port", &*name)];
            // A dump must find its TIME-WAIT, which goes with the namespace.
            let (sent, metrics) = apart(|| {
                let sent = sent_again(port, peer_first);
                let is_closed = |metrics: &Metrics| metrics.sum("tcpclose_closes_total", &labels) >= 1.0;
                (sent, agent.metrics_when(PATIENCE, "its close", is_closed))
            });
            let counted = metrics.sum("tcpclose_fin_retransmits_total", &labels);
            assert_eq!(counted, sent as f64, "{hook}, the peer first: {peer_first}");
        }
        assert_eq!(agent.metrics().sum("tcpclose_hook_degraded", &[("hook", "retransmit")]), 0.0, "{hook}");
    }
}
