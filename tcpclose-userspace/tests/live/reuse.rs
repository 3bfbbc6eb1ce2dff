//! The slab hands the address of a socket, or of a minisocket, to another one within microseconds. No two lives are
//! ever joined by that: thousands of connections of a few flows take turns on the same addresses, each kind of flow
//! with stays of its own length, and every kind's counts and sums are its own.

use crate::load;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::AddAssign;
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::{Domain, Socket, Type};
use tcpclose::linux::host::monotonic_ns;
use tcpclose::linux::sock_diag;
use tcpclose::names::Flow;
use tcpclose_common::state::TcpState;

use load::connections::Load;
use load::home::{first_port, in_a_namespace};
use load::left_out::Witness;
use load::watch::{Watcher, start_agents};

/// Kinds of flows, each with a port of its own: how long the client's end stays in CLOSE-WAIT. A flow of kind n takes
/// part in every (n + 1)th round, so that its TIME-WAITs last as many rounds.
const KINDS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(5), Duration::from_millis(20), Duration::from_millis(60)];
const FLOWS_PER_KIND: usize = 16;
const ROUNDS: usize = 200;
/// Clients' ports, of which each is used again and again.
const CLIENTS_FROM: u16 = 40_000;
/// How often the kernel's addresses are looked at: each look is a walk over its whole table.
const ROUNDS_A_LOOK: usize = 8;

/// Something lasted at least and at most so long, nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Bracket {
    least: u64,
    most: u64,
}

/// Something happened between these two readings of the clock.
#[derive(Clone, Copy, Debug)]
struct Moment {
    from: u64,
    to: u64,
}

impl Moment {
    fn until(self, later: Self) -> Bracket {
        Bracket { least: later.from.saturating_sub(self.to), most: later.to - self.from }
    }
}

impl AddAssign for Bracket {
    fn add_assign(&mut self, more: Self) {
        self.least += more.least;
        self.most += more.most;
    }
}

impl Bracket {
    fn holds(self, seconds: f64) -> bool {
        // The exposition rounds to a nanosecond or so.
        let ns = seconds * 1e9;
        ns > self.least as f64 - 1e3 && ns < self.most as f64 + 1e3
    }
}

/// What a kind's connections were made to do.
#[derive(Clone, Copy, Debug, Default)]
struct Truth {
    connections: usize,
    close_wait: Bracket,
    last_ack: Bracket,
    /// FIN-WAIT-1 and FIN-WAIT-2: the acknowledgment lies between them.
    fin_wait: Bracket,
    time_waits: usize,
    time_wait: Bracket,
}

/// A pair of addresses that is connected again and again.
struct Connection {
    kind: usize,
    client: SocketAddr,
    client_end: Option<TcpStream>,
    server_end: Option<TcpStream>,
    /// When the server's end closed.
    closed: Option<Moment>,
    /// When the client's end was in CLOSE-WAIT.
    close_wait: Option<Moment>,
    /// When the server's end was in TIME-WAIT: there the next connection takes its place.
    time_wait: Option<Moment>,
}

impl Connection {
    /// Connects again: at the server the SYN takes the place of the TIME-WAIT.
    fn connect(&mut self, listener: &TcpListener, truth: &mut Truth) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&self.client.into()).unwrap();
        let from = monotonic_ns();
        socket.connect(&listener.local_addr().unwrap().into()).unwrap();
        let recycled = Moment { from, to: monotonic_ns() };
        if let Some(entered) = self.time_wait.take() {
            truth.time_waits += 1;
            truth.time_wait += entered.until(recycled);
        }
        self.client_end = Some(socket.into());
        self.server_end = Some(listener.accept().unwrap().0);
    }

    fn close_server(&mut self) {
        let from = monotonic_ns();
        drop(self.server_end.take());
        self.closed = Some(Moment { from, to: monotonic_ns() });
        assert_eq!(self.client_end.as_ref().unwrap().read(&mut [0]).unwrap(), 0);
        acknowledge(self.client_end.as_ref().unwrap());
        self.close_wait = Some(Moment { from, to: monotonic_ns() });
    }

    fn close_client(&mut self, server: SocketAddr, truth: &mut Truth) {
        let from = monotonic_ns();
        drop(self.client_end.take());
        let last_ack = Moment { from, to: monotonic_ns() };
        until_state(&Flow::new(server, self.client), Some(TcpState::TimeWait));
        until_state(&Flow::new(self.client, server), None);
        let over = Moment { from, to: monotonic_ns() };
        truth.connections += 1;
        truth.close_wait += self.close_wait.take().unwrap().until(last_ack);
        truth.last_ack += last_ack.until(over);
        truth.fin_wait += self.closed.take().unwrap().until(over);
        self.time_wait = Some(over);
    }
}

