//! `POST /v1/reconcile`: a user asks for a comparison with the kernel now; `GET` tells how far it is.

use crate::linux::host;
use crate::report::reconcile::{ReconcileProgress, SCHEMA};
use crate::report::sockets::seconds;

use crate::agent::tracking::Tracking;

/// Where the command line asks, on the unix socket alone.
pub const PATH: &str = "/v1/reconcile";

/// Has the dumps begin one.
pub fn ask(engine: &mut Tracking) -> ReconcileProgress {
    engine.asked_ns = host::monotonic_ns();
    engine.asked.notify_one();
    progress(engine)
}

pub fn progress(engine: &Tracking) -> ReconcileProgress {
    let now_ns = host::monotonic_ns();
    ReconcileProgress {
        schema: SCHEMA,
        now_ns,
        done_ns: engine.dumps.round_ns,
        under_way: engine.namespaces.is_under_way(),
        namespaces_left: engine.namespaces.left(),
        age_seconds: seconds(engine.ages(now_ns).oldest_ns()),
    }
}
