//! `GET /readyz`: whether the numbers are complete and recent.

use hyper::StatusCode;

use crate::agent::server::response::{Answer, not_ready, plain};
use crate::agent::tracking::Tracking;
use crate::linux::host;
use crate::report::requests::{INCOMPLETE_PREFIX, STALE_PREFIX};

pub fn answer(tracking: &Tracking) -> Answer {
    if !tracking.ready {
        return not_ready();
    }
    let now_ns = host::monotonic_ns();
    let stale = || tracking.staleness(now_ns).map(|why| format!("{STALE_PREFIX}{why}\n"));
    match tracking.silence().map(|why| format!("{INCOMPLETE_PREFIX}{why}\n")).or_else(stale) {
        Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
        None => plain(StatusCode::OK, "ready\n"),
    }
}
