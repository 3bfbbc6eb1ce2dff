//! Agents at every backend of the state hook, and what each can report.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use tcpclose::names::{Outcome, Phase, Side};
use tcpclose::report::sockets::SocketsDocument;

use super::common::dump_gaps::DumpGaps;
use super::common::{Agent, BINARY, Metrics, is_lacking};
use super::stage::{now, seconds};
use super::verdict::{ENTRY, End};

/// How an agent watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateBackend {
    Btf,
    Tracepoint,
    /// The classic tracepoint on a kernel without BTF.
    Blind,
}

impl StateBackend {
    fn is_lacking(self) -> bool {
        self == Self::Btf && is_lacking("btf")
    }
}

/// An agent, and the longest that was between two of its dumps.
pub struct Watcher {
    pub backend: StateBackend,
    /// Whether hooks report minisockets to it, or dumps.
    pub hooks: bool,
    pub agent: Agent,
    pub gaps: DumpGaps,
}

impl Watcher {
    /// One at the backends that have BTF, on each backend that this kernel has. Every port has series of its own.
    pub fn with_btf() -> Vec<Self> {
        let there: Vec<StateBackend> = [StateBackend::Btf, StateBackend::Tracepoint]
            .into_iter()
            .filter(|backend| !backend.is_lacking())
            .collect();
        let hooked = there.iter().filter(|_| !is_lacking("hooks")).filter_map(|&backend| {
            Self::start(backend, true)
                .map_err(|why| {
                    assert!(std::env::var_os("TCPCLOSE_NO_SKIP").is_none(), "{backend:?}: no hooks: {why}");
                    eprintln!("\nSKIPPED: {backend:?} with hooks: {}\n", why.trim());
                })
                .ok()
        });
        let dumping = there.iter().map(|&backend| Self::start(backend, false).unwrap());
        dumping.chain(hooked).collect()
    }

    /// One that has no BTF, and so no hooks.
    pub fn blind() -> Self {
        Self::start(StateBackend::Blind, false).unwrap()
    }

    fn start(backend: StateBackend, hooks: bool) -> Result<Self, String> {
        let state = if backend == StateBackend::Btf { "btf" } else { "tracepoint" };
        let time_wait = if hooks { "hooks" } else { "diag" };
        let arguments = ["--max-ports", "1000", "--state-hook", state, "--time-wait", time_wait];
        let command = match backend {
            StateBackend::Btf | StateBackend::Tracepoint => Command::new(BINARY),
            StateBackend::Blind => {
                let mut command = Command::new("unshare");
                let masked = r#"mount -t tmpfs none /sys/kernel/btf && exec "$0" "$@""#;
                command.args(["--mount", "sh", "-c", masked, BINARY]);
                command
            }
        };
        let agent = Agent::try_start_by(command, &arguments)?;
        let metrics = agent.metrics();
        let degraded = metrics.sum("tcpclose_hook_degraded", &[("hook", "state")]);
        assert_eq!(degraded == 1.0, backend == StateBackend::Blind, "{}", agent.printed());
        let in_use = [("hook", "time_wait"), ("backend", time_wait)];
        assert_eq!(metrics.sum("tcpclose_hook_info", &in_use), 1.0, "{}", agent.printed());
        Ok(Self { backend, hooks, agent, gaps: DumpGaps::of_host() })
    }

    /// Its name in the test's messages.
    pub fn name(&self) -> String {
        format!("{:?}{}", self.backend, if self.hooks { " with hooks" } else { "" })
    }

    /// All of their agents, and what is noted of their dumps.
    pub fn gaps_of(watchers: &[Self]) -> Vec<(&Agent, &DumpGaps)> {
        watchers.iter().map(|watcher| (&watcher.agent, &watcher.gaps)).collect()
    }

    pub fn metrics(&self) -> Metrics {
        self.agent.metrics()
    }

    /// The metrics, once no socket of `ports` is left, or when three dumps have not told of their ends.
    pub fn once_none_is_left(&self, ports: &[u16]) -> Metrics {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        let begun = now();
        loop {
            let metrics = self.metrics();
            self.gaps.note(&metrics);
            let left =
                ports.iter().map(|port| metrics.sum("tcpclose_sockets", &[("port", port)])).sum::<f64>();
            if left == 0.0 || seconds(now() - begun) > 5.0 + 3.0 * self.gaps.apart() {
                return metrics;
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Every socket in `phase` that it knows of.
    pub fn sockets(&self, phase: Phase) -> SocketsDocument {
        let (status, text) = self.agent.get(&format!("/v1/sockets?older_than=0s&state={}", phase.name()));
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// A side as it is compared. Without BTF it is unknown until a dump, which comes when it will, proves it:
    /// all are one then.
    pub fn side<'a>(&self, side: &'a str) -> &'a str {
        if self.backend == StateBackend::Blind { "any" } else { side }
    }

    /// Whether it may tell the side `told` of a socket of this `side`.
    pub fn may_tell(&self, reported: Side, side: Side) -> bool {
        reported == side || self.backend == StateBackend::Blind && reported == Side::Unknown
    }

    /// The outcome that it can report. Without BTF, only a TIME-WAIT proves one.
    pub fn outcome(&self, end: &End) -> Outcome {
        match self.backend {
            StateBackend::Blind if !end.waits() => Outcome::Unknown,
            _ if self.hooks => end.by_hooks,
            _ => end.outcome,
        }
    }

    /// Where the length of `phase`, that lasted between `least` and `most` by the test's clock, must lie; and
    /// whether it may be unseen.
    pub fn allowed(&self, end: &End, phase: Phase, (least, most): (f64, f64)) -> Sample {
        if self.hooks {
            return Sample { least, most, unseen: false };
        }
        let (gap, blind) = (self.gaps.apart(), self.backend == StateBackend::Blind);
        // A minisocket's timer tells when it entered TIME-WAIT, where the state hook did not. When in a dump the kernel wrote
        // what is left of it is not told.
        let took = self.gaps.took();
        let by_timer = if end.orphan || blind { ENTRY + took } else { 0.0 };
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

/// The possible length of a phase by an agent's report.
#[derive(Debug)]
pub struct Sample {
    pub least: f64,
    pub most: f64,
    /// It may as well be missing.
    pub unseen: bool,
}
