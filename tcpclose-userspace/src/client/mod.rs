//! Asks the agent on its unix socket: HTTP/1.1.
//!
//! To `GET /v1/sockets?state=close_wait[&owners=once][&peers=no][&older_than=60s]` the agent answers with every socket in that state, whatever its age, as a [`SocketsDocument`]. `older_than` is the bound
//! that the diagnosis takes; `owners=once` has what is known of a process said once, `peers=no` leaves out who holds the other ends. Left out, the agent takes its first `--stuck-after`. The bound it took is in the header
//! [`STUCK_AFTER`].

pub mod fetch;
pub mod reconcile;
pub mod sampling;
pub mod stream;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::failure::Failure;
use crate::names::Phase;
use crate::report::Depth;
use crate::report::api::STUCK_AFTER;
use crate::report::encoding::{ACCEPT_EITHER, Form};
use crate::report::sockets::{SCHEMA, SocketsDocument, Versioned};

/// How long an agent may take to answer, in whole.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// More than a million sockets make.
const LONGEST_ANSWER: usize = 1 << 30;
const WITHOUT: &str = "restart the agent, or add --no-agent for a snapshot";

/// What came of asking.
#[derive(Debug)]
pub enum Reply {
    Answer {
        document: SocketsDocument,
        /// The bound of the diagnosis.
        stuck_after: Duration,
    },
    /// Nobody listens at the path.
    NoAgent,
    /// The path exists, and this user may not connect to it.
    Denied,
}

/// Asks the agent at `path` for the sockets in `state`.
pub fn sockets(
    path: &Path,
    state: Phase,
    older_than: Option<Duration>,
    depth: Depth,
) -> Result<Reply, Failure> {
    sockets_within(PATIENCE, path, &target(state, older_than, depth), older_than)
}

fn sockets_within(
    patience: Duration,
    path: &Path,
    target: &str,
    older_than: Option<Duration>,
) -> Result<Reply, Failure> {
    let client = Client::new(path, patience)?;
    let answer = match client.get(target)? {
        Said::Answer(answer) => answer.expect_ok().map_err(|why| client.failure(why))?,
        Said::NoAgent => return Ok(Reply::NoAgent),
        Said::Denied => return Ok(Reply::Denied),
    };
    let mut document: SocketsDocument = answer.document(SCHEMA).map_err(|why| client.failure(why))?;
    document.name_every_owner();
    let stuck_after = answer
        .headers
        .get(STUCK_AFTER)
        .and_then(|value| humantime::parse_duration(value.to_str().ok()?).ok())
        .or(older_than)
        .ok_or_else(|| client.failure(format!("its answer lacks the header {STUCK_AFTER}")))?;
    Ok(Reply::Answer { document, stuck_after })
}

/// What came of asking for a document.
#[derive(Debug)]
pub enum Asked<T> {
    Document(T),
    /// Nobody listens at the path.
    NoAgent,
    /// The path exists, and this user may not connect to it.
    Denied,
}

/// Asks the agent at one path, with a connection for each question.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    path: PathBuf,
    patience: Duration,
}

/// What came of a question.
#[derive(Debug)]
pub enum Said {
    Answer(Answer),
    /// Nobody listens at the path.
    NoAgent,
    /// The path exists, and this user may not connect to it.
    Denied,
}

/// An answer of any status.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// What was asked for.
    pub asked: String,
    /// The process that answered, in this PID namespace.
    pub agent: Option<i32>,
}

impl Answer {
    /// This answer if it is a good one; else why not, in words.
    pub fn expect_ok(self) -> Result<Self, String> {
        match self.status {
            StatusCode::OK => Ok(self),
            StatusCode::NOT_FOUND => {
                let path = self.asked.split('?').next().unwrap_or_default();
                Err(format!("it does not know {path}: no tcpclose agent, or another version"))
            }
            status => Err(format!("it answered {status}: {}", self.first_line())),
        }
    }

    /// The document that it is, if that is of the version `schema`.
    pub fn document<T: Versioned>(&self, schema: u32) -> Result<T, String> {
        Form::of(&self.headers).read(&self.body, schema)
    }

    /// The first line of the body, cut where it is long.
    pub fn first_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        text.lines().next().unwrap_or_default().chars().take(200).collect()
    }
}

