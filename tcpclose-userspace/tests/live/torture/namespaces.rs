//! A thousand network namespaces that are made, have connections close in them, and go, while the agent looks for them.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::thread::UnshareFlags;

use super::witness::{Witness, agrees};
use crate::common::{Agent, HOOKS};
use crate::restart::stage::{PATIENCE, Port};

const ALL: usize = 1000;
/// Each of them closes so many connections, in a port's name that is everybody's.
const CLOSES: usize = 3;

/// In a namespace of its own, which goes with this thread.
fn live_and_die(port: u16) {
    // SAFETY: a network namespace is the thread's alone; no memory or descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET).unwrap() };
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    for _ in 0..CLOSES {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(listener.accept().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_a_thousand_namespaces_come_and_go() {
    let port = Port::new();
    let name = port.port.to_string();
    let arguments = ["--name-port", &name, "--reconcile-interval", "2s", "--log-level", "error"];
    let agents: Vec<Agent> =
        HOOKS.iter().map(|hook| Agent::start(&[&arguments[..], &["--state-hook", hook]].concat())).collect();
    let mut witnesses: Vec<Witness> = agents.iter().map(|agent| Witness::of(agent, port.port)).collect();
    let kept = port.close_waits(5);
    let descriptors = |agent: &Agent| std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    let before: Vec<usize> = agents.iter().map(descriptors).collect();
    let begun = Instant::now();
    for round in 0..ALL / 10 {
        std::thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| live_and_die(port.port));
            }
        });
        if round % 20 == 0 {
            witnesses.iter_mut().for_each(Witness::look);
        }
    }
    println!("{ALL} namespaces came and went in {:.0?}", begun.elapsed());
    for ((agent, witness), before) in agents.iter().zip(&mut witnesses).zip(before) {
        witness.look();
        // What was in them is gone with them, which the agent finds out; what is here stays.
        agrees(agent, port.port);
        let of = [("port", name.as_str()), ("side", "server")];
        let metrics =
            agent.metrics_when(3 * PATIENCE, "every connection is counted, or told as lost", |metrics| {
                let lost = metrics.sum("tcpclose_events_lost_total", &[])
                    + metrics.sum("tcpclose_unseen_phases_total", &[("why", "lost")]);
                metrics.sum("tcpclose_closes_total", &of) + lost >= (ALL * CLOSES) as f64
            });
        let closes = metrics.sum("tcpclose_closes_total", &of);
        assert!(closes <= (ALL * CLOSES) as f64, "{closes} closes of {}", ALL * CLOSES);
        let start = Instant::now();
        while descriptors(agent) > before + 2 {
            assert!(start.elapsed() < PATIENCE, "{} descriptors, and {before} before", descriptors(agent));
            sleep(Duration::from_millis(200));
        }
        println!("{closes} closes, {} MiB resident", agent.resident() >> 20);
    }
    drop(kept);
}