/// Has the FIN that has come acknowledged now and not by a timer (net/ipv4/tcp.c, __tcp_sock_set_quickack, 5.8 to 6.18).
/// A timer's softirq can fall on a program of the probe that runs for a system call of this test, and the kernel leaves
/// out what would run it again: in an emulated guest for hundreds of steps of each play, which then proves nothing.
fn acknowledge(stream: &TcpStream) {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    let value = std::ptr::from_ref(&on).cast();
    // SAFETY: an option of four bytes, which live until the call returns.
    let done =
        unsafe { libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_QUICKACK, value, length) };
    assert_eq!(done, 0, "TCP_QUICKACK: {}", std::io::Error::last_os_error());
}

fn until_state(flow: &Flow, wanted: Option<TcpState>) {
    let begun = monotonic_ns();
    loop {
        let state = sock_diag::lookup(flow, 0, None).unwrap().map(|socket| socket.state);
        if state == wanted {
            return;
        }
        assert!(monotonic_ns() - begun < 10_000_000_000, "{flow:?} stays in {state:?}");
    }
}

/// The addresses of sockets and minisockets in the kernel, each by what /proc/net/tcp shows for it (a hash, one to one),
/// and which connections' they were.
#[derive(Default)]
struct Addresses {
    carried: BTreeMap<String, BTreeSet<(String, String)>>,
}

impl Addresses {
    fn look(&mut self) {
        let text = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let [_, local, remote, _, _, _, _, _, _, _, _, address, ..] = words[..] else {
                panic!("/proc/net/tcp has another shape: {line}");
            };
            self.carried.entry(address.to_owned()).or_default().insert((local.to_owned(), remote.to_owned()));
        }
    }

    /// How many addresses were there, and how many belonged to more than one flow. A kernel that hides them shows one.
    fn shared(&self) -> (usize, usize) {
        (self.carried.len(), self.carried.values().filter(|flows| flows.len() > 1).count())
    }
}

/// Plays all rounds. What was done, kind by kind.
fn play(load: &Load, addresses: &mut Addresses) -> Vec<Truth> {
    let listeners = load.listeners();
    let servers: Vec<SocketAddr> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let mut truths = vec![Truth::default(); KINDS.len()];
    let flow = |n: usize| Connection {
        kind: n % KINDS.len(),
        client: (Ipv4Addr::LOCALHOST, CLIENTS_FROM + n as u16).into(),
        client_end: None,
        server_end: None,
        closed: None,
        close_wait: None,
        time_wait: None,
    };
    let mut flows: Vec<Connection> = (0..FLOWS_PER_KIND * KINDS.len()).map(flow).collect();
    for round in 0..ROUNDS {
        let mut playing: Vec<&mut Connection> =
            flows.iter_mut().filter(|flow| round % (flow.kind + 1) == 0).collect();
        // What is freed last is given out first: in another order each time, so that addresses change hands.
        let turn = round * 7 % playing.len();
        playing.rotate_left(turn);
        for flow in &mut playing {
            flow.connect(&listeners[flow.kind], &mut truths[flow.kind]);
        }
        if round % ROUNDS_A_LOOK == 0 {
            addresses.look();
        }
        let turn = round * 5 % playing.len();
        playing.rotate_left(turn);
        let begun = monotonic_ns();
        for flow in &mut playing {
            flow.close_server();
        }
        for (kind, stay) in KINDS.into_iter().enumerate() {
            let left = stay.saturating_sub(Duration::from_nanos(monotonic_ns() - begun));
            // What is to be measured, not waited for.
            sleep(left);
            for flow in playing.iter_mut().filter(|flow| flow.kind == kind) {
                flow.close_client(servers[kind], &mut truths[kind]);
            }
        }
        if round % ROUNDS_A_LOOK == 0 {
            addresses.look();
        }
    }
    truths
}

/// On one CPU, whose slab then hands out what it has just taken back.
fn stay_on_one_cpu() {
    let may = sched_getaffinity(None).unwrap();
    let first = (0..CpuSet::MAX_CPU).find(|&cpu| may.is_set(cpu)).unwrap();
    let mut one = CpuSet::new();
    one.set(first);
    sched_setaffinity(None, &one).unwrap();
}

