//! The ends of a connection's close.

word! {
    /// How a connection ended.
    pub enum Outcome {
        /// Both FINs were sent and acknowledged.
        Graceful = "graceful",
        /// The peer's RST ended it.
        ResetReceived = "reset_received",
        /// The kernel answered the peer with a RST, as to data after close.
        ResetSent = "reset_sent",
        /// The local program ended it without a FIN: linger 0, close with unread data, disconnect.
        Aborted = "aborted",
        /// Retries, keepalive or the user timeout ran out, or FIN-WAIT-2 expired.
        Timeout = "timeout",
        /// SOCK_DESTROY.
        Destroyed = "destroyed",
        /// The backend in use cannot tell.
        Unknown = "unknown",
    }
    newer => Unknown;
}
