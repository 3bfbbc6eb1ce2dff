//! Agents on every backend that this kernel has, side by side, and when they must agree with the kernel.

use std::panic::resume_unwind;
use std::process::Command;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use super::connections::{Load, Played};
use super::truth::Kernel;
use crate::common::{Agent, BINARY, HOOKS, Metrics, is_lacking};

/// Two reads of the kernel and one of the agent, on a loaded machine.
const LOOK: Duration = Duration::from_millis(50);

pub struct Watcher {
    pub name: String,
    pub agent: Agent,
    /// It sees the minisockets of all network namespaces.
    pub hooks: bool,
    ports: Vec<String>,
    /// What it had counted before the load.
    before: Metrics,
}

/// One agent a backend, in the calling thread's namespace, with a name for each of `load`'s ports.
pub fn start_agents(load: &Load, arguments: &[&str]) -> Vec<Watcher> {
    let mut watchers = Vec::new();
    for state in HOOKS.into_iter().filter(|state| !is_lacking(state)) {
        let auto = start(load, state, "auto", arguments);
        let has_hooks = auto.hooks;
        watchers.push(auto);
        if has_hooks {
            watchers.push(start(load, state, "diag", arguments));
        } else {
            let expected = is_lacking("hooks") || std::env::var_os("TCPCLOSE_NO_SKIP").is_none();
            assert!(expected, "{state}: no hooks");
            eprintln!("\nSKIPPED: {state}+hooks: this kernel refuses them\n");
        }
    }
    watchers
}

/// One agent whose ring is as small as can be, which is bound to lose records.
pub fn start_starved(load: &Load, state: &str, arguments: &[&str]) -> Watcher {
    let mut starved = start(load, state, "auto", &[arguments, &["--ring-size", "4K"]].concat());
    starved.name += " with a ring of one page";
    starved
}

fn start(load: &Load, state: &str, time_wait: &str, arguments: &[&str]) -> Watcher {
    let ports: Vec<String> = load.ports().map(|port| port.to_string()).collect();
    let named = ports.iter().flat_map(|port| ["--name-port", port]);
    // What goes on in other namespaces is no matter of the kernel's counts here.
    let backend = ["--state-hook", state, "--time-wait", time_wait, "--netns", "current"];
    let arguments: Vec<&str> = backend.into_iter().chain(named).chain(arguments.iter().copied()).collect();
    let agent = Agent::start_by(Command::new(BINARY), &arguments);
    let before = agent.metrics();
    let on =
        |backend| before.sum("tcpclose_hook_info", &[("hook", "time_wait"), ("backend", backend)]) == 1.0;
    let hooks = on("hooks");
    assert!(hooks || on("diag"));
    let name = format!("{state}+{}", if hooks { "hooks" } else { "diag" });
    Watcher { name, agent, hooks, ports, before }
}

