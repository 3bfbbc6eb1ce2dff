//! The source of a transition.

word! {
    /// Where a transition was seen.
    pub enum TransitionSource {
        /// `inet_sock_set_state`.
        Tracepoint = "tracepoint",
        /// A hook on the minisocket's functions.
        Hooks = "hooks",
        /// A dump.
        Diag = "diag",
    }
}
