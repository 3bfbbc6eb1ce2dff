//! The network of a client, by which limits count connections and requests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 address, or the 64-bit prefix in which an IPv6 host chooses its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientNetwork {
    /// This host, by the unix socket.
    Here,
    V4(Ipv4Addr),
    V6(u64),
}

impl From<IpAddr> for ClientNetwork {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(Ipv6Addr::LOCALHOST) => Self::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_host_is_one_source_whatever_address_it_takes() {
        let source = |text: &str| ClientNetwork::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:2"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_eq!(source("::1"), source("127.0.0.1"));
    }
}
