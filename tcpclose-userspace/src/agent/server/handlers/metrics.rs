//! `/metrics`: the ledger and the census in Prometheus' text format.

use std::time::Duration;

use prometheus::TextEncoder;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use crate::linux::executables;
use crate::linux::host;
use crate::metrics::Metrics;
use crate::metrics::gauges::Gauges;
use crate::metrics::port_labels::LabelSlot;
use crate::names::Phase;
use crate::probe::Hook;
use crate::probe::prog_stats::ProgramStats;
use crate::report::owner_counts::OwnerLabels;

use crate::agent::gauge_ages::GaugeAges;
use crate::agent::tracking::Tracking;

/// Everything, rendered. What the probe has seen until now is in it.
///
/// # Errors
/// When a metric is malformed, which would be a defect of ours.
pub fn render(engine: &mut Tracking) -> prometheus::Result<String> {
    engine.drain_all();
    let mut families = Vec::new();
    if engine.ready {
        let census = engine.census(host::monotonic_ns());
        gauges(&mut families, &census, &stuck_labels(engine.stuck_after.bounds_ns()));
        families.push(ages(engine.ages(host::monotonic_ns())));
    }
    limit(&mut families, engine.namespaces.time_wait_limit_used());
    ephemeral(&mut families, engine.exhaustion.fullest);
    owners(&mut families, &engine.stuck_owners);
    ledger(&mut families, &engine.ledger, engine.overflows());
    agent(&mut families, engine);
    families.extend(ProcessCollector::for_self().collect());
    families.retain(|family: &MetricFamily| !family.get_metric().is_empty());
    let series = families.iter().map(series_of).sum::<usize>() + 1;
    families.push(
        Family::gauge("tcpclose_series", "Series that this agent exports.").with(&[], series as f64).done(),
    );
    families.sort_by(|a, b| a.name().cmp(b.name()));
    TextEncoder::new().encode_to_string(&families)
}

/// `--stuck-after` bounds as the `age` label has them: `1m`, `1h30m`.
fn stuck_labels(bounds_ns: &[u64]) -> Vec<String> {
    bounds_ns
        .iter()
        .map(|&ns| humantime::format_duration(Duration::from_nanos(ns)).to_string().replace(' ', ""))
        .collect()
}

fn gauges(families: &mut Vec<MetricFamily>, census: &Gauges, ages: &[String]) {
    let mut sockets = Family::gauge("tcpclose_sockets", "Sockets in the state now, minisockets included.");
    let mut oldest = Family::gauge(
        "tcpclose_oldest_socket_age_seconds",
        "Proven minimum age of the oldest socket that is still in the state.",
    );
    for (&(label, phase), standing) in &census.standing {
        let port = port(label);
        let labels = [("state", phase.name()), ("side", label.side.name()), ("port", &*port)];
        sockets.add(&labels, standing.sockets as f64);
        // Where a socket can stay for as long as a program, or a peer, likes.
        let can_last = matches!(phase, Phase::CloseWait | Phase::FinWait2 | Phase::LastAck);
        if can_last && standing.sockets > 0 {
            oldest.add(&labels, standing.oldest_ns as f64 / 1e9);
        }
    }
    let mut stuck = Family::gauge(
        "tcpclose_stuck_sockets",
        "Sockets stuck in CLOSE-WAIT, by the --stuck-after bound that they passed last; the classes are disjoint.",
    );
    for (label, counts) in &census.stuck {
        for (n, age) in counts.iter().zip(ages) {
            stuck.add(&[("side", label.side.name()), ("port", &port(*label)), ("age", age)], *n as f64);
        }
    }
    let mut unproven = Family::gauge(
        "tcpclose_stuck_sockets_unproven",
        "CLOSE-WAIT sockets that may be past the first --stuck-after bound; their entry was not seen.",
    );
    for (label, &n) in &census.unproven {
        unproven.add(&[("side", label.side.name()), ("port", &port(*label))], n as f64);
    }
    families.extend([sockets, oldest, stuck, unproven].map(Family::done));
}

/// As of when the gauges are.
fn ages(GaugeAges { host_ns, others_ns }: GaugeAges) -> MetricFamily {
    Family::gauge(
        "tcpclose_gauges_age_seconds",
        "Age of the oldest part of what the gauges of sockets tell: 0 where records tell all, else since the last dump; of the \
         host's network namespace, and of all others.",
    )
    .with(&[("netns", "host")], host_ns as f64 / 1e9)
    .with(&[("netns", "others")], others_ns as f64 / 1e9)
    .done()
}

/// How full the kernel's table of TIME-WAITs is; nothing where /proc does not tell.
fn limit(families: &mut Vec<MetricFamily>, fullest: Option<f64>) {
    let mut used = Family::gauge(
        "tcpclose_time_wait_limit_used_ratio",
        "TIME-WAITs divided by tcp_max_tw_buckets, in the network namespace where that is highest, of those that are dumped.",
    );
    if let Some(ratio) = fullest {
        used.add(&[], ratio);
    }
    families.push(used.done());
}

