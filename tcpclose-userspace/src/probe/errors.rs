//! Errors of the kernel and of aya, each in one line.

use std::io;

use anyhow::anyhow;
use aya::programs::ProgramError;

use crate::failure::Failure;
use crate::linux::host;

pub(super) const CANNOT_LOAD: &str = "cannot load the probe";

/// Why the kernel refused a program, in one line. The verifier's log can have thousands of lines; the cause is the last
/// one before its closing statistics.
pub(super) fn refusal(error: ProgramError) -> anyhow::Error {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return error.into() };
    let log = verifier_log.to_string();
    log::debug!("verifier: {log}");
    let is_cause = |line: &&str| {
        !line.is_empty()
            && !["verification time", "stack depth", "processed"].iter().any(|start| line.starts_with(start))
    };
    let text = match log.lines().map(str::trim).rfind(is_cause) {
        Some(line) => format!("{io_error}: {line}"),
        None => io_error.to_string(),
    };
    let lockdown = lockdown_note(&text);
    anyhow!("{text}{lockdown}")
}

/// What the kernel's lockdown has to do with a refusal.
pub(super) fn lockdown_note(refusal: &str) -> &'static str {
    by_lockdown(refusal, host::lockdown().as_deref())
}

/// What a lockdown in this mode has to do with a refusal. Confidentiality takes bpf_probe_read_kernel() and bpf_probe_read() away
/// from programs (kernel/trace/bpf_trace.c, bpf_tracing_func_proto(), LOCKDOWN_BPF_READ_KERNEL, 5.13 to 6.18), and leaves tracefs
/// without events (kernel/trace/trace.c, tracer_alloc_buffers(), LOCKDOWN_TRACEFS, 5.8 to 6.18). Seen in a guest with 6.12.
fn by_lockdown(refusal: &str, mode: Option<&str>) -> &'static str {
    let is_read = refusal.contains("bpf_probe_read");
    let is_other = ["Operation not permitted", "shows no events", "no such event"];
    match mode {
        Some("confidentiality") if is_read || is_other.iter().any(|other| refusal.contains(other)) => {
            " (kernel lockdown: confidentiality; boot with lockdown=integrity)"
        }
        // securityfs is not mounted, as in most containers.
        None if is_read => " (as kernel lockdown=confidentiality does; boot with lockdown=integrity)",
        _ => "",
    }
}

/// The failure for an object that the kernel refused: its programs or its maps.
pub(super) fn cannot_load(why: &anyhow::Error) -> Failure {
    let os = why.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    let lockdown = lockdown_note(&one_line(why));
    let todo = match os {
        Some(libc::ENOMEM) => "choose a smaller --ring-size, or give it more memory",
        Some(libc::EPERM | libc::EACCES) => {
            "see whether a seccomp filter, lockdown or a security module forbids bpf(2); \
             `tcpclose stuck --no-agent` needs no probe"
        }
        _ => "run it with --log-level debug for details; `tcpclose stuck --no-agent` needs no probe",
    };
    Failure::new(CANNOT_LOAD, one_line(why) + lockdown, todo)
}

/// An error and its causes in one line. Errors of aya quote their causes, which are then not repeated.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.ends_with(&cause) {
            let colon = if text.is_empty() { "" } else { ": " };
            text = text + colon + &cause;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_lockdown_names_it() {
        let read = "Invalid argument (os error 22): program of this type cannot use helper bpf_probe_read#4";
        let denied = "/sys/kernel/tracing/x: Operation not permitted (os error 1)";
        for text in [read, denied, "/sys/kernel/tracing shows no events"] {
            assert!(
                by_lockdown(text, Some("confidentiality")).contains("lockdown: confidentiality"),
                "{text}"
            );
            assert_eq!(by_lockdown(text, Some("integrity")), "");
        }
        assert!(by_lockdown(read, None).contains("lockdown=confidentiality"));
        assert_eq!(by_lockdown(denied, None), "");
        assert_eq!(by_lockdown("No such file or directory", Some("confidentiality")), "");
    }

    #[test]
    fn no_cause_is_repeated() {
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
