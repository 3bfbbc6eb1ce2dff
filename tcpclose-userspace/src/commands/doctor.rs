//! `tcpclose doctor`: what this host allows the agent to do, and why not.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::thread;

use clap::Args;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Serialize;

use crate::commands::output::{json, print};
use crate::failure::{Failure, printable};
use crate::linux::host::{self, Capability, has_cap};
use crate::probe::{record_format, support, tracefs};
use crate::report::incomplete;
use crate::ui::table;

/// The version of the document.
const SCHEMA: u32 = 1;
/// The first kernel with a ring buffer.
const OLDEST: (u32, u32) = (5, 8);

/// The first kernel whose programs can read a user's registers (bpf_task_pt_regs()).
const STACKS_OF_OPENINGS: (u32, u32) = (5, 15);
/// The first one with the tracepoints sock_recv_length and sock_send_length.
const STACKS_OF_READS: (u32, u32) = (6, 3);

/// Check what this host allows: capabilities, kernel features, network namespaces
///
/// Run it as the agent runs: same user, capabilities and container. It changes nothing.
///
/// Exit status: 0 if the agent can run here, 1 if it cannot.
#[derive(Debug, Args)]
#[command(after_help = "Example: tcpclose doctor")]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    /// The agent runs without it.
    Limited,
    /// The agent cannot run.
    Failed,
    /// This host does not tell.
    Unknown,
}

impl Status {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Failed => "FAILED",
            Self::Unknown => "unknown",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    check: &'static str,
    status: Status,
    /// What was found, and what follows from it.
    detail: String,
}

/// What `tcpclose doctor --json` prints.
#[derive(Debug, Serialize)]
struct DoctorReport {
    /// [`SCHEMA`].
    schema: u32,
    host: String,
    /// Whether the agent can run.
    agent_can_run: bool,
    checks: Vec<Check>,
}

/// What was found on the host.
#[derive(Clone, Debug)]
struct HostFacts {
    release: String,
    in_user_namespace: bool,
    /// The effective ones.
    capabilities: Vec<Capability>,
    /// The mode of the kernel's lockdown, where it has one.
    lockdown: Option<String>,
    btf: Result<(), String>,
    tracepoint: Result<(), String>,
    ring_buffer: Result<bool, String>,
    fentry: Result<bool, String>,
    stacks: Result<(), String>,
    enter_netns: Result<(), String>,
}

impl HostFacts {
    fn of_host() -> Self {
        Self {
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            in_user_namespace: host::in_user_namespace(),
            capabilities: Capability::ALL.into_iter().filter(|capability| has_cap(*capability)).collect(),
            lockdown: host::lockdown(),
            btf: support::btf(),
            tracepoint: tracepoint(),
            ring_buffer: support::ring_buffer(),
            fentry: support::fentry(),
            stacks: support::stacks(),
            enter_netns: enter_netns().map_err(|why| why.to_string()),
        }
    }

