//! Errors of the kernel and of aya, each in one line.

use std::io;

use anyhow::anyhow;
use aya::programs::ProgramError;

use crate::failure::Failure;

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
    match log.lines().map(str::trim).rfind(is_cause) {
        Some(line) => anyhow!("{io_error}: {line}"),
        None => anyhow!("{io_error}"),
    }
}

/// The failure for an object that the kernel refused: its programs or its maps.
pub(super) fn cannot_load(why: &anyhow::Error) -> Failure {
    let os = why.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    let todo = match os {
        Some(libc::ENOMEM) => "choose a smaller --ring-size, or give it more memory",
        Some(libc::EPERM | libc::EACCES) => {
            "see whether a seccomp filter, lockdown or a security module forbids bpf(2); \
             `tcpclose stuck --no-agent` works without"
        }
        _ => "see --log-level debug; `tcpclose stuck --no-agent` works without",
    };
    Failure::new(CANNOT_LOAD, one_line(why), todo)
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
