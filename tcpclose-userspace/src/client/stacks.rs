//! Has the agent take the stacks of a process for a while.

use std::thread::sleep;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use tcpclose_common::progress;

use crate::client::fetch::AgentAddress;
use crate::client::{Client, PATIENCE};
use crate::failure::Failure;
use crate::report::requests::{STACKS_NAMED, STACKS_PATH};

/// Returns when the agent has taken the stacks of `pid` for `time`, and shows progress on a terminal.
/// `accept`: those of accept(), too.
pub fn take(address: &AgentAddress, pid: u32, time: Duration, accept: bool) -> Result<(), Failure> {
    if address.no_agent {
        return Err(Failure::new("--for", "only a running agent takes stacks", "leave out --no-agent"));
    }
    let client = Client::new(&address.socket, PATIENCE)?;
    let target =
        format!("{STACKS_PATH}?pid={pid}&for={}ms&accept={accept}", (time + STACKS_NAMED).as_millis());
    let answer = client.post(&target, Vec::new())?.required(&address.socket)?;
    if answer.status != StatusCode::OK {
        let why = String::from_utf8_lossy(&answer.body).trim().to_owned();
        let (why, todo) = match answer.status {
            StatusCode::NOT_FOUND => {
                ("this agent takes no stacks".to_owned(), "restart it with this version")
            }
            StatusCode::BAD_REQUEST => (why, "see tcpclose stuck --help"),
            StatusCode::FORBIDDEN => (why, "run it as root, or leave out --accept"),
            _ => (why, "see `tcpclose doctor` and the agent's --stacks"),
        };
        return Err(Failure::new(format!("stacks of process {pid}"), why, todo));
    }
    let begun = Instant::now();
    while let Some(left) = (time + STACKS_NAMED).checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
        progress::show(&format!("taking stacks of process {pid}: {}s left", left.as_secs()));
        sleep(left.min(Duration::from_secs(1)));
    }
    progress::clear();
    Ok(())
}
