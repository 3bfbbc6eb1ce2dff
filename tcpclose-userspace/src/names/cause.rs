//! The cause of a long stay in another state than CLOSE-WAIT.

word! {
    /// Why a socket is still in FIN-WAIT-1, FIN-WAIT-2, CLOSING or LAST-ACK.
    pub enum Cause {
        /// FIN-WAIT-2: its local peer is in CLOSE-WAIT, and has not closed.
        PeerNotClosing = "peer_not_closing",
        /// FIN-WAIT-2: a process holds it after shutdown(), and its peer, which is not on this host, has not closed.
        HeldOpen = "held_open",
        /// FIN-WAIT-2: no process holds it; a timer ends it.
        Orphaned = "orphaned",
        /// The peer takes no data: its window is closed.
        PeerNotReading = "peer_not_reading",
        /// What was sent, the FIN or data before it, has been sent again three times or more without an acknowledgment.
        PeerGone = "peer_gone",
        /// The same, once or twice.
        SentAgain = "sent_again",
        Unknown = "unknown",
    }
    newer => Unknown;
}