/// How near connect() is to running out of ports; nothing before the first look.
fn ephemeral(families: &mut Vec<MetricFamily>, fullest: Option<f64>) {
    let mut used = Family::gauge(
        "tcpclose_ephemeral_ports_used_ratio",
        "Ports in use divided by those that connect() may take, for the fullest tuple of local address, remote address \
         and remote port; TIME-WAITs included.",
    );
    if let Some(ratio) = fullest {
        used.add(&[], ratio);
    }
    families.push(used.done());
}

/// Whose the stuck sockets are.
fn owners(families: &mut Vec<MetricFamily>, counts: &[(OwnerLabels, u64)]) {
    let mut owners = Family::gauge(
        "tcpclose_stuck_owner_sockets",
        "Stuck sockets by owner, each once; as of the last look (--owner-interval).",
    );
    for (OwnerLabels { comm, unit, container_id, uid }, n) in counts {
        let labels = [("comm", &**comm), ("unit", unit), ("container_id", container_id), ("uid", uid)];
        owners.add(&labels, *n as f64);
    }
    families.push(owners.done());
}

fn ledger(families: &mut Vec<MetricFamily>, ledger: &Metrics, time_wait_overflows: u64) {
    let mut durations = Family::new(
        "tcpclose_state_duration_seconds",
        "Time that sockets spent in a close-phase state, observed when they left it.",
        MetricType::HISTOGRAM,
    );
    for (label, phase, histogram) in ledger.durations() {
        let mut proto = Histogram::default();
        let buckets = histogram.cumulative().map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        });
        proto.set_bucket(buckets.collect());
        proto.set_sample_count(histogram.count());
        proto.set_sample_sum(histogram.sum_seconds());
        let mut metric =
            labelled(&[("state", phase.name()), ("side", label.side.name()), ("port", &port(label))]);
        metric.set_histogram(proto);
        durations.metrics.push(metric);
    }
    let mut transitions = Family::counter("tcpclose_transitions_total", "Close-phase transitions seen.");
    for (from, to, n) in ledger.transitions() {
        transitions.add(&[("from", from.name()), ("to", to.name())], n as f64);
    }
    let mut closes = Family::counter(
        "tcpclose_closes_total",
        "Connections that ended, by who sent the first FIN and how it ended.",
    );
    for (label, role, outcome, n) in ledger.closes() {
        let labels = [
            ("side", label.side.name()),
            ("port", &*port(label)),
            ("role", role.name()),
            ("outcome", outcome.name()),
        ];
        closes.add(&labels, n as f64);
    }
    let mut ended =
        Family::counter("tcpclose_time_wait_ended_total", "TIME-WAITs that ended, by what ended them.");
    for (how, n) in ledger.time_wait_ended() {
        ended.add(&[("reason", how.name())], n as f64);
    }
    let mut unseen = Family::counter(
        "tcpclose_unseen_phases_total",
        "Phases that make no duration sample, since their entry or their end was not seen.",
    );
    for (phase, why, n) in ledger.unmeasured() {
        unseen.add(&[("state", phase.name()), ("why", why.name())], n as f64);
    }
    let mut mended = Family::counter(
        "tcpclose_reconcile_corrections_total",
        "What dumps of the kernel's sockets had to mend in what is tracked.",
    );
    for (what, n) in ledger.corrections() {
        mended.add(&[("kind", what.name())], n as f64);
    }
    let mut overflows = Family::counter(
        "tcpclose_time_wait_overflows_total",
        "TIME-WAITs skipped because the kernel's table was full.",
    );
    overflows.add(&[], time_wait_overflows as f64);
    let folded = Family::counter(
        "tcpclose_ports_folded_total",
        "Closes counted under port=\"other\" for want of a name.",
    )
    .with(&[], ledger.folded() as f64);
    families
        .extend([durations, transitions, closes, ended, unseen, mended, overflows, folded].map(Family::done));
}

