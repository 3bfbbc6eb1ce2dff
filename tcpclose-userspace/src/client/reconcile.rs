//! Has the agent compare itself with the kernel, and waits for that, on behalf of a command that needs fresh numbers.

use std::thread::sleep;
use std::time::{Duration, Instant};

use hyper::StatusCode;

use crate::client::{Answer, Client, Said};
use crate::failure::Failure;
use crate::report::api::RECONCILE as PATH;
use crate::report::reconcile::{ReconcileProgress, SCHEMA};
use crate::ui::progress;

/// More than the longest pause and a round through a thousand network namespaces.
const PATIENCE: Duration = Duration::from_secs(90);
const BETWEEN: Duration = Duration::from_millis(50);

/// Returns when a reconcile that begins now is over; says on a terminal what it waits for. `false`: the agent is of a version
/// that cannot be asked for one.
pub fn reconcile(client: &Client) -> Result<bool, Failure> {
    let begun = Instant::now();
    let Some(asked) = told(client, client.post(PATH, Vec::new())?)? else { return Ok(false) };
    let done = wait(client, begun, asked.now_ns);
    progress::clear();
    done.map(|()| true)
}

fn wait(client: &Client, begun: Instant, since_ns: u64) -> Result<(), Failure> {
    loop {
        sleep(BETWEEN);
        let Some(now) = told(client, client.get(PATH)?)? else {
            return Err(client.failure("it is another one by now".to_owned()));
        };
        if now.is_done(since_ns) {
            return Ok(());
        }
        let waited = begun.elapsed();
        if waited >= PATIENCE {
            let why = format!("no reconcile within {} s: {}", PATIENCE.as_secs(), now.words());
            let todo = "look in its log for dumps that fail (--log-level info)";
            return Err(Failure::new("verify", why, todo));
        }
        if waited >= progress::WORTH {
            progress::show(&format!("{}: {} s", now.words(), waited.as_secs()));
        }
    }
}

/// `None` from an agent that does not know the question.
fn told(client: &Client, said: Said) -> Result<Option<ReconcileProgress>, Failure> {
    let Said::Answer(answer) = said else { return Err(client.failure("it has gone".to_owned())) };
    if answer.status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let read = answer.expect_ok().and_then(|answer: Answer| answer.document(SCHEMA));
    read.map(Some).map_err(|why| client.failure(why))
}
