//! The outcome of a request to an agent.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use hyper::StatusCode;
use hyper::header::HeaderMap;

use crate::failure::Failure;
use crate::report::encoding::Form;
use crate::report::sockets::Versioned;

/// The outcome of a request to an agent.
#[derive(Debug)]
pub enum Reply<T> {
    Answer(T),
    /// Nobody listens at the path.
    NoAgent,
    /// The path exists, and this user is not allowed to connect to it.
    Denied,
}

impl<T> Reply<T> {
    /// The same outcome, with `read` applied to the answer.
    pub fn try_map<U, E>(self, read: impl FnOnce(T) -> Result<U, E>) -> Result<Reply<U>, E> {
        Ok(match self {
            Self::Answer(answer) => Reply::Answer(read(answer)?),
            Self::NoAgent => Reply::NoAgent,
            Self::Denied => Reply::Denied,
        })
    }

    /// The answer, for a command that cannot do without the agent at `socket`.
    pub fn required(self, socket: &Path) -> Result<T, Failure> {
        match self {
            Self::Answer(answer) => Ok(answer),
            Self::NoAgent => Err(no_agent(socket, Alone::Nothing)),
            Self::Denied => Err(denied(socket)),
        }
    }
}

/// What a command does without an agent (`--no-agent`), for its error messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alone {
    /// It takes a snapshot.
    Snapshot,
    /// It destroys the sockets itself.
    Destroy,
    /// It attaches eBPF programs of its own.
    Attach,
    /// It has no such option.
    Nothing,
}

impl Alone {
    /// `restart the agent, or add --no-agent for a snapshot`: what to do is one of `others`, or `--no-agent`.
    pub fn or(self, others: &[&str]) -> String {
        let own = match self {
            Self::Snapshot => Some("add --no-agent for a snapshot"),
            Self::Destroy => Some("add --no-agent to find and destroy the sockets without an agent, as root"),
            Self::Attach => Some("add --no-agent to watch with its own eBPF programs, as root"),
            Self::Nothing => None,
        };
        let all: Vec<&str> = others.iter().copied().chain(own).collect();
        match all.as_slice() {
            [first, second] => format!("{first}, or {second}"),
            [first @ .., last] if !first.is_empty() => format!("{}, or {last}", first.join(", ")),
            all => all.concat(),
        }
    }
}

/// Nobody listens at `socket`, and the command needs an agent there.
pub fn no_agent(socket: &Path, alone: Alone) -> Failure {
    let what = format!("agent at {}", socket.display());
    match not_a_socket(socket) {
        Some(kind) => {
            let why = format!("this is {kind}, not a Unix socket");
            Failure::new(what, why, alone.or(&["name the agent's socket with --socket"]))
        }
        None => {
            let todo = alone.or(&["start one (tcpclose agent)", "name its socket with --socket"]);
            Failure::new(what, "no agent is running there", todo)
        }
    }
}

/// What there is at `path`, if that is no socket: connect() fails there as at the socket of an agent that has ended.
fn not_a_socket(path: &Path) -> Option<&'static str> {
    let kind = std::fs::metadata(path).ok()?.file_type();
    match () {
        () if kind.is_socket() => None,
        () if kind.is_file() => Some("a regular file"),
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_fifo() => Some("a named pipe"),
        () => Some("a device"),
    }
}

/// This user is not allowed to connect to `socket`, and the command needs the agent there.
pub fn denied(socket: &Path) -> Failure {
    let todo = "run it as root, or as the user that the agent runs as";
    Failure::new(format!("agent at {}", socket.display()), "this user is not allowed to connect to it", todo)
}

/// An HTTP answer of any status.
#[derive(Debug)]
pub struct AgentAnswer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// The path and query of the request.
    pub target: String,
    /// The process that answered, in this PID namespace.
    pub agent_pid: Option<i32>,
}

impl AgentAnswer {
    /// This answer if its status is 200; else the reason, in words.
    pub fn expect_ok(self) -> Result<Self, String> {
        match self.status {
            StatusCode::OK => Ok(self),
            StatusCode::NOT_FOUND => Err(unknown_path(&self.target)),
            status => Err(format!("it answered {status}: {}", self.first_line())),
        }
    }

    /// The document in the body, of the version `schema`.
    pub fn document<T: Versioned>(&self, schema: u32) -> Result<T, String> {
        Form::of(&self.headers).read(&self.body, schema)
    }

    /// The first line of the body, at most 200 characters.
    pub fn first_line(&self) -> String {
        first_line(&self.body)
    }
}

/// Why an agent answers 404 to `target`.
pub fn unknown_path(target: &str) -> String {
    let path = target.split('?').next().unwrap_or_default();
    format!("it does not serve {path}: not a tcpclose agent, or one of another version")
}

/// The first line of `body`, at most 200 characters.
pub fn first_line(body: &[u8]) -> String {
    String::from_utf8_lossy(body).lines().next().unwrap_or_default().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_agent_the_line_names_what_this_command_can_do() {
        let folder = tempfile::tempdir().unwrap();
        let none = folder.path().join("none");
        let line = |path: &Path, alone| no_agent(path, alone).to_string();
        for (alone, todo) in [
            (Alone::Snapshot, ", name its socket with --socket, or add --no-agent for a snapshot"),
            (
                Alone::Destroy,
                ", name its socket with --socket, or add --no-agent to find and destroy the sockets without an agent, as root",
            ),
            (Alone::Nothing, ", or name its socket with --socket"),
        ] {
            let start = format!(
                "tcpclose: agent at {}: no agent is running there; start one (tcpclose agent)",
                none.display()
            );
            assert_eq!(line(&none, alone), start + todo);
        }
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let what = line(&file, Alone::Nothing);
        assert!(
            what.ends_with(
                "file: this is a regular file, not a Unix socket; name the agent's socket with --socket"
            ),
            "{what}"
        );
        assert!(line(folder.path(), Alone::Snapshot).contains(": this is a directory, not a Unix socket; "));
        assert!(
            line(Path::new("/dev/null"), Alone::Attach).contains(": this is a device, not a Unix socket; ")
        );
        // An agent that was killed leaves one.
        let socket = folder.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(line(&socket, Alone::Nothing).contains("no agent is running there"));
        assert_eq!(
            (Alone::Nothing.or(&["a"]), Alone::Nothing.or(&["a", "b", "c"])),
            ("a".into(), "a, b, or c".into())
        );
    }
}
