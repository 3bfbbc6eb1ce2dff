//! What a group of stuck sockets is.

word! {
    /// What the stuck sockets of a program are, by how they developed.
    pub enum Verdict {
        /// They grow in number, and the program neither closes nor uses them.
        Leak = "leak",
        /// A client keeps connections for later that the server has closed meanwhile.
        StalePool = "stale_pool",
        /// Data waits for the program, and it reads on.
        SlowReader = "slow_reader",
        /// The program accepts none, or reads from none.
        Hung = "hung",
        /// A proxy has passed the peer's FIN on, and waits for the other end.
        ProxyHalfClose = "proxy_half_close",
        /// They do not grow in number.
        OneOff = "one_off",
        /// Too little has been seen.
        Undecided = "undecided",
    }
    newer => Undecided;
}
