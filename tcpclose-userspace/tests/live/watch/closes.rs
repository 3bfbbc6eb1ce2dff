//! Closes as scripts, on loopback.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use tcpclose::linux::sock_diag;
use tcpclose::names::Flow;
use tcpclose_common::state::TcpState;

/// A listener, and what happens to those who connect to it.
pub struct Stage {
    listener: TcpListener,
}

/// A connection that is over, by each end's flow.
pub struct Close {
    pub client: Flow,
    pub server: Flow,
    /// How long the server was in CLOSE-WAIT, seconds.
    pub close_wait: RangeInclusive<f64>,
}

impl Stage {
    pub fn at(port: u16) -> Self {
        Self { listener: TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap() }
    }

    /// Both ends of a new connection, and its flows.
    pub fn pair(&self) -> (TcpStream, TcpStream, Close) {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let (server, _) = self.listener.accept().unwrap();
        let flow = |stream: &TcpStream| Flow::new(stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let close = Close { client: flow(&client), server: flow(&server), close_wait: 0.0..=0.0 };
        (client, server, close)
    }

    /// The client closes, the server `later`.
    pub fn graceful(&self, later: Duration) -> Close {
        let (client, server, mut close) = self.pair();
        let before = Instant::now();
        drop(client);
        until_in(&close.server, TcpState::CloseWait);
        let entered = Instant::now();
        sleep(later);
        let shortest = entered.elapsed();
        drop(server);
        close.close_wait = shortest.as_secs_f64()..=before.elapsed().as_secs_f64();
        close
    }

    /// The client is done sending; the server answers with `answer` and closes.
    pub fn half_closed(&self, answer: &[u8]) -> Close {
        let (mut client, mut server, close) = self.pair();
        client.write_all(b"ask").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut asked = Vec::new();
        server.read_to_end(&mut asked).unwrap();
        // The ACK of the FIN may wait for up to 40 ms for something to go with.
        until_in(&close.client, TcpState::FinWait2);
        server.write_all(answer).unwrap();
        drop(server);
        let mut answered = Vec::new();
        client.read_to_end(&mut answered).unwrap();
        assert_eq!(answered, answer);
        close
    }

    /// The client hangs up with a RST.
    pub fn aborted(&self) -> Close {
        let (client, server, close) = self.pair();
        abort(client);
        drop(server);
        close
    }

    /// The same after a FIN of its own.
    pub fn half_closed_and_aborted(&self) -> Close {
        let (client, server, close) = self.pair();
        client.shutdown(Shutdown::Write).unwrap();
        until_in(&close.client, TcpState::FinWait2);
        abort(client);
        drop(server);
        close
    }

    /// The cookie of a socket that is there.
    pub fn cookie_of(&self, flow: &Flow) -> u64 {
        sock_diag::lookup(flow, 0, None).unwrap().unwrap().cookie
    }
}

fn abort(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// A socket that connects to itself gets its own FIN before its own ACK.
pub fn with_itself(port: u16) -> Flow {
    let address = SocketAddr::from(([127, 0, 0, 77], port));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.connect(&address.into()).unwrap();
    Flow::new(address, address)
}

/// Returns when the socket is in `state`.
pub fn until_in(flow: &Flow, state: TcpState) {
    let until = Instant::now() + Duration::from_secs(10);
    while sock_diag::lookup(flow, 0, None).unwrap().is_none_or(|socket| socket.state != state) {
        assert!(Instant::now() < until, "{flow:?} is not in {state:?}");
        sleep(Duration::from_millis(1));
    }
}
