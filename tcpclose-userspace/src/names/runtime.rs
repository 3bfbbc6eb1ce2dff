//! The runtime of a process.

word! {
    /// What executes a process's program, and so which tool shows its threads.
    pub enum Runtime {
        Jvm = "jvm",
        Python = "python",
        Go = "go",
        Node = "node",
        /// Machine code, or none of the above.
        Native = "native",
    }
}