/// Waits for all of them at once, in the calling thread's namespace: TIME-WAITs last a minute, and where dumps are far
/// apart one wait after the other takes longer. See [`Watcher::until_equal_within`].
pub fn until_all_equal(watchers: &[Watcher], dumps: f64, when: &str) -> Vec<Kernel> {
    scope(|scope| {
        let waiting: Vec<_> = watchers
            .iter()
            .map(|watcher| scope.spawn(move || watcher.until_equal_within(dumps, when)))
            .collect();
        waiting
            .into_iter()
            .map(|waiting| waiting.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

impl Watcher {
    /// Sockets in `state` of the load's ports.
    fn of_ports(&self, metrics: &Metrics, labels: &[(&str, &str)]) -> f64 {
        let each = self
            .ports
            .iter()
            .map(|port| metrics.sum("tcpclose_sockets", &[labels, &[("port", port.as_str())]].concat()));
        each.sum()
    }

    /// TIME-WAITs that are to equal the kernel's: of all ports, but for hooks, which tell of every namespace.
    fn time_waits(&self, metrics: &Metrics) -> f64 {
        match self.hooks {
            true => self.of_ports(metrics, &[("state", "time_wait")]),
            false => metrics.sum("tcpclose_sockets", &[("state", "time_wait")]),
        }
    }

    /// Of the load's ports: the state hook tells of full sockets in every namespace.
    fn fin_wait_2s(&self, metrics: &Metrics) -> f64 {
        self.of_ports(metrics, &[("state", "fin_wait_2")])
    }

    fn equals(&self, metrics: &Metrics, kernel: &Kernel) -> bool {
        self.time_waits(metrics) == kernel.time_waits as f64
            && self.fin_wait_2s(metrics) == (kernel.fin_wait_2s + kernel.full_fin_wait_2s) as f64
    }

    /// How much a counter has grown since the agent began.
    pub fn grown(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.agent.metrics().sum(name, labels) - self.before.sum(name, labels)
    }

    /// Waits until the agent's gauges equal the kernel's counts, all of which must agree with each other: two dump
    /// intervals at most.
    pub fn until_equal(&self, when: &str) -> Kernel {
        self.until_equal_within(2.0, when)
    }

    /// The same with another number of `dumps`.
    pub fn until_equal_within(&self, dumps: f64, when: &str) -> Kernel {
        let begun = Instant::now();
        let mut interval: f64 = 0.0;
        loop {
            let round = Instant::now();
            let (before, metrics, after) = (Kernel::look(), self.agent.metrics(), Kernel::look());
            if before == after && before.agrees() && self.equals(&metrics, &before) {
                eprintln!(
                    "{when}: {} equals the kernel after {:.1?}: {before:?}",
                    self.name,
                    begun.elapsed()
                );
                return before;
            }
            sleep(LOOK);
            // As long as a round takes more here than it should, a pause of the agent may too.
            let late = (round.elapsed() - LOOK).as_secs_f64();
            let times = ["tcpclose_reconcile_interval_seconds", "tcpclose_dump_seconds"];
            interval = interval.max(times.iter().map(|name| metrics.sum(name, &[])).sum::<f64>() + late);
            assert!(
                begun.elapsed().as_secs_f64() < dumps * interval,
                "{when}: {} differs from the kernel after {dumps} dump intervals of {interval} s: {after:?}, and not {} \
                 TIME-WAITs and {} FIN-WAIT-2s\n{}",
                self.name,
                self.time_waits(&metrics),
                self.fin_wait_2s(&metrics),
                metrics.text
            );
        }
    }

    /// Records lost since the agent began, loudly; `left_out`: how often the kernel has not run its programs.
    pub fn lost(&self, left_out: u64) -> f64 {
        let lost = |stage| self.grown("tcpclose_events_lost_total", &[("stage", stage)]);
        let [ring, recursion, decode] = ["ring", "recursion", "decode"].map(lost);
        let received = self.grown("tcpclose_events_received_total", &[]);
        let sum = ring + recursion.max(left_out as f64) + decode;
        if sum > 0.0 {
            eprintln!(
                "\nLOST: {} took {received} records, of all namespaces, and lost {ring} in the ring, {recursion} by \
                 recursion, {decode} undecoded; the kernel left it out {left_out} times\n",
                self.name
            );
        } else {
            eprintln!("{}: {received} records, none lost", self.name);
        }
        sum
    }

    /// Every connection of the load is counted as closed once at each end, on its port and side and in its role; where
    /// records were lost, none is counted twice, and no more are missing than records.
    pub fn judge_closes(&self, load: &Load, played: &[Played], left_out: u64) {
        let lost = self.lost(left_out);
        let metrics = self.agent.metrics();
        let mut missing = 0.0;
        for (port, played) in load.ports().zip(played) {
            let port = port.to_string();
            let closes = |labels: &[(&str, &str)]| {
                metrics.sum("tcpclose_closes_total", &[&[("port", port.as_str())], labels].concat())
            };
            let (both, all) = ((2 * played.all()) as f64, closes(&[]));
            assert!(all <= both, "{}: {all} closes of {both} at port {port}", self.name);
            missing += both - all;
            let sides = [
                ("client", played.by_client, played.by_server),
                ("server", played.by_server, played.by_client),
            ];
            for (side, active, passive) in sides.into_iter().filter(|_| lost == 0.0) {
                let labels = [("port", port.as_str()), ("side", side)];
                let reported: Vec<_> = metrics.select("tcpclose_closes_total", &labels).collect();
                let got = ["active", "passive"].map(|role| closes(&[("side", side), ("role", role)]));
                assert_eq!(
                    got,
                    [active, passive].map(|n| n as f64),
                    "{}: closes at {port}, {side}, of {reported:?}",
                    self.name
                );
            }
        }
        assert!(missing <= lost, "{}: {missing} closes are not counted, {lost} records were lost", self.name);
        eprintln!("{}: every close is counted once, but for {missing}", self.name);
    }

    /// Waits until no socket of the load is left.
    pub fn until_empty(&self, patience: Duration) {
        self.agent.metrics_when(patience, &format!("{} knows no socket any more", self.name), |metrics| {
            self.of_ports(metrics, &[]) == 0.0
        });
    }
}
