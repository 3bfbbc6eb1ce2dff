//! How exact the durations are that agents tell: `cargo xtask accuracy`. Nothing is judged here; that the truth lies
//! within what is told, the cases assert (`tests/cases`), whose raw-packet peer this uses.
//!
//! * [`tap`]: when a segment passed, by the kernel's own timestamp. [`play`]: closes, and how long their phases lasted.
//! * [`report`]: what the agents told, against that.

use crate::cases::diag;
use crate::cases::place;
use crate::cases::rungs;
use crate::cases::scene;
use crate::cases::wire;
use crate::common;

mod play;
mod report;
mod tap;

use std::process::Command;
use std::thread::{self, sleep};
use std::time::Duration;

use common::{Agent, BINARY};
use place::Netns;
use play::{Close, Phase, Truth};
use rungs::Rung;

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
    let agents: Vec<(Rung, Agent)> =
        Rung::ALL.into_iter().filter_map(|rung| Some((rung, start(rung)?))).collect();
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
    let told: Vec<_> = agents.iter().map(|(rung, agent)| (*rung, agent.metrics())).collect();
    report::print(&told, &truths, CLOSES);
}

fn play_in(netns: &Netns, closes: &mut [Close]) -> Vec<(Vec<Truth>, Option<play::Waiting>)> {
    netns.enter().unwrap();
    closes.iter_mut().map(Close::play).collect()
}

/// An agent on `rung`, otherwise as anybody has it; none where this kernel lacks the rung.
fn start(rung: Rung) -> Option<Agent> {
    if rung == Rung::BlindDiag {
        // Its times are those of the classic tracepoint with BTF, but for the full socket's FIN-WAIT-2 (README).
        return None;
    }
    let arguments =
        ["--state-hook", rung.state_hook(), "--time-wait", rung.time_wait(), "--max-ports", "500"];
    let agent = Agent::try_start_by(Command::new(BINARY), &arguments)
        .map_err(|why| eprintln!("\nSKIPPED: {rung}: {}\n", why.trim()))
        .ok()?;
    let metrics = agent.metrics();
    let on = |hook, name| metrics.sum("tcpclose_hook_info", &[("hook", hook), ("rung", name)]) == 1.0;
    if on("state", rung.state_hook()) && on("time_wait", rung.time_wait()) {
        return Some(agent);
    }
    eprintln!("\nSKIPPED: {rung}: the agent is on another rung\n");
    None
}
