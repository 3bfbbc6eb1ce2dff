//! How exact the durations are that agents tell: `cargo xtask accuracy`. Nothing is judged here; that the truth lies
//! within what is told, the cases assert (`tests/cases`), whose raw-packet peer this uses.
//!
//! * [`tap`]: when a segment passed, by the kernel's own timestamp. [`play`]: closes, and how long their phases lasted.
//! * [`report`]: what the agents told, against that.

use crate::cases::backends;
use crate::cases::diag;
use crate::cases::place;
use crate::cases::scene;
use crate::cases::wire;
use crate::common;

mod play;
mod report;
mod tap;

use std::process::Command;
use std::thread::{self, sleep};
use std::time::Duration;

use backends::Backend;
use common::{Agent, BINARY};
use place::Netns;
use play::{Close, Phase, Truth};

/// A hundred of each script, with the dwell times in turn.
const CLOSES: usize = 400;
/// Threads that make them. Each has every dwell time equally often.
const HANDS: usize = 20;
/// The port of the first; outside the local port range, and away from what other tests use.
const FIRST_PORT: u16 = 12_000;
/// Until a dump has seen what ended last.
const DUMPS: Duration = Duration::from_secs(5);

#[test]
#[ignore = "a measurement of two minutes: cargo xtask accuracy"]
fn measure_durations_against_the_segments() {
    measure();
}

fn measure() {
    let netns = Netns::enter_new().unwrap();
    let mut closes: Vec<Close> =
        (0..CLOSES).map(|number| Close::set(number, FIRST_PORT + number as u16)).collect();
    let agents: Vec<(Backend, Agent)> =
        Backend::ALL.into_iter().filter_map(|backend| Some((backend, start(backend)?))).collect();
    eprintln!("{CLOSES} closes, then a minute until TIME-WAIT is over");

    let netns = &netns;
    let played: Vec<_> = thread::scope(|scope| {
        let hand = |closes| scope.spawn(move || play_in(netns, closes));
        let hands: Vec<_> = closes.chunks_mut(CLOSES / HANDS).map(hand).collect();
        hands.into_iter().flat_map(|hand| hand.join().unwrap()).collect()
    });
    let mut truths: Vec<Truth> = Vec::new();
    let mut waiting = Vec::new();
    for (phases, waits) in played {
        let orphan = phases.iter().any(|truth| truth.phase == Phase::FinWait2Orphan);
        truths.extend(phases);
        // A third of them: to ask for each takes time, in which another may go.
        waiting.extend(waits.filter(|_| orphan));
    }
    truths.extend(play::outwait(waiting));
    sleep(DUMPS);
    let reported: Vec<_> = agents.iter().map(|(backend, agent)| (*backend, agent.metrics())).collect();
    report::print(&reported, &truths, CLOSES);
}

fn play_in(netns: &Netns, closes: &mut [Close]) -> Vec<(Vec<Truth>, Option<play::Waiting>)> {
    netns.enter().unwrap();
    closes.iter_mut().map(Close::play).collect()
}

/// An agent on `backend`, otherwise as anybody has it; none where this kernel lacks the backend.
fn start(backend: Backend) -> Option<Agent> {
    if backend == Backend::BlindDiag {
        // Its times are those of the classic tracepoint with BTF, but for the full socket's FIN-WAIT-2 (docs/coverage.toml).
        return None;
    }
    let arguments =
        ["--state-hook", backend.state_hook(), "--time-wait", backend.time_wait(), "--max-ports", "500"];
    let agent = Agent::try_start_by(Command::new(BINARY), &arguments)
        .map_err(|why| eprintln!("\nSKIPPED: {backend}: {}\n", why.trim()))
        .ok()?;
    let metrics = agent.metrics();
    let on = |hook, name| metrics.sum("tcpclose_hook_info", &[("hook", hook), ("backend", name)]) == 1.0;
    if on("state", backend.state_hook()) && on("time_wait", backend.time_wait()) {
        return Some(agent);
    }
    eprintln!("\nSKIPPED: {backend}: the agent is on another backend\n");
    None
}
