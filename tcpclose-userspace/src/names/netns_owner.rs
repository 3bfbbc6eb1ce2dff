//! The owners of network namespaces.

word! {
    /// To whom a network namespace belongs, as far as its limits are concerned: what an ordinary user does in a namespace of
    /// their own must not look like the host's trouble.
    pub enum NetnsOwner {
        /// That of PID 1, as this /proc shows it.
        Host = "host",
        /// Another one that root made: of a container, a pod (with a user namespace too), `ip netns`.
        Container = "container",
        /// One in a user namespace that another user made: `unshare --user --net`, a rootless container.
        User = "user",
    }
}
