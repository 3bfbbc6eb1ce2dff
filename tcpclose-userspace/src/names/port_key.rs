//! The key of every aggregate.

use crate::names::side::Side;

/// A side and its service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    pub side: Side,
    /// The service port: local on the server side, remote on the client side.
    pub port: u16,
}
