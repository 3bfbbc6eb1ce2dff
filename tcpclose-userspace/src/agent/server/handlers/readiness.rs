//! `GET /readyz`: whether the numbers are complete and recent.

use hyper::StatusCode;

use crate::agent::server::response::{Answer, not_ready, plain};
use crate::agent::tracking::Tracking;
use crate::linux::host;
use crate::report::requests::STALE_PREFIX;

pub fn answer(tracking: &Tracking) -> Answer {
    if !tracking.ready {
        return not_ready();
    }
    match tracking.staleness(host::monotonic_ns()) {
        Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{STALE_PREFIX}{why}\n")),
        None => plain(StatusCode::OK, "ready\n"),
    }
}
