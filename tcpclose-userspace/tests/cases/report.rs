//! What is printed: one line a case and rung, totals, and how exact the durations were.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::rungs::Rung;
use super::stage::{Watcher, expected_ends};
use super::verdict::{Error, Played, differences};

/// How a TIME-WAIT can have ended, as tcpclose_time_wait_ended_total says it.
const REASONS: [&str; 8] =
    ["expired", "reused", "recycled", "reset", "destroyed", "purged", "early", "unknown"];

/// A bracket wider than this says nothing of how exact a duration is, seconds.
const MEASURABLE: f64 = 0.05;

/// Prints what every agent told of every case, and fails when it was not what the table says.
pub fn judge(watchers: &[Watcher], played: &[Played]) {
    let mut lines = String::new();
    let (mut right, mut wrong) = (0, 0);
    let mut line = |name: &str, rung: Rung, differences: &[String]| {
        let word = if differences.is_empty() { "ok" } else { "DIFFERS" };
        if differences.is_empty() {
            right += 1
        } else {
            wrong += 1
        }
        let _ = writeln!(lines, "{word:<8} {rung:<28} {name}");
        for difference in differences {
            let _ = writeln!(lines, "         {difference}");
        }
    };
    let mut errors: BTreeMap<Rung, Vec<Error>> = BTreeMap::new();
    let told: Vec<_> = watchers.iter().map(|watcher| (watcher, watcher.agent.metrics())).collect();
    for played in played {
        for (watcher, metrics) in told.iter().filter(|(watcher, _)| watcher.sees(played.case.place)) {
            let errors = errors.entry(watcher.rung).or_default();
            let found = differences(played, watcher.rung, metrics, watcher.dumps, errors);
            line(played.case.name, watcher.rung, &found);
        }
    }
    for (watcher, metrics) in &told {
        let mut found = Vec::new();
        let wanted = expected_ends(watcher, played);
        for reason in REASONS {
            let got = watcher.grown(metrics, "tcpclose_time_wait_ended_total", &[("reason", reason)]);
            let want = wanted.get(reason).copied().unwrap_or(0.0);
            if got != want {
                found.push(format!("{got} TIME-WAITs {reason}, not {want}"));
            }
        }
        line(&format!("{:?}: how TIME-WAITs ended", watcher.place), watcher.rung, &found);

        let none = ["tcpclose_events_lost_total", "tcpclose_reconcile_corrections_total"];
        let grown = none.map(|name| (name, watcher.grown(metrics, name, &[])));
        let found: Vec<String> =
            grown.iter().filter(|(_, n)| *n != 0.0).map(|(name, n)| format!("{name} grew by {n}")).collect();
        line(&format!("{:?}: nothing lost, nothing mended", watcher.place), watcher.rung, &found);
    }
    println!("{lines}");
    for (watcher, _) in &told {
        let Watcher { rung, place, dumps, .. } = watcher;
        println!(
            "dumps of {rung:<28} {place:?}: {:.3} s at the longest, {:.3} s apart",
            dumps.took, dumps.apart
        );
    }
    print_errors(&errors);
    println!("{} cases on {} rungs: {right} lines ok, {wrong} differ", played.len(), errors.len(),);
    assert_eq!(wrong, 0, "an agent told something else than the table");
}

/// Prints how far durations were from the middle of their brackets.
fn print_errors(errors: &BTreeMap<Rung, Vec<Error>>) {
    println!("error of durations, milliseconds (the script's own clock knows to)");
    println!(
        "{:<28} {:<11} {:<6} {:>4} {:>9} {:>9} {:>9} {:>10}",
        "rung", "state", "told", "n", "median", "p99", "worst", "(known to)"
    );
    for (rung, errors) in errors {
        let mut groups: BTreeMap<(&str, &str), Vec<&Error>> = BTreeMap::new();
        for error in errors.iter().filter(|error| error.told != "dump" && error.known_to < 2.0 * MEASURABLE) {
            groups.entry((error.state, error.told)).or_default().push(error);
        }
        for ((state, told), mut group) in groups {
            group.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
            let at = |share: f64| group[((group.len() - 1) as f64 * share).round() as usize].seconds * 1e3;
            let known = group.iter().map(|error| error.known_to).fold(0.0, f64::max) * 1e3;
            println!(
                "{rung:<28} {state:<11} {told:<6} {:>4} {:>9.3} {:>9.3} {:>9.3} {known:>10.3}",
                group.len(),
                at(0.5),
                at(0.99),
                at(1.0)
            );
        }
    }
}