/// What is wrong with what `watcher` tells of the kind on `port`.
fn judge(watcher: &Watcher, port: u16, truth: &Truth) -> Vec<String> {
    let metrics = watcher.agent.metrics();
    let port = port.to_string();
    let of = |side: &'static str| [("port", port.as_str()), ("side", side)];
    let mut wrong = Vec::new();
    let mut check = |what: &str, right: bool, reported: String| {
        if !right {
            wrong.push(format!("{}: port {port}: {what}: {reported}, and not as in {truth:?}", watcher.name));
        }
    };
    let n = truth.connections as f64;
    for (side, role) in [("client", "passive"), ("server", "active")] {
        let closes =
            |more: &[(&str, &str)]| metrics.sum("tcpclose_closes_total", &[&of(side), more].concat());
        let reported = (closes(&[]), closes(&[("role", role)]));
        check("closes", reported == (n, n), format!("{side} {reported:?}"));
        if side == "client" || watcher.hooks {
            let reported = closes(&[("outcome", "graceful")]);
            check("graceful closes", reported == n, format!("{side} {reported}"));
        }
    }
    let stays = |side, state| {
        let labels = [&of(side)[..], &[("state", state)]].concat();
        let get = |what| metrics.sum(&format!("tcpclose_state_duration_seconds_{what}"), &labels);
        (get("count"), get("sum"))
    };
    for (state, bracket) in [("close_wait", truth.close_wait), ("last_ack", truth.last_ack)] {
        let (count, sum) = stays("client", state);
        check(state, count == n && bracket.holds(sum), format!("{count} of {sum} s"));
    }
    let (one, two, waits) =
        (stays("server", "fin_wait_1"), stays("server", "fin_wait_2"), stays("server", "time_wait"));
    let most = |bracket: Bracket, sum: f64| Bracket { least: 0, ..bracket }.holds(sum);
    check("FIN-WAIT-1", one.0 == n && most(truth.fin_wait, one.1), format!("{one:?}"));
    if watcher.hooks {
        check("FIN-WAIT", two.0 == n && truth.fin_wait.holds(one.1 + two.1), format!("{one:?} {two:?}"));
        let right = waits.0 == truth.time_waits as f64 && truth.time_wait.holds(waits.1);
        check("TIME-WAIT", right, format!("{waits:?}"));
    } else {
        // Dumps see but a part of what comes and goes between them; of no more than there was.
        check("FIN-WAIT-2", two.0 <= n && most(truth.fin_wait, one.1 + two.1), format!("{two:?}"));
        let right = waits.0 <= truth.time_waits as f64 && most(truth.time_wait, waits.1);
        check("TIME-WAIT", right, format!("{waits:?}"));
    }
    wrong
}

/// Plays once beside new agents. What is wrong, by agent; nothing of one that was not told of all, which proves nothing.
fn try_once(offset: u16) -> BTreeMap<String, Option<Vec<String>>> {
    let load = Load::listen(first_port(offset), KINDS.len() as u16);
    let watchers = start_agents(&load, &[]);
    let witness = Witness::begin(watchers.iter().map(|watcher| &watcher.agent));
    // Not the agents.
    stay_on_one_cpu();
    let mut addresses = Addresses::default();
    let begun = monotonic_ns();
    let truths = play(&load, &mut addresses);
    let connections: usize = truths.iter().map(|truth| truth.connections).sum();
    let (seen, shared) = addresses.shared();
    eprintln!(
        "{connections} connections in {:.1} s; of {seen} addresses seen {shared} were of several flows",
        (monotonic_ns() - begun) as f64 / 1e9
    );
    assert!(seen == 1 || shared > FLOWS_PER_KIND, "no address was used again: {seen}, {shared}");
    for truth in &truths {
        eprintln!("{truth:?}");
    }

    let mut reported = BTreeMap::new();
    for watcher in &watchers {
        // One TIME-WAIT a flow is left.
        let kernel = watcher.until_equal("after the last round");
        assert_eq!((kernel.time_waits, kernel.fin_wait_2s), (FLOWS_PER_KIND * KINDS.len(), 0));
    }
    for (watcher, left_out) in watchers.iter().zip(witness.left_out()) {
        let whole = watcher.lost(left_out) == 0.0;
        let wrong =
            || load.ports().zip(&truths).flat_map(|(port, truth)| judge(watcher, port, truth)).collect();
        reported.insert(watcher.name.clone(), whole.then(wrong));
    }
    reported
}

#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_an_address_that_is_used_again_joins_no_two_lives() {
    /// The kernel leaves a program out where an interrupt of it would run it again: on a loaded machine, now and then.
    const TRIES: u16 = 6;
    let mut right = BTreeSet::new();
    let mut unproven = BTreeSet::new();
    for n in 0..TRIES {
        in_a_namespace(&[], || {
            for (name, wrong) in try_once(n % 4 * KINDS.len() as u16) {
                match wrong {
                    Some(wrong) => {
                        assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
                        right.insert(name);
                    }
                    None => _ = unproven.insert(name),
                }
            }
        });
        if unproven.is_subset(&right) {
            return;
        }
    }
    unproven.retain(|name| !right.contains(name));
    panic!("records were lost each time: {unproven:?}");
}
