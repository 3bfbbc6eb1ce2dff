//! HTTP/1.1 over the agent's Unix socket.

use std::io::{self, ErrorKind};
use std::path::Path;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::client::reply::{AgentAnswer, Reply};
use crate::report::encoding::ACCEPT_EITHER;

/// More than the answer about a million sockets.
const LONGEST_ANSWER: usize = 1 << 30;

/// A response whose body has not been read yet.
#[derive(Debug)]
pub struct OpenResponse {
    pub response: Response<Incoming>,
    /// The process that answers, in this PID namespace.
    pub agent_pid: Option<i32>,
}

/// Sends a request to the agent at `path`.
pub async fn send(
    path: &Path,
    method: Method,
    target: &str,
    body: Vec<u8>,
) -> Result<Reply<OpenResponse>, String> {
    let stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
                    Ok(Reply::NoAgent)
                }
                ErrorKind::PermissionDenied => Ok(Reply::Denied),
                // The backlog is full.
                ErrorKind::WouldBlock => {
                    Err("it does not accept connections: the process may be suspended (state T in ps)"
                        .to_owned())
                }
                _ => Err(error.to_string()),
            };
        }
    };
    let agent_pid = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| in_words(&error, "its answer"))?;
    // Drives the connection until it closes or the runtime ends. A failure shows in the answer.
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
    let response = sender.send_request(request).await.map_err(|error| in_words(&error, "its answer"))?;
    Ok(Reply::Answer(OpenResponse { response, agent_pid }))
}

/// Sends a request to the agent at `path` and reads the whole answer.
pub async fn exchange(
    path: &Path,
    method: Method,
    target: &str,
    body: Vec<u8>,
) -> Result<Reply<AgentAnswer>, String> {
    let OpenResponse { response, agent_pid } = match send(path, method, target, body).await? {
        Reply::Answer(open) => open,
        Reply::NoAgent => return Ok(Reply::NoAgent),
        Reply::Denied => return Ok(Reply::Denied),
    };
    let (status, headers) = (response.status(), response.headers().clone());
    let mut incoming = Limited::new(response.into_body(), LONGEST_ANSWER);
    let expected = usize::try_from(incoming.size_hint().lower()).unwrap_or(0);
    let mut body = Vec::with_capacity(expected.min(LONGEST_ANSWER));
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| match error.downcast_ref::<hyper::Error>() {
            Some(error) => in_words(error, "its answer"),
            None => error.to_string(),
        })?;
        body.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
    }
    Ok(Reply::Answer(AgentAnswer { status, headers, body, target: target.to_owned(), agent_pid }))
}

/// hyper's error as the command line reports it; `part` is what was being read.
pub fn in_words(error: &hyper::Error, part: &str) -> String {
    let source = std::error::Error::source(error);
    let io = source.and_then(|source| source.downcast_ref::<io::Error>());
    // Cancelled by bytes that came before the request was sent: a greeting, as of a mail server.
    let greeted = error.is_canceled()
        && source.and_then(|source| source.downcast_ref::<hyper::Error>()).is_some_and(|cause| {
            !cause.is_closed() && !cause.is_incomplete_message() && std::error::Error::source(cause).is_none()
        });
    if error.is_parse() || greeted {
        "it does not speak HTTP: not a tcpclose agent".to_owned()
    } else if error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || io.is_some_and(|io| {
            matches!(io.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof)
        })
    {
        format!("it closed the connection in the middle of {part}")
    } else {
        match source {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    }
}
