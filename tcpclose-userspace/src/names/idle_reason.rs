//! Why `tcpclose idle` lists a connection.

word! {
    /// What nobody would notice of an ESTABLISHED connection.
    pub enum IdleReason {
        /// It is silent, and no timer looks after it: a peer that vanishes is not noticed.
        Idle = "idle",
        /// Data has waited for the program, and no more has come.
        NotRead = "not_read",
        /// What was sent is not acknowledged, three timeouts in a row or more.
        PeerGone = "peer_gone",
        Unknown = "unknown",
    }
    newer => Unknown;
}
