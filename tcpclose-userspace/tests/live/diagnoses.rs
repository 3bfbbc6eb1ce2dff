//! Every diagnosis made for real, through the agent, on both state hooks.

use crate::common;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Agent, Metrics, half_closed_client, listen};
use tcpclose::names::{Diagnosis, Phase, Side};
use tcpclose::report::sockets::{DocumentSource, SocketsDocument, StuckSocket};

const PATIENCE: Duration = Duration::from_secs(30);

fn fd(file: &impl AsRawFd) -> u32 {
    file.as_raw_fd() as u32
}

/// What the agent says of `port`, by `tcpclose stuck`.
fn ask(agent: &Agent, port: u16, arguments: &[&str]) -> SocketsDocument {
    let output = agent.stuck(&[&["--json", "--port", &port.to_string()], arguments].concat());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let document: SocketsDocument = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document.source, DocumentSource::Agent);
    document
}

/// Stuck and perhaps stuck sockets on the server's side of `port`.
fn stuck(metrics: &Metrics, port: u16) -> (f64, f64) {
    let port = port.to_string();
    let labels = [("side", "server"), ("port", port.as_str())];
    (metrics.sum("tcpclose_stuck_sockets", &labels), metrics.sum("tcpclose_stuck_sockets_unproven", &labels))
}

/// Asserts what `document` says of the server's end of `client`, which `holder` keeps.
fn expect(document: &SocketsDocument, client: &TcpStream, holder: u32, diagnosis: Diagnosis, unread: u32) {
    let peer = client.local_addr().unwrap();
    let port = client.peer_addr().unwrap().port();
    let found: Vec<&StuckSocket> = document.sockets.iter().filter(|socket| socket.peer == peer).collect();
    assert_eq!(found.len(), 1);
    let socket = found[0];
    assert_eq!((socket.diagnosis, socket.unread_bytes), (Some(diagnosis), unread));
    assert_eq!((socket.state, socket.side, socket.port), (Phase::CloseWait, Side::Server, port));
    assert!(socket.age.exact);
    let owners: Vec<(u32, u32)> = socket.owners.iter().map(|owner| (owner.pid, owner.fd)).collect();
    assert_eq!(owners, [(std::process::id(), holder)]);
    assert_eq!(socket.inode == 0, diagnosis == Diagnosis::NotAccepted);
}

#[test]
#[ignore = "needs root"]
fn every_kind_of_neglect() {
    let (listener, port) = listen();
    let agents = Agent::on_each_hook(&["--stuck-after", "1s,1h", "--name-port", &port.to_string()]);
    let accept = || listener.accept().unwrap().0;
    let never_read = (half_closed_client(port, b"hello"), accept());
    let eof_waits = (half_closed_client(port, b""), accept());
    let mut data_unread = (half_closed_client(port, b"hello"), accept());
    data_unread.1.read_exact(&mut [0; 2]).unwrap();
    let mut eof_read = (half_closed_client(port, b"hello"), accept());
    eof_read.1.read_to_end(&mut Vec::new()).unwrap();
    // It answered after the FIN, and then forgot to close: that was work once.
    let mut answered = (half_closed_client(port, b"hello"), accept());
    answered.1.read_to_end(&mut Vec::new()).unwrap();
    answered.1.write_all(b"world").unwrap();
    let queued = half_closed_client(port, b"hello");

    for (hook, agent) in &agents {
        let all = |metrics: &Metrics| stuck(metrics, port) == (6.0, 0.0);
        agent.metrics_when(PATIENCE, "six are stuck", all);
        let document = ask(agent, port, &[]);
        println!("{hook}: {:?}", document.sockets.iter().map(|socket| socket.diagnosis).collect::<Vec<_>>());
        assert_eq!(document.sockets.len(), 6);
        expect(&document, &never_read.0, fd(&never_read.1), Diagnosis::NotRead, 5);
        expect(&document, &eof_waits.0, fd(&eof_waits.1), Diagnosis::NotRead, 0);
        expect(&document, &data_unread.0, fd(&data_unread.1), Diagnosis::NotRead, 3);
        expect(&document, &eof_read.0, fd(&eof_read.1), Diagnosis::NotClosed, 0);
        expect(&document, &answered.0, fd(&answered.1), Diagnosis::NotClosed, 0);
        // Nobody holds it, and who could take it holds the listener.
        expect(&document, &queued, fd(&listener), Diagnosis::NotAccepted, 5);
    }

    // Whatever was amiss, it is over when the program takes it and closes.
    drop((never_read.1, eof_waits.1, data_unread.1, eof_read.1, answered.1, accept()));
    for (_, agent) in &agents {
        let none = |metrics: &Metrics| stuck(metrics, port) == (0.0, 0.0);
        agent.metrics_when(PATIENCE, "none is stuck", none);
        assert_eq!(ask(agent, port, &["--older-than", "0s"]).sockets, []);
    }
}

