//! An agent, and connections in all the states and with all the ends that the dashboard shows.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use socket2::{Domain, SockFilter, SockRef, Socket, Type};

use crate::common::{Agent, Metrics, free_port, half_closed_client};

/// Sockets that their server never closes.
const LEAKED: usize = 20;

/// Dumps must have seen a TIME-WAIT for its end to make a sample; they stretch on a busy machine.
const SEEN_AFTER: Duration = Duration::from_secs(5);

/// Should none of those be seen, others last for 60 s.
const PATIENCE: Duration = Duration::from_secs(150);

/// What goes on until it is dropped.
pub struct Scene {
    pub agent: Agent,
    /// On the first, connections end in all ways; the second leaks.
    pub ports: [u16; 2],
    stop: Arc<AtomicBool>,
    traffic: Option<JoinHandle<()>>,
    _leak: Vec<(TcpStream, TcpStream)>,
    _deaf: TcpStream,
}

impl Scene {
    /// Returns when the agent has seen all of it.
    pub fn start() -> Self {
        let ports = [free_port(), free_port()];
        let listeners = ports.map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
        // In CLOSE-WAIT before there is an agent: a phase whose entry it has not seen.
        let client = half_closed_client(ports[0], b"");
        let early = (client, listeners[0].accept().unwrap().0);

        let names = ports.map(|port| format!("--name-port={port}"));
        let agent = Agent::start(&[
            names[0].as_str(),
            names[1].as_str(),
            "--stuck-after=1s,1h",
            "--reconcile-interval=1s",
            "--owner-interval=1s",
        ]);
        drop(early);
        let deaf = deaf(&listeners[0]);
        let leak = (0..LEAKED).map(|_| {
            let mut client = half_closed_client(ports[1], b"request");
            client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let (mut server, _) = listeners[1].accept().unwrap();
            server.read_to_end(&mut Vec::new()).unwrap();
            server.write_all(b"answer").unwrap();
            client.read_exact(&mut [0; 6]).unwrap();
            (client, server)
        });
        let leak = leak.collect();
        let [listener, _] = listeners;
        let stop = Arc::new(AtomicBool::new(false));
        let reported = Arc::clone(&stop);
        let traffic = std::thread::spawn(move || {
            let mut waiting = VecDeque::new();
            while !reported.load(Ordering::Relaxed) {
                every_end(&listener, &mut waiting);
                sleep(Duration::from_millis(200));
            }
        });
        let scene = Self { agent, ports, stop, traffic: Some(traffic), _leak: leak, _deaf: deaf };
        scene.agent.metrics_when(PATIENCE, "everything has come up", |metrics| scene.is_whole(metrics));
        scene
    }

    fn is_whole(&self, metrics: &Metrics) -> bool {
        let [ends, leaks] = self.ports.map(|port| port.to_string());
        let (ends, leaks) = (("port", ends.as_str()), ("port", leaks.as_str()));
        metrics.sum("tcpclose_stuck_sockets", &[leaks]) as usize == LEAKED
            && metrics.sum("tcpclose_stuck_owner_sockets", &[]) as usize >= LEAKED
            && metrics.sum("tcpclose_sockets", &[("state", "time_wait"), ends]) > 0.0
            && metrics.sum("tcpclose_closes_total", &[("outcome", "aborted"), ends]) > 0.0
            && metrics.sum("tcpclose_closes_total", &[("outcome", "graceful"), ends]) > 0.0
            && metrics.sum("tcpclose_state_duration_seconds_count", &[("state", "time_wait"), ends]) > 0.0
            && metrics.sum("tcpclose_state_duration_seconds_count", &[("state", "fin_wait_2"), ends]) > 0.0
            && metrics.has("tcpclose_stale_writes_total", &[ends])
            && metrics.has("tcpclose_fin_retransmits_total", &[ends])
            && metrics.has("tcpclose_resets_total", &[("direction", "sent")])
            && metrics.has("tcpclose_stuck_verdict_sockets", &[leaks])
            && metrics.sum("tcpclose_unseen_phases_total", &[]) > 0.0
            && metrics.has("tcpclose_ephemeral_ports_used_ratio", &[])
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(traffic) = self.traffic.take() {
            let _ = traffic.join();
        }
    }
}

/// The server of a closed client, whose FIN it drops each time that it is sent.
fn deaf(listener: &TcpListener) -> TcpStream {
    let nothing = SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0);
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    SockRef::from(&server).attach_filter(&[nothing]).unwrap();
    drop(client);
    server
}

/// One connection of each kind, on the port of `listener`. `waiting`: peers of TIME-WAITs, and since when.
fn every_end(listener: &TcpListener, waiting: &mut VecDeque<(Instant, SocketAddr)>) {
    let address = listener.local_addr().unwrap();
    let pair = || (TcpStream::connect(address).unwrap(), listener.accept().unwrap().0);
    // The server takes a while to close.
    let (client, server) = pair();
    client.shutdown(Shutdown::Write).unwrap();
    sleep(Duration::from_millis(20));
    drop(server);
    drop(client);
    // A reset by who does not linger.
    let (client, _server) = pair();
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    // A TIME-WAIT of the server, which later a new connection of the same pair of ports takes.
    let (mut client, server) = pair();
    waiting.push_back((Instant::now(), client.local_addr().unwrap()));
    drop(server);
    client.read_to_end(&mut Vec::new()).unwrap();
    drop(client);
    // A client that writes to what the server has closed.
    let (mut client, server) = pair();
    drop(server);
    client.read_to_end(&mut Vec::new()).unwrap();
    client.write_all(b"late").unwrap();
    drop(client);
    let Some(&(_, from)) = waiting.front().filter(|(since, _)| since.elapsed() > SEEN_AFTER) else { return };
    waiting.pop_front();
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    client.set_reuse_address(true).unwrap();
    // Another process may have been given the port meanwhile.
    if client.bind(&from.into()).is_ok() && client.connect(&address.into()).is_ok() {
        drop(listener.accept().unwrap());
    }
}
