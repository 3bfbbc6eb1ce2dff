//! What the agents must have counted of one close, and whether they did: all of it, and nothing else.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use tcpclose_common::state::TcpState;
use tcpclose_userspace::query::document::Document;
use tcpclose_userspace::terms::{Outcome, Phase, Role, Side};

use crate::common::{Agent, BINARY, Metrics};
use crate::stage::{Bracket, Timeline, now, seconds};

/// TIME-WAIT's entry, where it is read off the minisocket's timer, is known to this.
pub const ENTRY: f64 = 0.05;

/// What one end of a connection goes through.
pub struct End {
    pub side: Side,
    pub phases: &'static [Phase],
    pub role: Role,
    pub outcome: Outcome,
    /// The same where hooks tell what ended a minisocket; dumps cannot.
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

/// How an agent watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Btf,
    Tracepoint,
    /// The classic tracepoint on a kernel without BTF.
    Blind,
}

/// An agent, and the longest that was between two of its dumps.
pub struct Watcher {
    pub door: Door,
    /// Whether hooks tell it of minisockets, or dumps.
    pub hooks: bool,
    pub agent: Agent,
    gap: Mutex<f64>,
}

impl Watcher {
    /// One at the doors that have BTF, on each rung that this kernel has. Every port has series of its own.
    pub fn with_btf() -> Vec<Self> {
        let hooked = [Door::Btf, Door::Tracepoint].into_iter().filter_map(|door| {
            Self::start(door, true)
                .map_err(|why| {
                    assert!(std::env::var_os("TCPCLOSE_NO_SKIP").is_none(), "{door:?}: no hooks: {why}");
                    eprintln!("\nSKIPPED: {door:?} with hooks: {}\n", why.trim());
                })
                .ok()
        });
        let dumping = [Door::Btf, Door::Tracepoint].map(|door| Self::start(door, false).unwrap());
        dumping.into_iter().chain(hooked).collect()
    }

    /// One that has no BTF, and so no hooks.
    pub fn blind() -> Self {
        Self::start(Door::Blind, false).unwrap()
    }

    fn start(door: Door, hooks: bool) -> Result<Self, String> {
        let state = if door == Door::Btf { "btf" } else { "tracepoint" };
        let time_wait = if hooks { "hooks" } else { "diag" };
        let arguments = ["--max-ports", "500", "--state-hook", state, "--time-wait", time_wait];
        let command = match door {
            Door::Btf | Door::Tracepoint => Command::new(BINARY),
            Door::Blind => {
                let mut command = Command::new("unshare");
                let masked = r#"mount -t tmpfs none /sys/kernel/btf && exec "$0" "$@""#;
                command.args(["--mount", "sh", "-c", masked, BINARY]);
                command
            }
        };
        let agent = Agent::try_start_by(command, &arguments)?;
        let metrics = agent.metrics();
        let degraded = metrics.sum("tcpclose_hook_degraded", &[("hook", "state")]);
        assert_eq!(degraded == 1.0, door == Door::Blind, "{}", agent.said());
        let rung = [("hook", "time_wait"), ("rung", time_wait)];
        assert_eq!(metrics.sum("tcpclose_hook_info", &rung), 1.0, "{}", agent.said());
        Ok(Self { door, hooks, agent, gap: Mutex::new(0.0) })
    }

    /// What it is called in what the test says.
    pub fn name(&self) -> String {
        format!("{:?}{}", self.door, if self.hooks { " with hooks" } else { "" })
    }

    pub fn metrics(&self) -> Metrics {
        self.agent.metrics()
    }

    /// Notes how far apart its dumps are in `metrics`; `late` is what this machine adds to a pause at present.
    pub fn note_gap(&self, metrics: &Metrics, late: f64) {
        let interval = metrics.sum("tcpclose_reconcile_interval_seconds", &[]);
        let gap = interval + metrics.sum("tcpclose_dump_seconds", &[]) + late;
        let mut longest = self.gap.lock().unwrap();
        *longest = longest.max(gap);
    }

    /// The metrics, once no socket of `ports` is left; fails when that takes more than three dumps.
    pub fn once_none_is_left(&self, ports: &[u16]) -> Metrics {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        let begun = now();
        loop {
            let metrics = self.metrics();
            self.note_gap(&metrics, 0.0);
            let left = metrics.select("tcpclose_sockets", &[]);
            let left: Vec<_> =
                left.filter(|(labels, n)| ports.contains(&labels["port"]) && *n > 0.0).collect();
            if left.is_empty() {
                return metrics;
            }
            let patience = 5.0 + 3.0 * self.gap();
            assert!(seconds(now() - begun) < patience, "{}: {left:?} stay for {patience} s", self.name());
            sleep(Duration::from_millis(100));
        }
    }