impl Client {
    /// For the agent at `path`, which has `patience` for each answer.
    pub fn new(path: &Path, patience: Duration) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new("cannot start", error, "report this"))?;
        Ok(Self { runtime, path: path.to_owned(), patience })
    }

    pub fn get(&self, target: &str) -> Result<Said, Failure> {
        self.ask(Method::GET, target, Vec::new())
    }

    /// The document at `target`, of the version `schema`.
    pub fn document<T: Versioned>(&self, target: &str, schema: u32) -> Result<Asked<T>, Failure> {
        Ok(match self.get(target)? {
            Said::Answer(answer) => {
                let read = answer.expect_ok().and_then(|answer| answer.document(schema));
                Asked::Document(read.map_err(|why| self.failure(why))?)
            }
            Said::NoAgent => Asked::NoAgent,
            Said::Denied => Asked::Denied,
        })
    }

    pub fn post(&self, target: &str, body: Vec<u8>) -> Result<Said, Failure> {
        self.ask(Method::POST, target, body)
    }

    /// Runs `what` to its end.
    pub fn block_on<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    fn ask(&self, method: Method, target: &str, body: Vec<u8>) -> Result<Said, Failure> {
        let asked = self.runtime.block_on(async {
            let ask = ask(&self.path, method, target, body);
            tokio::time::timeout(self.patience, ask).await.unwrap_or_else(|_| {
                Err(format!("no answer within {}", humantime::format_duration(self.patience)))
            })
        });
        asked.map_err(|why| self.failure(why))
    }

    /// The failure that `why` makes.
    pub fn failure(&self, why: String) -> Failure {
        Failure::new(format!("agent at {}", self.path.display()), why, WITHOUT)
    }
}

/// Nobody listens at `socket`, and the command needs somebody there.
pub fn none_there(socket: &Path) -> Failure {
    let todo = "start one (tcpclose agent), or name its --socket";
    Failure::new(format!("agent at {}", socket.display()), "none is there", todo)
}

/// This user may not connect to `socket`, and the command needs who listens there.
pub fn denied(socket: &Path) -> Failure {
    let todo = "run it as root, or as the user that the agent runs as";
    Failure::new(format!("agent at {}", socket.display()), "this user may not connect to it", todo)
}

/// The path and query of the request.
fn target(state: Phase, older_than: Option<Duration>, depth: Depth) -> String {
    let mut target = format!("/v1/sockets?state={}&owners=once", state.name());
    if depth == Depth::Owners {
        target.push_str("&peers=no");
    }
    if let Some(bound) = older_than {
        // humantime puts spaces between units, which a query has to escape: one unit, none.
        match bound.subsec_nanos() {
            0 => target.push_str(&format!("&older_than={}s", bound.as_secs())),
            _ => target.push_str(&format!("&older_than={}ns", bound.as_nanos())),
        }
    }
    target
}

/// What came of a request, before its answer's body.
pub enum Sent {
    Answer {
        response: Response<Incoming>,
        /// The process that answers, in this PID namespace.
        agent: Option<i32>,
    },
    NoAgent,
    Denied,
}

/// Sends a request to the agent at `path`.
pub async fn send(path: &Path, method: Method, target: &str, body: Vec<u8>) -> Result<Sent, String> {
    let stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
                    Ok(Sent::NoAgent)
                }
                ErrorKind::PermissionDenied => Ok(Sent::Denied),
                // A full backlog: it is stopped, or hangs.
                ErrorKind::WouldBlock => Err("it takes no more calls: it may be stopped".to_owned()),
                _ => Err(error.to_string()),
            };
        }
    };
    let agent = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| said(&error))?;
    // Drives the connection; ends with it, or with the runtime. Its failure shows in the answer.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header(hyper::header::HOST, "tcpclose")
        .header(hyper::header::ACCEPT, ACCEPT_EITHER)
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| said(&error))?;
    Ok(Sent::Answer { response, agent })
}

