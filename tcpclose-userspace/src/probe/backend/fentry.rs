//! The ladder of TIME-WAIT: fentry and fexit on the minisocket's functions. When the flip and the ends are all told, dumps are
//! needed to reconcile only; where one of those hooks is refused, none is used. Of the others, one that is refused costs the one
//! fact that it tells.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context, Result};
use aya::programs::{BtfTracePoint, Program};
use aya::{Btf, Ebpf};

use crate::names::HookCoverage;
use crate::probe::pinned_links::PinnedLinks;
use crate::probe::refused;

/// One hook.
struct Hook {
    /// Its program in the object.
    program: &'static str,
    /// The kernel function.
    function: &'static str,
    tells: Tells,
}

/// What is not known without a hook.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tells {
    /// Which minisocket belongs to which socket, at the classic tracepoint.
    Cookie,
    Birth,
    /// The flip to TIME-WAIT and the ends.
    Life,
    Reuse,
    Destroy,
    Purge,
}

impl Tells {
    /// Whether there are no hooks without it. At the classic tracepoint the birth is what joins cookie and socket.
    const fn is_needed(self, by_cookie: bool) -> bool {
        match self {
            Self::Life => true,
            Self::Cookie | Self::Birth => !by_cookie,
            Self::Reuse | Self::Destroy | Self::Purge => false,
        }
    }

    const fn lost(self) -> &'static str {
        match self {
            Self::Cookie => "minisockets cannot be joined to their sockets",
            Self::Birth => "a full TIME-WAIT table shows in the kernel's counter only",
            Self::Life => "the flip to TIME-WAIT and its end are seen by dumps only",
            Self::Reuse => "a TIME-WAIT that connect() reuses ends as `early`",
            Self::Destroy => "a destroyed TIME-WAIT ends as `early`",
            Self::Purge => "TIME-WAITs of a vanished namespace end as `early`",
        }
    }
}

const HOOKS: &[Hook] = &[
    Hook { program: "tw_cookie", function: "tcp_time_wait", tells: Tells::Cookie },
    Hook { program: "tw_born", function: "inet_twsk_alloc", tells: Tells::Birth },
    Hook { program: "tw_segment", function: "tcp_timewait_state_process", tells: Tells::Life },
    Hook { program: "tw_segment_done", function: "tcp_timewait_state_process", tells: Tells::Life },
    Hook { program: "tw_expired", function: "tw_timer_handler", tells: Tells::Life },
    Hook { program: "tw_early", function: "inet_twsk_deschedule_put", tells: Tells::Life },
    Hook { program: "tw_unique", function: "tcp_twsk_unique", tells: Tells::Reuse },
    Hook { program: "tw_abort", function: "tcp_abort", tells: Tells::Destroy },
    Hook { program: "tw_abort_done", function: "tcp_abort", tells: Tells::Destroy },
    Hook { program: "tw_purge", function: "inet_twsk_purge", tells: Tells::Purge },
    Hook { program: "tw_gone", function: "tcp_twsk_destructor", tells: Tells::Purge },
    Hook { program: "tw_purge_done", function: "inet_twsk_purge", tells: Tells::Purge },
];

/// What came of the ladder.
#[derive(Debug, Default)]
pub struct Attached {
    pub told: HookCoverage,
    /// Whether any hook is in use.
    pub any: bool,
    /// What is not in use, why, and what that costs; one sentence a hook, or one for all.
    pub missing: Vec<String>,
    /// Holds the links, where that could be.
    pub links: Option<PinnedLinks>,
}

/// Attaches the hooks, and adds their programs to `programs`. `by_cookie`: the tp_btf backend, where sockets have cookies
/// already.
///
/// All of them are loaded first. Where one that is needed is refused, no other is tried and none is attached: dumps must
/// then follow every minisocket anyway, and no case has shown the rest to tell more.
pub fn attach(ebpf: &mut Ebpf, btf: &Btf, by_cookie: bool, programs: &mut Vec<OwnedFd>) -> Attached {
    let mut loaded = Vec::new();
    let mut failed: Vec<(&Hook, String)> = Vec::new();
    let wanted = HOOKS.iter().filter(|hook| !(by_cookie && hook.tells == Tells::Cookie));
    for hook in wanted {
        match load(ebpf, hook, btf) {
            Ok(()) => loaded.push(hook),
            Err(why) if hook.tells.is_needed(by_cookie) => return nothing(ebpf, hook, &why),
            Err(why) => failed.push((hook, format!("{why:#}"))),
        }
    }
    let mut links = PinnedLinks::new()
        .inspect_err(|why| log::debug!("links are not pinned, and the agent will be long in ending: {why:#}"))
        .ok();
    let mut attached = Vec::new();
    for hook in loaded {
        match attach_one(ebpf, hook, &mut links) {
            Ok(program) => attached.push(program),
            Err(why) if hook.tells.is_needed(by_cookie) => return nothing(ebpf, hook, &why),
            Err(why) => failed.push((hook, format!("{why:#}"))),
        }
    }
    programs.append(&mut attached);
    let births = failed.iter().all(|(hook, _)| hook.tells != Tells::Birth);
    let told = HookCoverage { births, ends: true, ..HookCoverage::default() };
    Attached { told, any: true, missing: missing(&failed), links }
}