    fn has(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    /// Whether it has `capability`, or CAP_SYS_ADMIN, which includes it.
    fn may(&self, capability: Capability) -> bool {
        self.has(capability) || self.has(Capability::SysAdmin)
    }

    fn checks(&self) -> Vec<Check> {
        vec![
            self.kernel(),
            self.user_namespace(),
            self.loading(),
            self.lockdown(),
            self.state_hook(),
            self.ring_buffer(),
            self.time_wait_hook(),
            self.namespaces(),
            self.owners(),
            self.stacks(),
            self.destroying(),
        ]
    }

    fn kernel(&self) -> Check {
        let (status, words) = match host::version_in(&self.release) {
            Some(version) if version >= OLDEST => (Status::Ok, ""),
            Some(_) => (Status::Failed, ": the agent needs Linux 5.8"),
            None => (Status::Limited, ": unknown version"),
        };
        Check { check: "kernel", status, detail: format!("Linux {}{words}", printable(&self.release)) }
    }

    fn user_namespace(&self) -> Check {
        let (status, detail) = match self.in_user_namespace {
            false => (Status::Ok, "the host's initial one"),
            true => (
                Status::Failed,
                "not the initial one: its capabilities do not count; run it as root on the host",
            ),
        };
        Check { check: "user namespace", status, detail: detail.to_owned() }
    }

    fn loading(&self) -> Check {
        let missing = [Capability::Bpf, Capability::Perfmon].into_iter().filter(|needed| !self.may(*needed));
        let missing: Vec<&str> = missing.map(Capability::name).collect();
        let (status, detail) = match missing.is_empty() {
            true => (Status::Ok, "CAP_BPF and CAP_PERFMON".to_owned()),
            false => {
                (Status::Failed, format!("{} missing: run it as root or grant them", missing.join(" and ")))
            }
        };
        Check { check: "load eBPF programs", status, detail }
    }

    fn lockdown(&self) -> Check {
        let (status, detail) = match self.lockdown.as_deref() {
            None => (
                Status::Unknown,
                "/sys/kernel/security/lockdown is missing (this kernel has none, or securityfs is not mounted)",
            ),
            Some("none") => (Status::Ok, "none"),
            Some("confidentiality") => (
                Status::Limited,
                "confidentiality: no TIME-WAIT hooks and no classic tracepoint, since eBPF programs cannot read kernel memory \
                 by helpers and tracefs has no events; boot with lockdown=integrity",
            ),
            Some(_) => (Status::Ok, "integrity: eBPF programs may read kernel memory"),
        };
        Check { check: "kernel lockdown", status, detail: detail.to_owned() }
    }

    fn state_hook(&self) -> Check {
        let (status, detail) = match (&self.btf, &self.tracepoint) {
            (Ok(()), Ok(())) => (Status::Ok, "BTF and the classic tracepoint".to_owned()),
            (Ok(()), Err(why)) => (Status::Ok, format!("BTF; no classic tracepoint ({why})")),
            (Err(why), Ok(())) => (
                Status::Limited,
                format!("the classic tracepoint, without hooks for TIME-WAIT; no BTF ({why})"),
            ),
            (Err(btf), Err(tracepoint)) => (
                Status::Failed,
                format!("no BTF ({btf}) and no tracepoint sock:inet_sock_set_state ({tracepoint})"),
            ),
        };
        Check { check: "TCP state hook", status, detail: printable(&detail).into_owned() }
    }

    fn ring_buffer(&self) -> Check {
        let (status, detail) = match &self.ring_buffer {
            Ok(true) => (Status::Ok, "supported".to_owned()),
            Ok(false) => (Status::Failed, "not supported: the agent needs Linux 5.8".to_owned()),
            Err(why) => (Status::Limited, format!("not checked ({why})")),
        };
        Check { check: "ring buffer", status, detail }
    }

    fn time_wait_hook(&self) -> Check {
        let dumps = "the agent tracks TIME-WAIT by dumps";
        let is_locked = self.lockdown.as_deref() == Some("confidentiality");
        let (status, detail) = match &self.fentry {
            _ if is_locked => {
                (Status::Limited, format!("refused by the kernel's lockdown (confidentiality): {dumps}"))
            }
            Ok(true) => (Status::Ok, "fentry supported".to_owned()),
            Ok(false) => (Status::Limited, format!("fentry not supported: {dumps}")),
            Err(why) => (Status::Limited, format!("fentry refused ({why}): {dumps}")),
        };
        Check { check: "TIME-WAIT hooks", status, detail }
    }

    fn namespaces(&self) -> Check {
        let (status, detail) = match &self.enter_netns {
            Ok(()) if self.has(Capability::SysPtrace) => (Status::Ok, "all can be entered".to_owned()),
            Ok(()) => (
                Status::Limited,
                "CAP_SYS_PTRACE missing: those of other users' processes are left out".to_owned(),
            ),
            Err(why) => {
                let needed = [Capability::SysPtrace, Capability::SysAdmin];
                let missing = needed.into_iter().filter(|needed| !self.has(*needed)).map(Capability::name);
                let missing: Vec<&str> = missing.collect();
                let why = match missing.as_slice() {
                    [] => why.clone(),
                    [one] => format!("{one} is needed to enter those of other processes ({why})"),
                    all => {
                        format!("{} are needed to enter those of other processes ({why})", all.join(" and "))
                    }
                };
                (Status::Limited, format!("only this one: {why}"))
            }
        };
        Check { check: "network namespaces", status, detail }
    }

    fn owners(&self) -> Check {
        let missing: Vec<Capability> =
            incomplete::NEEDED.into_iter().filter(|needed| !self.has(*needed)).collect();
        let (status, detail) = match incomplete::needed(&missing) {
            None => (Status::Ok, "known for all processes".to_owned()),
            Some(needed) => (Status::Limited, format!("owners may be missing: {needed}")),
        };
        Check { check: "owners of sockets", status, detail }
    }

    fn stacks(&self) -> Check {
        let version = host::version_in(&self.release).unwrap_or_default();
        let names = [Capability::SysPtrace, Capability::DacReadSearch];
        let missing: Vec<&str> =
            names.into_iter().filter(|needed| !self.has(*needed)).map(Capability::name).collect();
        let (status, detail) = match (&self.btf, &self.stacks) {
            (Err(why), _) => (Status::Limited, format!("not taken: no BTF ({why})")),
            (_, Err(why)) => (Status::Limited, format!("not taken: {why}")),
            _ if version < STACKS_OF_OPENINGS => (Status::Limited, "not taken: needs Linux 5.15".to_owned()),
            _ if version < STACKS_OF_READS => {
                (Status::Limited, "of connect() only: those of reads and writes need Linux 6.3".to_owned())
            }
            _ if !missing.is_empty() => (
                Status::Limited,
                format!("{} missing: those of other users' processes have no names", missing.join(" and ")),
            ),
            _ => (Status::Ok, "can be taken, with the agent's --stacks auto or ask".to_owned()),
        };
        Check { check: "stacks", status, detail: printable(&detail).into_owned() }
    }

    fn destroying(&self) -> Check {
        let (status, detail) = match self.has(Capability::NetAdmin) {
            true => (Status::Ok, "CAP_NET_ADMIN"),
            false => (Status::Limited, "CAP_NET_ADMIN missing: tcpclose kill cannot destroy sockets"),
        };
        Check { check: "destroy sockets", status, detail: detail.to_owned() }
    }
}

/// Whether the classic tracepoint is there, and why not. As the agent does, it mounts tracefs for itself where it is not mounted.
fn tracepoint() -> Result<(), String> {
    match tracefs::visible(|| tracefs::has_tracepoint().then(tracefs::format)) {
        Ok(Some(Ok(format))) => {
            record_format::parse(&format).map(drop).map_err(|why| format!("unsupported record format: {why}"))
        }
        Ok(Some(Err(why))) => Err(format!("{} of tracefs: {why}", tracefs::FORMAT)),
        Ok(None) => Err("this kernel has none".to_owned()),
        Err(why) => Err(format!("{why:#}")),
    }
}

/// Enters this process's own network namespace, on a thread of its own.
fn enter_netns() -> io::Result<()> {
    let own = File::open("/proc/self/ns/net")?;
    let entered =
        thread::spawn(move || move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network)));
    entered.join().map_err(|_| io::Error::other("the thread panicked"))?.map_err(io::Error::from)
}

