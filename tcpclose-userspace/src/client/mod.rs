//! Asks the agent on its Unix socket.
//!
//! `GET /v1/sockets?state=close_wait[&owners=once][&peers=no][&older_than=60s]` returns every socket in that state,
//! whatever its age, as a [`SocketsDocument`]. `older_than` is the bound of the diagnosis, by default the agent's first
//! `--stuck-after`; the answer has it in the header [`STUCK_AFTER_HEADER`]. `owners=once` describes each process once,
//! `peers=no` leaves out the owners of the other ends.
//!
//! * [`reply`]: the outcome of a request. [`http`]: the request itself.
//! * [`fetch`]: a document from the agent, or from a snapshot. [`stream`]: lines as they come.
//! * [`stacks`]: for `tcpclose stuck --stacks`. [`reconcile`], [`sampling`]: for `tcpclose verify`.

pub mod fetch;
pub mod http;
pub mod reconcile;
pub mod reply;
pub mod sampling;
pub mod snapshot;
pub mod stacks;
pub mod stream;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use tokio::runtime::Runtime;

use crate::client::reply::{AgentAnswer, Alone, Reply};
use crate::failure::Failure;
use crate::names::Phase;
use crate::report::requests::{SOCKETS_PATH, STUCK_AFTER_HEADER};
use crate::report::sockets::Depth;
use crate::report::sockets::{SCHEMA, SocketsDocument, Versioned};

/// The time that an agent has for a whole answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Sockets, and the bound of their diagnosis.
#[derive(Debug)]
pub struct SocketsAnswer {
    pub document: SocketsDocument,
    pub stuck_after: Duration,
}

/// Asks the agent at `path` for the sockets in `state`. `alone`: what the command does without one.
pub fn sockets(
    path: &Path,
    alone: Alone,
    state: Phase,
    older_than: Option<Duration>,
    depth: Depth,
) -> Result<Reply<SocketsAnswer>, Failure> {
    let client = Client::for_command(path, PATIENCE, alone)?;
    sockets_of(&client, &target(state, older_than, depth), older_than)
}

fn sockets_of(
    client: &Client,
    target: &str,
    older_than: Option<Duration>,
) -> Result<Reply<SocketsAnswer>, Failure> {
    client.get(target)?.try_map(|answer| {
        let answer = answer.expect_ok().map_err(|why| client.failure(why))?;
        let mut document: SocketsDocument = answer.document(SCHEMA).map_err(|why| client.failure(why))?;
        document.name_every_owner();
        let stuck_after = answer
            .headers
            .get(STUCK_AFTER_HEADER)
            .and_then(|value| humantime::parse_duration(value.to_str().ok()?).ok())
            .or(older_than)
            .ok_or_else(|| client.failure(format!("its answer lacks the header {STUCK_AFTER_HEADER}")))?;
        Ok(SocketsAnswer { document, stuck_after })
    })
}

/// Asks the agent at one path, over one connection per request.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    path: PathBuf,
    patience: Duration,
    alone: Alone,
}

impl Client {
    /// For the agent at `path`, which has `patience` for each answer, of a command that needs one.
    pub fn new(path: &Path, patience: Duration) -> Result<Self, Failure> {
        Self::for_command(path, patience, Alone::Nothing)
    }

    /// The same for a command that does `alone` without an agent.
    pub fn for_command(path: &Path, patience: Duration, alone: Alone) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new("cannot start", error, "report this"))?;
        Ok(Self { runtime, path: path.to_owned(), patience, alone })
    }

    pub fn get(&self, target: &str) -> Result<Reply<AgentAnswer>, Failure> {
        self.exchange(Method::GET, target, Vec::new())
    }

    pub fn post(&self, target: &str, body: Vec<u8>) -> Result<Reply<AgentAnswer>, Failure> {
        self.exchange(Method::POST, target, body)
    }

    /// The document at `target`, of the version `schema`.
    pub fn document<T: Versioned>(&self, target: &str, schema: u32) -> Result<Reply<T>, Failure> {
        self.get(target)?.try_map(|answer| {
            let document = answer.expect_ok().and_then(|answer| answer.document(schema));
            document.map_err(|why| self.failure(why))
        })
    }

    /// Runs `task` to its end.
    pub fn block_on<T>(&self, task: impl Future<Output = T>) -> T {
        self.runtime.block_on(task)
    }

    fn exchange(&self, method: Method, target: &str, body: Vec<u8>) -> Result<Reply<AgentAnswer>, Failure> {
        let reply = self.runtime.block_on(async {
            let exchange = http::exchange(&self.path, method, target, body);
            tokio::time::timeout(self.patience, exchange).await.unwrap_or_else(|_| {
                Err(format!("no answer within {}", humantime::format_duration(self.patience)))
            })
        });
        reply.map_err(|why| self.failure(why))
    }

    /// The failure with the reason `why`.
    pub fn failure(&self, why: String) -> Failure {
        Failure::new(format!("agent at {}", self.path.display()), why, self.alone.or(&["restart the agent"]))
    }

    /// The agent answered before, and is no longer there.
    pub fn gone(&self) -> Failure {
        self.failure("it is no longer running".to_owned())
    }
}

