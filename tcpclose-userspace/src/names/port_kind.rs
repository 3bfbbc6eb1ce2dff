//! How surely a port is a service's.

/// How surely the port of a pair is a service's. Of several connections of a pair the surest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortKind {
    /// The side is known, and the port lies outside `ip_local_port_range` of the connection's network namespace.
    Service,
    /// The side is unknown, where records could prove it.
    Unproven,
    /// The port lies inside the range: most such ports are the random ones of clients.
    Chance,
}
