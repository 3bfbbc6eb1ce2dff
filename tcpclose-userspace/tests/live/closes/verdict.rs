//! What the agents must have counted of one close, and whether they did: all of it, and nothing else.

use std::collections::BTreeMap;

use tcpclose::names::{Outcome, Phase, Role, Side};
use tcpclose::report::sockets::SocketsDocument;
use tcpclose_common::state::TcpState;

use super::common::Metrics;
use super::left_out;
use super::stage::{Bracket, Timeline, now};
use super::watcher::{Sample, StateBackend, Watcher};

/// TIME-WAIT's entry, where it is read off the minisocket's timer, is known to this.
pub const ENTRY: f64 = 0.05;

/// What one end of a connection goes through.
pub struct End {
    pub side: Side,
    pub phases: &'static [Phase],
    pub role: Role,
    pub outcome: Outcome,
    /// The same where hooks report what ended a minisocket; dumps cannot.
    pub by_hooks: Outcome,
    /// It had no fd any more when it left FIN-WAIT-2: a minisocket did, unseen by the state hook.
    pub orphan: bool,
}

impl End {
    /// Its steps, from the established connection to nothing.
    pub fn transitions(&self) -> impl Iterator<Item = (TcpState, TcpState)> {
        let states = self.phases.iter().map(|phase| phase.state());
        let from = std::iter::once(TcpState::Established).chain(states.clone());
        from.zip(states.chain([TcpState::Close]))
    }

    pub fn waits(&self) -> bool {
        self.phases.last() == Some(&Phase::TimeWait)
    }
}

/// One close, played.
pub struct Run {
    pub name: String,
    pub port: u16,
    pub ends: &'static [End],
    pub timelines: Vec<Timeline>,
}

impl Run {
    /// Each end with its phases.
    pub fn ends(&self) -> impl Iterator<Item = (&'static End, &Timeline)> {
        self.ends.iter().zip(&self.timelines)
    }

    /// What is wrong in `metrics`, the last ones of `watcher`.
    pub fn judge(&self, watcher: &Watcher, metrics: &Metrics) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut samples: BTreeMap<_, Vec<Sample>> = BTreeMap::new();
        let mut closes = BTreeMap::new();
        for (end, timeline) in self.ends() {
            assert_eq!(timeline.steps.len(), end.phases.len() + 1, "{}: {timeline:?}", self.name);
            let side = watcher.side(end.side.name());
            for (&phase, steps) in end.phases.iter().zip(timeline.steps.windows(2)) {
                let lasted = steps[0].until(steps[1]);
                samples.entry((phase.name(), side)).or_default().push(watcher.allowed(end, phase, lasted));
            }
            *closes.entry((side, end.role.name(), watcher.outcome(end).name())).or_insert(0.0) += 1.0;
        }

