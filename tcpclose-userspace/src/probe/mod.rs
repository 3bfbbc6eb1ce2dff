//! Load and attach the eBPF programs: the ladder of state hooks, the best backend first.

pub mod backend;
pub mod offsets;
mod pinned_links;
pub mod prog_stats;
pub mod ring;
mod ring_window;
pub mod support;
pub mod tracefs;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use aya::maps::MapType;
use aya::programs::{BtfTracePoint, ProgramError, TracePoint};
use aya::sys::is_map_supported;
use aya::{Btf, Ebpf, EbpfLoader, GlobalData, Pod};
use log::LevelFilter;
use tcpclose_common::layout::Layout;

use crate::failure::Failure;
use crate::linux::host;
use crate::linux::host::Capability;
use crate::linux::owners::OwnersLookup;
use crate::probe::backend::fentry;
use crate::probe::backend::task_file;
use crate::probe::backend::task_file::OwnersHook;
use crate::probe::pinned_links::PinnedLinks;
use crate::probe::prog_stats::ProgramStats;
use crate::probe::ring::Ring;
use crate::tracker::hook_records::HookCoverage;

/// The probe, built by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcpclose-ebpf"));

const TRACEPOINT: &str = "inet_sock_set_state";

/// The backends of the `state` hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateHook {
    /// tp_btf: cookies and direct reads.
    Btf,
    /// The classic tracepoint.
    Tracepoint,
}

impl StateHook {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Btf => "btf",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// The backends of the `time_wait` hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeWaitHook {
    /// fentry and fexit on the minisocket's functions.
    Hooks,
    /// Dumps by sock_diag.
    Diag,
}

impl TimeWaitHook {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hooks => "hooks",
            Self::Diag => "diag",
        }
    }
}

