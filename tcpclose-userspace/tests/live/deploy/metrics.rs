//! docs/src/metrics-reference.md, generated from the table of metrics, and that table against a live agent.

use std::collections::{BTreeMap, BTreeSet};

use tcpclose::metrics::descriptors;
use tcpclose::metrics::descriptors::Descriptor;

use super::{bare, workspace};
use crate::common::Metrics;

/// Set, the file is written instead of compared.
const WRITE: &str = "TCPCLOSE_WRITE_DOCS";
const FILE: &str = "docs/src/metrics-reference.md";
const HOW: &str = "TCPCLOSE_WRITE_DOCS=1 cargo test -p tcpclose --test live deploy::metrics";

/// Metrics without a sample on some kernels, or without some traffic.
const SOMETIMES: [&str; 3] = [
    "tcpclose_program_run_seconds_total",
    "tcpclose_program_runs_total",
    "tcpclose_ephemeral_ports_used_ratio",
];

#[test]
fn the_document_of_metrics_is_generated() {
    let path = workspace("docs/src").join("metrics-reference.md");
    let text = descriptors::document(HOW);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &text).unwrap();
        println!("{FILE} is written");
        return;
    }
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    for (line, expected) in before.lines().zip(text.lines()) {
        assert_eq!(line, expected, "{FILE} is not up to date; write it again: {HOW}");
    }
    assert_eq!(before.lines().count(), text.lines().count(), "{FILE} lacks lines; write it again: {HOW}");
}

/// The live agent's `metrics` are those of the table, with the same type, help and labels.
pub fn are_described(metrics: &Metrics) {
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, with, _) in metrics.with(&[]) {
        let family = if metrics.text.contains(&format!("# TYPE {name} ")) { name } else { bare(name) };
        labels
            .entry(family)
            .or_default()
            .extend(with.keys().map(String::as_str).filter(|label| *label != "le"));
    }
    let comment = |word: &str, name: &str| {
        let start = format!("# {word} {name} ");
        metrics.text.lines().find_map(|line| line.strip_prefix(&start)).unwrap()
    };
    for (name, labels) in &labels {
        let described = descriptors::ALL.iter().find(|metric| metric.name == *name);
        let Descriptor { kind, help, labels: expected, .. } =
            described.unwrap_or_else(|| panic!("{name} is not in the table of metrics"));
        assert_eq!((comment("TYPE", name), comment("HELP", name)), (kind.name(), *help), "{name}");
        assert_eq!(*labels, expected.iter().copied().collect::<BTreeSet<&str>>(), "{name}");
    }
    for metric in descriptors::ALL {
        let exposed = labels.contains_key(metric.name) || SOMETIMES.contains(&metric.name);
        assert!(exposed, "{} has no sample", metric.name);
    }
}