        let port = self.port.to_string();
        let of_port = [("port", &*port)];
        let mut counted = BTreeMap::new();
        let mut sums = BTreeMap::new();
        let mut ended = BTreeMap::new();
        for (name, labels, value) in metrics.with(&of_port) {
            let label = |key: &str| match key {
                "side" => watcher.side(&labels[key]),
                _ => labels[key].as_str(),
            };
            match name {
                "tcpclose_state_duration_seconds_bucket" => {}
                // A busy machine acknowledges late. `causes` counts them.
                "tcpclose_fin_retransmits_total" => {}
                "tcpclose_state_duration_seconds_count" => {
                    *counted.entry((label("state"), label("side"))).or_insert(0.0) += value;
                }
                "tcpclose_state_duration_seconds_sum" => {
                    *sums.entry((label("state"), label("side"))).or_insert(0.0) += value;
                }
                "tcpclose_closes_total" => {
                    *ended.entry((label("side"), label("role"), label("outcome"))).or_insert(0.0) += value;
                }
                // Shown once, a gauge stays; where it has been, the durations tell.
                "tcpclose_sockets" if value == 0.0 => {}
                // There for every pair that has a name.
                "tcpclose_stuck_sockets" | "tcpclose_stuck_sockets_unproven"
                    if value == 0.0 && closes.keys().any(|(side, ..)| *side == label("side")) => {}
                _ => wrong.push(format!("unexpected: {name} {labels:?} {value}")),
            }
        }
        if ended != closes {
            wrong.push(format!("closes are {ended:?}, not {closes:?}"));
        }
        for (key, count) in &counted {
            let sum = sums[key];
            match samples.get(key) {
                None => wrong.push(format!("{key:?} was never entered, and has {count} samples, sum {sum}")),
                Some(allowed) if *count > allowed.len() as f64 => {
                    wrong.push(format!("{key:?} has {count} samples"));
                }
                Some(allowed) => {
                    // Those that may be unseen may be the ones that are.
                    let all = *count == allowed.len() as f64;
                    let counts = |one: &&Sample| all || !one.unseen;
                    let least: f64 = allowed.iter().filter(counts).map(|one| one.least).sum();
                    let most: f64 = allowed.iter().map(|one| one.most).sum();
                    if sum < least || sum > most {
                        wrong.push(format!(
                            "{key:?} lasted {sum} s by the agent, and by the test {allowed:?}"
                        ));
                    }
                }
            }
        }
        for (key, allowed) in &samples {
            let least = allowed.iter().filter(|one| !one.unseen).count() as f64;
            if counted.get(key).copied().unwrap_or(0.0) < least {
                wrong.push(format!("{key:?} lacks samples, and should have {allowed:?}"));
            }
        }
        let who = format!("{}: {} (port {port})", watcher.name(), self.name);
        wrong.into_iter().map(|what| format!("{who}: {what}")).collect()
    }

    /// What is wrong with the ages that `document`, made between the readings of `asked`, gives to TIME-WAITs.
    pub fn judge_ages(&self, watcher: &Watcher, document: &SocketsDocument, asked: Bracket) -> Vec<String> {
        let mut wrong = Vec::new();
        for (end, timeline) in self.ends().filter(|(end, _)| end.waits()) {
            let known = document
                .sockets
                .iter()
                .find(|s| s.local == timeline.flow.local() && s.peer == timeline.flow.remote());
            let entered = timeline.steps[end.phases.len() - 1];
            let (least, most) = entered.until(asked);
            match known {
                Some(s) if !watcher.may_tell(s.side, end.side) || s.port != self.port => {
                    wrong.push(format!("{}: {} of port {}", self.name, s.side.name(), s.port));
                }
                Some(s) if s.age.max_seconds.is_none_or(|max| max < least - ENTRY) => {
                    wrong.push(format!("{}: TIME-WAIT's entry is not known: {:?}", self.name, s.age))
                }
                Some(s) if s.age.min_seconds < least - ENTRY || s.age.min_seconds > most + ENTRY => {
                    wrong.push(format!("{}: {:?}, not {least} to {most}", self.name, s.age));
                }
                // What a record or a hook tells is exact; a dump tells an interval.
                Some(s) if !s.age.exact && watcher.hooks => {
                    wrong.push(format!("{}: TIME-WAIT's entry was seen: {:?}", self.name, s.age))
                }
                Some(_) => {}
                None => wrong.push(format!("{}: no {:?}", self.name, timeline.flow)),
            }
        }
        wrong.into_iter().map(|what| format!("{}: {what}", watcher.name())).collect()
    }
}

/// What is wrong with the gauges of two sockets that stand in these phases of `port` since then.
pub fn judge_standing(watcher: &Watcher, port: u16, standing: &[(Side, Phase, Bracket)]) -> Vec<String> {
    let before = now();
    let metrics = watcher.metrics();
    let asked = Bracket { from: before, to: now() };
    let port = port.to_string();
    let key = |side: Side, phase: Phase| (phase.name().to_owned(), watcher.side(side.name()).to_owned());
    let gauges = |name| -> BTreeMap<(String, String), f64> {
        let all = metrics.select(name, &[]).filter(|(labels, value)| labels["port"] == port && *value > 0.0);
        all.map(|(labels, value)| {
            ((labels["state"].clone(), watcher.side(&labels["side"]).to_owned()), value)
        })
        .collect()
    };
    let mut wrong = Vec::new();
    let (sockets, oldest) = (gauges("tcpclose_sockets"), gauges("tcpclose_oldest_socket_age_seconds"));
    let expected = standing.iter().map(|&(side, phase, _)| (key(side, phase), 1.0)).collect();
    if sockets != expected {
        wrong.push(format!("{}: port {port} has {sockets:?}, not {expected:?}", watcher.name()));
    }
    for &(side, phase, entered) in standing {
        let (least, most) = entered.until(asked);
        let age = oldest.get(&key(side, phase)).copied();
        if age.is_none_or(|age| age < least || age > most) {
            wrong.push(format!("{}: {phase:?} is {age:?} s old, not {least} to {most}", watcher.name()));
        }
    }
    wrong
}

