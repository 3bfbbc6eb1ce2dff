//! All closes at once.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::thread::{scope, sleep};
use std::time::Duration;

use tcpclose::names::Phase::TimeWait;

use super::common::dump_gaps::{self, Done};
use super::common::{Metrics, fence, free_port};
use super::left_out::Witness;
use super::rounds::{self, Round, Wrong, untold};
use super::stage::{Bracket, Family, Look, Stage, Timeline, now, seconds, state_of};
use super::starting;
use super::table::CASES;
use super::verdict::{ENTRY, Run, judge_standing, judge_totals};
use super::watcher::Watcher;

/// TCP_TIMEWAIT_LEN, and how late its timer can be at CONFIG_HZ=100, the worst (2.05 s at 250, 4.1 s at 1000).
const LENGTH: f64 = 60.0;
const LATENESS: f64 = 5.1;

/// For so long after the plays every TIME-WAIT is there, nanoseconds. An agent whose dumps are farther apart may not have
/// seen that a minisocket is in TIME-WAIT now.
const SETTLED: u64 = 35_000_000_000;

/// A case of the table, by its place there, and how its ends talk.
pub type Play = (usize, Family);

/// Every case, in every way.
pub fn plays() -> Vec<Play> {
    let cases = 0..CASES.len();
    cases.flat_map(|case| Family::ALL.map(|family| (case, family))).collect()
}

/// Plays these beside new agents.
pub fn round(plays: &[Play]) -> Round<Play> {
    // By port.
    let found: Mutex<Vec<Wrong<u16>>> = Mutex::default();
    let note = |agent, port, what: Vec<String>| {
        let wrong = what.into_iter().map(|what| Wrong { agent, play: port, what });
        found.lock().unwrap().extend(wrong);
    };
    let starting = starting();
    let mut watchers = Watcher::with_btf();
    // These prove sides by the sockets themselves: their dumps have not seen the listeners that come now. The last one
    // knows sides by its first dump alone.
    let ports: Vec<u16> = plays.iter().map(|_| free_port()).collect();
    let looking = Mutex::new(&[][..]);
    let look: Look<'_> = &|port, standing| {
        let watchers: &[Watcher] = *looking.lock().unwrap();
        for (agent, watcher) in watchers.iter().enumerate() {
            note(agent, port, judge_standing(watcher, port, standing));
        }
    };
    let stages: Vec<(usize, Stage<'_>)> = plays
        .iter()
        .zip(&ports)
        .map(|(&(case, family), &port)| (case, Stage::new(family, port, CASES[case].listens, look)))
        .collect();
    watchers.push(Watcher::blind());
    drop(starting);
    let before: Vec<_> = watchers.iter().map(Watcher::metrics).collect();
    let witness = Witness::begin(watchers.iter().map(|watcher| &watcher.agent));

    let play = |port| plays[ports.iter().position(|&of| of == port).unwrap()];
    let done = AtomicBool::new(false);
    let (mut hopeless, mut unclear, mut late) = (Vec::new(), Vec::new(), Vec::new());
    let runs = scope(|threads| {
        threads.spawn(|| dump_gaps::watch(&Watcher::gaps_of(&watchers), &done));
        let _done = Done(&done);
        *looking.lock().unwrap() = &watchers;
        let playing: Vec<_> = stages
            .into_iter()
            .map(|(case, stage)| {
                threads.spawn(move || {
                    let (case, port) = (&CASES[case], stage.port);
                    let name = format!("{}, {:?}", case.name, stage.family);
                    Run { name, port, ends: case.ends, timelines: (case.play)(stage) }
                })
            })
            .collect();
        let mut runs: Vec<Run> = playing.into_iter().map(|thread| thread.join().unwrap()).collect();
        let until = now() + SETTLED;
        for (agent, watcher) in watchers.iter().enumerate() {
            for (port, what) in time_wait_ages(watcher, &runs, until) {
                if watcher.gaps.apart() < seconds(SETTLED) {
                    note(agent, port, what);
                } else {
                    late.push(play(port));
                }
            }
        }
        hopeless = watch_the_ends(&mut runs);
        runs
    });

    let last: Vec<_> = watchers.iter().map(|watcher| watcher.once_none_is_left(&ports)).collect();
    let mut left_out = witness.left_out();
    for (agent, watcher) in watchers.iter().enumerate() {
        for run in &runs {
            note(agent, run.port, run.judge(watcher, &last[agent]));
        }
    }
    let wrong = found.into_inner().unwrap().into_iter();
    let wrong = wrong.map(|wrong| Wrong { agent: wrong.agent, play: play(wrong.play), what: wrong.what });
    let wrong: Vec<_> = wrong.collect();
    let corrections = |metrics: &Metrics| metrics.sum("tcpclose_reconcile_corrections_total", &[]);
    let corrected: Vec<f64> =
        last.iter().zip(&before).map(|(last, before)| corrections(last) - corrections(before)).collect();
    let untold = untold(&wrong, &corrected, |_, _| true).len() as u64;
    left_out.iter_mut().for_each(|left_out| *left_out += untold);
    let lost = |metrics: &Metrics| metrics.sum("tcpclose_unseen_phases_total", &[("why", "lost")]);
    let lost = last.iter().zip(&left_out).map(|(last, left_out)| lost(last) - *left_out as f64);
    let of_others = rounds::untold_of_others(lost);
    if of_others > 0 {
        unclear.push(format!("{of_others} steps of other programs' connections were told to no agent"));
    }
    for (agent, watcher) in watchers.iter().enumerate() {
        left_out[agent] += of_others;
        let wrong = judge_totals(watcher, &runs, &before[agent], &last[agent], left_out[agent]);
        if left_out[agent] == 0 { &mut hopeless } else { &mut unclear }.extend(wrong);
        println!(
            "{}: {} closes, dumps {:.3} s apart, left out {} times",
            watcher.name(),
            runs.len(),
            watcher.gaps.apart(),
            left_out[agent]
        );
    }
    Round { wrong, hopeless, unclear, late, left_out }
}