fn agent(families: &mut Vec<MetricFamily>, engine: &Tracking) {
    let counters = engine.counters();
    let received = Family::counter("tcpclose_events_received_total", "Records taken from the ring.")
        .with(&[], engine.received as f64);
    let mut lost = Family::counter(
        "tcpclose_events_lost_total",
        "Events lost, by where: ring full, program not run by the kernel (recursion), record not decoded.",
    );
    lost.add(&[("stage", "ring")], counters.lost as f64);
    let runs = engine.probe.runs();
    lost.add(&[("stage", "recursion")], runs.missed as f64);
    lost.add(&[("stage", "decode")], engine.malformed as f64);
    families.extend(program_runs(runs).map(Family::done));
    let used = Family::gauge(
        "tcpclose_ring_used_bytes_max",
        "The most bytes of the ring that waited to be taken, since the agent began.",
    )
    .with(&[], engine.probe.ring.most_used() as f64);
    let dumps = engine.dumps;
    let interval = Family::gauge(
        "tcpclose_reconcile_interval_seconds",
        "Time between dumps at present; it stretches up to --reconcile-max so that they take 1 % of a core.",
    )
    .with(&[], dumps.interval_ns as f64 / 1e9);
    let over = Family::gauge(
        "tcpclose_dumps_over_budget",
        "1 while dumps take more than 1 % of a core, so that no number is older than --reconcile-max.",
    )
    .with(&[], f64::from(u8::from(dumps.over_budget)));
    let took = Family::gauge("tcpclose_dump_seconds", "Wall time of the last dump.")
        .with(&[], dumps.last_ns as f64 / 1e9);
    let mut success = Family::gauge(
        "tcpclose_reconcile_last_success_timestamp_seconds",
        "When tracker and kernel were last compared in full.",
    );
    if dumps.reconciled_at > 0.0 {
        success.add(&[], dumps.reconciled_at);
    }
    let bound =
        Family::gauge("tcpclose_stuck_after_seconds", "The age from which a CLOSE-WAIT is called stuck.")
            .with(&[], engine.stuck_after.first_ns() as f64 / 1e9);
    let mut info = Family::gauge("tcpclose_hook_info", "The backend in use of each ladder.");
    info.add(&[("hook", "state"), ("backend", engine.probe.hook.name())], 1.0);
    info.add(&[("hook", "time_wait"), ("backend", engine.probe.time_wait.name())], 1.0);
    info.add(&[("hook", "owners"), ("backend", engine.probe.owners.name())], 1.0);
    let namespaces = Family::gauge(
        "tcpclose_netns_info",
        "The network namespaces that dumps look at: all, found (nothing leads to some others), some (others may not be entered), \
         or the agent's own.",
    )
    .with(&[("dumped", engine.namespaces.dumped())], 1.0);
    let mut degraded = Family::gauge(
        "tcpclose_hook_degraded",
        "1 where a better backend than the one in use was refused by this kernel.",
    );
    for (name, hook) in [("state", Hook::State), ("time_wait", Hook::TimeWait), ("owners", Hook::Owners)] {
        degraded.add(&[("hook", name)], f64::from(u8::from(engine.probe.declined.degrades(hook))));
    }
    let web = Family::gauge(
        "tcpclose_web_config_wrong",
        "1 while the --web-config file, or one that it names, is wrong and what it said before stays in use.",
    )
    .with(&[], f64::from(u8::from(engine.web_config_wrong.get())));
    let killed = Family::counter(
        "tcpclose_helpers_killed_total",
        "Helper processes that were killed because an executable which they were to read did not answer.",
    )
    .with(&[], executables::killed() as f64);
    let build = Family::gauge("tcpclose_build_info", "The version of this agent.")
        .with(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    families.extend(
        [
            received, lost, used, interval, over, took, success, bound, info, namespaces, degraded, web,
            killed, build,
        ]
        .map(Family::done),
    );
}

/// What the probe's programs cost; without samples where the kernel keeps no run statistics.
fn program_runs(runs: ProgramStats) -> [Family; 2] {
    let mut seconds = Family::counter(
        "tcpclose_program_run_seconds_total",
        "Time that the kernel spent in the probe's programs, while it kept run statistics.",
    );
    let mut count = Family::counter(
        "tcpclose_program_runs_total",
        "Runs of the probe's programs, while the kernel kept run statistics.",
    );
    if runs.count > 0 {
        seconds.add(&[], runs.ns as f64 / 1e9);
        count.add(&[], runs.count as f64);
    }
    [seconds, count]
}

fn port(label: LabelSlot) -> String {
    label.port.map_or_else(|| "other".to_owned(), |port| port.to_string())
}

/// How many series a family is in Prometheus.
fn series_of(family: &MetricFamily) -> usize {
    let each = |metric: &Metric| match family.get_field_type() {
        // The buckets, +Inf, sum and count.
        MetricType::HISTOGRAM => metric.get_histogram().get_bucket().len() + 3,
        _ => 1,
    };
    family.get_metric().iter().map(each).sum()
}

/// A metric family in the making.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    metrics: Vec<Metric>,
}

impl Family {
    fn new(name: &'static str, help: &'static str, kind: MetricType) -> Self {
        Self { name, help, kind, metrics: Vec::new() }
    }

    fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        let mut metric = labelled(labels);
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    fn with(mut self, labels: &[(&str, &str)], value: f64) -> Self {
        self.add(labels, value);
        self
    }

    fn done(self) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(self.kind);
        family.set_metric(self.metrics);
        family
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pairs = labels.iter().map(|&(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}

#[cfg(test)]
mod tests;