/// What is wrong with the counters that have no port: they must agree with each other whoever else closes
/// connections meanwhile, and have at least grown by what `runs` made; but for what the kernel left out.
pub fn judge_totals(
    watcher: &Watcher,
    runs: &[Run],
    before: &Metrics,
    after: &Metrics,
    left_out: u64,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let missed = missed(watcher, after, left_out);
    let mut expected: BTreeMap<(TcpState, TcpState), f64> = BTreeMap::new();
    for step in runs.iter().flat_map(Run::ends).flat_map(|(end, _)| end.transitions()) {
        *expected.entry(step).or_default() += 1.0;
    }
    let grew = |name, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    for ((from, to), n) in expected {
        let seen = grew("tcpclose_transitions_total", &[("from", from.name()), ("to", to.name())]);
        if seen < n - missed {
            wrong.push(format!("{n} steps from {from:?} to {to:?} were made and {seen} counted"));
        }
    }
    // Every phase that was left is a step, and a sample or an unseen one.
    for phase in Phase::ALL {
        let state = ("state", phase.name());
        let steps = after.sum("tcpclose_transitions_total", &[("from", phase.name())]);
        let samples = after.sum("tcpclose_state_duration_seconds_count", &[state]);
        let unseen = |why| after.sum("tcpclose_unseen_phases_total", &[state, ("why", why)]);
        // Without BTF no record tells its network namespace, so that connections of other tests that have the same addresses in two
        // namespaces are one to that agent, until a dump finds the minisocket of the other, whose entry is not known.
        let mistaken = watcher.backend == StateBackend::Blind && phase == Phase::TimeWait;
        let lost = if mistaken { unseen("lost") } else { 0.0 };
        let reported = samples + unseen("before_agent") + unseen("between_dumps") + lost;
        // Without BTF a socket that leaves CLOSING goes on as a minisocket or is gone: the step is told when a dump has
        // looked, and another program's may be waiting for that now. Those of `runs` have all been looked for.
        let untold = watcher.backend == StateBackend::Blind && phase == Phase::Closing;
        if (steps - reported).abs() > missed && !(untold && steps < reported) {
            wrong.push(format!(
                "{phase:?} was left {steps} times, and told {reported} times, {samples} with a sample"
            ));
        }
        if unseen("lost") - lost > missed {
            wrong.push(format!("{phase:?} was lost {} times", unseen("lost")));
        }
    }
    let waited = runs.iter().flat_map(Run::ends).filter(|(end, _)| end.waits()).count() as f64;
    let expired = grew("tcpclose_time_wait_ended_total", &[("reason", "expired")]);
    if expired < waited - missed {
        wrong.push(format!("{waited} TIME-WAITs expired, and {expired} are counted"));
    }
    let lost = after.select("tcpclose_events_lost_total", &[]);
    for (labels, value) in lost.filter(|(labels, value)| labels["stage"] != "recursion" && *value != 0.0) {
        wrong.push(format!("tcpclose_events_lost_total {labels:?} is {value}"));
    }
    for (labels, value) in after.select("tcpclose_reconcile_corrections_total", &[]) {
        // Without BTF no record tells its network namespace: connections of other tests that have the same addresses in two
        // namespaces are one to that agent, until a dump finds the other.
        if value > missed && watcher.backend != StateBackend::Blind {
            wrong.push(format!("tcpclose_reconcile_corrections_total {labels:?} is {value}"));
        }
    }
    wrong.into_iter().map(|what| format!("{}: {what}", watcher.name())).collect()
}

/// The most events that the kernel can have left out of what `watcher` tells. Those from before the witness began are
/// known where the kernel counts; elsewhere that may be one, of the connections that agents close as they start.
fn missed(watcher: &Watcher, after: &Metrics, left_out: u64) -> f64 {
    let counted = after.sum("tcpclose_events_lost_total", &[("stage", "recursion")]);
    let before = if watcher.backend == StateBackend::Btf || left_out::counts() { 0 } else { 1 };
    counted.max((left_out + before) as f64)
}
