//! The command to run next: a tool for the process's runtime that shows its threads. Printed, never run.

use std::path::PathBuf;

use crate::client::fetch::AgentAddress;
use crate::names::{Diagnosis, ProcessState, Runtime, Verdict};
use crate::report::sockets::Owner;
use crate::ui::labels;

/// Who records the code that leaves the next sockets open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StackSource {
    /// The agent that every command asks.
    #[default]
    Agent,
    /// The agent at the socket that the user named.
    AgentAt(PathBuf),
    /// No agent runs.
    Nobody,
    /// The code is known already.
    Shown,
}

impl StackSource {
    /// `is_missing`: no agent is at `address`.
    pub fn of(address: &AgentAddress, is_missing: bool) -> Self {
        match is_missing {
            true => Self::Nobody,
            false if address.is_explicit => Self::AgentAt(address.socket.clone()),
            false => Self::Agent,
        }
    }

    /// How the code of the next sockets of a process is found, and the command.
    fn step(&self, owner: &Owner) -> Option<(String, String)> {
        let (pid, process) = (owner.pid, labels::process(owner));
        let record = || {
            let why = format!("{process}: record the code that leaves the next ones open");
            (why, format!("tcpclose stuck --stacks --for 60s --pid {pid}"))
        };
        match self {
            Self::Agent => Some(record()),
            Self::AgentAt(socket) => {
                let (why, command) = record();
                Some((why, format!("{command} --socket {}", quoted(&socket.to_string_lossy()))))
            }
            Self::Nobody => {
                let why =
                    format!("{process}: run an agent, which records the code that leaves the next ones open");
                Some((why, "tcpclose agent".to_owned()))
            }
            Self::Shown => None,
        }
    }
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// What to look for in `owner`, which holds a socket with this `diagnosis`, and the command that shows it; `None` where the
/// runtime is unknown, and where no thread is at fault by the `verdict`. `stacks`: who records the code.
pub fn step(
    owner: &Owner,
    diagnosis: Option<Diagnosis>,
    verdict: Option<Verdict>,
    stacks: &StackSource,
) -> Option<(String, String)> {
    let pid = owner.pid;
    if let Some((why, command)) = owner.state.map(|state| halted(state, pid)) {
        return Some((format!("{}: {why}", labels::process(owner)), command));
    }
    if matches!(verdict, Some(Verdict::StalePool | Verdict::ProxyHalfClose)) {
        return None;
    }
    // No thread waits for what was forgotten: where it was opened, and its end read, tells more.
    let is_forgotten = diagnosis == Some(Diagnosis::NotClosed) || verdict == Some(Verdict::Leak);
    if is_forgotten && owner.runs? != Runtime::Node {
        // Where none follow, nothing can be recorded.
        return if verdict == Some(Verdict::OneOff) { None } else { stacks.step(owner) };
    }
    let debugger = format!("gdb -p {pid} -batch -ex 'thread apply all bt'");
    let (command, hint) = match owner.runs? {
        Runtime::Jvm => (format!("jcmd {pid} Thread.print"), ""),
        Runtime::Python => (format!("py-spy dump --pid {pid}"), ""),
        // Only the program knows whether and where it serves profiles.
        Runtime::Go => (
            "curl -s 'http://HOST:PORT/debug/pprof/goroutine?debug=2'".to_owned(),
            ", if it serves net/http/pprof (else gdb)",
        ),
        // A native debugger shows no JavaScript.
        Runtime::Node => (
            format!("node inspect -p {pid}"),
            ": there `exec process._getActiveHandles()` lists its sockets (it opens the inspector, on port 9229)",
        ),
        Runtime::Native => (debugger, ""),
    };
    let look_for = match diagnosis {
        Some(Diagnosis::NotAccepted) => "find out why it does not accept",
        Some(Diagnosis::NotRead) => "find the thread that should read",
        Some(Diagnosis::NotClosed) => "find the handles that are not closed",
        _ => "look at its threads",
    };
    Some((format!("{}: {look_for}{hint}", labels::process(owner)), command))
}

/// What comes before a look at the threads of a process that does not act.
fn halted(state: ProcessState, pid: u32) -> (&'static str, String) {
    match state {
        ProcessState::Stopped => (
            "it is stopped (SIGSTOP, or job control), and does nothing until SIGCONT",
            format!("kill -CONT {pid}"),
        ),
        ProcessState::Traced => {
            ("a debugger has stopped it: TracerPid is that", format!("grep TracerPid /proc/{pid}/status"))
        }
        ProcessState::Uninterruptible => (
            "its first thread waited in the kernel when it was looked at (state D): find out for what",
            format!("cat /proc/{pid}/stack"),
        ),
        ProcessState::Zombie => (
            "its first thread has ended: look whether others hold its sockets",
            format!("ls /proc/{pid}/task"),
        ),
    }
}

/// How the program of `owner` is given keepalive.
pub fn keepalive(owner: &Owner) -> &'static str {
    match (&*owner.comm, owner.runs) {
        ("nginx", _) => "`listen … so_keepalive=on` and `proxy_socket_keepalive on`",
        ("haproxy", _) => "`option clitcpka` and `option srvtcpka`",
        ("redis-server", _) => "`tcp-keepalive 300`",
        ("postgres", _) => "`tcp_keepalives_idle = 300`",
        ("sshd", _) => "`TCPKeepAlive yes` or `ClientAliveInterval`",
        (_, Some(Runtime::Jvm)) => "Socket.setKeepAlive(true), or SO_KEEPALIVE of the client's library",
        (_, Some(Runtime::Python)) => {
            "setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1), or the client library's option"
        }
        (_, Some(Runtime::Node)) => "socket.setKeepAlive(true, 60000)",
        (_, Some(Runtime::Go)) => "KeepAlive of net.Dialer and net.ListenConfig (on unless it is negative)",
        _ => "SO_KEEPALIVE, with TCP_KEEPIDLE",
    }
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
            let (why, command) = step(&running(runs), Some(diagnosis), None, &StackSource::Agent)?;
            Some(format!("{why} {command}"))
        };
        let words = [
            (Runtime::Jvm, Diagnosis::NotRead, "should read jcmd 42 Thread.print"),
            (Runtime::Python, Diagnosis::NotRead, "should read py-spy dump --pid 42"),
            (
                Runtime::Go,
                Diagnosis::NotClosed,
                "leaves the next ones open tcpclose stuck --stacks --for 60s --pid 42",
            ),
            (Runtime::Go, Diagnosis::NotAccepted, "not accept, if it serves"),
            (Runtime::Native, Diagnosis::Unknown, "threads gdb -p 42 "),
        ];
        for (runs, diagnosis, words) in words {
            let printed = printed(Some(runs), diagnosis).unwrap();
            assert!(printed.contains(words) && printed.starts_with(r"a\u{1b}[42]: "), "{printed}");
        }
        assert_eq!(printed(None, Diagnosis::NotRead), None);
        assert!(printed(Some(Runtime::Node), Diagnosis::NotClosed).unwrap().ends_with("node inspect -p 42"));
        // No thread should read from a pool's connections.
        let pool = Some(Verdict::StalePool);
        assert_eq!(
            step(&running(Some(Runtime::Jvm)), Some(Diagnosis::NotRead), pool, &StackSource::Agent),
            None
        );
        // Threads of a process that is stopped tell nothing.
        let owner = running(Some(Runtime::Jvm));
        let process = Process { state: Some(ProcessState::Stopped), ..(*owner.process).clone() };
        let stopped = Owner { process: process.into(), ..owner };
        let (_, command) = step(&stopped, None, None, &StackSource::Agent).unwrap();
        assert_eq!(command, "kill -CONT 42");
    }

    #[test]
    fn code_is_recorded_by_the_agent_that_was_asked_and_only_where_more_is_to_come() {
        let owner = owner(42, "a", (1, 2));
        let owner = Owner {
            process: Process { runs: Some(Runtime::Native), ..(*owner.process).clone() }.into(),
            ..owner
        };
        let command = |verdict, stacks: &StackSource| {
            let step = step(&owner, Some(Diagnosis::NotClosed), verdict, stacks);
            step.map(|(_, command)| command)
        };
        let at = StackSource::AgentAt("/tmp/it's here.sock".into());
        assert_eq!(
            command(Some(Verdict::Leak), &at).unwrap(),
            r"tcpclose stuck --stacks --for 60s --pid 42 --socket '/tmp/it'\''s here.sock'"
        );
        assert_eq!(command(None, &StackSource::Nobody).unwrap(), "tcpclose agent");
        assert_eq!(command(Some(Verdict::OneOff), &StackSource::Agent), None);
        assert_eq!(command(Some(Verdict::Leak), &StackSource::Shown), None);
    }
}