/// Asks for every TIME-WAIT's age, once a dump has seen all of them, or when it is `until`. What is wrong, by port.
fn time_wait_ages(watcher: &Watcher, runs: &[Run], until: u64) -> Vec<(u16, Vec<String>)> {
    loop {
        let from = now();
        let document = watcher.sockets(TimeWait);
        let asked = Bracket { from, to: now() };
        let wrong: Vec<(u16, Vec<String>)> = runs
            .iter()
            .map(|run| (run.port, run.judge_ages(watcher, &document, asked)))
            .filter(|(_, wrong)| !wrong.is_empty())
            .collect();
        if wrong.is_empty() || now() > until {
            return wrong;
        }
        sleep(Duration::from_millis(100));
    }
}

/// Watches every TIME-WAIT until it is gone, and adds that to its timeline. What is wrong with their lengths.
fn watch_the_ends(runs: &mut [Run]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut waiting: Vec<(&str, &mut Timeline, Bracket)> = Vec::new();
    for run in runs {
        for (end, timeline) in run.ends.iter().zip(&mut run.timelines) {
            if end.waits() {
                let entered = timeline.steps[end.phases.len() - 1];
                waiting.push((&run.name, timeline, entered));
            }
        }
    }
    let until = now() + 100_000_000_000;
    let mut checked: Vec<u64> = waiting.iter().map(|(.., entered)| entered.from).collect();
    while !waiting.is_empty() {
        assert!(now() < until, "{} TIME-WAITs stay", waiting.len());
        sleep(Duration::from_millis(20));
        let before = now();
        // What is there after this, no timer had begun to end before.
        fence();
        let mut i = 0;
        while i < waiting.len() {
            let (name, timeline, entered) = &mut waiting[i];
            if state_of(&timeline.flow).is_some() {
                checked[i] = before;
                i += 1;
                continue;
            }
            let gone = Bracket { from: checked[i], to: now() };
            timeline.steps.push(gone);
            let (least, most) = entered.until(gone);
            if most < LENGTH - ENTRY || least > LENGTH + LATENESS {
                wrong.push(format!("{name}: TIME-WAIT lasted {least} to {most} s"));
            }
            waiting.swap_remove(i);
            checked.swap_remove(i);
        }
    }
    wrong
}
