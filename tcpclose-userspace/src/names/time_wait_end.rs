//! The ends of a TIME-WAIT.

word! {
    /// How a TIME-WAIT ended.
    pub enum TimeWaitEnd {
        /// Its timer ran out.
        Expired = "expired",
        /// connect() took its pair of addresses and ports.
        Reused = "reused",
        /// A SYN from the peer began a new connection.
        Recycled = "recycled",
        /// The peer's RST.
        Reset = "reset",
        /// SOCK_DESTROY.
        Destroyed = "destroyed",
        /// Its network namespace went.
        Purged = "purged",
        /// Before its timer, and the backend cannot tell the cause.
        Early = "early",
        /// No dump has seen it: not even whether it ended early is known.
        Unknown = "unknown",
    }
}