    /// The longest from one dump's look at a socket to the next one's, seconds.
    pub fn gap(&self) -> f64 {
        *self.gap.lock().unwrap()
    }

    /// Every socket in `phase` that it knows of.
    pub fn sockets(&self, phase: Phase) -> Document {
        let (status, text) = self.agent.get(&format!("/v1/sockets?older_than=0s&state={}", phase.name()));
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The side that it proves. Without BTF, only a listener does.
    pub fn side(&self, side: Side) -> Side {
        if self.door == Door::Blind && side == Side::Client { Side::Unknown } else { side }
    }

    /// The outcome that it can tell. Without BTF, only a TIME-WAIT proves one.
    fn outcome(&self, end: &End) -> Outcome {
        match self.door {
            Door::Blind if !end.waits() => Outcome::Unknown,
            _ if self.hooks => end.by_hooks,
            _ => end.outcome,
        }
    }

    /// Where the length of `phase`, that lasted between `least` and `most` by the test's clock, must lie; and
    /// whether it may be unseen.
    fn allowed(&self, end: &End, phase: Phase, (least, most): (f64, f64)) -> Sample {
        if self.hooks {
            return Sample { least, most, unseen: false };
        }
        let (gap, blind) = (self.gap(), self.door == Door::Blind);
        // A minisocket's timer tells when it entered TIME-WAIT, where the state hook did not.
        let by_timer = if end.orphan || blind { ENTRY } else { 0.0 };
        let (early, late, unseen) = match phase {
            Phase::TimeWait => (gap + by_timer, by_timer, false),
            Phase::FinWait2 if end.waits() => (by_timer, by_timer, false),
            // A minisocket's end is what no dump sees any more.
            Phase::FinWait2 if end.orphan => (gap, 0.0, most < 2.0 * gap),
            // Without BTF nothing tells this end from a minisocket's birth but that no dump finds one.
            Phase::FinWait2 if blind => (0.0, 0.0, most < 2.0 * gap),
            _ => (0.0, 0.0, false),
        };
        Sample { least: (least - early).max(0.0), most: most + late, unseen }
    }
}

#[derive(Debug)]
struct Sample {
    least: f64,
    most: f64,
    /// It may as well be missing.
    unseen: bool,
}

/// One close, played.
pub struct Run {
    pub name: String,
    pub port: u16,
    pub ends: &'static [End],
    pub timelines: Vec<Timeline>,
}

impl Run {
    /// Each end with what it went through.
    pub fn ends(&self) -> impl Iterator<Item = (&'static End, &Timeline)> {
        self.ends.iter().zip(&self.timelines)
    }

    /// What is wrong in `metrics`, the last ones of `watcher`.
    pub fn judge(&self, watcher: &Watcher, metrics: &Metrics) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut samples = BTreeMap::new();
        let mut closes = BTreeMap::new();
        for (end, timeline) in self.ends() {
            assert_eq!(timeline.steps.len(), end.phases.len() + 1, "{}: {timeline:?}", self.name);
            let side = watcher.side(end.side).name();
            for (&phase, steps) in end.phases.iter().zip(timeline.steps.windows(2)) {
                let lasted = steps[0].until(steps[1]);
                samples.insert((phase.name(), side), watcher.allowed(end, phase, lasted));
            }
            closes.insert((side, end.role.name(), watcher.outcome(end).name()), 1.0);
        }

        let port = self.port.to_string();
        let of_port = [("port", &*port)];
        let mut counted = BTreeMap::new();
        let mut sums = BTreeMap::new();
        let mut ended = BTreeMap::new();
        for (name, labels, value) in metrics.with(&of_port) {
            let label = |key: &str| labels[key].as_str();
            match name {
                "tcpclose_state_duration_seconds_bucket" => {}
                "tcpclose_state_duration_seconds_count" => {
                    counted.insert((label("state"), label("side")), value);
                }
                "tcpclose_state_duration_seconds_sum" => {
                    sums.insert((label("state"), label("side")), value);
                }
                "tcpclose_closes_total" => {
                    ended.insert((label("side"), label("role"), label("outcome")), value);
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
                Some(_) if *count != 1.0 => wrong.push(format!("{key:?} has {count} samples")),
                Some(allowed) if sum < allowed.least || sum > allowed.most => {
                    wrong.push(format!("{key:?} lasted {sum} s by the agent, and by the test {allowed:?}"));
                }
                Some(_) => {}
            }
        }
        for (key, allowed) in &samples {
            if !counted.contains_key(key) && !allowed.unseen {
                wrong.push(format!("{key:?} has no sample, and should have {allowed:?}"));
            }
        }
        let who = format!("{}: {} (port {port})", watcher.name(), self.name);
        wrong.into_iter().map(|what| format!("{who}: {what}")).collect()
    }