/// No hook is in use, since the kernel refuses `hook`: those that were loaded go.
fn nothing(ebpf: &mut Ebpf, hook: &Hook, why: &anyhow::Error) -> Attached {
    for hook in HOOKS {
        // One that was not loaded says so.
        let _ = match ebpf.program_mut(hook.program) {
            Some(Program::FEntry(program)) => program.unload(),
            Some(Program::FExit(program)) => program.unload(),
            _ => Ok(()),
        };
    }
    let missing = vec![format!("hooks: the kernel refuses the one on {}: {why:#}", hook.function)];
    Attached { missing, ..Attached::default() }
}

/// What is not in use, why, and what that costs: a sentence a hook.
fn missing(failed: &[(&Hook, String)]) -> Vec<String> {
    let sentence =
        |(hook, why): &(&Hook, String)| format!("hook on {}: {why}; {}", hook.function, hook.tells.lost());
    failed.iter().map(sentence).collect()
}

fn load(ebpf: &mut Ebpf, hook: &Hook, btf: &Btf) -> Result<()> {
    match ebpf.program_mut(hook.program).context("no such program")? {
        Program::FEntry(program) => program.load(hook.function, btf).map_err(refused),
        Program::FExit(program) => program.load(hook.function, btf).map_err(refused),
        _ => anyhow::bail!("no such hook"),
    }
}

/// Attaches a loaded hook. Its link is kept in `links`, or in the program where that cannot be.
fn attach_one(ebpf: &mut Ebpf, hook: &Hook, links: &mut Option<PinnedLinks>) -> Result<OwnedFd> {
    match ebpf.program_mut(hook.program).context("no such program")? {
        Program::FEntry(program) => {
            let link = program.attach()?;
            if let Some(kept) = links
                && let Err(why) = kept.keep(program.take_link(link)?.into())
            {
                log::debug!("the link on {} is not pinned: {why:#}", hook.function);
                program.attach()?;
            }
            Ok(program.fd()?.as_fd().try_clone_to_owned()?)
        }
        Program::FExit(program) => {
            let link = program.attach()?;
            if let Some(kept) = links
                && let Err(why) = kept.keep(program.take_link(link)?.into())
            {
                log::debug!("the link on {} is not pinned: {why:#}", hook.function);
                program.attach()?;
            }
            Ok(program.fd()?.as_fd().try_clone_to_owned()?)
        }
        _ => anyhow::bail!("no such hook"),
    }
}

/// Attaches to `tcp_send_reset`, which tells data after close from a RST that came. Needs no fentry.
///
/// # Errors
/// When the kernel has no such tracepoint, or refuses the program.
pub fn attach_resets(ebpf: &mut Ebpf, btf: &Btf) -> Result<OwnedFd> {
    let program: &mut BtfTracePoint =
        ebpf.program_mut("send_reset").context("no such program")?.try_into()?;
    program.load("tcp_send_reset", btf).map_err(refused)?;
    program.attach()?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_hook_says_what_it_costs() {
        let unique = HOOKS.iter().find(|hook| hook.tells == Tells::Reuse).unwrap();
        assert_eq!(
            missing(&[(unique, "no such function".to_owned())]),
            ["hook on tcp_twsk_unique: no such function; a TIME-WAIT that connect() reuses ends as `early`"]
        );
        assert!(missing(&[]).is_empty());
    }

    #[test]
    fn what_is_needed_is_tried_first() {
        for by_cookie in [true, false] {
            let wanted = HOOKS
                .iter()
                .filter(|hook| !(by_cookie && matches!(hook.tells, Tells::Cookie | Tells::Birth)));
            let needed: Vec<bool> = wanted.map(|hook| hook.tells.is_needed(by_cookie)).collect();
            assert!(needed.is_sorted_by(|earlier, later| earlier >= later), "{needed:?}");
        }
    }
}
