//! `/metrics`: counters and gauges in Prometheus' text format.

mod family;

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::{HeaderMap, StatusCode};
use prometheus::TextEncoder;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Bucket, Histogram, MetricFamily};

use crate::linux::executables;
use crate::linux::host;
use crate::linux::stacks::namer;
use crate::metrics::Metrics;
use crate::metrics::descriptors;
use crate::metrics::descriptors::Descriptor;
use crate::metrics::gauges::Gauges;
use crate::metrics::port_labels::PortLabel;
use crate::names::{NetnsOwner, Phase, Side, Verdict};
use crate::probe::Hook;
use crate::probe::backend::stacks::{StackCounts, StackHook};
use crate::probe::prog_stats::ProgramStats;
use crate::report::owner_counts::{OwnerLabels, StuckCounts};

use crate::agent::gauge_ages::GaugeAges;
use crate::agent::parts::Parts;
use crate::agent::port_usage::Fullest;
use crate::agent::server::handlers::metrics::family::{Family, series_of, single};
use crate::agent::server::response::{Answer, compressible, plain};
use crate::agent::stacks::Stacks;
use crate::agent::tracker_output::TrackerOutput;
use crate::agent::tracking::Tracking;

/// Combinations of side, port and verdict that have a series of their own.
const MOST_VERDICTS: usize = 20;

/// Reasons of RSTs that were sent that have a series of their own; Linux 6.18 has 25.
const MOST_RESET_REASONS: usize = 31;

/// prometheus::TEXT_FORMAT with its charset.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub fn answer(parts: &Parts, request: &HeaderMap) -> Answer {
    match render(parts) {
        Ok(text) => compressible(TEXT_FORMAT, text, request),
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
    limits(&mut families, &tracking.namespaces.time_wait_limit_used(), &parts.port_usage.borrow().fullest);
    stuck_counts(&mut families, &parts.stuck_counts.borrow());
    verdicts(&mut families, &tracking.output);
    counters(&mut families, &tracking.output.metrics, tracking.overflows());
    let received = tracking.output.metrics.resets_received();
    families.push(resets(&tracking.probe.resets_sent(), received).done());
    agent(&mut families, &tracking);
    stacks(&mut families, &tracking, &parts.stacks.borrow());
    let web_config_wrong = f64::from(u8::from(parts.web_config_wrong.get()));
    families.push(single(&descriptors::WEB_CONFIG_WRONG, web_config_wrong).done());
    families.extend(ProcessCollector::for_self().collect());
    families.retain(|family: &MetricFamily| !family.get_metric().is_empty());
    let series = families.iter().map(series_of).sum::<usize>() + 1;
    families.push(single(&descriptors::SERIES, series as f64).done());
    families.sort_by(|a, b| a.name().cmp(b.name()));
    TextEncoder::new().encode_to_string(&families)
}

/// `--stuck-after` bounds as in the `age` label: `1m`, `1h30m`.
fn stuck_labels(bounds_ns: &[u64]) -> Vec<String> {
    bounds_ns
        .iter()
        .map(|&ns| humantime::format_duration(Duration::from_nanos(ns)).to_string().replace(' ', ""))
        .collect()
}

fn gauges(families: &mut Vec<MetricFamily>, gauges: &Gauges, ages: &[String]) {
    let mut sockets = Family::new(&descriptors::SOCKETS);
    let mut oldest = Family::new(&descriptors::OLDEST_SOCKET_AGE);
    for (&(label, phase), standing) in &gauges.standing {
        let port = port(label);
        let labels = [phase.name(), label.side.name(), &*port];
        sockets.add(&labels, standing.sockets as f64);
        // The states in which a socket can stay for as long as a program, or a peer, likes.
        let can_last = matches!(phase, Phase::CloseWait | Phase::FinWait2 | Phase::LastAck);
        if can_last && standing.sockets > 0 {
            oldest.add(&labels, standing.oldest_ns as f64 / 1e9);
        }
    }
    let mut stuck = Family::new(&descriptors::STUCK_SOCKETS);
    for (label, counts) in &gauges.stuck {
        for (n, age) in counts.iter().zip(ages) {
            stuck.add(&[label.side.name(), &port(*label), age], *n as f64);
        }
    }
    let mut unproven = Family::new(&descriptors::STUCK_SOCKETS_UNPROVEN);
    for (label, &n) in &gauges.unproven {
        unproven.add(&[label.side.name(), &port(*label)], n as f64);
    }
    families.extend([sockets, oldest, stuck, unproven].map(Family::done));
}

fn ages(GaugeAges { host_ns, others_ns }: GaugeAges) -> MetricFamily {
    Family::new(&descriptors::GAUGES_AGE)
        .with(&["host"], host_ns as f64 / 1e9)
        .with(&["others"], others_ns as f64 / 1e9)
        .done()
}

