//! The TIME-WAIT backend of fentry and fexit programs on the minisocket's functions. Where all flips and ends are reported,
//! dumps only reconcile; where one of those programs is refused, none is used. A refusal of any other program costs the one
//! fact that it reports.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context, Result};
use aya::programs::Program;
use aya::{Btf, Ebpf};

use crate::probe::declined::{DeclinedHooks, Hook};
use crate::probe::errors::refusal;
use crate::probe::pinned_links::PinnedLinks;

/// One program and the function that it is attached to.
struct Attachment {
    /// Its name in the object.
    program: &'static str,
    /// The kernel function.
    function: &'static str,
    reports: Report,
}

/// What a program reports.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Report {
    /// Which minisocket belongs to which socket, at the classic tracepoint.
    Cookie,
    Birth,
    /// The flip to TIME-WAIT and the ends.
    Lifetime,
    Reuse,
    Destroy,
    Purge,
}

impl Report {
    /// Whether no program is used without it. At the classic tracepoint the birth is what joins cookie and socket.
    const fn is_needed(self, by_cookie: bool) -> bool {
        match self {
            Self::Lifetime => true,
            Self::Cookie | Self::Birth => !by_cookie,
            Self::Reuse | Self::Destroy | Self::Purge => false,
        }
    }

    /// What is unknown without it.
    const fn cost(self) -> &'static str {
        match self {
            Self::Cookie => "minisockets cannot be joined to their sockets",
            Self::Birth => "a full TIME-WAIT table shows in the kernel's counter only",
            Self::Lifetime => "only dumps show the change to TIME-WAIT and its end",
            Self::Reuse => "a TIME-WAIT that connect() reuses ends as `early`",
            Self::Destroy => "a destroyed TIME-WAIT ends as `early`",
            Self::Purge => "TIME-WAITs of a vanished namespace end as `early`",
        }
    }
}

const ATTACHMENTS: &[Attachment] = &[
    Attachment { program: "tw_cookie", function: "tcp_time_wait", reports: Report::Cookie },
    Attachment { program: "tw_born", function: "inet_twsk_alloc", reports: Report::Birth },
    Attachment { program: "tw_segment", function: "tcp_timewait_state_process", reports: Report::Lifetime },
    Attachment {
        program: "tw_segment_done",
        function: "tcp_timewait_state_process",
        reports: Report::Lifetime,
    },
    Attachment { program: "tw_expired", function: "tw_timer_handler", reports: Report::Lifetime },
    Attachment { program: "tw_early", function: "inet_twsk_deschedule_put", reports: Report::Lifetime },
    Attachment { program: "tw_unique", function: "tcp_twsk_unique", reports: Report::Reuse },
    Attachment { program: "tw_abort", function: "tcp_abort", reports: Report::Destroy },
    Attachment { program: "tw_abort_done", function: "tcp_abort", reports: Report::Destroy },
    Attachment { program: "tw_purge", function: "inet_twsk_purge", reports: Report::Purge },
    Attachment { program: "tw_gone", function: "tcp_twsk_destructor", reports: Report::Purge },
    Attachment { program: "tw_purge_done", function: "inet_twsk_purge", reports: Report::Purge },
];

/// The attached programs.
#[derive(Debug)]
pub struct Minisockets {
    /// Whether births are reported.
    pub births: bool,
    /// Holds the links, where they could be pinned.
    pub links: Option<PinnedLinks>,
}

