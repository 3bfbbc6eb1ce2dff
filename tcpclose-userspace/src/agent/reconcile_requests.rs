//! A user's request for a reconcile, from the handler that takes it to the loop that makes it.

use std::cell::Cell;

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub struct ReconcileRequests {
    /// CLOCK_MONOTONIC of the last request; 0 for none.
    requested_ns: Cell<u64>,
    arrived: Notify,
}

impl ReconcileRequests {
    /// Requests a reconcile that begins at `now_ns` or later.
    pub fn request(&self, now_ns: u64) {
        self.requested_ns.set(now_ns);
        self.arrived.notify_one();
    }

    /// Whether a request is newer than the last complete reconcile, which began at `round_ns`.
    pub fn is_pending(&self, round_ns: u64) -> bool {
        self.requested_ns.get() > round_ns
    }

    pub fn requested_ns(&self) -> u64 {
        self.requested_ns.get()
    }

    /// Drops the request. The client gives up by its own deadline.
    pub fn drop_pending(&self) {
        self.requested_ns.set(0);
    }

    /// Returns when a request arrives.
    pub async fn arrives(&self) {
        self.arrived.notified().await;
    }
}
