//! The cause of a stuck CLOSE-WAIT.

word! {
    /// Why a socket is still in CLOSE-WAIT: what the program has not done.
    pub enum Diagnosis {
        /// It waits in the listener's queue: the culprit is the listener's owner.
        NotAccepted = "not_accepted",
        /// The program wrote to it within the stuck bound: a half-close at work, not stuck.
        StillSending = "still_sending",
        /// Data and the EOF, or the EOF alone, wait for the program.
        NotRead = "not_read",
        /// The program has taken everything and never closed.
        NotClosed = "not_closed",
        /// No dump has seen the socket; or it is an MPTCP socket with no data to read, which does not tell whether the end was read.
        Unknown = "unknown",
    }
    newer => Unknown;
}
