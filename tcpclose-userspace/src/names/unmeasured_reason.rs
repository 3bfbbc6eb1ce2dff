//! The reasons for a phase without a duration.

word! {
    /// Why a phase makes no duration sample.
    pub enum UnmeasuredReason {
        /// The socket entered it before the agent looked, and the entry is known no better than 5 %.
        BeforeAgent = "before_agent",
        /// Records were lost: its entry or its end was not seen.
        Lost = "lost",
        /// It came and went between two dumps.
        BetweenDumps = "between_dumps",
        /// Its minisocket is in a network namespace that is not dumped.
        Namespace = "namespace",
    }
}
