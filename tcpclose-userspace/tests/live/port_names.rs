//! Which ports have series of their own: chance ports, a user's many ports and unknown sides leave names for leaks.

use crate::common;
use crate::namespaces::named;
use crate::stale::Tenant;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Agent, BINARY, Metrics, free_port};
use named::{Named, enter};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
/// Leaks are stuck, and seen by a dump, within seconds.
const SOON: [&str; 4] = ["--stuck-after", "2s", "--reconcile-interval", "1s"];

/// The ports that are a label.
fn labels(metrics: &Metrics) -> BTreeSet<u16> {
    metrics.with(&[]).filter_map(|(_, labels, _)| labels.get("port")?.parse().ok()).collect()
}

fn inside<T: Send>(file: &Path, what: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            enter(file);
            what()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn listen(port: u16) -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap()
}

/// A connection whose client has closed: the server's end is in CLOSE-WAIT.
fn leak(listener: &TcpListener) -> TcpStream {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    drop(client);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    server
}

fn stuck_on(metrics: &Metrics, port: u16) -> f64 {
    metrics.sum("tcpclose_stuck_sockets", &[("side", "server"), ("port", &port.to_string())])
}

/// The host's range is another one. The clients are older than the agent, so that only their ports can tell the service's.
#[test]
#[ignore = "needs root"]
fn clients_of_a_namespace_with_a_range_of_its_own_take_no_names() {
    const SERVICE: u16 = 9443;
    let netns = Named::new("range");
    netns.inside(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", "2000 2100").unwrap());
    let _open: Vec<TcpStream> = netns.inside(|| {
        let listener = listen(SERVICE);
        let clients = (0..60).map(|_| {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            drop(listener.accept().unwrap());
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            client
        });
        clients.collect()
    });
    let agent = Agent::start(&["--max-ports", "32", "--name-port", &SERVICE.to_string()]);
    let service = SERVICE.to_string();
    let metrics = agent.metrics_when(PATIENCE, "all clients are counted", |metrics| {
        metrics.sum("tcpclose_sockets", &[("state", "close_wait"), ("port", &service)]) >= 60.0
    });
    let chance: Vec<u16> = labels(&metrics).into_iter().filter(|port| (2000..=2100).contains(port)).collect();
    assert!(chance.is_empty(), "chance ports of clients: {chance:?}");

    let output = Command::new(BINARY).args(["stuck", "--no-agent", "--older-than", "0s", "--json"]).output();
    let document: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let ours = document["sockets"].as_array().unwrap().iter().filter(|socket| socket["netns"] == netns.inum);
    let ports: Vec<&Value> = ours.map(|socket| &socket["port"]).collect();
    assert!(ports.len() == 60 && ports.iter().all(|port| **port == SERVICE), "{ports:?}");
}

/// A leak closes nothing, so that the hundred closes that a port of the local range needs never come.
#[test]
#[ignore = "needs root"]
fn leaks_among_chance_ports_are_named() {
    let netns = Named::new("chance");
    let listeners: Vec<TcpListener> = netns.inside(|| (0..200).map(|_| listen(0)).collect());
    let agent = Agent::start(&[&SOON[..], &["--max-ports", "256"]].concat());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let leaking = [&listeners[20], &listeners[77], &listeners[150]];
    let _leaks: Vec<TcpStream> = netns.inside(|| {
        for listener in &listeners {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            drop(client);
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
        }
        leaking.iter().map(|listener| leak(listener)).collect()
    });
    let leaking = leaking.map(port);
    let metrics = agent.metrics_when(PATIENCE, "the three leaks are named", |metrics| {
        leaking.iter().all(|&port| stuck_on(metrics, port) == 1.0)
    });
    let range = 32_768..=60_999;
    assert!(leaking.iter().all(|port| range.contains(port)), "{leaking:?}");
    let ours: BTreeSet<u16> = listeners.iter().map(port).collect();
    let named: Vec<u16> = labels(&metrics).intersection(&ours).copied().collect();
    // Other tests can have one of the ports elsewhere.
    println!("{named:?} of {} chance ports are named", ours.len());
    assert!(named.len() < 20, "{named:?}");
}

/// A user leaks on more ports than there are names, in a network namespace of their own; then root does on one.
#[test]
#[ignore = "needs root"]
fn a_user_with_many_ports_leaves_names_for_others() {
    const NAMES: usize = 256;
    const PORTS: std::ops::Range<u16> = 10_001..10_301;
    let Some(tenant) = Tenant::start(&["--net"], "set -e\nip link set lo up") else { return };
    let file = format!("/proc/{}/ns/net", tenant.pid());
    let _leaks: Vec<(TcpListener, TcpStream)> = inside(Path::new(&file), || {
        let leaks = PORTS.map(|port| {
            let listener = listen(port);
            let leak = leak(&listener);
            (listener, leak)
        });
        leaks.collect()
    });
    let agent = Agent::start(&[&SOON[..], &["--max-ports", &NAMES.to_string()]].concat());
    // All of them are stuck.
    agent.metrics_when(PATIENCE, "the user's leaks are counted", |metrics| {
        metrics.sum("tcpclose_stuck_sockets", &[("side", "server")]) >= PORTS.len() as f64
    });
    let listener = listen(free_port());
    let port = listener.local_addr().unwrap().port();
    let _leak = leak(&listener);
    let metrics =
        agent.metrics_when(PATIENCE, "root's leak is named", |metrics| stuck_on(metrics, port) == 1.0);
    let named = labels(&metrics).into_iter().filter(|port| PORTS.contains(port)).count();
    println!("{named} of {NAMES} names are the user's");
    assert!(named <= NAMES * 5 / 8, "{named}");
}
