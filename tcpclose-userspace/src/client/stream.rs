//! Reads the agent's stream of lines.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, StatusCode};

use crate::client;
use crate::client::{Client, Sent};
use crate::failure::Failure;
use crate::report::api::{WATCH as PATH, WATCH_IDLE};
use crate::report::watch::filter::WatchFilter;
use crate::report::watch::line::Item;

/// No line is as long: what sends more without an end is no agent.
const LONGEST_LINE: usize = 1 << 20;

/// What came of asking for a stream.
pub enum Followed {
    /// It was read for as long as it was wanted.
    Done,
    /// Nobody listens at the path.
    NoAgent,
    /// The path exists, and this user may not connect to it.
    Denied,
}

/// Asks the agent at `path` for the lines that `filter` lets through, and hands them to `each`, with the text they came
/// as, until that has enough; `None` when nothing has come for a while. `ready`: once the agent has agreed.
pub fn follow(
    path: &Path,
    filter: &WatchFilter,
    ready: impl FnOnce(),
    mut each: impl FnMut(Option<Vec<(Item, String)>>) -> Result<ControlFlow<()>, Failure>,
) -> Result<Followed, Failure> {
    let client = Client::new(path, client::PATIENCE)?;
    let failure = |why: String| {
        let mut failure = client.failure(why);
        "start it again, or add --no-agent".clone_into(&mut failure.todo);
        failure
    };
    let target = format!("{PATH}?{}", filter.query());
    client.block_on(async {
        let asked =
            tokio::time::timeout(client::PATIENCE, client::send(path, Method::GET, &target, Vec::new()));
        let asked = asked.await.unwrap_or_else(|_| Err("no answer".to_owned())).map_err(failure)?;
        let mut body = match asked {
            Sent::Answer { response, .. } if response.status() == StatusCode::OK => response.into_body(),
            Sent::Answer { response, .. } => return Err(failure(refusal(response).await)),
            Sent::NoAgent => return Ok(Followed::NoAgent),
            Sent::Denied => return Ok(Followed::Denied),
        };
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
                return Ok(Followed::Done);
            }
        }
    })
}

/// What comes next; `None` when nothing has come for a while.
async fn next(body: &mut Incoming) -> Result<Option<Bytes>, String> {
    let frame = match tokio::time::timeout(WATCH_IDLE, body.frame()).await {
        Err(_) => return Ok(None),
        Ok(Some(Ok(frame))) => frame,
        // It is to go on until the reader has enough.
        Ok(None) => return Err("it ended its stream".to_owned()),
        Ok(Some(Err(error))) => return Err(client::said(&error).replace("its answer", "its stream")),
    };
    Ok(Some(frame.into_data().unwrap_or_default()))
}

/// Why there is no stream.
async fn refusal(response: hyper::Response<Incoming>) -> String {
    /// Longer than any of ours.
    const PATIENCE: Duration = Duration::from_secs(1);
    let status = response.status();
    if status == StatusCode::NOT_FOUND {
        return format!("it does not know {PATH}: no tcpclose agent, or another version");
    }
    let frame = tokio::time::timeout(PATIENCE, response.into_body().frame()).await;
    let bytes = frame.ok().flatten().and_then(Result::ok).and_then(|frame| frame.into_data().ok());
    let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    let line: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
    format!("it answered {status}: {line}")
}

/// Takes the whole lines out of `bytes`.
fn take_lines(bytes: &mut Vec<u8>) -> Result<Vec<(Item, String)>, String> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if bytes.len() - whole > LONGEST_LINE {
        return Err("its stream has no lines: no tcpclose agent".to_owned());
    }
    let text = String::from_utf8_lossy(&bytes[..whole]).into_owned();
    bytes.drain(..whole);
    let parse = |line: &str| match serde_json::from_str(line) {
        Ok(item) => Ok((item, line.to_owned())),
        Err(error) => Err(format!("its stream is none that this version reads ({error})")),
    };
    text.lines().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::watch::line::Lost;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
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