/// A server that streams on to a peer that has sent its FIN, until told to stop; it never closes.
struct Streaming {
    client: TcpStream,
    stop: mpsc::Sender<()>,
    /// Its socket, and when it began its last write.
    thread: JoinHandle<(TcpStream, Instant)>,
    holder: u32,
}

impl Streaming {
    fn start(listener: &TcpListener, port: u16) -> Self {
        let client = half_closed_client(port, b"");
        let mut server = listener.accept().unwrap().0;
        let holder = fd(&server);
        let mut reader = client.try_clone().unwrap();
        reader.set_nonblocking(true).unwrap();
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            loop {
                let last = Instant::now();
                server.write_all(b"news").unwrap();
                match reader.read(&mut [0; 64]) {
                    Ok(n) => assert_ne!(n, 0),
                    Err(why) => assert_eq!(why.kind(), ErrorKind::WouldBlock),
                }
                if stopped.recv_timeout(Duration::from_millis(20)).is_ok() {
                    return (server, last);
                }
            }
        });
        Self { client, stop, thread, holder }
    }
}

#[test]
#[ignore = "needs root"]
fn a_server_that_streams_on_is_not_stuck_until_it_stops() {
    // A bound no longer than what lies between two looks must not make it stuck in between.
    let bounds = [("1s,1h", Duration::from_secs(1)), ("3s,1h", Duration::from_secs(3))];
    let (listener, port) = listen();
    // One from before the agents, one that they see entering CLOSE-WAIT.
    let begun = Instant::now();
    let early = Streaming::start(&listener, port);
    let agents: Vec<_> = bounds
        .into_iter()
        .flat_map(|(text, bound)| {
            Agent::on_each_hook(&["--stuck-after", text, "--name-port", &port.to_string()])
                .into_iter()
                .map(move |(hook, agent)| (hook, bound, agent))
        })
        .collect();
    let late = Streaming::start(&listener, port);
    let both = Instant::now();

    // Over three of the longer bound.
    while both.elapsed() < 3 * bounds[1].1 {
        for (hook, bound, agent) in &agents {
            let counted = stuck(&agent.metrics(), port);
            let age = both.elapsed();
            assert_eq!(
                counted,
                (0.0, 0.0),
                "{hook}, {bound:?}: streaming for {age:?} to {:?}",
                begun.elapsed()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for (hook, _, agent) in &agents {
        let document = ask(agent, port, &[]);
        assert_eq!(document.sockets.len(), 2, "{hook}");
        for streaming in [&early, &late] {
            let peer = streaming.client.local_addr().unwrap();
            let socket = document.sockets.iter().find(|socket| socket.peer == peer).unwrap();
            assert_eq!(socket.diagnosis, Some(Diagnosis::StillSending));
            let owners: Vec<(u32, u32)> = socket.owners.iter().map(|owner| (owner.pid, owner.fd)).collect();
            assert_eq!(owners, [(std::process::id(), streaming.holder)]);
        }
        let check = agent.stuck(&["--port", &port.to_string(), "--check"]);
        assert_eq!(check.status.code(), Some(0), "{check:?}");
    }

    let mut last = begun;
    let mut kept = Vec::new();
    for Streaming { client, stop, thread, .. } in [early, late] {
        stop.send(()).unwrap();
        let (server, written) = thread.join().unwrap();
        last = written;
        kept.push((client, server));
    }
    for (hook, bound, agent) in &agents {
        let both = |metrics: &Metrics| stuck(metrics, port) == (2.0, 0.0);
        let metrics = agent.metrics_when(PATIENCE, "both are stuck", both);
        let silent = last.elapsed();
        let looks = metrics.sum("tcpclose_reconcile_interval_seconds", &[]);
        println!(
            "{hook}, bound {bound:?}, looks {looks} s apart: stuck {silent:?} after the last write or before"
        );
        assert!(silent >= *bound);
        let document = ask(agent, port, &[]);
        assert_eq!(document.sockets.len(), 2);
        assert!(document.sockets.iter().all(|socket| socket.diagnosis == Some(Diagnosis::NotClosed)));
        let check = agent.stuck(&["--port", &port.to_string(), "--check"]);
        assert_eq!(check.status.code(), Some(1), "{check:?}");
    }
}
