//! An agent that is stopped while connections close: the host's connections go on, what finds no room in its ring is
//! counted to the last record, and the next reconcile brings the gauges back to what the kernel has.
//!
//! A second agent, never stopped, tells how many records there were to be made: programs on one hook see the same.

use crate::cases::place;

use crate::common;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, HOOKS, Metrics, free_port};
use place::Netns;
use rustix::process::Signal;

const RING: u64 = 64 << 10;
/// The smallest record with the kernel's 8 bytes before it (kernel/bpf/ringbuf.c, BPF_RINGBUF_HDR_SZ).
const SMALLEST: u64 = 48;
/// Of one whole connection: FIN-WAIT-1, FIN-WAIT-2 and its end, CLOSE-WAIT, LAST-ACK and its end.
const RECORDS: u64 = 6;
/// One in so many stays in CLOSE-WAIT, its other end in FIN-WAIT-2.
const HELD: usize = 10;
const CONNECTIONS: usize = 2000;

/// Every record of which an agent knows: taken, or lost and counted.
fn accounted(metrics: &Metrics) -> u64 {
    (metrics.sum("tcpclose_events_received_total", &[]) + metrics.sum("tcpclose_events_lost_total", &[]))
        as u64
}

/// What an agent and the witness have accounted for at one time: other traffic of the host comes in between.
struct Account {
    before: u64,
    agent: u64,
    after: u64,
}

impl Account {
    fn of(agent: &Agent, witness: &Agent) -> Self {
        let before = accounted(&witness.metrics());
        let agent = accounted(&agent.metrics());
        Self { before, agent, after: accounted(&witness.metrics()) }
    }
}

/// Connections to the listener, evenly over `duration`; those that stay in CLOSE-WAIT.
fn close_many(listener: &TcpListener, duration: Duration) -> Vec<TcpStream> {
    let begun = Instant::now();
    let mut held = Vec::new();
    for nth in 0..CONNECTIONS {
        let due = duration.mul_f64(nth as f64 / CONNECTIONS as f64);
        sleep(due.saturating_sub(begun.elapsed()));
        // Each to an address of its own: connect() takes the pair of a TIME-WAIT that is a second old (tcp_tw_reuse).
        let to = Ipv4Addr::new(127, 1, (nth >> 8) as u8, nth as u8);
        let client = TcpStream::connect((to, listener.local_addr().unwrap().port())).unwrap();
        let (server, _) = listener.accept().unwrap();
        drop(client);
        if nth % HELD == 0 {
            held.push(server);
        } else {
            drop(server);
        }
    }
    let took = begun.elapsed();
    println!("{CONNECTIONS} connections in {took:?} while nobody took records");
    assert!(took < duration + Duration::from_secs(30), "the connections were held up: {took:?}");
    held
}

/// The metrics when the port's gauges are those that are expected: a reconcile comes as soon as a loss is noticed, and
/// again when dumps have taken no more than 1 % of a core.
fn corrected(agent: &Agent, port: &str, expected: &[(&str, usize)]) -> Metrics {
    // By then the first TIME-WAITs end.
    let until = Instant::now() + Duration::from_secs(45);
    loop {
        let metrics = agent.metrics();
        let of = |state| metrics.sum("tcpclose_sockets", &[("port", port), ("state", state)]) as usize;
        let now: Vec<(&str, usize)> = expected.iter().map(|(state, _)| (*state, of(state))).collect();
        if now == expected {
            return metrics;
        }
        let interval = metrics.sum("tcpclose_reconcile_interval_seconds", &[]);
        assert!(Instant::now() < until, "{now:?}, not {expected:?}; dumps are {interval} s apart");
        sleep(Duration::from_millis(100));
    }
}

fn stopped_for(duration: Duration) {
    // The agents' dumps are of the namespace that they are in.
    let netns = Netns::new(&[]).unwrap();
    let run = || {
        netns.enter().unwrap();
        stopped_here(duration);
    };
    let ran = std::thread::scope(|scope| scope.spawn(run).join());
    ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn stopped_here(duration: Duration) {
    let port = free_port();
    let name = format!("--name-port={port}");
    let witness = Agent::start(&[&name]);
    let agents = HOOKS.map(|hook| {
        let ring = RING.to_string();
        (hook, Agent::start(&["--state-hook", hook, "--ring-size", &ring, &name]))
    });
    let begun = agents.each_ref().map(|(_, agent)| Account::of(agent, &witness));

    for (_, agent) in &agents {
        agent.signal(Signal::STOP);
    }
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let held = close_many(&listener, duration);
    for (_, agent) in &agents {
        agent.signal(Signal::CONT);
    }

    for ((hook, agent), begun) in agents.iter().zip(begun) {
        let ended = Account::of(agent, &witness);
        let made = ended.agent - begun.agent;
        let least = ended.before - begun.after;
        let most = ended.after - begun.before;
        let metrics = agent.metrics();
        let lost = metrics.sum("tcpclose_events_lost_total", &[("stage", "ring")]) as u64;
        println!("{hook}, stopped for {duration:?}: {made} accounted for of {least} to {most}, {lost} lost");
        assert!((least..=most).contains(&made), "{hook}: {made} accounted for of {least} to {most}");
        let ours = RECORDS * CONNECTIONS as u64 - 2 * held.len() as u64;
        assert!(lost >= ours - RING / SMALLEST, "{hook}: only {lost} lost");
        let used = metrics.sum("tcpclose_ring_used_bytes_max", &[]) as u64;
        // Full is when the next does not fit.
        assert!((RING - 80..=RING).contains(&used), "{hook}: {used} of {RING} bytes were used at the most");

        let port = port.to_string();
        let expected = [
            ("close_wait", held.len()),
            ("fin_wait_2", held.len()),
            ("time_wait", CONNECTIONS - held.len()),
            ("fin_wait_1", 0),
            ("last_ack", 0),
            ("closing", 0),
        ];
        let corrected = corrected(agent, &port, &expected);
        assert!(corrected.sum("tcpclose_reconcile_corrections_total", &[]) > 0.0);
    }
    assert_eq!(witness.metrics().sum("tcpclose_events_lost_total", &[("stage", "ring")]), 0.0);
}

#[test]
#[ignore = "needs root"]
fn an_agent_stopped_for_a_second() {
    stopped_for(Duration::from_secs(1));
}

#[test]
#[ignore = "needs root"]
fn an_agent_stopped_for_ten_seconds() {
    stopped_for(Duration::from_secs(10));
}
