//! The set-up of a close: the clock, the two ends of a connection, and the kernel's view of each.
//!
//! Nothing here guesses when a step happened. It lies between the test's own clock before the call that causes it and
//! after the look that finds it done; on a slow machine that bracket is wider.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tcpclose::linux::sock_diag;
use tcpclose::names::{Flow, Phase, Side};
use tcpclose_common::state::TcpState;

use super::common::fence;

/// Every step is a loopback round trip, at worst with a delayed acknowledgment (40 ms) in it.
const PATIENCE_NS: u64 = 30_000_000_000;

/// CLOCK_MONOTONIC, nanoseconds.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Something happened between these two readings of the clock.
#[derive(Clone, Copy, Debug)]
pub struct Bracket {
    pub from: u64,
    pub to: u64,
}

impl Bracket {
    /// The least and the most that can lie between this and something later, seconds.
    pub fn until(self, later: Self) -> (f64, f64) {
        (seconds(later.from.saturating_sub(self.to)), seconds(later.to - self.from))
    }
}

pub fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A call that begins a step. When that is done, only a look tells: close() ends nothing while a child of this process
/// has a copy of the descriptor, and until its exec() the child that another test spawns has one of each (copy_files in
/// kernel/fork.c, do_close_on_exec in fs/file.c; in an emulated guest for tens of milliseconds).
struct Begun {
    from: u64,
}

impl Begun {
    fn by<T>(call: impl FnOnce() -> T) -> Self {
        let from = now();
        call();
        Self { from }
    }

    /// A look has just found it done.
    fn seen_now(&self) -> Bracket {
        fence();
        Bracket { from: self.from, to: now() }
    }
}

/// How the two ends talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
    /// A dual-stack listener and an IPv4 client; one socket alone is of IPv6 and has a v4-mapped address.
    Mapped,
}

impl Family {
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    fn listens_on(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
            Self::Mapped => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// Where a client reaches the listener.
    fn reached_at(self) -> IpAddr {
        match self {
            Self::V4 | Self::Mapped => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// The address of a socket that has no listener.
    fn alone(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
            Self::Mapped => Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
        }
    }
}

/// What one end went through.
#[derive(Clone, Debug)]
pub struct Timeline {
    pub flow: Flow,
    /// The entry of each phase, in order, and the end; the end of a TIME-WAIT is to be watched for.
    pub steps: Vec<Bracket>,
}

/// Two sockets that stay in their phases for a while, shown to whoever wants to look at the agents meanwhile.
pub type Look<'a> = &'a (dyn Fn(u16, &[(Side, Phase, Bracket)]) + Sync);

/// The port of one close, and its listener.
pub struct Stage<'a> {
    pub family: Family,
    pub port: u16,
    listener: Option<TcpListener>,
    look: Look<'a>,
}

impl<'a> Stage<'a> {
    pub fn new(family: Family, port: u16, listens: bool, look: Look<'a>) -> Self {
        let listener = listens.then(|| TcpListener::bind((family.listens_on(), port)).unwrap());
        Self { family, port, listener, look }
    }

    /// A connection: the client's end, the server's end.
    pub fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect((self.family.reached_at(), self.port)).unwrap();
        let (server, _) = self.listener.as_ref().unwrap().accept().unwrap();
        (client, server)
    }

    /// A connection: the end that is to close first, the other one.
    fn ends(&self, first: Side) -> (TcpStream, TcpStream) {
        let (client, server) = self.connect();
        if first == Side::Client { (client, server) } else { (server, client) }
    }

    /// A connection that nobody has accepted: the client's end, and the flow of the child in the listener's queue.
    fn queued(&self) -> (TcpStream, Flow) {
        let client = TcpStream::connect((self.family.reached_at(), self.port)).unwrap();
        let child = Flow::new(client.peer_addr().unwrap(), client.local_addr().unwrap());
        until_state(&child, |state| state == Some(TcpState::Established));
        (client, child)
    }
}

pub fn flow_of(stream: &TcpStream) -> Flow {
    Flow::new(stream.local_addr().unwrap(), stream.peer_addr().unwrap())
}

/// The kernel's view of a flow's socket or minisocket now; `None` when there is none.
pub fn state_of(flow: &Flow) -> Option<TcpState> {
    sock_diag::lookup(flow, 0, None).unwrap().map(|socket| socket.state)
}

/// Looks until `reached` holds of the socket's state.
pub fn until_state(flow: &Flow, reached: impl Fn(Option<TcpState>) -> bool) {
    let begun = now();
    loop {
        let state = state_of(flow);
        if reached(state) {
            return;
        }
        assert!(now() - begun < PATIENCE_NS, "{flow:?} stays in {state:?}");
        sleep(Duration::from_micros(500));
    }
}

fn until_in(flow: &Flow, state: TcpState) {
    until_state(flow, |now| now == Some(state));
}

fn until_out_of(flow: &Flow, state: TcpState) {
    until_state(flow, |now| now != Some(state));
}

fn until_gone(flow: &Flow) {
    until_state(flow, |state| state.is_none());
}

