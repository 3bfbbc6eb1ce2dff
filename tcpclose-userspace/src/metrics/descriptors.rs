//! The one description of every metric: name, type, help and labels. The exposition uses it, and docs/src/metrics-reference.md is
//! generated from it.

use std::fmt::Write as _;

use crate::names::{
    Correction, NetnsOwner, Outcome, Phase, Role, Side, TimeWaitEnd, UnmeasuredReason, Verdict,
};

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

impl MetricKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric family.
#[derive(Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub name: &'static str,
    pub kind: MetricKind,
    pub help: &'static str,
    /// In the order of the exposition.
    pub labels: &'static [&'static str],
}

impl Descriptor {
    /// The unit in the name, by the rules of OpenMetrics; empty for none.
    pub fn unit(&self) -> &'static str {
        let name = self.name.strip_suffix("_total").or(self.name.strip_suffix("_max")).unwrap_or(self.name);
        ["seconds", "bytes", "ratio"].into_iter().find(|unit| name.ends_with(unit)).unwrap_or("")
    }
}

macro_rules! descriptors {
    ($($Metric:ident = $Kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(pub static $Metric: Descriptor = Descriptor {
            name: $name,
            kind: MetricKind::$Kind,
            help: $help,
            labels: &[$($label),*],
        };)+

        /// Every metric, in the order of names.
        pub static ALL: &[&Descriptor] = &[$(&$Metric),+];
    };
}

descriptors! {
    PROCESS_CPU_SECONDS = Counter "process_cpu_seconds_total" []
        "Total user and system CPU time spent in seconds.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" []
        "Maximum number of open file descriptors.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" []
        "Number of open file descriptors.";
    PROCESS_RESIDENT_MEMORY = Gauge "process_resident_memory_bytes" []
        "Resident memory size in bytes.";
    PROCESS_START_TIME = Gauge "process_start_time_seconds" []
        "Start time of the process since unix epoch in seconds.";
    PROCESS_THREADS = Gauge "process_threads" []
        "Number of OS threads in the process.";
    PROCESS_VIRTUAL_MEMORY = Gauge "process_virtual_memory_bytes" []
        "Virtual memory size in bytes.";
    BUILD_INFO = Gauge "tcpclose_build_info" ["version"]
        "The version of this agent.";
    CLOSES = Counter "tcpclose_closes_total" ["side", "port", "role", "outcome"]
        "Connections that ended, by sender of the first FIN (role) and kind of end (outcome).";
    DUMP_SECONDS = Gauge "tcpclose_dump_seconds" []
        "Wall time of the last dump.";
    DUMPS_OVER_BUDGET = Gauge "tcpclose_dumps_over_budget" []
        "1 while dumps exceed 1 % of a core to keep every value younger than --reconcile-max.";
    EPHEMERAL_PORTS_BIND = Gauge "tcpclose_ephemeral_ports_bind_ratio" ["netns_owner"]
        "Local ports in use on the fullest local address, over all destinations, divided by the ports that bind() to it may choose; at 1 bind() without a port fails, and so does connect() to any destination, to the extent that bind() took the ports. By owner of the network namespace.";
    EPHEMERAL_PORTS_BLOCKED = Gauge "tcpclose_ephemeral_ports_blocked_ratio" ["netns_owner"]
        "Like tcpclose_ephemeral_ports_used_ratio, without TIME-WAITs whose ports connect() may choose again (net.ipv4.tcp_tw_reuse).";
    EPHEMERAL_PORTS_USED = Gauge "tcpclose_ephemeral_ports_used_ratio" ["netns_owner"]
        "Local ports in use divided by the ports that connect() may take, for the fullest destination (local address, remote address and remote port); TIME-WAITs included. By owner of the network namespace.";
    EVENTS_LOST = Counter "tcpclose_events_lost_total" ["stage"]
        "Events lost, by stage: ring full (ring), program skipped by the kernel (recursion), record not decoded (decode).";
    EVENTS_RECEIVED = Counter "tcpclose_events_received_total" []
        "Records received from the ring.";
    FIN_RETRANSMITS = Counter "tcpclose_fin_retransmits_total" ["side", "port"]
        "Segments sent again by sockets in FIN-WAIT-1, CLOSING and LAST-ACK: the peer has not acknowledged the FIN, or data before it. \
         Counted where the kernel takes the hook on retransmissions (tcpclose_hook_degraded).";
    GAUGES_AGE = Gauge "tcpclose_gauges_age_seconds" ["netns"]
        "Age of the oldest data behind the socket gauges, for the host's network namespace and for all others: 0 where records cover everything, else the time since the last dump.";
    HELPERS_KILLED = Counter "tcpclose_helpers_killed_total" []
        "Helper processes killed because reading an executable, or naming stacks, took too long.";
    HOOK_DEGRADED = Gauge "tcpclose_hook_degraded" ["hook"]
        "1 if this kernel refused a better backend than the one in use. hook=\"state\": also 1 while dumps see sockets close and the hook reports nothing. hook=\"reset\": the hook that distinguishes sent from received resets. hook=\"retransmit\": the hook that counts tcpclose_fin_retransmits_total.";
    HOOK_INFO = Gauge "tcpclose_hook_info" ["hook", "backend"]
        "The backend in use, per hook.";
    NETNS_INFO = Gauge "tcpclose_netns_info" ["dumped"]
        "The network namespaces that dumps cover: all, found (some others cannot be found), some (some others cannot be entered), or own (the agent's own).";
    OLDEST_SOCKET_AGE = Gauge "tcpclose_oldest_socket_age_seconds" ["state", "side", "port"]
        "Proven minimum age of the oldest socket that is still in the state.";
    PORTS_FOLDED = Counter "tcpclose_ports_folded_total" []
        "Closes counted under port=\"other\" because their port has no series of its own.";
    PROGRAM_RUN_SECONDS = Counter "tcpclose_program_run_seconds_total" []
        "Time spent in the probe's programs while the kernel kept run statistics.";
    PROGRAM_RUNS = Counter "tcpclose_program_runs_total" []
        "Runs of the probe's programs while the kernel kept run statistics.";
    RECONCILE_CORRECTIONS = Counter "tcpclose_reconcile_corrections_total" ["kind"]
        "Corrections of tracked sockets by dumps of the kernel's sockets.";
    RECONCILE_INTERVAL = Gauge "tcpclose_reconcile_interval_seconds" []
        "Current interval between dumps; it grows up to --reconcile-max so that dumps take at most 1 % of a core.";
    RECONCILE_LAST_SUCCESS = Gauge "tcpclose_reconcile_last_success_timestamp_seconds" []
        "Unix time of the last complete reconcile.";
    RESETS = Counter "tcpclose_resets_total" ["direction", "reason"]
        "RSTs. Sent, by the kernel's reason (since Linux 6.10, enum sk_rst_reason; also those that answer a segment for no socket), unknown \
         where it gives none; received for a connection: stale_write (see tcpclose_stale_writes_total) or unknown.";
    RING_USED = Gauge "tcpclose_ring_used_bytes_max" []
        "Largest number of unread bytes in the ring since the agent started.";
    SERIES = Gauge "tcpclose_series" []
        "Series exported by this agent.";
    SOCKETS = Gauge "tcpclose_sockets" ["state", "side", "port"]
        "Sockets in the state now, minisockets included.";
    STACK_PROCESSES = Gauge "tcpclose_stack_processes" []
        "Processes whose stacks are taken now (--stacks).";
    STACKS = Counter "tcpclose_stacks_total" ["result"]
        "Stacks of leaking processes: taken by the probe, not kept because too many were (full), not named by the helper process \
         (unnamed), dropped for newer ones (evicted).";
    STALE_WRITES = Counter "tcpclose_stale_writes_total" ["side", "port"]
        "Connections that the program wrote to after the peer had closed them, and that the peer reset for it: to the program, connection \
         reset by peer or broken pipe. A connection pool that keeps connections for longer than the server does this.";
    STATE_DURATION = Histogram "tcpclose_state_duration_seconds" ["state", "side", "port"]
        "Time that sockets spent in a close-phase state, observed when they left it.";
    STUCK_AFTER = Gauge "tcpclose_stuck_after_seconds" []
        "The age from which a socket in CLOSE-WAIT is stuck.";
    STUCK_DIAGNOSIS_SOCKETS = Gauge "tcpclose_stuck_diagnosis_sockets" ["diagnosis"]
        "Stuck sockets by what their program has not done: not_accepted, not_read, not_closed or unknown, as of the last owner scan \
         (--owner-interval).";
    STUCK_OWNER_SOCKETS = Gauge "tcpclose_stuck_owner_sockets" ["comm", "unit", "container_id", "uid"]
        "Stuck sockets by owner, each counted once (comm says how many processes share it), as of the last owner scan \
         (--owner-interval).";
    STUCK_SOCKETS = Gauge "tcpclose_stuck_sockets" ["side", "port", "age"]
        "Sockets stuck in CLOSE-WAIT, by the last --stuck-after bound that they passed; the classes are disjoint.";
    STUCK_SOCKETS_UNPROVEN = Gauge "tcpclose_stuck_sockets_unproven" ["side", "port"]
        "Sockets in CLOSE-WAIT that may be past the first --stuck-after bound: the time of their entry or of their last write is not proven.";
    STUCK_VERDICT_SOCKETS = Gauge "tcpclose_stuck_verdict_sockets" ["side", "port", "verdict"]
        "Stuck sockets by the verdict on their program: leak, stale_pool, slow_reader, hung, proxy_half_close, one_off or undecided, as of the \
         last owner scan (--owner-interval).";
    TIME_WAIT_ENDED = Counter "tcpclose_time_wait_ended_total" ["reason"]
        "TIME-WAITs that ended, by reason.";
    TIME_WAIT_LIMIT_USED = Gauge "tcpclose_time_wait_limit_used_ratio" ["netns_owner"]
        "TIME-WAITs divided by tcp_max_tw_buckets, in the dumped network namespace with the highest ratio, by owner of the namespace.";
    TIME_WAIT_OVERFLOWS = Counter "tcpclose_time_wait_overflows_total" []
        "TIME-WAITs skipped because the kernel's table was full.";
    TRANSITIONS = Counter "tcpclose_transitions_total" ["from", "to"]
        "Close-phase transitions seen.";
    UNSEEN_PHASES = Counter "tcpclose_unseen_phases_total" ["state", "why"]
        "Stays in a close-phase state without a duration sample, because their start or end was not seen.";
    WEB_CONFIG_WRONG = Gauge "tcpclose_web_config_wrong" []
        "1 while the --web-config file, or a file that it names, is invalid; the last valid configuration stays in use.";
}

/// docs/src/metrics-reference.md; `how` is the command that writes it.
pub fn document(how: &str) -> String {
    let mut text = format!(
        "# Every metric\n\nEvery metric of `tcpclose agent`. This file is generated from `src/metrics/descriptors.rs`, and a test compares both with a\n\
         live agent; to regenerate it:\n\n    {how}\n\n[Metrics](metrics.md) explains the terms, the limits on series and the buckets. \
         [Prometheus and Grafana](prometheus.md) has rules and alerts.\n\n\
         | metric | type | unit | what it is |\n|---|---|---|---|\n"
    );
    for metric in ALL {
        let Descriptor { name, kind, help, labels } = metric;
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(text, "| `{name}{labels}` | {} | {} | {help} |", kind.name(), metric.unit());
    }
    text += "\nA histogram has `_bucket` (with `le`), `_sum` and `_count`. Values of labels:\n\n";
    let mut values = |label: &str, names: &[&str]| {
        let _ = writeln!(text, "* `{label}`: `{}`", names.join("`, `"));
    };
    values("state", &Phase::ALL.map(Phase::name));
    values("side", &Side::ALL.map(Side::name));
    values("role", &Role::ALL.map(Role::name));
    values("outcome", &Outcome::ALL.map(Outcome::name));
    values("reason", &TimeWaitEnd::ALL.map(TimeWaitEnd::name));
    values("why", &UnmeasuredReason::ALL.map(UnmeasuredReason::name));
    values("netns_owner", &NetnsOwner::ALL.map(NetnsOwner::name));
    values("kind", &Correction::ALL.map(Correction::name));
    values("verdict", &Verdict::ALL.map(Verdict::name));
    text + "* `port`: a service port, or `other` for all that have no series of their own\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_follow_the_conventions() {
        assert!(ALL.is_sorted_by(|a, b| a.name < b.name));
        for metric in ALL {
            assert_eq!(
                metric.name.ends_with("_total"),
                metric.kind == MetricKind::Counter,
                "{}",
                metric.name
            );
            assert!(metric.help.ends_with('.') && !metric.help.contains(['|', '\n']), "{}", metric.name);
        }
    }

    #[test]
    fn a_unit_is_read_from_the_name() {
        assert_eq!(PROCESS_CPU_SECONDS.unit(), "seconds");
        assert_eq!(RING_USED.unit(), "bytes");
        assert_eq!(TIME_WAIT_LIMIT_USED.unit(), "ratio");
        assert_eq!(SOCKETS.unit(), "");
    }
}