impl Doctor {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let report = report(&HostFacts::of_host());
        let text = match self.json {
            true => json(&report)?,
            false => text(&report, table::width()),
        };
        print(&text)?;
        Ok(if report.agent_can_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn report(facts: &HostFacts) -> DoctorReport {
    let checks = facts.checks();
    let agent_can_run = checks.iter().all(|check| check.status != Status::Failed);
    DoctorReport { schema: SCHEMA, host: host::hostname(), agent_can_run, checks }
}

fn text(report: &DoctorReport, width: Option<u16>) -> String {
    let row =
        |check: &Check| vec![check.check.to_owned(), check.status.name().to_owned(), check.detail.clone()];
    let rows: Vec<Vec<String>> = report.checks.iter().map(row).collect();
    let verdict = match report.agent_can_run {
        true if report.checks.iter().all(|check| check.status == Status::Ok) => "The agent can run here.",
        true => "The agent can run here, with limits.",
        false => "The agent cannot run here.",
    };
    format!("{}\n\n{verdict}\n", table::render(&["CHECK", "RESULT", "DETAIL"], &rows, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capable() -> HostFacts {
        HostFacts {
            release: "6.12.57-amd64".to_owned(),
            in_user_namespace: false,
            capabilities: Capability::ALL.to_vec(),
            lockdown: Some("integrity".to_owned()),
            btf: Ok(()),
            tracepoint: Ok(()),
            ring_buffer: Ok(true),
            fentry: Ok(true),
            stacks: Ok(()),
            enter_netns: Ok(()),
        }
    }

    #[test]
    fn the_whole_text() {
        let denied = || "Operation not permitted (os error 1)".to_owned();
        let powerless = HostFacts {
            release: "5.4.0".to_owned(),
            in_user_namespace: true,
            capabilities: Vec::new(),
            lockdown: Some("confidentiality".to_owned()),
            btf: Err("No such file or directory (os error 2)".to_owned()),
            tracepoint: Err("tracefs: Permission denied (os error 13)".to_owned()),
            ring_buffer: Err(denied()),
            fentry: Err(denied()),
            stacks: Err("this process runs in a PID namespace of its own".to_owned()),
            enter_netns: Err(denied()),
        };
        let texts = [(&capable(), 100), (&powerless, 100), (&powerless, 40)].map(|(facts, width)| {
            let mut report = report(facts);
            report.host = "h".to_owned();
            let text = text(&report, Some(width));
            assert!(!table::overflows(&text, Some(width)), "{text}");
            text
        });
        crate::ui::golden::check("doctor.txt", &texts.join("\n-----\n"));
    }

    #[test]
    fn the_agent_runs_without_what_is_only_limited() {
        let report = |facts: HostFacts| super::report(&facts).agent_can_run;
        assert!(report(capable()));
        let bare = vec![Capability::Bpf, Capability::Perfmon];
        let denied = || Err("no".to_owned());
        assert!(report(HostFacts { capabilities: bare, enter_netns: denied(), ..capable() }));
        assert!(report(HostFacts { btf: denied(), fentry: Ok(false), ..capable() }));
        assert!(report(HostFacts { capabilities: vec![Capability::SysAdmin], lockdown: None, ..capable() }));
        assert!(!report(HostFacts { btf: denied(), tracepoint: denied(), ..capable() }));
        assert!(!report(HostFacts { capabilities: vec![Capability::Bpf], ..capable() }));
        assert!(!report(HostFacts { release: "5.7.19".to_owned(), ..capable() }));
        assert!(!report(HostFacts { ring_buffer: Ok(false), ..capable() }));
    }

    #[test]
    fn this_host_can_be_examined() {
        let report = report(&HostFacts::of_host());
        assert_eq!(report.checks.len(), 11);
        assert!(text(&report, Some(80)).contains("The agent can"), "{report:?}");
    }
}
