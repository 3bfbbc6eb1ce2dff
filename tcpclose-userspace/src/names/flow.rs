//! The two ends of a connection.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use tcpclose_common::event::Words;

/// The two ends of a connection as seen from this socket. Addresses are kept as IPv6, IPv4 as v4-mapped, so that
/// the children of a dual-stack listener and plain IPv4 sockets look the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    pub local: Ipv6Addr,
    pub remote: Ipv6Addr,
    pub local_port: u16,
    pub remote_port: u16,
}

impl Flow {
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        let v6 = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self {
            local: v6(local.ip()),
            remote: v6(remote.ip()),
            local_port: local.port(),
            remote_port: remote.port(),
        }
    }

    /// A flow with known ports and [`Self::hash64`] (0 if unknown) only: the steps of the classic tracepoint carry no more,
    /// and the record with the addresses may be lost. No connected socket has the local address `::`, so the remote one
    /// can hold the hash.
    pub fn of_hash(hash: u64, local_port: u16, remote_port: u16) -> Self {
        let remote = Ipv6Addr::from_bits(u128::from(hash));
        Self { local: Ipv6Addr::UNSPECIFIED, remote, local_port, remote_port }
    }

    pub const fn has_addresses(&self) -> bool {
        !self.local.is_unspecified()
    }

    /// The local end for display: `10.0.0.5:8080`, `[::1]:8080`; v4-mapped as IPv4; `[::]` when unknown.
    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(self.local.to_canonical(), self.local_port)
    }

    /// The remote end for display; `[::]` when unknown.
    pub fn remote(&self) -> SocketAddr {
        let remote = if self.has_addresses() { self.remote } else { Ipv6Addr::UNSPECIFIED };
        SocketAddr::new(remote.to_canonical(), self.remote_port)
    }

    /// Both ends are IPv4 addresses.
    pub fn is_v4(&self) -> bool {
        self.local.to_ipv4_mapped().is_some() && self.remote.to_ipv4_mapped().is_some()
    }

    /// The probe's hash of this flow, see [`tcpclose_common::event::flow_hash`]; 0 when unknown.
    pub fn hash64(&self) -> u64 {
        if !self.has_addresses() {
            return self.remote.to_bits() as u64;
        }
        tcpclose_common::event::flow_hash(
            &words_of(self.local),
            &words_of(self.remote),
            self.local_port,
            self.remote_port,
        )
    }
}

/// An address in the form of the probe.
pub fn words_of(address: Ipv6Addr) -> Words {
    let bytes = address.octets();
    std::array::from_fn(|i| {
        u32::from_ne_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
    })
}

/// An address from the form of the probe.
pub fn address_of(words: Words) -> Ipv6Addr {
    let mut bytes = [0; 16];
    for (four, word) in bytes.chunks_exact_mut(4).zip(words) {
        four.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(bytes)
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}→{}", self.local(), self.remote())
    }
}
