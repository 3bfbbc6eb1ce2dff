//! 100,000 connections on loopback: every count is exact, the sums lie inside the test's brackets, nothing is lost, and
//! when the last TIME-WAIT has ended nothing is tracked and the memory is back.
//!
//! The loopback is that of a network namespace of this test's own: its TIME-WAITs and its reconciles are its own.

use crate::common;

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Agent, Metrics, free_port};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use socket2::{Domain, SockAddr, Socket, Type};

const WORKERS: usize = 2;
const PORTS_OF_A_WORKER: usize = 2;
/// Connections of one worker to one port, closed first by one side.
const OF_A_KIND: usize = 12_500;
const ALL: usize = WORKERS * PORTS_OF_A_WORKER * 2 * OF_A_KIND;
/// One in so many waits in CLOSE-WAIT for at least [`HOLD`].
const HELD: usize = 250;
const HOLD: Duration = Duration::from_millis(10);
/// How well the entry to TIME-WAIT is known that only the minisocket's timer tells.
const ENTRY: f64 = 0.05;
/// How long a TIME-WAIT lasts at the most, with what the coarse timer adds. That it has ended, one of the next two dumps
/// tells, and how far those are apart the agent says.
const LAST: f64 = 66.0;
/// What may remain of the memory of the flood, which takes some 27 MB: the free top of malloc's heap (its trim threshold
/// is 128 KiB), a thread's stack, and code that was not in use before.
const REMAINS: u64 = 2 << 20;

/// What was done on one port by connections that one side closed first.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    connections: usize,
    /// The sum of the least and of the most that each can have spent in CLOSE-WAIT, seconds.
    close_wait: (f64, f64),
    /// The sum of the time from before the first close until after the second, seconds.
    closing: f64,
}

/// A connection from an address and port that no other has: no TIME-WAIT is in its way.
fn connect(nth: usize, to: SocketAddr) -> TcpStream {
    let from = SocketAddr::from(([127, 1, (nth / 10_000) as u8, 1], 10_000 + (nth % 10_000) as u16));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::from(from)).unwrap();
    socket.connect(&SockAddr::from(to)).unwrap();
    socket.into()
}

/// Makes and closes the connections of one kind, the first of which is the `from`th of all.
fn work(listener: &TcpListener, client_first: bool, from: usize) -> Done {
    let to = listener.local_addr().unwrap();
    let mut done = Done::default();
    for i in 0..OF_A_KIND {
        let client = connect(from + i, to);
        let server = listener.accept().unwrap().0;
        let (first, mut second) = if client_first { (client, server) } else { (server, client) };
        let begun = Instant::now();
        drop(first);
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
        let entered = Instant::now();
        if i % HELD == 0 {
            std::thread::sleep(HOLD);
        }
        let least = entered.elapsed().as_secs_f64();
        drop(second);
        let most = begun.elapsed().as_secs_f64();
        done.connections += 1;
        done.close_wait.0 += least;
        done.close_wait.1 += most;
        done.closing += most;
    }
    done
}

/// What was seen of an agent while the last connections ended.
#[derive(Default)]
struct Watched {
    /// Resident memory at the most.
    peak: u64,
    /// Between two dumps at the most, seconds.
    interval: f64,
    /// The metrics when nothing was left.
    last: Option<Metrics>,
}

impl Watched {
    fn look(&mut self, agent: &Agent, none_left: impl Fn(&Metrics) -> bool) {
        let metrics = agent.metrics();
        let dump = metrics.sum("tcpclose_dump_seconds", &[]);
        self.interval = self.interval.max(metrics.sum("tcpclose_reconcile_interval_seconds", &[]) + dump);
        self.peak = self.peak.max(agent.resident());
        self.last = none_left(&metrics).then_some(metrics);
    }
}

/// Moves this thread, and what it starts, to a network namespace of its own with its loopback up.
fn own_network() {
    // SAFETY: a network namespace is of this thread alone; no file descriptor or memory of others is touched.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success());
    let most = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_max_tw_buckets").unwrap();
    assert!(most.trim().parse::<usize>().unwrap() > ALL, "this kernel has no room for so many TIME-WAITs");
}

/// The series of a phase's histogram, on one side of one port.
fn histogram(metrics: &Metrics, side: &str, port: &str, state: &str) -> (usize, f64) {
    let labels = [("side", side), ("port", port), ("state", state)];
    let count = metrics.sum("tcpclose_state_duration_seconds_count", &labels);
    (count as usize, metrics.sum("tcpclose_state_duration_seconds_sum", &labels))
}

/// Asserts that `counted` is `expected`, but for what the kernel kept from the agent.
fn assert_counted(counted: usize, expected: usize, missed: usize, what: &str) {
    assert!(counted.abs_diff(expected) <= missed, "{what}: {counted} of {expected}, {missed} missed");
}

