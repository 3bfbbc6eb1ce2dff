//! The ring in pages of this kernel, be they 4, 16 or 64 KiB: the smallest one, and one that is larger than what the
//! agent maps of it at a time, are read to their ends and over them, and nothing smaller than a page is taken.

use crate::common;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use common::{Agent, BINARY, HOOKS, Metrics, free_port, get_unix};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// What both ends of a connection leave in the ring at most: two records with addresses, four without, what hooks tell of
/// a TIME-WAIT, a header of 8 bytes each (kernel/bpf/ringbuf.c, BPF_RINGBUF_HDR_SZ).
const OF_A_CONNECTION: usize = 3 * (80 + 8) + 6 * (48 + 8);

/// Closes connections in a network namespace of this thread, whose TIME-WAITs go with it: so many that the ring is filled
/// twice, a third of it between two scrapes, which take all that is in it. Returns how many.
fn fill_twice(agent: &Agent, ring: usize, port: u16) -> usize {
    // SAFETY: a network namespace is of this thread alone; no file descriptor or memory of others is touched.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let at_once = ring / 3 / OF_A_CONNECTION;
    // A connection leaves 6 records of 48 bytes or more.
    let rounds = (2 * ring).div_ceil(6 * 48 * at_once);
    for _ in 0..rounds {
        for _ in 0..at_once {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            drop(listener.accept().unwrap());
            drop(client);
        }
        get_unix(&agent.socket(), "/metrics");
    }
    rounds * at_once
}

#[test]
#[ignore = "needs root"]
fn a_ring_of_one_page_and_one_of_several_windows_are_read_over_their_ends() {
    for ring in [rustix::param::page_size(), 512 << 10] {
        for hook in HOOKS {
            let (size, port) = (ring.to_string(), free_port());
            let name = port.to_string();
            let agent = Agent::start(&["--state-hook", hook, "--ring-size", &size, "--name-port", &name]);
            let connections =
                std::thread::scope(|scope| scope.spawn(|| fill_twice(&agent, ring, port)).join().unwrap());

            let of_server = [("side", "server"), ("port", name.as_str())];
            let closes = |metrics: &Metrics| metrics.sum("tcpclose_closes_total", &of_server) as usize;
            // The last ones may be over later than their scrape.
            let metrics = agent.metrics_when(Duration::from_secs(60), "all have closed", |metrics| {
                metrics.sum("tcpclose_events_lost_total", &[("stage", "ring")]) > 0.0
                    || closes(metrics) + metrics.missed_by_the_kernel() >= connections
            });
            let lost = |stage| metrics.sum("tcpclose_events_lost_total", &[("stage", stage)]);
            let received = metrics.sum("tcpclose_events_received_total", &[]);
            // Positions and records from a wrong place would make no sense, whatever else the ring held.
            assert_eq!(lost("decode"), 0.0, "{hook}, {size}: of {received} records");
            assert!(used(&metrics) <= ring, "{hook}, {size}: {} in use", used(&metrics));
            if lost("ring") > 0.0 {
                println!(
                    "{hook}, a ring of {size} bytes: other traffic has filled it; {received} records are sound"
                );
                continue;
            }
            let closes = closes(&metrics);
            let missed = metrics.missed_by_the_kernel();
            println!("{hook}, a ring of {size} bytes: {closes} closes of {connections}, {missed} missed");
            assert!(closes.abs_diff(connections) <= missed, "{hook}, {size}: {closes} of {connections}");
        }
    }
}

fn used(metrics: &Metrics) -> usize {
    metrics.sum("tcpclose_ring_used_bytes_max", &[]) as usize
}

#[test]
fn a_ring_of_less_than_a_page_is_refused_with_the_smallest_size() {
    let page = rustix::param::page_size();
    let agent =
        Command::new(BINARY).args(["agent", "--ring-size", &(page / 2).to_string()]).output().unwrap();
    let printed = String::from_utf8(agent.stderr).unwrap();
    let smallest = format!("from {}K (a page of this kernel) to 1024M", page >> 10);
    assert!(!agent.status.success() && printed.contains(&smallest), "{printed}");
}
