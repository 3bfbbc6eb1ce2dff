//! The agent under what operators do to it and hosts suffer, while connections close: nothing wrong is ever exported, and
//! what was lost is counted.
//!
//! Each scrape is held against the one before it ([`witness`]), and at the end `tcpclose verify` and the kernel's own count
//! of sockets must agree with the agent. What takes a minute or more is run by `cargo xtask test --all`.

mod clock;
use crate::common;
mod namespaces;
use crate::restart::stage;
pub mod witness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, HOOKS};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use stage::{PATIENCE, Port, Raise, on_file, until_kept};
use tcpclose::names::Phase;
use witness::{Load, Witness, agrees};

/// The ring overflows, the agent stands still, and has no descriptor to spare, all while connections close.
#[test]
#[ignore = "needs root"]
fn a_starved_agent_exports_nothing_wrong() {
    starve(Duration::from_secs(5), &HOOKS[..1]);
}

#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_a_starved_agent_exports_nothing_wrong_for_long() {
    starve(Duration::from_secs(45), &HOOKS);
}

fn starve(each: Duration, hooks: &[&str]) {
    for hook in hooks {
        let port = Port::new();
        let name = port.port.to_string();
        let arguments =
            ["--state-hook", hook, "--ring-size", "4K", "--name-port", &name, "--reconcile-interval", "2s"];
        let agent = Agent::start(&arguments);
        let limit = getrlimit(Resource::Nofile);
        let stop = AtomicBool::new(false);
        let (lost, closed) = std::thread::scope(|scope| {
            let load = scope.spawn(|| Load::until(&port, &stop));
            let mut witness = Witness::of(&agent, port.port);
            let begun = Instant::now();
            let raise = Raise(&stop);
            let mut turn = 0;
            while begun.elapsed() < each {
                turn += 1;
                // As a debugger, a frozen cgroup, or a host that lets it wait for its CPU.
                agent.signal(Signal::STOP);
                sleep(Duration::from_millis(300 * (turn % 4)));
                agent.signal(Signal::CONT);
                witness.look();
                // Not one more than it has now, and then those that it may have.
                let open = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count() as u64;
                set_limit(&agent, Rlimit { current: Some(open), ..limit });
                sleep(Duration::from_millis(400));
                set_limit(&agent, limit);
                witness.look();
            }
            drop(raise);
            let left = load.join().unwrap();
            agrees(&agent, port.port);
            let closed = left.closed;
            drop(left);
            witness.look();
            (witness.lost(), closed)
        });
        println!("{hook}: {closed} connections closed, {lost} records lost and counted");
        assert!(lost > 0, "the ring did not overflow");
        agrees(&agent, port.port);
        let verdict = Command::new(BINARY)
            .args(["verify", "--for", "2s", "--socket"])
            .arg(agent.socket())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&verdict.stdout);
        println!("{text}");
        assert_eq!(verdict.status.code(), Some(0), "{verdict:?}");
        agent.until_it_says("records lost");
        let printed = agent.printed();
        assert!(!printed.contains("panicked"), "{printed}");
    }
}

fn pid_of(agent: &Agent) -> Pid {
    Pid::from_raw(agent.pid() as i32).unwrap()
}

fn set_limit(agent: &Agent, limit: Rlimit) {
    prlimit(Some(pid_of(agent)), Resource::Nofile, limit).unwrap();
}

