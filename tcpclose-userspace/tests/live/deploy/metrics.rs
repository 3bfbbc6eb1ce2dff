//! docs/src/metrics.md: every metric as a live agent exposes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use tcpclose::names::{Outcome, Phase, Role, Side};

use super::{bare, document};
use crate::common::Metrics;

const PAGE: &str = "metrics.md";
const PART: &str = "metrics";

/// What is there in some places only: of which kernel, or with which traffic. A line of theirs in the file is kept.
const SOMETIMES: [&str; 3] = [
    "tcpclose_program_run_seconds_total",
    "tcpclose_program_runs_total",
    "tcpclose_ephemeral_ports_used_ratio",
];

/// Compares the page with what `metrics` says, or writes it.
pub fn are_documented(metrics: &Metrics) {
    let before = document::part(PAGE, PART);
    let mut rows = rows(metrics);
    for name in SOMETIMES {
        let known = before.lines().find(|line| line.starts_with(&format!("| `{name}")));
        if let (false, Some(line)) = (rows.contains_key(name), known) {
            rows.insert(name.to_owned(), line.to_owned());
        }
    }
    document::is_current(PAGE, PART, &table(&rows));
}

/// A line of the table for each family.
fn rows(metrics: &Metrics) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, with, _) in metrics.with(&[]) {
        let family = if metrics.text.contains(&format!("# TYPE {name} ")) { name } else { bare(name) };
        labels
            .entry(family)
            .or_default()
            .extend(with.keys().map(String::as_str).filter(|label| *label != "le"));
    }
    let told = |word: &str, name: &str| {
        let start = format!("# {word} {name} ");
        metrics.text.lines().find_map(|line| line.strip_prefix(&start)).unwrap().to_owned()
    };
    let row = |(name, labels): (&str, BTreeSet<&str>)| {
        let labels: Vec<&str> = labels.into_iter().collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let (kind, help) = (told("TYPE", name), told("HELP", name));
        (name.to_owned(), format!("| `{name}{labels}` | {kind} | {} | {help} |", unit(name)))
    };
    labels.into_iter().map(row).collect()
}

/// As the name tells it, by the rules of OpenMetrics.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").or(name.strip_suffix("_max")).unwrap_or(name);
    ["seconds", "bytes", "ratio"].into_iter().find(|unit| name.ends_with(unit)).unwrap_or("")
}

fn table(rows: &BTreeMap<String, String>) -> String {
    let mut text = "| metric | type | unit | description |\n|---|---|---|---|\n".to_owned();
    for row in rows.values() {
        text += &(row.clone() + "\n");
    }
    text += "\nA histogram has `_bucket` (with `le`), `_sum` and `_count`. Values of labels:\n\n";
    let mut values = |label: &str, names: Vec<&str>| {
        let _ = writeln!(text, "* `{label}`: `{}`", names.join("`, `"));
    };
    values("state", Phase::ALL.into_iter().map(Phase::name).collect());
    values("side", Side::ALL.into_iter().map(Side::name).collect());
    values("role", Role::ALL.into_iter().map(Role::name).collect());
    values("outcome", Outcome::ALL.into_iter().map(Outcome::name).collect());
    text + "* `port`: a service port, or `other` for all ports without series of their own\n"
}