/// How near to the kernel's limits the namespaces of each owner are; no sample for an owner of whom none is known.
fn limits(
    families: &mut Vec<MetricFamily>,
    time_waits: &BTreeMap<NetnsOwner, f64>,
    ports: &BTreeMap<NetnsOwner, Fullest>,
) {
    let mut family = |descriptor: &'static Descriptor,
                      ratios: &mut dyn Iterator<Item = (NetnsOwner, f64)>| {
        let mut family = Family::new(descriptor);
        ratios.for_each(|(owner, ratio)| family.add(&[owner.name()], ratio));
        families.push(family.done());
    };
    let ports =
        |ratio: fn(&Fullest) -> f64| ports.iter().map(move |(&owner, fullest)| (owner, ratio(fullest)));
    family(&descriptors::TIME_WAIT_LIMIT_USED, &mut time_waits.iter().map(|(&owner, &used)| (owner, used)));
    family(&descriptors::EPHEMERAL_PORTS_USED, &mut ports(|fullest| fullest.used));
    family(&descriptors::EPHEMERAL_PORTS_BLOCKED, &mut ports(|fullest| fullest.blocked));
    family(&descriptors::EPHEMERAL_PORTS_BIND, &mut ports(|fullest| fullest.bind));
}

fn stuck_counts(families: &mut Vec<MetricFamily>, counts: &StuckCounts) {
    let mut owners = Family::new(&descriptors::STUCK_OWNER_SOCKETS);
    for (OwnerLabels { comm, unit, container_id, uid }, n) in &counts.owners {
        owners.add(&[comm, unit, container_id, uid], *n as f64);
    }
    let mut diagnoses = Family::new(&descriptors::STUCK_DIAGNOSIS_SOCKETS);
    for (why, n) in &counts.diagnoses {
        diagnoses.add(&[why.name()], *n as f64);
    }
    families.extend([owners, diagnoses].map(Family::done));
}

/// Stuck sockets by verdict; pairs without a series of their own, and those beyond the bound, share `other`.
fn verdicts(families: &mut Vec<MetricFamily>, output: &TrackerOutput) {
    let mut sums: BTreeMap<(Side, String, Verdict), u64> = BTreeMap::new();
    for ((pair, verdict), n) in output.verdicts.counts() {
        let is_named = output.metrics.is_named(pair) && sums.len() < MOST_VERDICTS;
        let port = if is_named { pair.port.to_string() } else { "other".to_owned() };
        *sums.entry((pair.side, port, verdict)).or_default() += n;
    }
    let mut family = Family::new(&descriptors::STUCK_VERDICT_SOCKETS);
    for ((side, port, verdict), n) in &sums {
        family.add(&[side.name(), port, verdict.name()], *n as f64);
    }
    families.push(family.done());
}

fn counters(families: &mut Vec<MetricFamily>, metrics: &Metrics, time_wait_overflows: u64) {
    let mut durations = Family::new(&descriptors::STATE_DURATION);
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
        let mut metric = durations.labelled(&[phase.name(), label.side.name(), &port(label)]);
        metric.set_histogram(proto);
        durations.metrics.push(metric);
    }
    let mut transitions = Family::new(&descriptors::TRANSITIONS);
    for (from, to, n) in metrics.transitions() {
        transitions.add(&[from.name(), to.name()], n as f64);
    }
    let mut closes = Family::new(&descriptors::CLOSES);
    for (label, role, outcome, n) in metrics.closes() {
        closes.add(&[label.side.name(), &port(label), role.name(), outcome.name()], n as f64);
    }
    let mut stale_writes = Family::new(&descriptors::STALE_WRITES);
    for (label, n) in metrics.stale_writes() {
        stale_writes.add(&[label.side.name(), &port(label)], n as f64);
    }
    let mut fin_retransmits = Family::new(&descriptors::FIN_RETRANSMITS);
    for (label, n) in metrics.fin_retransmits() {
        fin_retransmits.add(&[label.side.name(), &port(label)], n as f64);
    }
    let mut ended = Family::new(&descriptors::TIME_WAIT_ENDED);
    for (how, n) in metrics.time_wait_ended() {
        ended.add(&[how.name()], n as f64);
    }
    let mut unseen = Family::new(&descriptors::UNSEEN_PHASES);
    for (phase, why, n) in metrics.unmeasured() {
        unseen.add(&[phase.name(), why.name()], n as f64);
    }
    let mut corrections = Family::new(&descriptors::RECONCILE_CORRECTIONS);
    for (what, n) in metrics.corrections() {
        corrections.add(&[what.name()], n as f64);
    }
    let overflows = single(&descriptors::TIME_WAIT_OVERFLOWS, time_wait_overflows as f64);
    let folded = single(&descriptors::PORTS_FOLDED, metrics.folded() as f64);
    let all = [
        durations,
        transitions,
        closes,
        stale_writes,
        fin_retransmits,
        ended,
        unseen,
        corrections,
        overflows,
        folded,
    ];
    families.extend(all.map(Family::done));
}

