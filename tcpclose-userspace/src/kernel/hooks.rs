//! The ladder of TIME-WAIT: fentry and fexit on the minisocket's functions, hook by hook. What a kernel lacks or refuses
//! costs the one fact that it tells. Hooks that do not tell of the flip and of every end are not used at all: dumps then
//! tell more. Linux 5.10 refuses `tcp_time_wait`'s, without which no minisocket is joined to its socket.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context, Result};
use aya::programs::{BtfTracePoint, FEntry, FExit, Program};
use aya::{Btf, Ebpf};

use super::probe::refused;
use crate::tracker::notice::Told;

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
    /// Which minisocket belongs to which socket, at the classic door.
    Cookie,
    Birth,
    /// The flip to TIME-WAIT and the ends.
    Life,
    Reuse,
    Destroy,
    Purge,
}

impl Tells {
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
#[derive(Clone, Debug, Default)]
pub struct Attached {
    pub told: Told,
    /// Whether any hook is in use.
    pub any: bool,
    /// What is not in use, why, and what that costs; one sentence a hook.
    pub missing: Vec<String>,
}

/// Attaches every hook that loads, if together they tell of whole lives, and adds their programs to `programs`. `by_cookie`: the tp_btf door, where sockets have
/// cookies already.
pub fn attach(ebpf: &mut Ebpf, btf: &Btf, by_cookie: bool, programs: &mut Vec<OwnedFd>) -> Attached {
    let mut attached = Attached::default();
    let mut failed: Vec<(&Hook, String)> = Vec::new();
    let others = programs.len();
    for hook in HOOKS {
        if by_cookie && hook.tells == Tells::Cookie {
            continue;
        }
        match attach_one(ebpf, hook, btf) {
            Ok(program) => {
                attached.any = true;
                programs.push(program);
            }
            Err(why) => failed.push((hook, format!("{why:#}"))),
        }
    }
    let works = |tells: Tells| failed.iter().all(|(hook, _)| hook.tells != tells);
    attached.told.births = works(Tells::Birth);
    // At the classic door the birth is what joins cookie and socket.
    attached.told.lives = works(Tells::Life) && (by_cookie || works(Tells::Cookie) && works(Tells::Birth));
    attached.missing = missing(&failed, attached.any);
    if attached.any && !attached.told.lives {
        programs.truncate(others);
        detach(ebpf);
        attached.missing.push("hooks: not used, since dumps tell more than the rest of them".to_owned());
        (attached.any, attached.told) = (false, Told::default());
    }
    attached
}

/// Takes back every hook that was attached.
fn detach(ebpf: &mut Ebpf) {
    for hook in HOOKS {
        // One that never loaded has nothing to unload.
        match ebpf.program_mut(hook.program) {
            Some(Program::FEntry(program)) => drop(program.unload()),
            Some(Program::FExit(program)) => drop(program.unload()),
            _ => {}
        }
    }
}

/// What is not in use, why, and what that costs: a sentence a hook, or one for all where none loads.
fn missing(failed: &[(&Hook, String)], any: bool) -> Vec<String> {
    match failed {
        [(first, why), ..] if !any => {
            vec![format!("hooks: the kernel refuses fentry (on {}: {why})", first.function)]
        }
        _ => failed
            .iter()
            .map(|(hook, why)| format!("hook on {}: {why}; {}", hook.function, hook.tells.lost()))
            .collect(),
    }
}

fn attach_one(ebpf: &mut Ebpf, hook: &Hook, btf: &Btf) -> Result<OwnedFd> {
    match ebpf.program_mut(hook.program).context("no such program")? {
        Program::FEntry(program) => attach_entry(program, hook.function, btf),
        Program::FExit(program) => attach_exit(program, hook.function, btf),
        _ => anyhow::bail!("no such hook"),
    }
}

fn attach_entry(program: &mut FEntry, function: &str, btf: &Btf) -> Result<OwnedFd> {
    program.load(function, btf).map_err(refused)?;
    program.attach()?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

fn attach_exit(program: &mut FExit, function: &str, btf: &Btf) -> Result<OwnedFd> {
    program.load(function, btf).map_err(refused)?;
    program.attach()?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
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
    fn a_refused_rung_is_one_sentence_and_a_refused_hook_says_what_it_costs() {
        let all: Vec<(&Hook, String)> = HOOKS.iter().map(|hook| (hook, "EPERM".to_owned())).collect();
        assert_eq!(missing(&all, false), ["hooks: the kernel refuses fentry (on tcp_time_wait: EPERM)"]);
        let unique = HOOKS.iter().find(|hook| hook.tells == Tells::Reuse).unwrap();
        assert_eq!(
            missing(&[(unique, "no such function".to_owned())], true),
            ["hook on tcp_twsk_unique: no such function; a TIME-WAIT that connect() reuses ends as `early`"]
        );
        assert!(missing(&[], true).is_empty());
    }
}
