//! `POST /v1/reconcile`: a user asks for a comparison with the kernel now; `GET` tells its progress.

use hyper::Method;

use crate::agent::reconcile_requests::ReconcileRequests;
use crate::agent::server::response::{Answer, json, not_ready};
use crate::agent::tracking::Tracking;
use crate::linux::host;
use crate::report::reconcile::{ReconcileProgress, SCHEMA};
use crate::report::sockets::seconds;

pub fn answer(method: &Method, tracking: &Tracking, requests: &ReconcileRequests) -> Answer {
    if !tracking.ready {
        return not_ready();
    }
    if *method == Method::POST {
        requests.request(host::monotonic_ns());
    }
    json(&progress(tracking))
}

fn progress(tracking: &Tracking) -> ReconcileProgress {
    let now_ns = host::monotonic_ns();
    ReconcileProgress {
        schema: SCHEMA,
        now_ns,
        done_ns: tracking.dumps.round_ns,
        under_way: tracking.namespaces.is_in_round(),
        namespaces_left: tracking.namespaces.left(),
        age_seconds: seconds(tracking.ages(now_ns).oldest_ns()),
    }
}