/// The probe at work. Dropped, it detaches.
pub struct Probe {
    /// The backend in use.
    pub hook: StateHook,
    /// Whether field offsets are known, and with them namespace, side, outcome.
    pub facts: bool,
    /// What a better backend lacks, in words; empty on the best one.
    pub declined: Vec<String>,
    /// The backend in use for TIME-WAIT.
    pub time_wait: TimeWaitHook,
    /// The same for it: what is not in use, and what that costs.
    pub time_wait_declined: Vec<String>,
    /// What hooks tell.
    pub told: HookCoverage,
    /// The backend in use for owners.
    pub owners: OwnersHook,
    /// Why it is not the better one.
    pub owners_declined: Option<String>,
    pub ring: Ring,
    /// Every attached program.
    programs: Vec<OwnedFd>,
    /// Holds the programs and the other links.
    ebpf: Ebpf,
    /// Holds the links of hooks.
    _links: Option<PinnedLinks>,
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct LayoutGlobal(Layout);

// SAFETY: repr(transparent) over a repr(C) struct of u32 without padding; every bit pattern is a value.
unsafe impl Pod for LayoutGlobal {}

impl Probe {
    /// Loads the probe and attaches it at the backends `only`, `time_wait` and `owners`, or at the best that load. What this process
    /// and kernel must have for that, [`require`] has seen to.
    ///
    /// `ring_size` is in bytes: a power of two, a page of this kernel or more. `level` is the log level of the whole agent; the
    /// probe itself speaks at debug (a lost record) and trace (each step).
    ///
    /// # Errors
    /// When the kernel refuses the probe, or no backend loads.
    pub fn attach(
        only: Option<StateHook>,
        time_wait: Option<TimeWaitHook>,
        owners: Option<OwnersHook>,
        ring_size: u32,
        level: LevelFilter,
    ) -> Result<Self, Failure> {
        let mut declined = Vec::new();
        let layout = offsets::resolve().unwrap_or_else(|why| {
            declined.push(format!("no facts read from sockets: {why:#}"));
            Layout::default()
        });
        let facts = layout.resolved != 0;
        let btf = if facts { Btf::from_sys_fs().ok() } else { None };

        raise_memlock();
        let mut ebpf = load(btf.as_ref(), &layout, ring_size, level).map_err(|why| cannot_load(&why))?;

        // The hooks are attached before the state hook, so that no minisocket is born unheard of to a socket whose
        // →CLOSE is heard; which of them are wanted depends on the backend, which loading it tells.
        let mut by_btf = false;
        if only != Some(StateHook::Tracepoint) {
            match load_btf(&mut ebpf, btf.as_ref()) {
                Ok(()) => by_btf = true,
                Err(why) => declined.push(format!("state hook btf: {}", reason(&why))),
            }
        }
        let mut programs = Vec::new();
        let mut minisockets = fentry::Attached::default();
        let mut resets = false;
        if let Some(btf) = btf.as_ref().filter(|_| facts) {
            match fentry::attach_resets(&mut ebpf, btf) {
                Ok(program) => {
                    resets = true;
                    programs.push(program);
                }
                Err(why) => declined
                    .push(format!("tcp_send_reset: {why:#}: a RST sent is not told from one received")),
            }
            if time_wait != Some(TimeWaitHook::Diag) {
                minisockets = fentry::attach(&mut ebpf, btf, by_btf, &mut programs);
            }
        } else if time_wait != Some(TimeWaitHook::Diag) {
            minisockets.missing.push("hooks need BTF".to_owned());
        }
        if time_wait == Some(TimeWaitHook::Hooks) && !minisockets.any {
            return Err(Failure::new(
                "no TIME-WAIT hook can be attached",
                minisockets.missing.first().map_or("none loads", String::as_str),
                "try --time-wait auto or diag",
            ));
        }

        let since_ns = host::monotonic_ns();
        let mut attached = None;
        if by_btf {
            match attach_btf(&mut ebpf) {
                Ok(program) => attached = Some((StateHook::Btf, program)),
                Err(why) => declined.push(format!("state hook btf: {}", reason(&why))),
            }
        }
        if attached.is_none() && only != Some(StateHook::Btf) {
            match tracefs::visible(|| attach_tracepoint(&mut ebpf)).and_then(|done| done) {
                Ok(program) => attached = Some((StateHook::Tracepoint, program)),
                Err(why) => declined.push(format!("state hook tracepoint: {}", reason(&why))),
            }
        }
        let Some((hook, program)) = attached else {
            let todo = match only {
                Some(_) => "try --state-hook auto, or `tcpclose stuck --no-agent` for a snapshot",
                None => "try `tcpclose stuck --no-agent` for a snapshot",
            };
            return Err(Failure::new("no state hook can be attached", declined.join("; "), todo));
        };
        let (owners, owners_declined) = task_file::choose(&mut ebpf, btf.as_ref(), owners)?;
        let ring = Ring::take(&mut ebpf).map_err(|why| cannot_load(&why))?;
        programs.push(program);
        Ok(Self {
            hook,
            facts,
            declined,
            time_wait: if minisockets.any { TimeWaitHook::Hooks } else { TimeWaitHook::Diag },
            told: HookCoverage { resets, since_ns, ..minisockets.told },
            time_wait_declined: minisockets.missing,
            owners,
            owners_declined,
            ring,
            programs,
            ebpf,
            _links: minisockets.links,
        })
    }

    /// How to look for owners now.
    pub fn look(&mut self) -> OwnersLookup {
        task_file::look(&mut self.ebpf, self.owners)
    }

    /// The programs' log, to be read by [`aya_log::EbpfLogger`].
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// What the kernel has counted of the attached programs, together.
    pub fn runs(&self) -> ProgramStats {
        ProgramStats::of(&self.programs)
    }

