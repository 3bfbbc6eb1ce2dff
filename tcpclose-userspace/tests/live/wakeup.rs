//! The probe wakes an agent that sleeps, once, when the ring fills past its mark: so a burst that falls into the sleep of
//! an idle agent, and that is more than the ring holds, loses nothing.

use crate::common;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use common::{Agent, HOOKS, Metrics, free_port};
use rustix::thread::{UnshareFlags, unshare_unsafe};

const RING: usize = 256 << 10;
/// What both ends of a connection leave in the ring: two records with addresses, four without, a header of 8 bytes each
/// (kernel/bpf/ringbuf.c, BPF_RINGBUF_HDR_SZ).
const OF_A_CONNECTION: usize = 2 * (80 + 8) + 4 * (48 + 8);
/// A burst takes less of the ring than is free when the agent has been woken, all bursts of a round more than it holds.
const BURST: usize = RING * 2 / 5 / OF_A_CONNECTION;
const BURSTS: usize = 4;
/// The agent has this long to wake up and drain before the next burst, and before the one after that is too much.
const BETWEEN: Duration = Duration::from_millis(100);
/// The agent's pause has grown to 1 s by then.
const IDLE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);
/// A burst may by chance fall at the end of a pause, where nobody need be woken: not each time.
const ROUNDS: usize = 5;

fn burst(listener: &TcpListener) {
    let to = listener.local_addr().unwrap();
    for _ in 0..BURST {
        let client = TcpStream::connect(to).unwrap();
        drop(listener.accept().unwrap());
        drop(client);
    }
}

#[test]
#[ignore = "needs root"]
fn a_burst_wakes_a_sleeping_agent_before_the_ring_is_full() {
    const { assert!(BURSTS * BURST * OF_A_CONNECTION > RING) };
    for hook in HOOKS {
        let size = RING.to_string();
        let port = free_port().to_string();
        let arguments = ["--state-hook", hook, "--ring-size", &size, "--name-port", &port];
        let agent = Agent::start(&[&arguments[..], &["--reconcile-interval", "1s"]].concat());
        // The TIME-WAITs that this makes go with a network namespace.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: a network namespace is of this thread alone; no file descriptor or memory of others is touched.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
                assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse().unwrap())).unwrap();
                for _ in 0..ROUNDS {
                    sleep(IDLE);
                    for _ in 0..BURSTS {
                        burst(&listener);
                        sleep(BETWEEN);
                    }
                }
            });
        });
        // A FIN-WAIT-2 that its namespace took along is over when the next reconcile has missed it.
        let all = ROUNDS * BURSTS * BURST;
        let of_server = [("side", "server"), ("port", port.as_str())];
        let closes = |metrics: &Metrics| metrics.sum("tcpclose_closes_total", &of_server) as usize;
        let metrics = agent.metrics_when(PATIENCE, "all have closed", |metrics| {
            closes(metrics) + metrics.missed_by_the_kernel() >= all
        });
        let missed = metrics.missed_by_the_kernel();
        let closes = closes(&metrics);
        println!("{hook}: {closes} closes of {all} connections, none lost");
        assert!(closes.abs_diff(all) <= missed, "{hook}: {closes} of {all}, {missed} missed");
    }
}