/// Returns when the peer's FIN is here.
fn until_eof(mut stream: &TcpStream) {
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

fn reset_on_close(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// How an end stops sending.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// close(): what follows is an orphan's.
    Close,
    /// shutdown(), and the fd is kept.
    Shutdown,
}

/// `first` ends its half; the other end does so `hold` after that, or as soon as it reads the end of the stream.
/// Timelines: the first end's, the other's.
pub fn orderly(stage: &Stage<'_>, first: Side, by: By, hold: Duration) -> Vec<Timeline> {
    let (closing, other) = stage.ends(first);
    let (a, b) = (flow_of(&closing), flow_of(&other));
    let mut kept = None;
    let end = Begun::by(|| match by {
        By::Close => drop(closing),
        By::Shutdown => {
            closing.shutdown(std::net::Shutdown::Write).unwrap();
            kept = Some(closing);
        }
    });
    until_eof(&other);
    let fin_wait_1 = end.seen_now();
    let close_wait = fin_wait_1;
    let mut fin_wait_2 = None;
    if !hold.is_zero() {
        until_in(&a, TcpState::FinWait2);
        let entered = end.seen_now();
        fin_wait_2 = Some(entered);
        sleep(hold / 2);
        if hold >= Duration::from_secs(1) {
            let second = if first == Side::Client { Side::Server } else { Side::Client };
            (stage.look)(
                stage.port,
                &[(first, Phase::FinWait2, entered), (second, Phase::CloseWait, close_wait)],
            );
        }
        sleep(hold / 2);
    }
    let end = Begun::by(|| drop(other));
    until_out_of(&b, TcpState::CloseWait);
    let last_ack = end.seen_now();
    until_in(&a, TcpState::TimeWait);
    let time_wait = end.seen_now();
    until_gone(&b);
    let closed = end.seen_now();
    drop(kept);
    let fin_wait_2 = fin_wait_2.unwrap_or(Bracket { from: fin_wait_1.from, to: time_wait.to });
    vec![
        Timeline { flow: a, steps: vec![fin_wait_1, fin_wait_2, time_wait] },
        Timeline { flow: b, steps: vec![close_wait, last_ack, closed] },
    ]
}

/// `first` ends its half and keeps its fd; the other end sits in CLOSE-WAIT for `hold` and then resets.
pub fn reset_in_close_wait(stage: &Stage<'_>, first: Side, hold: Duration) -> Vec<Timeline> {
    let (closing, other) = stage.ends(first);
    let (a, b) = (flow_of(&closing), flow_of(&other));
    let end = Begun::by(|| closing.shutdown(std::net::Shutdown::Write).unwrap());
    until_eof(&other);
    let fin_wait_1 = end.seen_now();
    let close_wait = fin_wait_1;
    until_in(&a, TcpState::FinWait2);
    let fin_wait_2 = end.seen_now();
    sleep(hold);
    reset_on_close(&other);
    let reset = Begun::by(|| drop(other));
    until_gone(&a);
    until_gone(&b);
    let over = reset.seen_now();
    vec![
        Timeline { flow: a, steps: vec![fin_wait_1, fin_wait_2, over] },
        Timeline { flow: b, steps: vec![close_wait, over] },
    ]
}

/// `first` resets an established connection.
pub fn reset(stage: &Stage<'_>, first: Side) -> Vec<Timeline> {
    let (resetting, other) = stage.ends(first);
    let (a, b) = (flow_of(&resetting), flow_of(&other));
    reset_on_close(&resetting);
    let over = Begun::by(|| drop(resetting));
    until_gone(&a);
    until_gone(&b);
    vec![
        Timeline { flow: a, steps: vec![over.seen_now()] },
        Timeline { flow: b, steps: vec![over.seen_now()] },
    ]
}

/// The listener closes while a connection waits in its queue. Timelines: the child's, the client's.
pub fn listener_closes(mut stage: Stage<'_>) -> Vec<Timeline> {
    let (client, child) = stage.queued();
    let of_client = flow_of(&client);
    let over = Begun::by(|| drop(stage.listener.take()));
    until_gone(&child);
    until_gone(&of_client);
    let over = over.seen_now();
    vec![Timeline { flow: child, steps: vec![over] }, Timeline { flow: of_client, steps: vec![over] }]
}

/// A client closes while its connection waits in the listener's queue; the listener closes `hold` after that.
/// Timelines: the client's, the child's.
pub fn client_closes_in_the_queue(mut stage: Stage<'_>, hold: Duration) -> Vec<Timeline> {
    let (client, child) = stage.queued();
    let of_client = flow_of(&client);
    let end = Begun::by(|| drop(client));
    until_in(&child, TcpState::CloseWait);
    let fin_wait_1 = end.seen_now();
    let close_wait = fin_wait_1;
    until_in(&of_client, TcpState::FinWait2);
    let fin_wait_2 = end.seen_now();
    sleep(hold);
    let over = Begun::by(|| drop(stage.listener.take()));
    until_gone(&child);
    until_gone(&of_client);
    let over = over.seen_now();
    vec![
        Timeline { flow: of_client, steps: vec![fin_wait_1, fin_wait_2, over] },
        Timeline { flow: child, steps: vec![close_wait, over] },
    ]
}

/// A socket connects to itself and closes: the one way to a simultaneous close that needs no luck.
pub fn self_connect(stage: &Stage<'_>) -> Vec<Timeline> {
    let own = SocketAddr::new(stage.family.alone(), stage.port);
    let socket = Socket::new(Domain::for_address(own), Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::from(own)).unwrap();
    socket.connect(&SockAddr::from(own)).unwrap();
    let flow = Flow::new(own, own);
    let end = Begun::by(|| drop(socket));
    until_in(&flow, TcpState::TimeWait);
    let then = end.seen_now();
    vec![Timeline { flow, steps: vec![then, then, then] }]
}

/// Nobody listens. Nothing is to be counted anywhere.
pub fn refused(stage: &Stage<'_>) -> Vec<Timeline> {
    let answer = TcpStream::connect((stage.family.alone(), stage.port));
    assert_eq!(answer.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    Vec::new()
}
