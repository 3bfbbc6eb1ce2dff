//! `/metrics`: counters and gauges in Prometheus' text format.

mod family;

use std::time::Duration;

use hyper::StatusCode;
use prometheus::TextEncoder;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Bucket, Histogram, MetricFamily, MetricType};

use crate::linux::executables;
use crate::linux::host;
use crate::metrics::Metrics;
use crate::metrics::gauges::Gauges;
use crate::metrics::port_labels::LabelSlot;
use crate::names::Phase;
use crate::probe::prog_stats::ProgramStats;
use crate::report::owner_counts::OwnerLabels;

use crate::agent::gauge_ages::GaugeAges;
use crate::agent::parts::Parts;
use crate::agent::port_usage::Fullest;
use crate::agent::server::handlers::metrics::family::{Family, labelled, series_of};
use crate::agent::server::response::{Answer, plain, with_type};
use crate::agent::tracking::Tracking;

/// prometheus::TEXT_FORMAT with its charset.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub fn answer(parts: &Parts) -> Answer {
    match render(parts) {
        Ok(text) => with_type(StatusCode::OK, TEXT_FORMAT, text),
        Err(why) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
    }
}

/// Every metric, with all that the probe has seen until now.
///
/// # Errors
/// When a metric is malformed, which would be a defect of ours.
fn render(parts: &Parts) -> prometheus::Result<String> {
    let mut tracking = parts.tracking.borrow_mut();
    tracking.drain_all();
    let mut families = Vec::new();
    if tracking.ready {
        let now = tracking.gauges(host::monotonic_ns());
        gauges(&mut families, &now, &stuck_labels(tracking.stuck_after.bounds_ns()));
        families.push(ages(tracking.ages(host::monotonic_ns())));
    }
    limit(&mut families, tracking.namespaces.time_wait_limit_used());
    ephemeral(&mut families, parts.port_usage.borrow().fullest);
    owners(&mut families, &parts.stuck_owners.borrow());
    counters(&mut families, &tracking.output.metrics, tracking.overflows());
    agent(&mut families, &tracking);
    families.push(web_config(parts.web_config_wrong.get()));
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

fn gauges(families: &mut Vec<MetricFamily>, gauges: &Gauges, ages: &[String]) {
    let mut sockets = Family::gauge("tcpclose_sockets", "Sockets in the state now, minisockets included.");
    let mut oldest = Family::gauge(
        "tcpclose_oldest_socket_age_seconds",
        "Proven minimum age of the oldest socket in the state.",
    );
    for (&(label, phase), standing) in &gauges.standing {
        let port = port(label);
        let labels = [("state", phase.name()), ("side", label.side.name()), ("port", &*port)];
        sockets.add(&labels, standing.sockets as f64);
        // The states in which a program, or a peer, can leave a socket for any length of time.
        let can_last = matches!(phase, Phase::CloseWait | Phase::FinWait2 | Phase::LastAck);
        if can_last && standing.sockets > 0 {
            oldest.add(&labels, standing.oldest_ns as f64 / 1e9);
        }
    }
    let mut stuck = Family::gauge(
        "tcpclose_stuck_sockets",
        "Sockets stuck in CLOSE-WAIT, by the highest --stuck-after bound that they have passed; each socket counts once.",
    );
    for (label, counts) in &gauges.stuck {
        for (n, age) in counts.iter().zip(ages) {
            stuck.add(&[("side", label.side.name()), ("port", &port(*label)), ("age", age)], *n as f64);
        }
    }
    let mut unproven = Family::gauge(
        "tcpclose_stuck_sockets_unproven",
        "CLOSE-WAIT sockets that may be past the first --stuck-after bound: when they entered the state was not seen.",
    );
    for (label, &n) in &gauges.unproven {
        unproven.add(&[("side", label.side.name()), ("port", &port(*label))], n as f64);
    }
    families.extend([sockets, oldest, stuck, unproven].map(Family::done));
}

/// The ages of the gauges.
fn ages(GaugeAges { host_ns, others_ns }: GaugeAges) -> MetricFamily {
    Family::gauge(
        "tcpclose_gauges_age_seconds",
        "Age of the oldest gauge of sockets: 0 if records keep it current, else since the last dump; in the host's network \
         namespace, and in all others.",
    )
    .with(&[("netns", "host")], host_ns as f64 / 1e9)
    .with(&[("netns", "others")], others_ns as f64 / 1e9)
    .done()
}

/// Used ratio of the kernel's TIME-WAIT table; none if /proc does not tell.
fn limit(families: &mut Vec<MetricFamily>, fullest: Option<f64>) {
    let mut used = Family::gauge(
        "tcpclose_time_wait_limit_used_ratio",
        "TIME-WAITs divided by tcp_max_tw_buckets; the highest of the dumped network namespaces.",
    );
    if let Some(ratio) = fullest {
        used.add(&[], ratio);
    }
    families.push(used.done());
}

/// Used ratios of ephemeral ports; none before the first look.
fn ephemeral(families: &mut Vec<MetricFamily>, fullest: Option<Fullest>) {
    let mut used = Family::gauge(
        "tcpclose_ephemeral_ports_used_ratio",
        "Ephemeral ports in use divided by those that connect() may choose, for the fullest tuple of local address, remote \
         address and remote port; TIME-WAITs included.",
    );
    let mut blocked = Family::gauge(
        "tcpclose_ephemeral_ports_blocked_ratio",
        "Like tcpclose_ephemeral_ports_used_ratio, without TIME-WAITs whose ports connect() may choose again \
         (net.ipv4.tcp_tw_reuse).",
    );
    if let Some(fullest) = fullest {
        used.add(&[], fullest.used);
        blocked.add(&[], fullest.blocked);
    }
    families.extend([used, blocked].map(Family::done));
}

/// Stuck sockets by owner.
fn owners(families: &mut Vec<MetricFamily>, counts: &[(OwnerLabels, u64)]) {
    let mut owners = Family::gauge(
        "tcpclose_stuck_owner_sockets",
        "Stuck sockets by owner, each counted once, as of the last --owner-interval.",
    );
    for (OwnerLabels { comm, unit, container_id, uid }, n) in counts {
        let labels = [("comm", &**comm), ("unit", unit), ("container_id", container_id), ("uid", uid)];
        owners.add(&labels, *n as f64);
    }
    families.push(owners.done());
}

fn counters(families: &mut Vec<MetricFamily>, metrics: &Metrics, time_wait_overflows: u64) {
    let mut durations = Family::new(
        "tcpclose_state_duration_seconds",
        "Time that sockets spent in a close-phase state, observed when they left it.",
        MetricType::HISTOGRAM,
    );
    for (label, phase, histogram) in metrics.durations() {
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
    for (from, to, n) in metrics.transitions() {
        transitions.add(&[("from", from.name()), ("to", to.name())], n as f64);
    }
    let mut closes = Family::counter(
        "tcpclose_closes_total",
        "Connections that ended, by who sent the first FIN (role) and how they ended (outcome).",
    );
    for (label, role, outcome, n) in metrics.closes() {
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
    for (how, n) in metrics.time_wait_ended() {
        ended.add(&[("reason", how.name())], n as f64);
    }
    let mut unmeasured = Family::counter(
        "tcpclose_unseen_phases_total",
        "State visits without a duration sample, since their beginning or end was not seen.",
    );
    for (phase, why, n) in metrics.unseen() {
        unmeasured.add(&[("state", phase.name()), ("why", why.name())], n as f64);
    }
    let mut corrections = Family::counter(
        "tcpclose_reconcile_corrections_total",
        "Corrections of tracked sockets by dumps of the kernel's.",
    );
    for (what, n) in metrics.mended() {
        corrections.add(&[("kind", what.name())], n as f64);
    }
    let mut overflows = Family::counter(
        "tcpclose_time_wait_overflows_total",
        "TIME-WAITs skipped because the kernel's table was full.",
    );
    overflows.add(&[], time_wait_overflows as f64);
    let folded = Family::counter(
        "tcpclose_ports_folded_total",
        "Closes counted under port=\"other\" for want of a series of their own.",
    )
    .with(&[], metrics.folded() as f64);
    families.extend(
        [durations, transitions, closes, ended, unmeasured, corrections, overflows, folded].map(Family::done),
    );
}

fn agent(families: &mut Vec<MetricFamily>, tracking: &Tracking) {
    let counters = tracking.counters();
    let received = Family::counter("tcpclose_events_received_total", "Records taken from the ring.")
        .with(&[], tracking.ring.received as f64);
    let mut lost = Family::counter(
        "tcpclose_events_lost_total",
        "Events lost, by stage: ring buffer full, program skipped by the kernel (recursion), record not decoded.",
    );
    lost.add(&[("stage", "ring")], counters.lost as f64);
    let runs = tracking.probe.runs();
    lost.add(&[("stage", "recursion")], runs.missed as f64);
    lost.add(&[("stage", "decode")], tracking.ring.malformed as f64);
    families.extend(program_runs(runs).map(Family::done));
    let used = Family::gauge(
        "tcpclose_ring_used_bytes_max",
        "Highest fill level of the ring buffer since the agent began.",
    )
    .with(&[], tracking.probe.ring.most_used() as f64);
    let dumps = tracking.dumps;
    let interval = Family::gauge(
        "tcpclose_reconcile_interval_seconds",
        "Present time between dumps, stretched up to --reconcile-max so that they take at most 1 % of a core.",
    )
    .with(&[], dumps.interval_ns as f64 / 1e9);
    let over = Family::gauge(
        "tcpclose_dumps_over_budget",
        "1 while dumps take more than 1 % of a core to keep every number younger than --reconcile-max.",
    )
    .with(&[], f64::from(u8::from(dumps.over_budget)));
    let took = Family::gauge("tcpclose_dump_seconds", "Wall time of the last dump.")
        .with(&[], dumps.last_ns as f64 / 1e9);
    let mut success = Family::gauge(
        "tcpclose_reconcile_last_success_timestamp_seconds",
        "When the tracked sockets were last compared with all of the kernel's.",
    );
    if dumps.reconciled_at > 0.0 {
        success.add(&[], dumps.reconciled_at);
    }
    let bound =
        Family::gauge("tcpclose_stuck_after_seconds", "The age from which a CLOSE-WAIT is called stuck.")
            .with(&[], tracking.stuck_after.first_ns() as f64 / 1e9);
    let mut info = Family::gauge("tcpclose_hook_info", "The backend in use, by hook.");
    info.add(&[("hook", "state"), ("backend", tracking.probe.hook.name())], 1.0);
    info.add(&[("hook", "time_wait"), ("backend", tracking.probe.time_wait.name())], 1.0);
    info.add(&[("hook", "owners"), ("backend", tracking.probe.owners.name())], 1.0);
    let namespaces = Family::gauge(
        "tcpclose_netns_info",
        "The network namespaces that dumps cover: all, found (others exist and cannot be found), some (others may not be \
         entered), or the agent's own.",
    )
    .with(&[("dumped", tracking.namespaces.coverage())], 1.0);
    let mut degraded = Family::gauge(
        "tcpclose_hook_degraded",
        "1 if this kernel refused a better backend than the one in use.",
    );
    degraded.add(&[("hook", "state")], f64::from(u8::from(!tracking.probe.declined.is_empty())));
    degraded
        .add(&[("hook", "time_wait")], f64::from(u8::from(!tracking.probe.time_wait_declined.is_empty())));
    degraded.add(&[("hook", "owners")], f64::from(u8::from(tracking.probe.owners_declined.is_some())));
    let killed = Family::counter(
        "tcpclose_helpers_killed_total",
        "Helper processes killed because reading an executable did not return.",
    )
    .with(&[], executables::killed() as f64);
    let build = Family::gauge("tcpclose_build_info", "The version of this agent.")
        .with(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    families.extend(
        [
            received, lost, used, interval, over, took, success, bound, info, namespaces, degraded, killed,
            build,
        ]
        .map(Family::done),
    );
}

fn web_config(is_wrong: bool) -> MetricFamily {
    Family::gauge(
        "tcpclose_web_config_wrong",
        "1 while the --web-config file, or a file that it names, has an error and its former content is in use.",
    )
    .with(&[], f64::from(u8::from(is_wrong)))
    .done()
}

/// The cost of the probe's programs; without samples if the kernel keeps no run statistics.
fn program_runs(runs: ProgramStats) -> [Family; 2] {
    let mut seconds = Family::counter(
        "tcpclose_program_run_seconds_total",
        "Time spent in the probe's programs while the kernel kept run statistics.",
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

#[cfg(test)]
mod tests;
