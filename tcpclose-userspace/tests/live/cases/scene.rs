//! One case at work: the kernel's socket, the peer, and the times at which the script made each step.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, SockAddr, Socket, Type};

use super::common::fence;
use super::diag;
use super::peer::Peer;
use super::place::Tun;
use super::stay::Stay;
use super::wire::{ACK, SYN};

/// What both ends stay in a state that a full socket is in.
pub const DWELL: Duration = Duration::from_millis(250);

/// What a minisocket is left in a state that the script ends. A phase of two intervals between dumps is never unseen,
/// and on a loaded guest, where a dump takes 40 ms of CPU, 1 % of a core makes an interval of 4 s.
pub const LONG: Duration = Duration::from_secs(8);

/// Between two looks at a socket of which the kernel decides when it goes.
const LOOK: Duration = Duration::from_millis(10);

/// include/net/tcp_states.h.
const ESTABLISHED: u8 = 1;

/// TIME-WAIT lasts 60 s (TCP_TIMEWAIT_LEN); its timer is late by up to 5.1 s (the wheel's coarse level at HZ 100).
const TIME_WAIT_NS: (u64, u64) = (60_000_000_000, 65_200_000_000);

/// CLOCK_MONOTONIC before and after something.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub before_ns: u64,
    pub after_ns: u64,
}

/// One state as the script made it last.
#[derive(Clone, Copy, Debug)]
pub struct Stayed {
    pub stay: Stay,
    pub entered: Moment,
    pub left: Option<Moment>,
    /// When the timer of a TIME-WAIT was set anew.
    pub rearmed: Option<Moment>,
}

/// Addresses of the kernel's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    /// The kernel's listener is IPv6 and dual-stack, the peer IPv4.
    Mapped,
}

pub struct Scene {
    pub peer: Peer,
    pub listener: Option<Socket>,
    pub app: Option<Socket>,
    /// The service port.
    pub port: u16,
    family: Family,
    here: IpAddr,
    /// Per life of a kernel's socket, what the script did.
    pub lives: Vec<Vec<Stayed>>,
    /// The life that the script speaks of.
    life: usize,
}

pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl Scene {
    /// Sets case `number` up in the calling thread's namespace: the wire, and a listener for the case of a server.
    pub fn set(number: u16, port: u16, family: Family, server: bool) -> Self {
        let [high, low] = number.to_be_bytes();
        let v4 = |end| Ipv4Addr::new(10, 77 + high, low, end);
        let v6 = |end| Ipv6Addr::new(0xfd77, 0, 0, number, 0, 0, 0, end);
        let wire = Tun::new(&format!("case{number}"), v4(1), v6(1)).unwrap();
        let (here, there): (IpAddr, IpAddr) =
            if family == Family::V6 { (v6(1).into(), v6(2).into()) } else { (v4(1).into(), v4(2).into()) };
        // What the peer connects from is nobody's service.
        let (kernel_port, peer_port) = if server { (port, 40_000) } else { (0, port) };
        let peer = Peer::new(wire, SocketAddr::new(there, peer_port), SocketAddr::new(here, kernel_port));
        let mut scene =
            Self { peer, listener: None, app: None, port, family, here, lives: vec![Vec::new()], life: 0 };
        if server {
            scene.listen();
        }
        scene
    }

    fn listen(&mut self) {
        let any = if self.family == Family::Mapped { Ipv6Addr::UNSPECIFIED.into() } else { self.here };
        let socket = self.socket();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::new(any, self.port).into()).unwrap();
        socket.listen(8).unwrap();
        self.listener = Some(socket);
    }

    fn socket(&self) -> Socket {
        let domain = if self.family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
        Socket::new(domain, Type::STREAM, None).unwrap()
    }

    /// An accepted connection.
    pub fn accepted(&mut self) {
        self.peer.connect();
        self.accept();
    }

    pub fn accept(&mut self) {
        let (socket, _) = self.listener.as_ref().expect("a server").accept().unwrap();
        self.app = Some(socket);
    }

    /// A connection that the kernel's side opened, from `port` if that is not 0.
    pub fn connected_from(&mut self, port: u16) {
        let socket = self.socket();
        if port != 0 {
            socket.set_reuse_address(true).unwrap();
            socket.bind(&SocketAddr::new(self.here, port).into()).unwrap();
        }
        self.app = Some(socket);
        self.connect_again();
    }

    /// Connects the socket that is there.
    pub fn connect_again(&mut self) {
        let to = SockAddr::from(self.peer.here);
        let app = self.app();
        app.set_nonblocking(true).unwrap();
        let why = app.connect(&to).expect_err("the peer has not answered yet");
        assert_eq!(why.raw_os_error(), Some(libc::EINPROGRESS), "{why}");
        app.set_nonblocking(false).unwrap();
        self.peer.accept();
    }

    pub fn connected(&mut self) {
        self.connected_from(0);
    }

    pub fn app(&self) -> &Socket {
        self.app.as_ref().expect("the program holds the socket")
    }

    pub fn write(&mut self, data: &[u8]) {
        self.app().write_all(data).unwrap();
    }

    /// Reads all that is there.
    pub fn read(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; 4096];
        let length = self.app().read(&mut buffer).unwrap();
        buffer.truncate(length);
        buffer
    }

    /// Reads until the peer's FIN.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        self.app().read_to_end(&mut all).unwrap();
        all
    }

    pub fn close(&mut self) {
        drop(self.app.take().expect("the program holds the socket"));
    }

    pub fn shutdown_write(&mut self) {
        self.app().shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Closes with a RST.
    pub fn close_linger_zero(&mut self) {
        self.app().set_linger(Some(Duration::ZERO)).unwrap();
        self.close();
    }

    /// connect(AF_UNSPEC).
    pub fn disconnect(&mut self) {
        // SAFETY: sockaddr is plain integers, for which zero is a value; and AF_UNSPEC is 0.
        let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
        // SAFETY: a live sockaddr of the length given.
        let done = unsafe { libc::connect(self.app().as_raw_fd(), &nowhere, size_of_val(&nowhere) as u32) };
        assert_eq!(done, 0, "connect(AF_UNSPEC): {}", std::io::Error::last_os_error());
    }

    /// A TCP option that is an int.
    pub fn option(&mut self, level: i32, name: i32, value: i32) {
        let length = size_of_val(&value) as u32;
        // SAFETY: an int of the length given.
        let done = unsafe {
            libc::setsockopt(self.app().as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), length)
        };
        assert_eq!(done, 0, "setsockopt {name}: {}", std::io::Error::last_os_error());
    }

    pub fn tcp_option(&mut self, name: i32, value: i32) {
        self.option(libc::IPPROTO_TCP, name, value);
    }

    /// SOCK_DESTROY.
    pub fn destroy(&mut self) {
        self.try_destroy().unwrap();
    }

    pub fn try_destroy(&mut self) -> std::io::Result<()> {
        diag::destroy(self.kernel(), self.peer_seen())
    }

    /// The state that the kernel shows of the connection.
    pub fn kernel_state(&self) -> Option<u8> {
        diag::state(self.kernel(), self.peer_seen())
    }

    /// The ends as the kernel's socket has them.
    fn kernel(&self) -> SocketAddr {
        self.mapped(self.peer.kernel)
    }

    fn peer_seen(&self) -> SocketAddr {
        self.mapped(self.peer.here)
    }

    fn mapped(&self, address: SocketAddr) -> SocketAddr {
        match (self.family, address.ip()) {
            (Family::Mapped, IpAddr::V4(ip)) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            _ => address,
        }
    }

    /// Runs `act`, which brings the kernel's socket into `stay`.
    pub fn enter(&mut self, stay: Stay, act: impl FnOnce(&mut Self)) {
        self.enter_all(&[stay], act);
    }

    /// Runs `act`, which brings the kernel's socket into each of `stays` in turn. The kernel must show the last.
    pub fn enter_all(&mut self, stays: &[Stay], act: impl FnOnce(&mut Self)) {
        let moment = self.time(act);
        stays.iter().for_each(|&stay| self.entered(stay, moment));
        assert_eq!(self.kernel_state(), stays.last().map(Stay::number), "after {stays:?}");
    }

    /// Says that the kernel's socket came into `stay` at `moment`.
    pub fn entered(&mut self, stay: Stay, moment: Moment) {
        self.left(moment);
        self.lives[self.life].push(Stayed { stay, entered: moment, left: None, rearmed: None });
    }

    /// Runs `act`, which ends the kernel's socket. The kernel must no longer show it as it was.
    pub fn end(&mut self, act: impl FnOnce(&mut Self)) {
        let moment = self.time(act);
        self.left(moment);
        let was = self.lives[self.life].last().map_or(ESTABLISHED, |stayed| stayed.stay.number());
        assert_ne!(self.kernel_state(), Some(was), "it goes on");
    }

    /// Runs `act`, which brings the kernel's socket through `stays` and to its end.
    pub fn pass(&mut self, stays: &[Stay], act: impl FnOnce(&mut Self)) {
        let moment = self.time(act);
        stays.iter().for_each(|&stay| self.entered(stay, moment));
        self.left(moment);
    }

    /// Says that the present state was left at `moment`.
    pub fn left(&mut self, moment: Moment) {
        if let Some(stayed) = self.lives[self.life].last_mut() {
            stayed.left.get_or_insert(moment);
        }
    }

    /// Runs `act`. What it has the kernel do is over then, on every CPU ([`fence`]).
    fn time(&mut self, act: impl FnOnce(&mut Self)) -> Moment {
        let before_ns = now_ns();
        act(self);
        fence();
        Moment { before_ns, after_ns: now_ns() }
    }

    /// The kernel itself ends the socket, within `most`.
    pub fn ends_by_itself(&mut self, most: Duration) {
        let moment = self.when(most, |state| state.is_none());
        self.left(moment);
    }

    /// When the state that the kernel shows first fulfils `is`. A look sees one half of a step of which the other half, the
    /// event's time stamp among it, may be still to come or over already: hence a [`fence`] on either side.
    pub fn when(&mut self, most: Duration, is: impl Fn(Option<u8>) -> bool) -> Moment {
        let until = Instant::now() + most;
        // A look may take a second where many look: it can be over before the first look here.
        let entered = self.lives[self.life].last().map(|stayed| stayed.entered.before_ns);
        let mut before_ns = entered.unwrap_or_else(now_ns);
        loop {
            let asked_ns = now_ns();
            fence();
            if is(self.kernel_state()) {
                fence();
                return Moment { before_ns, after_ns: now_ns() };
            }
            assert!(Instant::now() < until, "the kernel still shows state {:?}", self.kernel_state());
            before_ns = asked_ns;
            sleep(LOOK);
        }
    }

    /// The kernel will end this TIME-WAIT when its timer, set now, runs out. Nobody waits for that here.
    pub fn will_expire(&mut self) {
        let entered = self.lives[self.life].last().expect("a state").entered;
        self.will_expire_from(entered);
    }

    /// As [`Self::will_expire`], with the timer set at `moment`.
    pub fn will_expire_from(&mut self, moment: Moment) {
        let (least, most) = TIME_WAIT_NS;
        self.left(Moment { before_ns: moment.before_ns + least, after_ns: moment.after_ns + most });
    }

    /// Runs `act`, which sets the timer of a TIME-WAIT anew.
    pub fn rearm(&mut self, act: impl FnOnce(&mut Self)) {
        let moment = self.time(act);
        let waiting = self.lives[self.life].last_mut().expect("a TIME-WAIT");
        waiting.rearmed = Some(moment);
        self.will_expire_from(moment);
    }

    /// The script now speaks of the next life: the next connection, or the other end.
    pub fn next_life(&mut self) {
        self.lives.push(Vec::new());
        self.life = self.lives.len() - 1;
    }

    /// The script now speaks of this life.
    pub fn life(&mut self, life: usize) {
        self.life = life;
    }

    /// A new handshake of the same peer that the listener answers, sent by `syn` onto what was there.
    pub fn reopened(&mut self, syn: impl FnOnce(&mut Peer)) {
        self.peer.take_all();
        self.end(|s| syn(&mut s.peer));
        self.next_life();
        self.peer.expect(SYN | ACK);
        self.peer.ack();
        self.accept();
    }

    /// Asserts that the program's end of the stream is an error of this kind.
    pub fn read_fails(&mut self, kind: ErrorKind) {
        assert_eq!(self.app().read(&mut [0]).expect_err("the connection is broken").kind(), kind);
    }
}

pub fn dwell() {
    sleep(DWELL);
}

pub fn long() {
    sleep(LONG);
}
