//! The words of the field, one type a word: phase, side, role, outcome, flow, age, diagnosis.

pub(crate) mod words;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use tcpclose_common::event::Words;
use tcpclose_common::state::TcpState;

/// A state of the close phase that a connection can dwell in. TIME-WAIT and the later part of FIN-WAIT-2 belong to
/// a minisocket, not to the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    FinWait1,
    FinWait2,
    Closing,
    TimeWait,
    CloseWait,
    LastAck,
}

impl Phase {
    /// Every phase, the side that closes first before the other.
    pub const ALL: [Self; 6] =
        [Self::FinWait1, Self::FinWait2, Self::Closing, Self::TimeWait, Self::CloseWait, Self::LastAck];

    /// The phase that a socket in `state` is in; `None` outside the close phase.
    pub const fn of(state: TcpState) -> Option<Self> {
        Some(match state {
            TcpState::FinWait1 => Self::FinWait1,
            TcpState::FinWait2 => Self::FinWait2,
            TcpState::Closing => Self::Closing,
            TcpState::TimeWait => Self::TimeWait,
            TcpState::CloseWait => Self::CloseWait,
            TcpState::LastAck => Self::LastAck,
            _ => return None,
        })
    }

    pub const fn state(self) -> TcpState {
        match self {
            Self::FinWait1 => TcpState::FinWait1,
            Self::FinWait2 => TcpState::FinWait2,
            Self::Closing => TcpState::Closing,
            Self::TimeWait => TcpState::TimeWait,
            Self::CloseWait => TcpState::CloseWait,
            Self::LastAck => TcpState::LastAck,
        }
    }

    /// The name in metric labels and JSON.
    pub const fn name(self) -> &'static str {
        self.state().name()
    }
}

/// Which end of the connection this socket is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Accepted here.
    Server,
    /// Opened here.
    Client,
    /// Neither is proven.
    #[default]
    Unknown,
}

impl Side {
    pub const ALL: [Self; 3] = [Self::Server, Self::Client, Self::Unknown];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Unknown => "unknown",
        }
    }

    /// The service port of a connection with these ports, on a host whose connecting ends use `ephemeral`
    /// (`ip_local_port_range`): the local one on the server side, the remote one on the client side.
    pub fn service_port(self, local: u16, remote: u16, ephemeral: &RangeInclusive<u16>) -> u16 {
        match self {
            Self::Server => local,
            Self::Client => remote,
            Self::Unknown if ephemeral.contains(&local) => remote,
            Self::Unknown => local,
        }
    }
}

/// Who sent the first FIN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// This side did.
    Active,
    /// The peer did.
    Passive,
    /// Both did, before either FIN arrived.
    Simultaneous,
    /// Nobody, before the end.
    None,
    /// The first FIN was before the agent, and the state does not prove whose it was.
    #[default]
    Unknown,
}

impl Role {
    pub const ALL: [Self; 5] = [Self::Active, Self::Passive, Self::Simultaneous, Self::None, Self::Unknown];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Passive => "passive",
            Self::Simultaneous => "simultaneous",
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Both FINs were sent and acknowledged.
    Graceful,
    /// The peer's RST ended it.
    ResetReceived,
    /// The kernel answered the peer with a RST, as to data after close.
    ResetSent,
    /// The local program ended it without a FIN: linger 0, close with unread data, disconnect.
    Aborted,
    /// Retries, keepalive or the user timeout ran out, or FIN-WAIT-2 expired.
    Timeout,
    /// SOCK_DESTROY.
    Destroyed,
    /// The backend in use cannot tell.
    Unknown,
}

impl Outcome {
    pub const ALL: [Self; 7] = [
        Self::Graceful,
        Self::ResetReceived,
        Self::ResetSent,
        Self::Aborted,
        Self::Timeout,
        Self::Destroyed,
        Self::Unknown,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Graceful => "graceful",
            Self::ResetReceived => "reset_received",
            Self::ResetSent => "reset_sent",
            Self::Aborted => "aborted",
            Self::Timeout => "timeout",
            Self::Destroyed => "destroyed",
            Self::Unknown => "unknown",
        }
    }
}

