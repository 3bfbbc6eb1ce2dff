//! Reads the agent's stream of lines.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, StatusCode};

use crate::client::http::{in_words, send};
use crate::client::reply::{Alone, Reply, first_line, unknown_path};
use crate::client::{Client, PATIENCE};
use crate::failure::Failure;
use crate::report::requests::{WATCH_IDLE, WATCH_PATH};
use crate::report::watch::filter::WatchFilter;
use crate::report::watch::line::Item;

/// No agent sends a longer line.
const LONGEST_LINE: usize = 1 << 20;

/// Asks the agent at `path` for the lines that `filter` lets through, and hands each with its text to `each` until that
/// breaks; `None` after [`WATCH_IDLE`] without a line. `ready` runs once the agent has agreed.
pub fn follow(
    path: &Path,
    filter: &WatchFilter,
    ready: impl FnOnce(),
    mut each: impl FnMut(Option<Vec<(Item, String)>>) -> Result<ControlFlow<()>, Failure>,
) -> Result<Reply<()>, Failure> {
    let client = Client::for_command(path, PATIENCE, Alone::Attach)?;
    let failure = |why: String| client.failure(why);
    let target = format!("{WATCH_PATH}?{}", filter.query());
    client.block_on(async {
        let request = tokio::time::timeout(PATIENCE, send(path, Method::GET, &target, Vec::new()));
        let reply = request.await.unwrap_or_else(|_| Err("no answer".to_owned())).map_err(failure)?;
        let response = match reply {
            Reply::Answer(open) => open.response,
            Reply::NoAgent => return Ok(Reply::NoAgent),
            Reply::Denied => return Ok(Reply::Denied),
        };
        if response.status() != StatusCode::OK {
            return Err(failure(refusal(response).await));
        }
        let mut body = response.into_body();
        ready();
        let mut rest = Vec::new();
        loop {
            let lines = match next(&mut body).await.map_err(failure)? {
                Some(bytes) => {
                    rest.extend_from_slice(&bytes);
                    Some(take_lines(&mut rest).map_err(failure)?)
                }
                None => None,
            };
            if each(lines)?.is_break() {
                return Ok(Reply::Answer(()));
            }
        }
    })
}

/// The next bytes of the stream; `None` after [`WATCH_IDLE`] without any.
async fn next(body: &mut Incoming) -> Result<Option<Bytes>, String> {
    let frame = match tokio::time::timeout(WATCH_IDLE, body.frame()).await {
        Err(_) => return Ok(None),
        Ok(Some(Ok(frame))) => frame,
        // The reader ends it, not the agent.
        Ok(None) => return Err("it ended its stream".to_owned()),
        Ok(Some(Err(error))) => return Err(in_words(&error, "its stream")),
    };
    Ok(Some(frame.into_data().unwrap_or_default()))
}

/// Why there is no stream.
async fn refusal(response: hyper::Response<Incoming>) -> String {
    /// Longer than any agent takes.
    const PATIENCE: Duration = Duration::from_secs(1);
    let status = response.status();
    if status == StatusCode::NOT_FOUND {
        return unknown_path(WATCH_PATH);
    }
    let frame = tokio::time::timeout(PATIENCE, response.into_body().frame()).await;
    let bytes = frame.ok().flatten().and_then(Result::ok).and_then(|frame| frame.into_data().ok());
    format!("it answered {status}: {}", first_line(&bytes.unwrap_or_default()))
}

/// Takes the whole lines out of `bytes`.
fn take_lines(bytes: &mut Vec<u8>) -> Result<Vec<(Item, String)>, String> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if bytes.len() - whole > LONGEST_LINE {
        return Err("its stream has no lines: not a tcpclose agent".to_owned());
    }
    let text = String::from_utf8_lossy(&bytes[..whole]).into_owned();
    bytes.drain(..whole);
    let parse = |line: &str| match serde_json::from_str(line) {
        Ok(item) => Ok((item, line.to_owned())),
        Err(error) => Err(format!("this version cannot read its stream ({error})")),
    };
    text.lines().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::watch::line::Lost;

    #[test]
    fn a_line_is_taken_whole_however_the_bytes_arrive() {
        let mut bytes = b"{\"lost\":1}\n{\"lost".to_vec();
        let lost = |lost| Item::Lost(Lost { lost, in_kernel: false });
        assert_eq!(take_lines(&mut bytes), Ok(vec![(lost(1), r#"{"lost":1}"#.to_owned())]));
        assert_eq!(take_lines(&mut bytes), Ok(vec![]));
        bytes.extend_from_slice(b"\":2}\n");
        assert_eq!(take_lines(&mut bytes), Ok(vec![(lost(2), r#"{"lost":2}"#.to_owned())]));
        assert!(bytes.is_empty());
        assert!(take_lines(&mut b"banana\n".to_vec()).is_err());
        assert!(take_lines(&mut vec![b'x'; LONGEST_LINE + 1]).is_err());
    }
}
