//! The outcome of a request to an agent.

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
            Self::NoAgent => Err(no_agent(socket)),
            Self::Denied => Err(denied(socket)),
        }
    }
}

/// Nobody listens at `socket`, and the command needs an agent there.
pub fn no_agent(socket: &Path) -> Failure {
    let todo = "start one (tcpclose agent), or name its socket with --socket";
    Failure::new(format!("agent at {}", socket.display()), "no agent is running there", todo)
}

/// This user is not allowed to connect to `socket`, and the command needs the agent there.
pub fn denied(socket: &Path) -> Failure {
    let todo = "run it as root, or as the user that the agent runs as";
    Failure::new(format!("agent at {}", socket.display()), "this user is not allowed to connect to it", todo)
}

/// An HTTP answer of any status.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// The path and query of the request.
    pub target: String,
    /// The process that answered, in this PID namespace.
    pub agent_pid: Option<i32>,
}

impl Answer {
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
