//! Floods of TIME-WAITs: the gauges equal what the kernel itself says, at rest, while they sit, when they are gone, and
//! when its table of them is full; and nothing of them stays in the agent.
//!
//! Each test has a network namespace of its own, so that neighbours do not disturb its counts.

use crate::common;
use crate::load;

use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::HOOKS;
use load::connections::{Load, Played};
use load::home::{first_port, in_a_namespace};
use load::left_out::Witness;
use load::truth::{Kernel, overflows};
use load::watch::{Watcher, start_agents, start_starved, until_all_equal};
use load::{emulated, scaled};
use socket2::SockRef;

/// TIME-WAIT and its late timer.
const LAST_WAIT: Duration = Duration::from_secs(60 + 6);

/// Each test has the process to itself: what another one spawns has a copy of every socket of this process until its
/// exec() (copy_files in kernel/fork.c, do_close_on_exec in fs/file.c), and a close() in that time is none. The server's
/// end, accepted after that copy was made, would then be the first to close where the client's was to be.
static ALONE: Mutex<()> = Mutex::new(());

/// Waits until no minisocket is left in the kernel.
fn until_over(watchers: &[Watcher]) {
    let begun = Instant::now();
    while Kernel::look().tw > 0 {
        assert!(begun.elapsed() < LAST_WAIT, "minisockets do not end: {:?}", Kernel::look());
        sleep(Duration::from_millis(250));
    }
    until_all_equal(watchers, 2.0, "after the end");
}

/// Holds every agent's closes against what was played.
fn judge_closes(watchers: &[Watcher], witness: &Witness, load: &Load, played: &[Played]) {
    for (watcher, left_out) in watchers.iter().zip(witness.left_out()) {
        watcher.judge_closes(load, played, left_out);
    }
}

fn print_memory(watchers: &[Watcher], when: &str) {
    for watcher in watchers {
        eprintln!("{when}: {} has {:.1} MiB", watcher.name, mib(watcher.agent.allocated()));
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_gauges_equal_the_kernel_at_rest_and_after_50_000_connections() {
    /// Clients that have closed, each now a FIN-WAIT-2 minisocket.
    const HALF_CLOSED: usize = 300;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // An emulated processor takes a hundred times the CPU time for a dump, and dumps are as much farther apart: two of
    // them must come before the first TIME-WAIT has ended.
    let (connections, least) = (scaled(50_000, 10), scaled(10_000, 10));
    in_a_namespace(&[("tcp_max_tw_buckets", "200000")], || {
        let load = Load::listen(first_port(0), 8);
        let mut watchers = start_agents(&load, &[]);
        // On an emulated machine the dumps that mend what such an agent lost are 40 s apart.
        let starved = if emulated() { &[][..] } else { &HOOKS[..] };
        watchers.extend(starved.iter().map(|state| start_starved(&load, state, &[])));
        let witness = Witness::begin(watchers.iter().map(|watcher| &watcher.agent));
        for watcher in &watchers {
            watcher.until_equal("before");
        }
        print_memory(&watchers, "before");

        let (mut played, took) = load.play(connections, Duration::from_secs(10), Duration::from_secs(30));
        let servers = load.half_closed(HALF_CLOSED);
        played[0].by_client += HALF_CLOSED;
        let connections: usize = played.iter().map(|played| played.all()).sum();
        eprintln!("{connections} connections in {took:.1?}");
        for kernel in until_all_equal(&watchers, 2.0, "while they sit") {
            assert!(kernel.time_waits >= least, "only {kernel:?}");
            // A socket whose close() still held it when the ACK came stays a full one until its timer (tcp_rcv_state_process).
            assert_eq!(kernel.fin_wait_2s + kernel.full_fin_wait_2s, HALF_CLOSED);
        }
        print_memory(&watchers, "while they sit");

        // With a RST, which ends the minisockets at once.
        for server in &servers {
            SockRef::from(server).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(servers);
        until_over(&watchers);
        print_memory(&watchers, "after the end");
        judge_closes(&watchers, &witness, &load, &played);
    });
}

#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_a_table_that_is_full_leaves_nothing_behind() {
    /// How much more memory than before the flood an agent may have after it: what malloc keeps of 20,000 lives' worth
    /// in its small blocks.
    const TOLERANCE: u64 = 4 << 20;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Where an emulated processor loses records to recursion, what is left of each close without a minisocket is looked
    // up, and dumps are a hundred times their CPU time apart: three of them must come before the table is empty again.
    let (connections, limit) = (scaled(20_000, 40), scaled(5_000, 50));
    in_a_namespace(&[("tcp_max_tw_buckets", &limit.to_string())], || {
        let load = Load::listen(first_port(8), 4);
        let reconciling = ["--reconcile-interval", "5s"];
        let mut watchers = start_agents(&load, &reconciling);
        if !emulated() {
            watchers.push(start_starved(&load, "btf", &reconciling));
        }
        let witness = Witness::begin(watchers.iter().map(|watcher| &watcher.agent));
        let allocated: Vec<u64> = watchers.iter().map(|watcher| watcher.agent.allocated()).collect();
        let before = overflows();

        let (played, took) = load.play(connections, Duration::from_secs(3), Duration::from_secs(30));
        let connections: usize = played.iter().map(|played| played.all()).sum();
        let overflowed = overflows() - before;
        eprintln!("{connections} connections in {took:.1?}, {overflowed} without a minisocket");
        // Root has made this namespace, and PID 1 is in another.
        const CONTAINER: [(&str, &str); 1] = [("netns_owner", "container")];
        assert!(overflowed > limit / 5, "the table did not fill: {:?}", Kernel::look());
        // A socket that closes without a minisocket: one dump may come too soon after that to judge, of the next two
        // neither sees it.
        for (watcher, kernel) in watchers.iter().zip(until_all_equal(&watchers, 3.0, "while it is full")) {
            let ratio = watcher.agent.metrics().sum("tcpclose_time_wait_limit_used_ratio", &CONTAINER);
            assert_eq!(ratio, kernel.tw as f64 / limit as f64, "{}", watcher.name);
            assert!((0.999..1.001).contains(&ratio), "{}: {ratio}", watcher.name);
        }
        print_memory(&watchers, "while it is full");

        until_over(&watchers);
        for (watcher, before) in watchers.iter().zip(allocated) {
            // Two reconciles.
            watcher.until_empty(Duration::from_secs(10));
            let begun = Instant::now();
            while watcher.agent.allocated() > before + TOLERANCE {
                assert!(
                    begun.elapsed() < Duration::from_secs(10),
                    "{}: {:.1} MiB stay of a flood, {:.1} MiB before",
                    watcher.name,
                    mib(watcher.agent.allocated()),
                    mib(before)
                );
                sleep(Duration::from_millis(250));
            }
            eprintln!(
                "{}: {:.1} MiB before, {:.1} MiB after",
                watcher.name,
                mib(before),
                mib(watcher.agent.allocated())
            );
            let counted = watcher.grown("tcpclose_time_wait_overflows_total", &[]);
            assert_eq!(counted, overflowed as f64, "{}: TCPTimeWaitOverflow", watcher.name);
        }
        judge_closes(&watchers, &witness, &load, &played);
    });
}
