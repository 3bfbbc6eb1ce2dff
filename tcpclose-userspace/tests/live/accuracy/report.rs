//! What agents told of the closes, against the truth: a section of docs/src/accuracy.md.

use std::fs;
use std::time::SystemTime;

use super::backends::Backend;
use super::common::Metrics;
use super::play::{Phase, Truth};

/// What `cargo xtask accuracy` cuts the section out by.
const BEGIN: &str = "<!-- accuracy begins -->";
const END: &str = "<!-- accuracy ends -->";

/// Milliseconds to reach.
const FULL_SOCKET: f64 = 2.0;
const HOOKS: f64 = 5.0;
const DIAG: f64 = 50.0;

/// Prints the section.
pub fn print(reported: &[(Backend, Metrics)], truths: &[Truth], closes: usize) {
    println!("{BEGIN}");
    println!("{}\n", machine(closes));
    println!(
        "| kernel | backend | state | reported | median | p99 | worst | to reach | truth known to, median | worst |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (backend, metrics) in reported {
        for phase in Phase::ALL {
            let truths: Vec<&Truth> = truths.iter().filter(|truth| truth.phase == phase).collect();
            println!("{}", row(*backend, phase, metrics, &truths));
        }
    }
    for (backend, metrics) in reported {
        for (labels, lost) in
            metrics.select("tcpclose_events_lost_total", &[]).filter(|(_, lost)| *lost > 0.0)
        {
            // An agent takes the events of every namespace: they need not be of these closes.
            println!("\n{backend} lost {lost} events of the whole machine's ({}).", labels["stage"]);
        }
    }
    let mut lengths: Vec<f64> =
        truths.iter().filter(|t| t.phase == Phase::TimeWait).map(|t| ms(t.ns)).collect();
    lengths.sort_by(f64::total_cmp);
    if let (Some(least), Some(most)) = (lengths.first(), lengths.last()) {
        let (least, middle, most) = (least / 1e3, at(&lengths, 0.5) / 1e3, most / 1e3);
        println!("\nTIME-WAIT itself lasted {least:.3} to {most:.3} s, median {middle:.3} s, for 60 s.");
    }
    println!("{END}");
}

/// A row of the table.
fn row(backend: Backend, phase: Phase, metrics: &Metrics, truths: &[&Truth]) -> String {
    let mut errors = Vec::new();
    let mut known = Vec::new();
    for truth in truths {
        let port = truth.port.to_string();
        let labels = [("state", phase.state()), ("port", port.as_str())];
        // One that could not be told to 5 % is counted as unseen instead.
        if metrics.sum("tcpclose_state_duration_seconds_count", &labels) == 1.0 {
            let reported = metrics.sum("tcpclose_state_duration_seconds_sum", &labels) * 1e3;
            errors.push((reported - ms(truth.ns)).abs());
            known.push(ms(truth.error_ns));
        }
    }
    errors.sort_by(f64::total_cmp);
    known.sort_by(f64::total_cmp);
    let mut cells = vec![
        kernel(),
        backend.to_string(),
        phase.name().to_owned(),
        format!("{} of {}", errors.len(), truths.len()),
    ];
    let target = target(backend, phase).map_or_else(|| "–".to_owned(), |ms| format!("{ms:.0}"));
    if errors.is_empty() {
        cells.extend(["–", "–", "–", &target, "–", "–"].map(str::to_owned));
    } else {
        cells.extend([0.5, 0.99, 1.0].map(|share| format!("{:.3}", at(&errors, share))));
        cells.push(target);
        cells.extend([0.5, 1.0].map(|share| format!("{:.3}", at(&known, share))));
    }
    format!("| {} |", cells.join(" | "))
}

/// The worst error to reach, milliseconds; none for an end that only a dump sees.
fn target(backend: Backend, phase: Phase) -> Option<f64> {
    match phase {
        Phase::TimeWait | Phase::FinWait2Orphan if backend.hooks() => Some(HOOKS),
        Phase::FinWait2Orphan => Some(DIAG),
        Phase::TimeWait => None,
        _ => Some(FULL_SOCKET),
    }
}

/// The value that `share` of the sorted `values` do not exceed.
fn at(values: &[f64], share: f64) -> f64 {
    let rank = (values.len() as f64 * share).ceil() as usize;
    values[rank.clamp(1, values.len()) - 1]
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// The facts that the numbers depend on.
fn machine(closes: usize) -> String {
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model.trim());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!(
        "Linux {}, {cpus} CPUs ({model}), {closes} closes on {}, load average {load} at the end. Milliseconds.",
        kernel(),
        &date[..10]
    )
}

fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| at(&values, share)), [50.0, 99.0, 100.0]);
        assert_eq!([0.5, 0.99, 1.0].map(|share| at(&[7.0], share)), [7.0, 7.0, 7.0]);
    }
}