/// The two ends of a connection as seen from this socket. Addresses are kept as IPv6, IPv4 as v4-mapped, so that
/// the children of a dual-stack listener and plain IPv4 sockets are written alike.
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

    /// A flow of which only ports and [`Self::hash64`] are known (0 if not even that): what the classic tracepoint's steps
    /// tell when the record with the addresses was lost. No connected socket has the local address `::`, so the remote
    /// one has room for the hash.
    pub fn of_hash(hash: u64, local_port: u16, remote_port: u16) -> Self {
        let remote = Ipv6Addr::from_bits(u128::from(hash));
        Self { local: Ipv6Addr::UNSPECIFIED, remote, local_port, remote_port }
    }

    pub const fn has_addresses(&self) -> bool {
        !self.local.is_unspecified()
    }

    /// The local end as people write it: `10.0.0.5:8080`, `[::1]:8080`; v4-mapped as IPv4. `[::]` where it is not known.
    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(self.local.to_canonical(), self.local_port)
    }

    /// The remote end as people write it. `[::]` where it is not known.
    pub fn remote(&self) -> SocketAddr {
        let remote = if self.has_addresses() { self.remote } else { Ipv6Addr::UNSPECIFIED };
        SocketAddr::new(remote.to_canonical(), self.remote_port)
    }

    /// Both ends are IPv4 addresses.
    pub fn is_v4(&self) -> bool {
        self.local.to_ipv4_mapped().is_some() && self.remote.to_ipv4_mapped().is_some()
    }

    /// The probe's hash of this flow, see [`tcpclose_common::event::flow_hash`]; 0 where it is not known.
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

/// An address as the probe writes it.
pub fn words_of(address: Ipv6Addr) -> Words {
    let bytes = address.octets();
    std::array::from_fn(|i| {
        u32::from_ne_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
    })
}

/// An address that the probe wrote.
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

/// The time spent in the present state, nanoseconds: what is proven, never a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// At least this long.
    pub min_ns: u64,
    /// At most this long; `None` where no bound is proven.
    pub max_ns: Option<u64>,
}

impl Age {
    /// The entry was seen.
    pub const fn exact(ns: u64) -> Self {
        Self { min_ns: ns, max_ns: Some(ns) }
    }

    pub fn is_exact(&self) -> bool {
        self.max_ns == Some(self.min_ns)
    }

    /// The same age `ns` later.
    pub fn later(self, ns: u64) -> Self {
        Self { min_ns: self.min_ns.saturating_add(ns), max_ns: self.max_ns.map(|max| max.saturating_add(ns)) }
    }

    /// Proven to be `bound_ns` or longer.
    pub const fn is_past(&self, bound_ns: u64) -> bool {
        self.min_ns >= bound_ns
    }

    /// May be `bound_ns` or longer, but that is not proven.
    pub fn may_be_past(&self, bound_ns: u64) -> bool {
        !self.is_past(bound_ns) && self.max_ns.is_none_or(|max| max >= bound_ns)
    }
}

/// Why a socket is still in CLOSE-WAIT: what the program has not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Diagnosis {
    /// It waits in the listener's queue: the culprit is the listener's owner.
    NotAccepted,
    /// The program wrote to it within the stuck bound: a half-close at work, not stuck.
    StillSending,
    /// Data and the EOF, or the EOF alone, wait for the program.
    NotRead,
    /// The program has taken everything and never closed.
    NotClosed,
    /// No dump has seen the socket.
    Unknown,
}

impl Diagnosis {
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotAccepted => "not_accepted",
            Self::StillSending => "still_sending",
            Self::NotRead => "not_read",
            Self::NotClosed => "not_closed",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_port_is_local_on_the_server_and_remote_on_the_client() {
        let ephemeral = 32768..=60999;
        assert_eq!(Side::Server.service_port(40000, 80, &ephemeral), 40000);
        assert_eq!(Side::Client.service_port(40000, 80, &ephemeral), 80);
        assert_eq!(Side::Unknown.service_port(8080, 50000, &ephemeral), 8080);
        assert_eq!(Side::Unknown.service_port(50000, 8080, &ephemeral), 8080);
    }
}
