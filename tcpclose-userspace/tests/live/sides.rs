//! Which end of its connection a socket is, where the listener on its port is no proof: a program that connects
//! from the port that it listens on, children of `listen(fd, 0)`, and sockets that are restored in repair mode.
//!
//! All is played in a network namespace of a thread's own, so that ports are its own. The agent is in the host's.

use crate::common::apart::{
    CLOSE_WAIT, PATIENCE, TCP_REPAIR, apart, at, listener, restored, set, socket, until_state,
};
use crate::common::{Agent, BINARY, Metrics, free_port};

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use serde_json::Value;

/// Both ends of a restored connection, out of repair mode: the server's on `port`, the client's on `from`.
fn restored_pair(port: u16, from: u16) -> (TcpStream, TcpStream) {
    let server = restored((port, from), (1_000, 2_000), b"");
    let client = restored((from, port), (2_000, 1_000), b"");
    for socket in [&server, &client] {
        set(socket, TCP_REPAIR, 0);
    }
    (server.into(), client.into())
}

/// A connection to `listener` from `from` (any port for 0) whose client has sent its FIN: the accepted end,
/// then the client's.
fn half_closed(listener: &TcpListener, from: u16) -> (TcpStream, TcpStream) {
    let client = socket();
    client.set_reuse_port(true).unwrap();
    if from != 0 {
        client.bind(&at(from).into()).unwrap();
    }
    client.connect(&listener.local_addr().unwrap().into()).unwrap();
    let client = TcpStream::from(client);
    let (mut server, _) = listener.accept().unwrap();
    // Some data each way, so that the counters count.
    server.write_all(b"welcome").unwrap();
    (&client).write_all(b"thanks").unwrap();
    (&client).read_exact(&mut [0; 7]).unwrap();
    server.read_exact(&mut [0; 6]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    until_state(&server, CLOSE_WAIT);
    (server, client)
}

/// Side and port of the CLOSE-WAIT at `local`, as `command` tells it; `None` when it lists none there.
fn reported(command: &mut Command, local: SocketAddr) -> Option<(String, u64)> {
    let output = command.args(["--json", "--older-than", "0s"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sockets = document["sockets"].as_array().unwrap();
    let socket = sockets.iter().find(|socket| socket["local"] == local.to_string())?;
    Some((socket["side"].as_str().unwrap().to_owned(), socket["port"].as_u64().unwrap()))
}

fn by_snapshot(local: SocketAddr) -> Option<(String, u64)> {
    reported(Command::new(BINARY).args(["stuck", "--no-agent"]), local)
}

fn by_agent(agent: &Agent, local: SocketAddr) -> Option<(String, u64)> {
    reported(Command::new(BINARY).arg("stuck").arg("--socket").arg(agent.socket()), local)
}

fn agents() -> Vec<(&'static str, Agent)> {
    Agent::on_each_hook(&["--reconcile-interval", "1s"])
}

/// Waits until a dump that began after now has been taken in.
fn after_a_dump(agent: &Agent) {
    let name = "tcpclose_reconcile_last_success_timestamp_seconds";
    let last = agent.metrics().sum(name, &[]);
    // The next one may have begun before now.
    let one = agent.metrics_when(PATIENCE, "a dump", |metrics| metrics.sum(name, &[]) > last).sum(name, &[]);
    agent.metrics_when(PATIENCE, "another dump", |metrics| metrics.sum(name, &[]) > one);
}

/// Waits until each of `agents` has counted the close of a `side` of `port`, and passes its metrics to `then`.
fn until_closed<'a>(
    agents: impl IntoIterator<Item = &'a (&'static str, Agent)>,
    side: &str,
    port: u16,
    then: impl Fn(&str, &Metrics),
) {
    for (hook, agent) in agents {
        let what = format!("{hook}: the close of a {side} of {port}");
        then(hook, &agent.metrics_when(PATIENCE, &what, |metrics| closes(metrics, side, port) == 1.0));
    }
}

/// The closes with these labels of a port.
fn closes(metrics: &Metrics, side: &str, port: u16) -> f64 {
    metrics.sum("tcpclose_closes_total", &[("side", side), ("port", &port.to_string())])
}

/// A port inside the local port range, in a namespace of a test's own.
const CHANCE: u16 = 45_678;

#[test]
#[ignore = "needs root"]
fn a_node_that_connects_from_the_port_it_listens_on_is_a_client() {
    let agents = agents();
    let port = free_port();
    let peer = free_port();
    let late = apart(|| {
        let _own = listener(port, 128);
        let theirs = listener(peer, 128);
        // The node's end is the one in CLOSE-WAIT.
        let node = socket();
        node.set_reuse_port(true).unwrap();
        node.bind(&at(port).into()).unwrap();
        node.connect(&at(peer).into()).unwrap();
        let node = TcpStream::from(node);
        let (far, _) = theirs.accept().unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        until_state(&node, CLOSE_WAIT);
        let client = Some(("client".to_owned(), peer.into()));
        assert_eq!(by_snapshot(at(port)), client, "snapshot");
        for (hook, agent) in &agents {
            assert_eq!(by_agent(agent, at(port)), client, "{hook}");
            after_a_dump(agent);
            assert_eq!(by_agent(agent, at(port)), client, "{hook}, after a dump");
        }
        // And by agents that find it.
        let late = self::agents();
        for (hook, agent) in &late {
            assert_eq!(by_agent(agent, at(port)), client, "{hook}, older than the agent");
        }
        late
    });
    until_closed(agents.iter().chain(&late), "client", peer, |hook, metrics| {
        assert_eq!(closes(metrics, "server", port), 0.0, "{hook}");
    });
}

#[test]
#[ignore = "needs root"]
fn what_listen_0_accepts_is_a_server_also_when_the_listener_is_gone() {
    let agents = agents();
    let port = free_port();
    let server = Some(("server".to_owned(), port.into()));
    apart(|| {
        let listener = listener(port, 0);
        let (accepted, client) = half_closed(&listener, CHANCE);
        assert_eq!(by_snapshot(at(port)), server, "snapshot");
        for (hook, agent) in &agents {
            assert_eq!(by_agent(agent, at(port)), server, "{hook}");
        }
        let late = self::agents();
        drop(listener);
        for (hook, agent) in agents.iter().chain(&late) {
            after_a_dump(agent);
            assert_eq!(by_agent(agent, at(port)), server, "{hook}, after a dump, without its listener");
        }
        // One that nobody has seen the opening of, without its listener.
        let unknown = Some(("unknown".to_owned(), port.into()));
        assert_eq!(by_snapshot(at(port)), unknown, "snapshot");
        for (hook, agent) in &self::agents() {
            assert_eq!(by_agent(agent, at(port)), unknown, "{hook}, older than the agent");
        }
        drop((accepted, client));
        until_closed(agents.iter().chain(&late), "server", port, |hook, metrics| {
            assert_eq!(closes(metrics, "client", port), 1.0, "{hook}: its client's");
            assert_eq!(closes(metrics, "client", CHANCE), 0.0, "{hook}");
        });
    });
}

/// The first step is the close: the only thing that tells of the opening is the mark.
#[test]
#[ignore = "needs root"]
fn what_listen_0_accepted_is_a_server_when_the_listener_went_before_its_first_step() {
    let agents = agents();
    let port = free_port();
    apart(|| {
        let listener = listener(port, 0);
        let client = TcpStream::connect(at(port)).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        drop(listener);
        accepted.shutdown(Shutdown::Write).unwrap();
        drop(client);
        drop(accepted);
        until_closed(&agents, "server", port, |_, _| {});
    });
}

#[test]
#[ignore = "needs root"]
fn a_self_connect_is_a_client_and_a_listener_of_no_backlog_changes_nothing() {
    let agents = agents();
    let peer = free_port();
    apart(|| {
        let own = socket();
        own.bind(&at(peer).into()).unwrap();
        own.connect(&at(peer).into()).unwrap();
        drop(own);
        until_closed(&agents, "client", peer, |hook, metrics| {
            assert_eq!(closes(metrics, "server", peer), 0.0, "{hook}");
        });
    });
}

#[test]
#[ignore = "needs root"]
fn a_restored_socket_is_a_server_under_its_listener_and_unknown_without_one() {
    let agents = agents();
    let port = free_port();
    apart(|| {
        let listener = listener(port, 128);
        for (_, agent) in &agents {
            after_a_dump(agent);
        }
        let (server, client) = restored_pair(port, CHANCE);
        client.shutdown(Shutdown::Write).unwrap();
        until_state(&server, CLOSE_WAIT);
        let reported_server = Some(("server".to_owned(), port.into()));
        assert_eq!(by_snapshot(at(port)), reported_server, "snapshot");
        for (hook, agent) in &agents {
            assert_eq!(by_agent(agent, at(port)), reported_server, "{hook}");
        }
        drop((server, client, listener));
        for (hook, agent) in &agents {
            let what = format!("{hook}: the closes of both ends");
            let of_both =
                |metrics: &Metrics| closes(metrics, "server", port) + closes(metrics, "unknown", port);
            // Nothing proves the other end's side: its port is the remote one, since its own is one of chance.
            let metrics = agent.metrics_when(PATIENCE, &what, |metrics| of_both(metrics) == 2.0);
            assert_eq!(closes(&metrics, "unknown", port), 1.0, "{hook}");
            assert_eq!(closes(&metrics, "client", port) + closes(&metrics, "client", CHANCE), 0.0, "{hook}");
        }
    });
}

/// One byte in its send queue makes the counters of a restored socket those of a client: the mark tells it apart.
#[test]
#[ignore = "needs root"]
fn a_restored_socket_with_one_byte_to_send_is_no_client() {
    let agents = agents();
    let port = free_port();
    apart(|| {
        let _listener = listener(port, 128);
        for (_, agent) in &agents {
            after_a_dump(agent);
        }
        let server = restored((port, CHANCE), (1_000, 2_000), b"x");
        set(&server, TCP_REPAIR, 0);
        // Nobody is at the other end; the next segment is answered by a RST.
        until_closed(&agents, "server", port, |hook, metrics| {
            assert_eq!(closes(metrics, "client", CHANCE), 0.0, "{hook}");
        });
    });
}
