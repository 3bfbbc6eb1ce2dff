//! Connections whose states and times are known, agents that follow one another, and what they say and keep.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tcpclose::linux::{host, sock_diag};
use tcpclose::names::{Flow, Phase};
use tcpclose::report::sockets::{SocketsDocument, StuckSocket};
use tcpclose::tracker::saved::SavedState;
use tcpclose::tracker::state_format;
use tcpclose_common::state::TcpState;

use crate::common::{Agent, Metrics, listen, try_get_unix};

/// Nothing takes longer, on a slow machine either.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An instant that lies between two readings of CLOCK_MONOTONIC, nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Bracket {
    pub begun: u64,
    pub done: u64,
}

/// `act` and when.
pub fn bracket(act: impl FnOnce()) -> Bracket {
    let begun = host::monotonic_ns();
    act();
    Bracket { begun, done: host::monotonic_ns() }
}

/// One connection within this process.
pub struct Connection {
    pub client: TcpStream,
    pub server: Option<TcpStream>,
    /// When the server's end came into the state that it is in.
    pub entered: Bracket,
}

impl Connection {
    pub fn peer(&self) -> SocketAddr {
        self.client.local_addr().unwrap()
    }

    pub fn flow(&self) -> Flow {
        Flow::new(self.client.peer_addr().unwrap(), self.peer())
    }

    pub fn until_in(&self, state: TcpState) {
        let there = || {
            let socket = sock_diag::lookup(&self.flow(), 0, None).unwrap();
            socket.is_some_and(|socket| socket.state == state)
        };
        while !there() {}
    }

    /// CLOSE-WAIT → LAST-ACK, where it stays: its FIN waits behind data that the client does not take.
    pub fn close(&mut self) {
        let server = self.server.take().unwrap();
        self.entered = bracket(|| {
            drop(server);
            self.until_in(TcpState::LastAck);
        });
    }
}

pub struct Port {
    pub listener: TcpListener,
    pub port: u16,
}

impl Port {
    pub fn new() -> Self {
        let (listener, port) = listen();
        Self { listener, port }
    }

    pub fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        (client, self.listener.accept().unwrap().0)
    }

    /// A connection of which the server's end is in CLOSE-WAIT.
    pub fn close_wait(&self) -> Connection {
        let (client, server) = self.connect();
        Self::half_close(client, server)
    }

    pub fn close_waits(&self, n: usize) -> Vec<Connection> {
        (0..n).map(|_| self.close_wait()).collect()
    }

    /// The same, with all the data underway that fits.
    pub fn clogged(&self) -> Connection {
        let (client, mut server) = self.connect();
        server.set_nonblocking(true).unwrap();
        while server.write(&[0; 65536]).is_ok() {}
        Self::half_close(client, server)
    }

    pub fn half_close(client: TcpStream, server: TcpStream) -> Connection {
        let entered = Bracket { begun: 0, done: 0 };
        let mut connection = Connection { client, server: Some(server), entered };
        connection.entered = bracket(|| {
            connection.client.shutdown(Shutdown::Write).unwrap();
            connection.until_in(TcpState::CloseWait);
        });
        connection
    }

    /// A connection that ends as it should.
    pub fn whole(&self) {
        let (mut client, server) = self.connect();
        drop(server);
        client.read_to_end(&mut Vec::new()).unwrap();
    }

    /// What `agent` says of this port's sockets in `phase`, and when it was asked.
    pub fn ask(&self, agent: &Agent, phase: Phase) -> Answer {
        let path = format!("/v1/sockets?state={}&older_than=0s", phase.name());
        let mut text = String::new();
        let asked = bracket(|| text = agent.get(&path).1);
        let mut document: SocketsDocument = serde_json::from_str(&text).unwrap();
        document.sockets.retain(|socket| [socket.local.port(), socket.peer.port()].contains(&self.port));
        Answer { sockets: document.sockets, asked }
    }
}

pub struct Answer {
    pub sockets: Vec<StuckSocket>,
    pub asked: Bracket,
}

impl Answer {
    pub fn find(&self, connection: &Connection) -> &StuckSocket {
        let peer = connection.peer();
        self.sockets.iter().find(|socket| socket.peer == peer).unwrap_or_else(|| panic!("{peer} is missing"))
    }

    /// The age that is given for `connection` is the true one. Whether it is exact.
    pub fn holds(&self, connection: &Connection) -> bool {
        let age = self.find(connection).age;
        let since = |then: u64, now: u64| now.saturating_sub(then) as f64 / 1e9;
        let (least, most) = (
            since(connection.entered.done, self.asked.begun),
            since(connection.entered.begun, self.asked.done),
        );
        assert!(age.min_seconds <= most, "{age:?}, and it is {most} s at most");
        assert!(age.max_seconds.is_none_or(|max| max >= least), "{age:?}, and it is {least} s at least");
        age.exact
    }
}

/// Ends a load when it is dropped, however that comes.
pub struct Raise<'a>(pub &'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub fn state_file(folder: &Path) -> PathBuf {
    folder.join("state")
}

pub fn on_file(folder: &Path) -> Option<SavedState> {
    let bytes = fs::read(state_file(folder)).ok()?;
    Some(state_format::read(&bytes, &host::boot_id(), host::monotonic_ns()).unwrap())
}

/// Returns when all of `connections` are in the state file in `folder`, as CLOSE-WAITs.
pub fn until_kept(folder: &Path, connections: &[&Connection]) {
    let start = Instant::now();
    loop {
        let kept: Vec<Flow> = on_file(folder).map_or_else(Vec::new, |former| {
            former.sockets().filter(|kept| kept.phase == Phase::CloseWait).map(|kept| kept.flow).collect()
        });
        let missing = connections.iter().filter(|connection| !kept.contains(&connection.flow())).count();
        if missing == 0 {
            println!("{} sockets were kept after {:?}", connections.len(), start.elapsed());
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{missing} of {} are not kept", connections.len());
        sleep(Duration::from_millis(10));
    }
}

/// Scrapes `agent` from the first moment on until it is ready, and once more. Before the first reconcile there is no
/// gauge of any socket; after it there are all `close_waits` of `port`.
pub fn scrape_from_the_first_moment(agent: &mut Agent, port: u16, close_waits: usize) {
    let (mut early, mut ready) = (0, false);
    let start = Instant::now();
    let port = port.to_string();
    loop {
        assert!(start.elapsed() < PATIENCE, "not ready: {}", agent.printed());
        // The first one is in the socket's queue before anything is served.
        let Ok((200, text)) = try_get_unix(&agent.socket(), "/metrics") else { continue };
        let metrics = Metrics::parse(&text);
        let here = [("state", "close_wait"), ("side", "server"), ("port", port.as_str())];
        if !metrics.has("tcpclose_sockets", &[]) {
            assert!(!ready, "ready without gauges");
            assert!(
                !metrics.has("tcpclose_stuck_sockets", &[])
                    && !metrics.has("tcpclose_oldest_socket_age_seconds", &[])
            );
            early += 1;
        } else {
            assert_eq!(metrics.sum("tcpclose_sockets", &here) as usize, close_waits);
        }
        if ready {
            break;
        }
        // Whoever is ready now has gauges the next time.
        ready = try_get_unix(&agent.socket(), "/readyz").is_ok_and(|(status, _)| status == 200);
    }
    println!("{early} scrapes came before the first reconcile and have no gauges");
    agent.until_ready().unwrap();
}

/// Killed when dropped: a test that fails leaves none behind.
pub struct Started(pub Vec<std::process::Child>);

impl Drop for Started {
    fn drop(&mut self) {
        for agent in &mut self.0 {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}