/// Sent RSTs by the kernel's reason, received ones by ours.
fn resets(sent: &BTreeMap<&'static str, u64>, received: [(&'static str, u64); 2]) -> Family {
    let mut sent: Vec<(&str, u64)> = sent.iter().map(|(reason, n)| (*reason, *n)).collect();
    // Only a kernel with more reasons than are known today needs `other`.
    let others: u64 = sent.split_off(sent.len().min(MOST_RESET_REASONS)).iter().map(|(_, n)| n).sum();
    if others > 0 {
        sent.push(("other", others));
    }
    let mut family = Family::new(&descriptors::RESETS);
    for (direction, reasons) in [("sent", &sent[..]), ("received", &received[..])] {
        for (reason, n) in reasons.iter().filter(|(_, n)| *n > 0) {
            family.add(&[direction, reason], *n as f64);
        }
    }
    family
}

fn agent(families: &mut Vec<MetricFamily>, tracking: &Tracking) {
    let runs = tracking.probe.runs();
    let lost = Family::new(&descriptors::EVENTS_LOST)
        .with(&["ring"], tracking.counters().lost as f64)
        .with(&["recursion"], runs.missed as f64)
        .with(&["decode"], tracking.ring.malformed as f64);
    families.extend(program_runs(runs).map(Family::done));
    let dumps = tracking.dumps;
    let mut success = Family::new(&descriptors::RECONCILE_LAST_SUCCESS);
    if dumps.reconciled_at > 0.0 {
        success.add(&[], dumps.reconciled_at);
    }
    let info = Family::new(&descriptors::HOOK_INFO)
        .with(&["state", tracking.probe.hook.name()], 1.0)
        .with(&["time_wait", tracking.probe.time_wait.name()], 1.0)
        .with(&["owners", tracking.probe.owners.name()], 1.0);
    let flag = |raised: bool| f64::from(u8::from(raised));
    let degrades = |hook| flag(tracking.probe.declined.degrades(hook));
    let degraded = Family::new(&descriptors::HOOK_DEGRADED)
        .with(&["state"], degrades(Hook::State).max(flag(tracking.is_hook_silent())))
        .with(&["time_wait"], degrades(Hook::TimeWait))
        .with(&["owners"], degrades(Hook::Owners))
        .with(&["reset"], degrades(Hook::Reset))
        .with(&["retransmit"], degrades(Hook::Retransmit));
    let namespaces = Family::new(&descriptors::NETNS_INFO).with(&[tracking.namespaces.coverage()], 1.0);
    let build = Family::new(&descriptors::BUILD_INFO).with(&[env!("CARGO_PKG_VERSION")], 1.0);
    let all = [
        single(&descriptors::EVENTS_RECEIVED, tracking.ring.received as f64),
        lost,
        single(&descriptors::RING_USED, tracking.probe.ring.most_used() as f64),
        single(&descriptors::RECONCILE_INTERVAL, dumps.interval_ns as f64 / 1e9),
        single(&descriptors::DUMPS_OVER_BUDGET, flag(dumps.over_budget)),
        single(&descriptors::DUMP_SECONDS, dumps.last_ns as f64 / 1e9),
        success,
        single(&descriptors::STUCK_AFTER, tracking.stuck_after.first_ns() as f64 / 1e9),
        info,
        namespaces,
        degraded,
        single(&descriptors::HELPERS_KILLED, (executables::killed() + namer::killed()) as f64),
        build,
    ];
    families.extend(all.map(Family::done));
}

/// All are 0 where no program that takes stacks is loaded.
fn stacks(families: &mut Vec<MetricFamily>, tracking: &Tracking, stacks: &Stacks) {
    let StackCounts { taken, full } =
        tracking.probe.stacks().map_or_else(StackCounts::default, StackHook::counts);
    let total = Family::new(&descriptors::STACKS)
        .with(&["taken"], taken as f64)
        .with(&["full"], full as f64)
        .with(&["unnamed"], stacks.unnamed as f64)
        .with(&["evicted"], stacks.table.evicted as f64);
    let armed = single(&descriptors::STACK_PROCESSES, stacks.arming.armed().len() as f64);
    families.extend([armed, total].map(Family::done));
}

/// The cost of the probe's programs; without samples where the kernel keeps no run statistics.
fn program_runs(runs: ProgramStats) -> [Family; 2] {
    let mut seconds = Family::new(&descriptors::PROGRAM_RUN_SECONDS);
    let mut count = Family::new(&descriptors::PROGRAM_RUNS);
    if runs.count > 0 {
        seconds.add(&[], runs.ns as f64 / 1e9);
        count.add(&[], runs.count as f64);
    }
    [seconds, count]
}

fn port(label: PortLabel) -> String {
    label.port.map_or_else(|| "other".to_owned(), |port| port.to_string())
}

#[cfg(test)]
mod tests;
