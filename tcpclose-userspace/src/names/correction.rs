//! The differences between the tracker and the kernel.

word! {
    /// What a reconciliation corrected.
    pub enum Correction {
        /// The kernel has a socket that was not tracked.
        Missing = "missing",
        /// A tracked socket is no longer in the kernel.
        Vanished = "vanished",
        /// A tracked socket is in another state.
        State = "state",
    }
}