/// Killed at any moment, with a torn line at the end of its file or in the middle of a new one: the next agent reads it,
/// and every age is true.
#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_killed_a_hundred_times_under_load() {
    for hook in HOOKS {
        let folder = tempfile::tempdir().unwrap();
        let (port, busy) = (Port::new(), Port::new());
        let name = port.port.to_string();
        let arguments = ["--state-hook", hook, "--name-port", &name, "--log-level", "warn"];
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let load = scope.spawn(|| Load::until(&busy, &stop));
            let raise = Raise(&stop);
            let mut stayed = Vec::new();
            for round in 0..50u64 {
                let mut agent = Agent::begin_in(folder.path(), &arguments);
                // Some are killed before they are ready.
                if round % 5 == 4 {
                    sleep(Duration::from_millis(11 * round));
                } else {
                    agent.until_ready().unwrap();
                    let answer = port.ask(&agent, Phase::CloseWait);
                    assert_eq!(answer.sockets.len(), stayed.len());
                    for connection in &stayed {
                        assert!(answer.holds(connection), "round {round}: {:?}", answer.find(connection));
                    }
                    if round == 0 {
                        stayed.extend(port.close_waits(5));
                        until_kept(folder.path(), &stayed.iter().collect::<Vec<_>>());
                    }
                    sleep(Duration::from_millis(17 * (round % 13)));
                }
                agent.end(Signal::KILL);
                assert!(!agent.printed().contains("cannot use the state file"), "{}", agent.printed());
                // What stands in the file is whole, but for its end.
                assert!(on_file(folder.path()).unwrap().len() >= stayed.len());
            }
            drop(raise);
            println!("{hook}: {} connections meanwhile", load.join().unwrap().closed);
        });
    }
}

/// A minute in which the host stood still, as far as the agent can tell: what happened meanwhile is counted as lost or
/// mended, and no duration is longer than the time that there was.
#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_after_a_minute_asleep_the_gauges_are_the_kernels() {
    let port = Port::new();
    let name = port.port.to_string();
    let agent = Agent::start(&["--ring-size", "64K", "--name-port", &name, "--reconcile-interval", "2s"]);
    let mut witness = Witness::of(&agent, port.port);
    let before = port.close_waits(20);
    witness.look();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| Load::until(&port, &stop));
        let raise = Raise(&stop);
        sleep(Duration::from_secs(2));
        agent.signal(Signal::STOP);
        // TIME-WAITs begin and end unseen.
        sleep(Duration::from_secs(65));
        agent.signal(Signal::CONT);
        witness.look();
        let answer = port.ask(&agent, Phase::CloseWait);
        for connection in &before {
            answer.holds(connection);
        }
        drop(raise);
        load.join().unwrap();
    });
    agrees(&agent, port.port);
    witness.look();
    println!("{} records lost and counted", witness.lost());
}

/// As a full disk, and killed while it is full: what the next agent takes from the file is old, and true.
#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_killed_on_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let _small = Mounted::small(&disk);
    let port = Port::new();
    let (early, late) = {
        let mut first = Agent::begin_in(&disk, &[]);
        first.until_ready().unwrap();
        let early = port.close_waits(10);
        until_kept(&disk, &early.iter().collect::<Vec<_>>());
        let late = port.close_waits(1500);
        let start = Instant::now();
        while !first.printed().contains("until this works again") {
            assert!(start.elapsed() < 2 * PATIENCE, "not full: {}", first.printed());
            sleep(Duration::from_millis(50));
        }
        first.end(Signal::KILL);
        (early, late)
    };
    let mut second = Agent::begin_in(&disk, &[]);
    second.until_ready().unwrap();
    let printed = second.printed();
    let answer = port.ask(&second, Phase::CloseWait);
    assert_eq!(answer.sockets.len(), early.len() + late.len());
    // Those on file are exact, the others an interval, and all of them true.
    for connection in &early {
        assert!(answer.holds(connection), "{printed} {:?}", answer.find(connection));
    }
    let exact = late.iter().filter(|connection| answer.holds(connection)).count();
    println!("{exact} of {} late ones were on file", late.len());
    assert!(!printed.contains("cannot use the state file"), "{printed}");
}

/// A tmpfs of 64 KiB; gone when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn small(at: &Path) -> Self {
        rustix::mount::mount("none", at, "tmpfs", MountFlags::empty(), Some(c"size=64k,mode=0700")).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // An agent that ends at this moment may still have it open.
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Whoever stops a load sees that it did something.
#[test]
fn the_load_closes_in_every_way() {
    let (port, stop) = (Port::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| Load::until(&port, &stop));
        sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        let load = load.join().unwrap();
        assert!(load.closed > 10 && !load.is_empty());
    });
}
