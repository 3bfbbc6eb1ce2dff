//! The command to run next: a tool for the process's runtime that shows its threads. Printed, never run.

use crate::names::Diagnosis;
use crate::names::Runtime;
use crate::report::sockets::Owner;
use crate::ui::labels;

/// What to look for in `owner`, which holds a socket with this `diagnosis`, and the command that shows it; `None` where the
/// runtime is unknown.
pub fn step(owner: &Owner, diagnosis: Option<Diagnosis>) -> Option<(String, String)> {
    let pid = owner.pid;
    let debugger = format!("gdb -p {pid} -batch -ex 'thread apply all bt'");
    let (command, hint) = match owner.runs? {
        Runtime::Jvm => (format!("jcmd {pid} Thread.print"), ""),
        Runtime::Python => (format!("py-spy dump --pid {pid}"), ""),
        // Only the program knows whether and where it serves profiles.
        Runtime::Go => (
            "curl -s 'http://HOST:PORT/debug/pprof/goroutine?debug=2'".to_owned(),
            ", if it serves net/http/pprof (else gdb)",
        ),
        Runtime::Native => (debugger, ""),
    };
    let look_for = match diagnosis {
        Some(Diagnosis::NotAccepted) => "find out why it does not accept",
        Some(Diagnosis::NotRead) => "find the thread that should read",
        Some(Diagnosis::NotClosed) => "find the thread that should close",
        _ => "look at its threads",
    };
    Some((format!("{}: {look_for}{hint}", labels::process(owner)), command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::process::Process;
    use crate::report::fixtures::owner;

    #[test]
    fn the_executable_tells_the_tool_and_the_diagnosis_what_to_look_for() {
        let running = |runs| {
            let owner = owner(42, "a\x1b", (1, 2));
            Owner { process: Process { runs, ..(*owner.process).clone() }.into(), ..owner }
        };
        let printed = |runs, diagnosis| {
            let (why, command) = step(&running(runs), Some(diagnosis))?;
            Some(format!("{why} {command}"))
        };
        let words = [
            (Runtime::Jvm, Diagnosis::NotRead, "should read jcmd 42 Thread.print"),
            (Runtime::Python, Diagnosis::NotClosed, "should close py-spy dump --pid 42"),
            (Runtime::Go, Diagnosis::NotAccepted, "not accept, if it serves"),
            (Runtime::Native, Diagnosis::Unknown, "threads gdb -p 42 "),
        ];
        for (runs, diagnosis, words) in words {
            let printed = printed(Some(runs), diagnosis).unwrap();
            assert!(printed.contains(words) && printed.starts_with(r"a\u{1b}[42]: "), "{printed}");
        }
        assert_eq!(printed(None, Diagnosis::NotRead), None);
    }
}