/// Asserts that what `metrics` say of `done`, by the connections to `port` that `first` closed first, is all of it.
fn check(
    metrics: &Metrics,
    port: &str,
    (first, second): (&str, &str),
    done: &Done,
    since: Instant,
    interval: f64,
) {
    let n = done.connections;
    let of = |side, state| histogram(metrics, side, port, state);
    let closes = |side, role| {
        metrics.sum(
            "tcpclose_closes_total",
            &[("side", side), ("port", port), ("role", role), ("outcome", "graceful")],
        ) as usize
    };
    let missed = metrics.missed_by_the_kernel();
    assert_counted(closes(first, "active"), n, missed, "active closes");
    assert_counted(closes(second, "passive"), n, missed, "passive closes");
    for (side, state) in
        [(first, "fin_wait_1"), (first, "fin_wait_2"), (second, "close_wait"), (second, "last_ack")]
    {
        assert_counted(of(side, state).0, n, missed, &format!("{port} {side} {state}"));
    }
    let close_wait = of(second, "close_wait").1;
    let (least, most) = done.close_wait;
    println!("port {port}, {first} first: CLOSE-WAIT {close_wait:.3} s of {least:.3} to {most:.3}");
    assert!(missed > 0 || least <= close_wait && close_wait <= most);
    let fin_wait = of(first, "fin_wait_1").1 + of(first, "fin_wait_2").1;
    println!("  FIN-WAIT-1 and -2 {fin_wait:.3} s, {:.3} s from close to close", done.closing);
    assert!(fin_wait <= done.closing + ENTRY * n as f64);
    let (waited, time_wait) = of(first, "time_wait");
    // A phase of two intervals is never unseen.
    if 2.0 * interval <= 60.0 {
        assert_counted(waited, n, missed, &format!("{port} {first} time_wait"));
    }
    let time_wait = time_wait / waited as f64;
    let most = since.elapsed().as_secs_f64() + ENTRY;
    println!("  TIME-WAIT {time_wait:.3} s on average");
    assert!(60.0 - ENTRY - interval <= time_wait && time_wait <= most);
}

#[test]
#[ignore = "needs root"]
fn a_hundred_thousand_connections() {
    own_network();
    let listeners: Vec<Vec<TcpListener>> = (0..WORKERS)
        .map(|_| {
            (0..PORTS_OF_A_WORKER)
                .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap())
                .collect()
        })
        .collect();
    let ports: Vec<String> =
        listeners.iter().flatten().map(|l| l.local_addr().unwrap().port().to_string()).collect();
    let names: Vec<String> = ports.iter().map(|port| format!("--name-port={port}")).collect();
    let own: Vec<&str> = names.iter().map(String::as_str).chain(["--netns", "current"]).collect();
    let agents = Agent::on_each_hook(&own);
    let none = |metrics: &Metrics| {
        ports.iter().all(|port| metrics.sum("tcpclose_sockets", &[("port", port)]) == 0.0)
    };
    let before: Vec<u64> = agents
        .iter()
        .map(|(_, agent)| {
            agent.metrics();
            agent.resident()
        })
        .collect();

    let begun = Instant::now();
    let done: Vec<[Done; 2]> = std::thread::scope(|scope| {
        let workers: Vec<_> = listeners
            .iter()
            .enumerate()
            .map(|(worker, listeners)| {
                scope.spawn(move || {
                    let mut from = worker * ALL / WORKERS;
                    let mut work = |listener, client_first| {
                        let done = work(listener, client_first, from);
                        from += OF_A_KIND;
                        done
                    };
                    listeners.iter().map(|l| [work(l, true), work(l, false)]).collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let took = begun.elapsed();
    println!("{ALL} connections in {took:?}, {:.0} a second", ALL as f64 / took.as_secs_f64());
    let mut watched: Vec<Watched> = agents.iter().map(|_| Watched::default()).collect();
    let all_made = Instant::now();
    while watched.iter().any(|watched| watched.last.is_none()) {
        std::thread::sleep(Duration::from_millis(100));
        for ((_, agent), watched) in agents.iter().zip(&mut watched) {
            if watched.last.is_none() {
                watched.look(agent, none);
                let patience = LAST + 2.0 * watched.interval;
                assert!(
                    all_made.elapsed().as_secs_f64() < patience,
                    "not all have ended after {patience:.0} s"
                );
            }
        }
    }

    for (((hook, agent), before), Watched { peak, interval, last }) in agents.iter().zip(before).zip(watched)
    {
        let metrics = last.unwrap();
        let missed = metrics.missed_by_the_kernel();
        // Of the whole host, other tests' connections in other namespaces included; what is ours is counted below.
        for name in [
            "tcpclose_events_lost_total",
            "tcpclose_unseen_phases_total",
            "tcpclose_reconcile_corrections_total",
        ] {
            for (labels, n) in metrics.select(name, &[]).filter(|(_, n)| *n != 0.0) {
                println!("{hook}: {name} {labels:?} {n}");
            }
        }
        println!("{hook}: nothing is left; dumps were {interval:.1} s apart at the most");
        for (port, [client_first, server_first]) in ports.iter().zip(&done) {
            check(&metrics, port, ("client", "server"), client_first, begun, interval);
            check(&metrics, port, ("server", "client"), server_first, begun, interval);
            let closes = metrics.sum("tcpclose_closes_total", &[("port", port)]);
            assert_counted(closes as usize, 4 * OF_A_KIND, missed, "closes of any kind");
        }
        let pairs = ports.iter().flat_map(|port| [("client", port), ("server", port)]);
        let waited: usize = pairs.map(|(side, port)| histogram(&metrics, side, port, "time_wait").0).sum();
        let between = [("state", "time_wait"), ("why", "between_dumps")];
        let unseen = metrics.sum("tcpclose_unseen_phases_total", &between) as usize;
        assert!(ALL - waited <= unseen + missed, "{waited} measured, {unseen} unseen");
        println!("{hook}: {waited} TIME-WAITs measured");
        let corrections = metrics.sum("tcpclose_reconcile_corrections_total", &[]) as usize;
        assert!(corrections <= missed, "{corrections} corrections");
        // A phase that is unseen for it lacks two steps at the most: the one into it and the one out of it.
        assert!(metrics.sum("tcpclose_events_received_total", &[]) as usize + 2 * missed >= 6 * ALL);

        let after = agent.resident();
        println!(
            "{hook}: {} KiB before, {} KiB at the peak, {} KiB after",
            before >> 10,
            peak >> 10,
            after >> 10
        );
        assert!(after <= before + REMAINS, "memory is not given back");
    }
}
