//! docs/METRICS.md: every metric as a live agent exposes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use tcpclose::names::{Outcome, Phase, Role, Side};

use super::{bare, workspace};
use crate::common::Metrics;

/// Set, the file is written instead of compared.
const WRITE: &str = "TCPCLOSE_WRITE_DOCS";
const FILE: &str = "docs/METRICS.md";

/// What is there in some places only: of which kernel, or with which traffic. A line of theirs in the file is kept.
const SOMETIMES: [&str; 4] = [
    "tcpclose_program_run_seconds_total",
    "tcpclose_program_runs_total",
    "tcpclose_ephemeral_ports_blocked_ratio",
    "tcpclose_ephemeral_ports_used_ratio",
];

/// Compares the file with what `metrics` says, or writes it.
pub fn are_documented(metrics: &Metrics) {
    let path = workspace("docs").join("METRICS.md");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let mut rows = rows(metrics);
    for name in SOMETIMES {
        let known = before.lines().find(|line| line.starts_with(&format!("| `{name}")));
        if let (false, Some(line)) = (rows.contains_key(name), known) {
            rows.insert(name.to_owned(), line.to_owned());
        }
    }
    let text = document(&rows);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &text).unwrap();
        println!("{FILE} is written");
        return;
    }
    for (line, expected) in before.lines().zip(text.lines()) {
        assert_eq!(line, expected, "{FILE} is not what the agent says; write it again: {}", how());
    }
    assert_eq!(before.lines().count(), text.lines().count(), "{FILE} lacks lines; write it again: {}", how());
}

fn how() -> String {
    format!("{WRITE}=1 cargo test -p tcpclose --test live deploy:: -- --include-ignored")
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

fn document(rows: &BTreeMap<String, String>) -> String {
    let mut text = format!(
        "# Metrics\n\nEvery metric of `tcpclose agent`, as a live one exposes it. Written by a test, which fails where this is not what the agent\n\
         says; to write it again:\n\n    {}\n\nWhat the words mean, how series are bounded and which buckets there are: \
         [README](../README.md#metrics). Rules and alerts on them: [deploy/](../deploy/README.md).\n\n\
         | metric | type | unit | what it is |\n|---|---|---|---|\n",
        how()
    );
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
    text + "* `port`: a service port, or `other` for all that have no series of their own\n"
}
