//! What is printed: one line a case and backend, totals, and how exact the durations were.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::backends::Backend;
use super::common::Metrics;
use super::rounds::{Round, Wrong, untold};
use super::stage::{Watcher, expected_ends};
use super::table::CASES;
use super::verdict::{Error, Played, differences, too_brief};

/// How a TIME-WAIT can have ended, as tcpclose_time_wait_ended_total says it.
const REASONS: [&str; 8] =
    ["expired", "reused", "recycled", "reset", "destroyed", "purged", "early", "unknown"];

/// A bracket wider than this says nothing of how exact a duration is, seconds.
const MEASURABLE: f64 = 0.05;

/// Prints what every agent told of every case, and says what was not what the table says. `left_out`: how many events the
/// kernel did not tell each agent of.
pub fn judge(watchers: &[Watcher], played: &[Played], mut left_out: Vec<u64>) -> Round<usize> {
    let mut lines = String::new();
    let (mut right, mut wrong, mut hopeless, mut late) = (0, Vec::new(), Vec::new(), Vec::new());
    // By agent, how many cases were too brief for it.
    let mut brief = vec![0; watchers.len()];
    let mut errors: BTreeMap<Backend, Vec<Error>> = BTreeMap::new();
    let reported: Vec<_> = watchers.iter().map(|watcher| (watcher, watcher.agent.metrics())).collect();
    for played in played {
        let seeing = reported.iter().enumerate().filter(|(_, (watcher, _))| watcher.sees(played.case.place));
        for (agent, (watcher, metrics)) in seeing {
            let errors = errors.entry(watcher.backend).or_default();
            let found = differences(played, watcher.backend, metrics, watcher.dumps(), errors);
            right += line(&mut lines, played.case.name, watcher.backend, &found);
            let (none, backend) = (found.is_empty(), watcher.backend);
            let found = found.into_iter().map(|what| format!("{backend} {}: {what}", played.case.name));
            match played.lives {
                Ok(_) if none => {}
                Ok(_) if too_brief(played, watcher.backend, watcher.dumps()) => {
                    brief[agent] += 1;
                    late.push(played.number);
                }
                Ok(_) => wrong.extend(found.map(|what| Wrong { agent, play: played.number, what })),
                // It was not played to its end, and is played again: the kernel retransmits and gives up by its own clock,
                // whatever else the machine does. A script that never succeeds fails the test all the same.
                Err(_) => {
                    brief[agent] += 1;
                    late.push(played.number);
                }
            }
        }
    }
    let corrected: Vec<f64> = reported
        .iter()
        .map(|(watcher, metrics)| watcher.grown(metrics, "tcpclose_reconcile_corrections_total", &[]))
        .collect();
    let sees = |agent: usize, number: usize| watchers[agent].sees(CASES[number].place);
    for number in untold(&wrong, &corrected, sees) {
        let seeing = left_out.iter_mut().enumerate().filter(|&(agent, _)| sees(agent, number));
        seeing.for_each(|(_, left_out)| *left_out += 1);
    }
    for (agent, ((watcher, metrics), &left_out)) in reported.iter().zip(&left_out).enumerate() {
        let Watcher { backend, place, .. } = watcher;
        let ends = ends(watcher, metrics, played, left_out + brief[agent]);
        right += line(&mut lines, &format!("{place:?}: how TIME-WAITs ended"), *backend, &ends);
        let losses = losses(watcher, metrics, left_out);
        right += line(&mut lines, &format!("{place:?}: nothing lost, nothing mended"), *backend, &losses);
        hopeless.extend(ends.into_iter().chain(losses).map(|what| format!("{backend} {place:?}: {what}")));
    }
    println!("{lines}");
    for ((watcher, _), left_out) in reported.iter().zip(&left_out) {
        let (Watcher { backend, place, .. }, dumps) = (watcher, watcher.dumps());
        println!(
            "dumps of {backend:<28} {place:?}: {:.3} s at the longest, {:.3} s apart; left out {left_out} times",
            dumps.took, dumps.apart
        );
    }
    print_errors(&errors);
    let differ = lines.lines().filter(|line| line.starts_with(DIFFERS)).count();
    println!("{} cases on {} backends: {right} lines ok, {differ} differ", played.len(), errors.len());
    Round { wrong, hopeless, unclear: Vec::new(), late, left_out }
}

const DIFFERS: &str = "DIFFERS";

/// Writes a line for something that an agent told; 1 if it was right.
fn line(lines: &mut String, name: &str, backend: Backend, differences: &[String]) -> usize {
    let word = if differences.is_empty() { "ok" } else { DIFFERS };
    let _ = writeln!(lines, "{word:<8} {backend:<28} {name}");
    for difference in differences {
        let _ = writeln!(lines, "         {difference}");
    }
    usize::from(differences.is_empty())
}

/// What is wrong with how many TIME-WAITs ended how, of which an agent may not know so many: one that is left out of one
/// number may be in another.
fn ends(watcher: &Watcher, metrics: &Metrics, played: &[Played], unknown: u64) -> Vec<String> {
    let wanted = expected_ends(watcher, played);
    let mut found = Vec::new();
    let mut apart = 0.0;
    for reason in REASONS {
        let got = watcher.grown(metrics, "tcpclose_time_wait_ended_total", &[("reason", reason)]);
        let want = wanted.get(reason).copied().unwrap_or(0.0);
        if got != want {
            apart += (got - want).abs();
            found.push(format!("{got} TIME-WAITs {reason}, not {want}"));
        }
    }
    if apart <= 2.0 * unknown as f64 { Vec::new() } else { found }
}

/// What was lost or mended, and no more often than the kernel left a program out.
fn losses(watcher: &Watcher, metrics: &Metrics, left_out: u64) -> Vec<String> {
    let mut found = Vec::new();
    for name in ["tcpclose_events_lost_total", "tcpclose_reconcile_corrections_total"] {
        for (labels, _) in metrics.select(name, &[]) {
            let labels: Vec<_> = labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let grown = watcher.grown(metrics, name, &labels);
            let ours = labels.iter().any(|(_, value)| matches!(*value, "ring" | "decode"));
            if grown > if ours { 0.0 } else { left_out as f64 } {
                found.push(format!("{name} {labels:?} grew by {grown}"));
            }
        }
    }
    found
}

/// Prints how far durations were from the middle of their brackets.
fn print_errors(errors: &BTreeMap<Backend, Vec<Error>>) {
    println!("error of durations, milliseconds (the script's own clock knows to)");
    println!(
        "{:<28} {:<11} {:<6} {:>4} {:>9} {:>9} {:>9} {:>10}",
        "backend", "state", "told", "n", "median", "p99", "worst", "(known to)"
    );
    for (backend, errors) in errors {
        let mut groups: BTreeMap<(&str, &str), Vec<&Error>> = BTreeMap::new();
        for error in
            errors.iter().filter(|error| error.reported != "dump" && error.known_to < 2.0 * MEASURABLE)
        {
            groups.entry((error.state, error.reported)).or_default().push(error);
        }
        for ((state, reported), mut group) in groups {
            group.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
            let at = |share: f64| group[((group.len() - 1) as f64 * share).round() as usize].seconds * 1e3;
            let known = group.iter().map(|error| error.known_to).fold(0.0, f64::max) * 1e3;
            println!(
                "{backend:<28} {state:<11} {reported:<6} {:>4} {:>9.3} {:>9.3} {:>9.3} {known:>10.3}",
                group.len(),
                at(0.5),
                at(0.99),
                at(1.0)
            );
        }
    }
}
