//! What a dump of a great many TIME-WAITs takes of the agent's memory at its peak: little more than what is tracked, and
//! less than the DaemonSet's limit for a million.

use crate::common;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::{Agent, BINARY};
use rustix::process::Signal;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Bytes that a tracked socket takes (`tracker::socket::TrackedSocket`).
const TRACKED: u64 = 112;
/// Bytes more a socket at the peak: tables by which it is found, as they grow, and room for more.
const BESIDES: u64 = 30;
/// Malloc's arenas, threads' stacks, a few chunks of a dump, and a look at the ports in use: 65,536 pairs of ends at the most
/// (`exhaustion`), which is as many as connections to addresses of their own make.
const SLACK: u64 = 16 << 20;
/// What the manifest promises to have room for.
const PROMISED: u64 = 1_000_000;

/// Runs `test` in a network namespace of its own that has room for two million TIME-WAITs.
fn in_a_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: a network namespace is of this thread alone; no file descriptor or memory of others is touched.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "2000000").unwrap();
            test()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes `count` TIME-WAITs in this thread's namespace, or as many as can be made in `patience`: they last a minute.
fn time_waits(count: u32, patience: Duration) {
    let until = Instant::now() + patience;
    thread::scope(|scope| {
        for worker in 0..2_u8 {
            scope.spawn(move || {
                let listener =
                    TcpListener::bind((Ipv4Addr::UNSPECIFIED, 20_080 + u16::from(worker))).unwrap();
                let port = listener.local_addr().unwrap().port();
                for n in 0..count / 2 {
                    // Each to an address of its own: no TIME-WAIT is in its way, and ports do not run out.
                    let [_, a, b, c] = n.to_be_bytes();
                    let to = SocketAddrV4::new(Ipv4Addr::new(127, 1 + a, b, c), port);
                    let client = TcpStream::connect(to).unwrap();
                    let server = listener.accept().unwrap().0;
                    drop(client);
                    drop(server);
                    if n % 1024 == 0 && Instant::now() > until {
                        break;
                    }
                }
            });
        }
    });
}

/// The most memory that an agent has had, bytes.
fn peak(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// The TIME-WAITs of this thread's network namespace.
fn there() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/net/sockstat").unwrap();
    stat.split(" tw ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

fn tracked(agent: &Agent) -> u64 {
    agent.metrics().sum("tcpclose_sockets", &[("state", "time_wait")]) as u64
}

#[test]
#[ignore = "needs root"]
fn a_dump_of_many_sockets_takes_little_more_than_what_is_tracked() {
    in_a_namespace(|| {
        let mut without = Agent::start(&["--netns", "current"]);
        let (peak_without, rest) = (peak(&without), without.resident());
        without.end(Signal::TERM);

        time_waits(200_000, Duration::from_secs(40));
        // On a slow machine fewer are left when the agent looks: never more.
        let there = there();
        let agent = Agent::start(&["--netns", "current"]);
        let peak = peak(&agent);
        let tracked = tracked(&agent);
        println!(
            "{tracked} TIME-WAITs of {there}: {} KiB at the peak; without {} KiB at the peak, {} KiB at rest: {} bytes a socket over that",
            peak >> 10,
            peak_without >> 10,
            rest >> 10,
            peak.saturating_sub(rest) / tracked.max(1)
        );
        assert!(tracked > 0, "no TIME-WAIT was there any more");
        let most = peak_without.max(rest + there * (TRACKED + BESIDES) + SLACK);
        assert!(peak <= most, "{peak} bytes at the peak, of {most}");
    });
}

/// A memory cgroup with a limit, removed when dropped.
struct Limited(PathBuf);

impl Limited {
    /// `None` where there is no memory controller to be had.
    fn to(bytes: u64) -> Option<Self> {
        let name = format!("tcpclose-test-{}", std::process::id());
        let of = |root: &str, limit: &str| {
            let folder = PathBuf::from(root).join(&name);
            fs::create_dir(&folder).ok()?;
            let limited = Self(folder);
            fs::write(limited.0.join(limit), bytes.to_string()).ok()?;
            Some(limited)
        };
        of("/sys/fs/cgroup/memory", "memory.limit_in_bytes").or_else(|| of("/sys/fs/cgroup", "memory.max"))
    }

    /// Starts what is added to it, in the group.
    fn command(&self) -> Command {
        let mut command = Command::new("sh");
        let enter = format!("echo 0 > {}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display());
        command.args(["-c", &enter, BINARY]);
        command
    }

    /// The most that was charged to it, the kernel's memory included, bytes.
    fn peak(&self) -> u64 {
        let read = |name: &str| fs::read_to_string(self.0.join(name));
        let text = read("memory.max_usage_in_bytes").or_else(|_| read("memory.peak"));
        text.unwrap().trim().parse().unwrap()
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // What has just ended may still be in it.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The DaemonSet's limit of memory, bytes.
fn limit_of_the_manifest() -> u64 {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/daemonset.yaml");
    let manifest = fs::read_to_string(manifest).unwrap();
    let limits = manifest.split("limits:").nth(1).unwrap();
    let mebibytes = limits.split("memory: ").nth(1).unwrap().split("Mi").next().unwrap();
    mebibytes.parse::<u64>().unwrap() << 20
}

#[test]
#[ignore = "takes long: makes 900,000 TIME-WAITs"]
fn long_a_million_fit_below_the_limit_of_the_daemonset() {
    let limit = limit_of_the_manifest();
    let Some(limited) = Limited::to(limit) else {
        eprintln!("SKIPPED: no memory cgroup can be made");
        return;
    };
    in_a_namespace(|| {
        let mut without = Agent::start_by(limited.command(), &["--netns", "current"]);
        let rest = without.resident();
        without.end(Signal::TERM);
        time_waits(900_000, Duration::from_secs(50));
        // Twice: what the first has kept must not be too much for the second.
        for start in ["the first start", "a restart"] {
            let mut agent = Agent::start_by(limited.command(), &["--netns", "current"]);
            let (tracked, peak) = (tracked(&agent), peak(&agent));
            let each = peak.saturating_sub(rest) / tracked.max(1);
            println!(
                "{start}: {tracked} TIME-WAITs, {} KiB at the peak of {} KiB, {} KiB charged to the group: {each} bytes a socket \
                 over {} KiB at rest",
                peak >> 10,
                limit >> 10,
                limited.peak() >> 10,
                rest >> 10
            );
            if tracked < PROMISED / 4 {
                eprintln!(
                    "SKIPPED: this machine is too slow to make many TIME-WAITs within a minute: {tracked}"
                );
                return;
            }
            assert!(
                rest + each * PROMISED <= limit,
                "{each} bytes a socket: a million do not fit in {limit}"
            );
            agent.end(Signal::TERM);
        }
    });
}