/// Attaches the programs and adds them to `programs`; what is refused is added to `declined`. `by_cookie`: the state backend
/// is tp_btf, where sockets have cookies already. `None`: none is in use.
///
/// All of them are loaded first. Where one that is needed is refused, no other is tried and none is attached: dumps must
/// then follow every minisocket anyway, and no case has shown that the rest would report more.
pub fn attach(
    ebpf: &mut Ebpf,
    btf: &Btf,
    by_cookie: bool,
    programs: &mut Vec<OwnedFd>,
    declined: &mut DeclinedHooks,
) -> Option<Minisockets> {
    let mut loaded = Vec::new();
    let mut failed: Vec<(&Attachment, anyhow::Error)> = Vec::new();
    let wanted = ATTACHMENTS.iter().filter(|at| !(by_cookie && at.reports == Report::Cookie));
    for at in wanted {
        match load(ebpf, at, btf) {
            Ok(()) => loaded.push(at),
            Err(why) if at.reports.is_needed(by_cookie) => return unload_all(ebpf, at, &why, declined),
            Err(why) => failed.push((at, why)),
        }
    }
    let mut links = PinnedLinks::new()
        .inspect_err(|why| log::debug!("links are not pinned: {why:#} (the agent will be slow to exit)"))
        .ok();
    let mut attached = Vec::new();
    for at in loaded {
        match attach_one(ebpf, at, &mut links) {
            Ok(program) => attached.push(program),
            Err(why) if at.reports.is_needed(by_cookie) => return unload_all(ebpf, at, &why, declined),
            Err(why) => failed.push((at, why)),
        }
    }
    programs.append(&mut attached);
    for (at, why) in &failed {
        declined.push(Hook::TimeWait, refused(at, why));
    }
    let births = failed.iter().all(|(at, _)| at.reports != Report::Birth);
    Some(Minisockets { births, links })
}

/// Unloads every program, since the kernel refuses the one `at` that is needed.
fn unload_all(
    ebpf: &mut Ebpf,
    at: &Attachment,
    why: &anyhow::Error,
    declined: &mut DeclinedHooks,
) -> Option<Minisockets> {
    for at in ATTACHMENTS {
        // A program that was not loaded returns an error.
        let _ = match ebpf.program_mut(at.program) {
            Some(Program::FEntry(program)) => program.unload(),
            Some(Program::FExit(program)) => program.unload(),
            _ => Ok(()),
        };
    }
    declined.push(Hook::TimeWait, format!("hooks: the kernel refuses the one on {}: {why:#}", at.function));
    None
}

/// A program that is not in use, why, and what that costs.
fn refused(at: &Attachment, why: &anyhow::Error) -> String {
    format!("hook on {}: {why:#}; {}", at.function, at.reports.cost())
}

fn load(ebpf: &mut Ebpf, at: &Attachment, btf: &Btf) -> Result<()> {
    match ebpf.program_mut(at.program).context("no such program")? {
        Program::FEntry(program) => program.load(at.function, btf).map_err(refusal),
        Program::FExit(program) => program.load(at.function, btf).map_err(refusal),
        _ => anyhow::bail!("no such hook"),
    }
}

/// Attaches a loaded program. Its link is kept in `links`, or in the program where that cannot be.
fn attach_one(ebpf: &mut Ebpf, at: &Attachment, links: &mut Option<PinnedLinks>) -> Result<OwnedFd> {
    /// For both kinds of programs, which have no type in common.
    macro_rules! attach {
        ($program:expr) => {{
            let link = $program.attach()?;
            if let Some(kept) = links
                && let Err(why) = kept.keep($program.take_link(link)?.into())
            {
                log::debug!("the link on {} is not pinned: {why:#}", at.function);
                $program.attach()?;
            }
            Ok($program.fd()?.as_fd().try_clone_to_owned()?)
        }};
    }
    match ebpf.program_mut(at.program).context("no such program")? {
        Program::FEntry(program) => attach!(program),
        Program::FExit(program) => attach!(program),
        _ => anyhow::bail!("no such hook"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_hook_names_its_cost() {
        let unique = ATTACHMENTS.iter().find(|at| at.reports == Report::Reuse).unwrap();
        assert_eq!(
            refused(unique, &anyhow::anyhow!("no such function")),
            "hook on tcp_twsk_unique: no such function; a TIME-WAIT that connect() reuses ends as `early`"
        );
    }

    #[test]
    fn what_is_needed_is_tried_first() {
        for by_cookie in [true, false] {
            let wanted = ATTACHMENTS
                .iter()
                .filter(|at| !(by_cookie && matches!(at.reports, Report::Cookie | Report::Birth)));
            let needed: Vec<bool> = wanted.map(|at| at.reports.is_needed(by_cookie)).collect();
            assert!(needed.is_sorted_by(|earlier, later| earlier >= later), "{needed:?}");
        }
    }
}