    /// What is wrong with the ages that `document`, made between the readings of `asked`, gives to TIME-WAITs.
    pub fn judge_ages(&self, watcher: &Watcher, document: &Document, asked: Bracket) -> Vec<String> {
        let mut wrong = Vec::new();
        for (end, timeline) in self.ends().filter(|(end, _)| end.waits()) {
            let known = document
                .sockets
                .iter()
                .find(|s| s.local == timeline.flow.local() && s.peer == timeline.flow.remote());
            let entered = timeline.steps[end.phases.len() - 1];
            let (least, most) = entered.until(asked);
            match known {
                Some(s) if s.side != watcher.side(end.side) || s.port != self.port => {
                    wrong.push(format!("{}: {} of port {}", self.name, s.side.name(), s.port));
                }
                Some(s) if !s.age.exact => {
                    wrong.push(format!("{}: TIME-WAIT's entry is not known: {:?}", self.name, s.age))
                }
                Some(s) if s.age.min_seconds < least - ENTRY || s.age.min_seconds > most + ENTRY => {
                    wrong.push(format!("{}: {:?}, not {least} to {most}", self.name, s.age));
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
    let key = |side: Side, phase: Phase| (phase.name().to_owned(), watcher.side(side).name().to_owned());
    let gauges = |name| -> BTreeMap<(String, String), f64> {
        let all = metrics.select(name, &[]).filter(|(labels, value)| labels["port"] == port && *value > 0.0);
        all.map(|(labels, value)| ((labels["state"].clone(), labels["side"].clone()), value)).collect()
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
/// connections meanwhile, and have at least grown by what `runs` made.
pub fn judge_totals(watcher: &Watcher, runs: &[Run], before: &Metrics, after: &Metrics) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expected: BTreeMap<(TcpState, TcpState), f64> = BTreeMap::new();
    for step in runs.iter().flat_map(Run::ends).flat_map(|(end, _)| end.transitions()) {
        *expected.entry(step).or_default() += 1.0;
    }
    let grew = |name, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    for ((from, to), n) in expected {
        let seen = grew("tcpclose_transitions_total", &[("from", from.name()), ("to", to.name())]);
        if seen < n {
            wrong.push(format!("{n} steps from {from:?} to {to:?} were made and {seen} counted"));
        }
    }
    // Every phase that was left is a step, and a sample or an unseen one.
    for phase in Phase::ALL {
        let state = ("state", phase.name());
        let steps = after.sum("tcpclose_transitions_total", &[("from", phase.name())]);
        let samples = after.sum("tcpclose_state_duration_seconds_count", &[state]);
        let unseen: f64 = ["before_agent", "between_dumps"]
            .map(|why| after.sum("tcpclose_unseen_phases_total", &[state, ("why", why)]))
            .iter()
            .sum();
        // Without BTF a socket that leaves CLOSING goes on as a minisocket or is gone: the step is told when a dump has
        // looked, and another program's may be waiting for that now. Those of `runs` have all been looked for.
        let untold = watcher.door == Door::Blind && phase == Phase::Closing;
        if steps != samples + unseen && !(untold && steps < samples + unseen) {
            wrong.push(format!("{phase:?} was left {steps} times, sampled {samples}, unseen {unseen}"));
        }
    }
    let waited = runs.iter().flat_map(Run::ends).filter(|(end, _)| end.waits()).count() as f64;
    let expired = grew("tcpclose_time_wait_ended_total", &[("reason", "expired")]);
    if expired < waited {
        wrong.push(format!("{waited} TIME-WAITs expired, and {expired} are counted"));
    }
    for name in ["tcpclose_events_lost_total", "tcpclose_reconcile_corrections_total"] {
        for (labels, value) in after.select(name, &[]).filter(|(_, value)| *value != 0.0) {
            wrong.push(format!("{name} {labels:?} is {value}"));
        }
    }
    wrong.into_iter().map(|what| format!("{}: {what}", watcher.name())).collect()
}