async fn ask(path: &Path, method: Method, target: &str, body: Vec<u8>) -> Result<Said, String> {
    let (response, agent) = match send(path, method, target, body).await? {
        Sent::Answer { response, agent } => (response, agent),
        Sent::NoAgent => return Ok(Said::NoAgent),
        Sent::Denied => return Ok(Said::Denied),
    };
    let (status, headers) = (response.status(), response.headers().clone());
    let mut arriving = Limited::new(response.into_body(), LONGEST_ANSWER);
    let told = usize::try_from(arriving.size_hint().lower()).unwrap_or(0);
    let mut body = Vec::with_capacity(told.min(LONGEST_ANSWER));
    while let Some(frame) = arriving.frame().await {
        let frame = frame.map_err(|error| match error.downcast_ref::<hyper::Error>() {
            Some(error) => said(error),
            None => error.to_string(),
        })?;
        body.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
    }
    Ok(Said::Answer(Answer { status, headers, body, asked: target.to_owned(), agent }))
}

/// hyper's error in the words of someone who asked an agent.
pub fn said(error: &hyper::Error) -> String {
    let source = std::error::Error::source(error);
    let io = source.and_then(|source| source.downcast_ref::<io::Error>());
    // Cancelled for what came before our request was sent: a greeting, as of a mail server.
    let greeted = error.is_canceled()
        && source.and_then(|source| source.downcast_ref::<hyper::Error>()).is_some_and(|cause| {
            !cause.is_closed() && !cause.is_incomplete_message() && std::error::Error::source(cause).is_none()
        });
    if error.is_parse() || greeted {
        "what answers there does not speak HTTP: no tcpclose agent".to_owned()
    } else if error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || io.is_some_and(|io| {
            matches!(io.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof)
        })
    {
        "it hung up in the middle of its answer".to_owned()
    } else {
        match source {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    const DOCUMENT: &str =
        r#"{"schema":1,"host":"h","boot_id":"b","at":"t","source":"agent","incomplete":[],"sockets":[]}"#;

    /// Asks someone who reads the request, answers with `answer` and hangs up.
    fn ask_one_who_says(answer: Vec<u8>) -> (Result<Reply, Failure>, String) {
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
        let reply = sockets(&path, Phase::CloseWait, None, Depth::WithPeers);
        (reply, agent.join().unwrap())
    }

    fn http(headers: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
    }

    #[test]
    fn an_answer_comes_with_the_agents_bound() {
        let (reply, request) = ask_one_who_says(http("tcpclose-stuck-after: 1m 30s\r\n", DOCUMENT));
        let Ok(Reply::Answer { document, stuck_after }) = reply else { panic!("{reply:?}") };
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
            (cut[..cut.len() - 10].to_vec(), "hung up in the middle"),
            (cut[..20].to_vec(), "hung up in the middle"),
            (Vec::new(), "hung up in the middle"),
            (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "does not speak HTTP"),
            (vec![0xff; 5000], "does not speak HTTP"),
            (http("", "\x00\x01garbage"), "no document of tcpclose"),
            (http("", "{}"), "no document of tcpclose"),
            (http("", r#"{"schema":1}"#), "no document of tcpclose"),
            (http("", r#"{"schema":2,"x":1}"#), "speaks schema 2"),
            (http("", DOCUMENT), "lacks the header"),
            (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(), "does not know /v1/sockets"),
            (b"HTTP/1.1 500 No\r\ncontent-length: 8\r\n\r\na\x1b[2J\nb\n".to_vec(), "it answered 500"),
        ];
        for (answer, expected) in cases {
            let (reply, _) = ask_one_who_says(answer.clone());
            let line = reply.unwrap_err().to_string();
            assert!(line.contains(expected) && !line.contains(char::is_control), "{expected}: {line}");
            assert!(line.starts_with("tcpclose: agent at /") && line.ends_with(WITHOUT), "{line}");
        }
    }

    #[test]
    fn nobody_there_is_no_failure_and_silence_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let silent = UnixListener::bind(&path).unwrap();
        let line = sockets_within(Duration::from_millis(50), &path, "/v1/sockets", None).unwrap_err();
        assert!(line.to_string().contains("no answer within 50ms"), "{line}");
        drop(silent);
        std::fs::remove_file(&path).unwrap();
        let ask = || sockets(&path, Phase::CloseWait, None, Depth::WithPeers);
        assert!(matches!(ask(), Ok(Reply::NoAgent)));
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(ask(), Ok(Reply::NoAgent)));
    }
}
