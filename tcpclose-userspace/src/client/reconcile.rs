//! Has the agent compare itself with the kernel and waits for that, for a command that needs fresh numbers.

use std::thread::sleep;
use std::time::{Duration, Instant};

use hyper::StatusCode;

use crate::client::Client;
use crate::client::reply::{AgentAnswer, Reply};
use crate::failure::Failure;
use crate::report::reconcile::{ReconcileProgress, SCHEMA};
use crate::report::requests::RECONCILE_PATH;
use tcpclose_common::progress;

/// More than the longest pause and a round through a thousand network namespaces.
const PATIENCE: Duration = Duration::from_secs(90);
const BETWEEN: Duration = Duration::from_millis(50);

/// Returns when a reconcile that begins now is over, and shows its progress on a terminal. `false`: the agent is of a
/// version without reconciles on request.
pub fn reconcile(client: &Client) -> Result<bool, Failure> {
    let begun = Instant::now();
    let Some(accepted) = progress_in(client, client.post(RECONCILE_PATH, Vec::new())?)? else {
        return Ok(false);
    };
    let done = wait(client, begun, accepted.now_ns);
    progress::clear();
    done.map(|()| true)
}

fn wait(client: &Client, begun: Instant, since_ns: u64) -> Result<(), Failure> {
    loop {
        sleep(BETWEEN);
        let Some(now) = progress_in(client, client.get(RECONCILE_PATH)?)? else {
            return Err(client.failure("another agent has taken its place".to_owned()));
        };
        if now.is_done(since_ns) {
            return Ok(());
        }
        let waited = begun.elapsed();
        if waited >= PATIENCE {
            let why = format!("no reconcile within {}s: {}", PATIENCE.as_secs(), now.words());
            let todo = "look for failed dumps in its log (--log-level info)";
            return Err(Failure::new("verify", why, todo));
        }
        if waited >= progress::WORTH {
            progress::show(&format!("{}: {}s", now.words(), waited.as_secs()));
        }
    }
}

/// `None` from an agent without reconciles on request.
fn progress_in(client: &Client, reply: Reply<AgentAnswer>) -> Result<Option<ReconcileProgress>, Failure> {
    let Reply::Answer(answer) = reply else { return Err(client.gone()) };
    if answer.status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let progress = answer.expect_ok().and_then(|answer| answer.document(SCHEMA));
    progress.map(Some).map_err(|why| client.failure(why))
}