/// The path and query of the request.
fn target(state: Phase, older_than: Option<Duration>, depth: Depth) -> String {
    let mut target = format!("{SOCKETS_PATH}?state={}&owners=once", state.name());
    if depth == Depth::Owners {
        target.push_str("&peers=no");
    }
    if let Some(bound) = older_than {
        // One unit: humantime puts spaces between units, which a query has to escape.
        match bound.subsec_nanos() {
            0 => target.push_str(&format!("&older_than={}s", bound.as_secs())),
            _ => target.push_str(&format!("&older_than={}ns", bound.as_nanos())),
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    const DOCUMENT: &str =
        r#"{"schema":1,"host":"h","boot_id":"b","at":"t","source":"agent","incomplete":[],"sockets":[]}"#;

    /// Asks a fake agent that reads the request, sends `answer` and hangs up.
    fn ask_fake_agent(answer: Vec<u8>) -> (Result<Reply<SocketsAnswer>, Failure>, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap() == 0 {
                    break;
                }
                request.push(byte[0]);
            }
            let _ = stream.write_all(&answer);
            String::from_utf8(request).unwrap()
        });
        let reply = sockets(&path, Alone::Snapshot, Phase::CloseWait, None, Depth::WithPeers);
        (reply, agent.join().unwrap())
    }

    fn http(headers: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
    }

    #[test]
    fn an_answer_comes_with_the_agents_bound() {
        let (reply, request) = ask_fake_agent(http("tcpclose-stuck-after: 1m 30s\r\n", DOCUMENT));
        let Ok(Reply::Answer(SocketsAnswer { document, stuck_after })) = reply else { panic!("{reply:?}") };
        assert_eq!((document.host.as_str(), stuck_after), ("h", Duration::from_secs(90)));
        assert!(
            request.starts_with("GET /v1/sockets?state=close_wait&owners=once HTTP/1.1\r\n"),
            "{request}"
        );
        assert_eq!(
            target(Phase::LastAck, Some(Duration::from_secs(90)), Depth::WithPeers),
            "/v1/sockets?state=last_ack&owners=once&older_than=90s"
        );
        assert!(
            target(Phase::LastAck, Some(Duration::from_millis(1500)), Depth::Owners)
                .ends_with("older_than=1500000000ns")
        );
    }

    #[test]
    fn whatever_else_answers_is_one_clear_line() {
        let cut = http("", DOCUMENT);
        let cases: &[(Vec<u8>, &str)] = &[
            (cut[..cut.len() - 10].to_vec(), "closed the connection in the middle"),
            (cut[..20].to_vec(), "closed the connection in the middle"),
            (Vec::new(), "closed the connection in the middle"),
            (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "does not speak HTTP"),
            (vec![0xff; 5000], "does not speak HTTP"),
            (http("", "\x00\x01garbage"), "no document of tcpclose"),
            (http("", "{}"), "no document of tcpclose"),
            (http("", r#"{"schema":1}"#), "no document of tcpclose"),
            (http("", r#"{"schema":2,"x":1}"#), "speaks schema 2"),
            (http("", DOCUMENT), "lacks the header"),
            (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(), "does not serve /v1/sockets"),
            (b"HTTP/1.1 500 No\r\ncontent-length: 8\r\n\r\na\x1b[2J\nb\n".to_vec(), "it answered 500"),
        ];
        for (answer, expected) in cases {
            let (reply, _) = ask_fake_agent(answer.clone());
            let line = reply.unwrap_err().to_string();
            assert!(line.contains(expected) && !line.contains(char::is_control), "{expected}: {line}");
            let todo = "; restart the agent, or add --no-agent for a snapshot";
            assert!(line.starts_with("tcpclose: agent at /") && line.ends_with(todo), "{line}");
        }
    }

    #[test]
    fn nobody_there_is_no_failure_and_silence_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let silent = UnixListener::bind(&path).unwrap();
        let client = Client::new(&path, Duration::from_millis(50)).unwrap();
        let line = sockets_of(&client, "/v1/sockets", None).unwrap_err().to_string();
        assert!(line.ends_with("no answer within 50ms; restart the agent"), "{line}");
        drop(silent);
        std::fs::remove_file(&path).unwrap();
        let ask = || sockets(&path, Alone::Destroy, Phase::CloseWait, None, Depth::WithPeers);
        assert!(matches!(ask(), Ok(Reply::NoAgent)));
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(ask(), Ok(Reply::NoAgent)));
    }
}