    /// How often the kernel left one of the programs out because it was already running on that CPU: each is a lost
    /// event. 0 on kernels that do not count.
    pub fn recursion_misses(&self) -> u64 {
        self.runs().missed
    }
}

fn load(btf: Option<&Btf>, layout: &Layout, ring_size: u32, level: LevelFilter) -> Result<Ebpf> {
    let layout = LayoutGlobal(*layout);
    let level = probe_level(level);
    let mut loader = EbpfLoader::new();
    loader
        .btf(btf)
        .override_global("LAYOUT", GlobalData::from(&layout), true)
        .override_global(aya_log::LEVEL, GlobalData::from(&level), false)
        .map_max_entries("EVENTS", ring_size);
    Ok(loader.load(OBJECT)?)
}

/// The probe's level for the agent's: off unless the agent is to say more than warnings, since a record that is
/// logged costs many times one that is sent.
const fn probe_level(level: LevelFilter) -> u8 {
    match level {
        LevelFilter::Trace => aya_log::Level::Trace as u8,
        LevelFilter::Debug => aya_log::Level::Debug as u8,
        _ => 0,
    }
}

fn by_btf(ebpf: &mut Ebpf) -> Result<&mut BtfTracePoint> {
    Ok(ebpf.program_mut("set_state_btf").context("no such program")?.try_into()?)
}

fn load_btf(ebpf: &mut Ebpf, btf: Option<&Btf>) -> Result<()> {
    let btf = btf.context("this kernel has no BTF")?;
    by_btf(ebpf)?.load(TRACEPOINT, btf).map_err(refused)
}

fn attach_btf(ebpf: &mut Ebpf) -> Result<OwnedFd> {
    let program = by_btf(ebpf)?;
    program.attach()?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

fn attach_tracepoint(ebpf: &mut Ebpf) -> Result<OwnedFd> {
    let program: &mut TracePoint =
        ebpf.program_mut("set_state_tracepoint").context("no such program")?.try_into()?;
    program.load().map_err(refused)?;
    program.attach("sock", TRACEPOINT)?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

/// Why the kernel did not load a program, in a line: of the verifier's log, which can be thousands of lines long, the
/// one before its closing statistics says what was wrong.
pub(super) fn refused(error: ProgramError) -> anyhow::Error {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return error.into() };
    let log = verifier_log.to_string();
    log::debug!("verifier: {log}");
    let statistics = |line: &&str| {
        !line.is_empty()
            && !["verification time", "stack depth", "processed"].iter().any(|start| line.starts_with(start))
    };
    match log.lines().map(str::trim).rfind(statistics) {
        Some(line) => anyhow!("{io_error}: {line}"),
        None => anyhow!("{io_error}"),
    }
}

/// Checks, before anything is loaded, that this process may load the probe and that this kernel has what it needs at
/// the backend `only`, or at any.
///
/// # Errors
/// Names the first thing that is missing: a capability, the ring buffer, the tracepoint.
pub fn require(only: Option<StateHook>) -> Result<(), Failure> {
    require_capabilities()?;
    require_ring_buffer()?;
    require_tracepoint(only)
}

const CANNOT_LOAD: &str = "cannot load the probe";

/// CAP_BPF to load, CAP_PERFMON to attach to a tracepoint and read kernel memory; since 5.8 both are parts of
/// CAP_SYS_ADMIN (include/linux/capability.h, bpf_capable, perfmon_capable). Only those of the first user namespace
/// count.
fn require_capabilities() -> Result<(), Failure> {
    let missing: Vec<&str> = [Capability::Bpf, Capability::Perfmon]
        .into_iter()
        .filter(|&cap| !host::has_cap(cap) && !host::has_cap(Capability::SysAdmin))
        .map(Capability::name)
        .collect();
    if !missing.is_empty() {
        let (missing, them) = (missing.join(" and "), if missing.len() > 1 { "them" } else { "it" });
        return Err(Failure::new(
            CANNOT_LOAD,
            format!("this process lacks {missing}"),
            format!("run it as root or grant {them}; `tcpclose stuck --no-agent` needs none to list sockets"),
        ));
    }
    if host::in_user_namespace() {
        return Err(Failure::new(
            CANNOT_LOAD,
            "CAP_BPF and CAP_PERFMON of a user namespace do not count",
            "run it outside, as the host's root; `tcpclose stuck --no-agent` needs none to list sockets",
        ));
    }
    Ok(())
}

fn require_ring_buffer() -> Result<(), Failure> {
    match is_map_supported(MapType::RingBuf) {
        Ok(false) => Err(Failure::new(
            CANNOT_LOAD,
            "this kernel has no BPF ring buffer",
            "use Linux 5.8 or later; `tcpclose stuck --no-agent` works without",
        )),
        // What cannot be probed is tried: the load says why.
        Ok(true) | Err(_) => Ok(()),
    }
}

fn require_tracepoint(only: Option<StateHook>) -> Result<(), Failure> {
    let btf = match Path::new(offsets::VMLINUX).exists() {
        true => Ok(()),
        false => Err(format!("no BTF ({} is missing)", offsets::VMLINUX)),
    };
    let tracepoint = match tracefs::visible(tracefs::has_tracepoint) {
        Ok(true) => Ok(()),
        Ok(false) => Err("no such event in tracefs".to_owned()),
        Err(why) => Err(reason(&why)),
    }
    .map_err(|why| format!("no tracepoint sock:{TRACEPOINT} ({why})"));

    let (why, other) = match (only, btf, tracepoint) {
        (None | Some(StateHook::Btf), Ok(()), _) | (None | Some(StateHook::Tracepoint), _, Ok(())) => {
            return Ok(());
        }
        (None, Err(btf), Err(tracepoint)) => (format!("{tracepoint}, and {btf}"), false),
        (Some(StateHook::Btf), Err(btf), other) => (btf, other.is_ok()),
        (Some(StateHook::Tracepoint), other, Err(tracepoint)) => (tracepoint, other.is_ok()),
    };
    let todo = match other {
        true => "try --state-hook auto",
        false => {
            "mount tracefs at /sys/kernel/tracing, or use Linux 5.8 or later with CONFIG_FTRACE or BTF; \
             `tcpclose stuck --no-agent` works without"
        }
    };
    Err(Failure::new("cannot watch TCP states", format!("this kernel shows {why}"), todo))
}

/// What the kernel had against the programs or their maps.
fn cannot_load(why: &anyhow::Error) -> Failure {
    let os = why.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    let todo = match os {
        Some(libc::ENOMEM) => "choose a smaller --ring-size, or give it more memory",
        Some(libc::EPERM | libc::EACCES) => {
            "see whether a seccomp filter, lockdown or a security module forbids bpf(2); \
             `tcpclose stuck --no-agent` works without"
        }
        _ => "see --log-level debug; `tcpclose stuck --no-agent` works without",
    };
    Failure::new(CANNOT_LOAD, reason(why), todo)
}

/// An error and its causes in one line. Those of aya quote their causes, which are then not said twice.
pub(super) fn reason(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.ends_with(&cause) {
            let colon = if text.is_empty() { "" } else { ": " };
            text = text + colon + &cause;
        }
    }
    text
}

/// Below 5.11 the kernel charges maps to RLIMIT_MEMLOCK. A refusal is no error: a newer kernel does not ask.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let unlimited = Rlimit { current: None, maximum: None };
    if let Err(why) = setrlimit(Resource::Memlock, unlimited) {
        log::debug!("RLIMIT_MEMLOCK stays as it is: {}", io::Error::from(why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cause_is_said_twice() {
        let error = anyhow::Error::from(io::Error::from_raw_os_error(libc::ENOMEM))
            .context("failed to create map `EVENTS`")
            .context("map error: failed to create map `EVENTS`");
        assert_eq!(
            cannot_load(&error).to_string(),
            "tcpclose: cannot load the probe: map error: failed to create map `EVENTS`: Cannot allocate memory \
             (os error 12); choose a smaller --ring-size, or give it more memory"
        );
        let error = anyhow::Error::from(io::Error::from_raw_os_error(libc::EPERM));
        assert!(cannot_load(&error).todo.contains("seccomp"));
    }
}
