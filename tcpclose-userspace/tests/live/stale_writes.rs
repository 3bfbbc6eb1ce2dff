//! Connections that a program writes to after the peer has closed them: what users report as "connection reset by peer".

use crate::common::apart::{CLOSE_WAIT, PATIENCE, until_state};
use crate::common::reader::Reader;
use crate::common::{Agent, free_port};

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// Both ends of a connection to `listener` over which a request and its answer went: the client's, then the server's.
fn used(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"question").unwrap();
    server.read_exact(&mut [0; 8]).unwrap();
    server.write_all(b"answer").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    (client, server)
}

fn is_reset(client: &mut TcpStream) -> bool {
    client.read(&mut [0; 9]).is_ok_and(|n| n == 0) || client.take_error().is_ok()
}

#[test]
#[ignore = "needs root"]
fn a_write_to_what_the_peer_closed_is_counted_with_the_time_since_then() {
    // All agents see all ports.
    let ports = [free_port(), free_port()];
    let [first, second] = ports.map(|port| port.to_string());
    let agents = Agent::on_each_hook(&["--name-port", &first, "--name-port", &second]);
    for ((hook, agent), port) in agents.into_iter().zip(ports) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut watch = Reader::json(&agent, &["--state", "close_wait", "--port", &port.to_string()]);

        // A pool's connection that the server closed.
        let (mut stale, server) = used(&listener);
        let closing = Instant::now();
        drop(server);
        until_state(&stale, CLOSE_WAIT);
        let closed = Instant::now();
        sleep(Duration::from_millis(300));
        let written = closed.elapsed();
        stale.write_all(b"question").unwrap();
        assert!(is_reset(&mut stale), "{hook}");
        let longest = closing.elapsed();

        // A half-close at work: the server reads on, then closes.
        let (mut client, mut server) = used(&listener);
        server.shutdown(Shutdown::Write).unwrap();
        until_state(&client, CLOSE_WAIT);
        client.write_all(b"thanks").unwrap();
        server.read_exact(&mut [0; 6]).unwrap();
        drop((client, server));

        // The server's reset comes by itself.
        let (client, server) = used(&listener);
        server.shutdown(Shutdown::Write).unwrap();
        until_state(&client, CLOSE_WAIT);
        SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        // And a close before the program writes again.
        drop(used(&listener));

        let port = port.to_string();
        let labels = [("side", "client"), ("port", &*port)];
        agent.metrics_when(PATIENCE, "resets of clients", |metrics| {
            let resets = [labels[0], labels[1], ("outcome", "reset_received")];
            metrics.sum("tcpclose_closes_total", &resets) >= 2.0
        });
        assert_eq!(agent.metrics().sum("tcpclose_stale_writes_total", &labels), 1.0, "{hook}");
        assert_eq!(agent.metrics().sum("tcpclose_stale_writes_total", &[("port", &port)]), 1.0, "{hook}");

        let line = watch.step_when(PATIENCE, "the reset", |line| line["outcome"] == "reset_received");
        assert_eq!(line["stale_write"], true, "{hook}: {line}");
        let after = line["min_seconds"].as_f64().unwrap();
        assert!(written.as_secs_f64() <= after && after <= longest.as_secs_f64(), "{hook}: {after}");
    }
}
