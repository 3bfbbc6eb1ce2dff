//! The addresses that a network namespace takes for its own: those of its interfaces, and what its local routing table adds
//! (AnyIP: `ip route add local 192.0.2.0/24 dev lo`), by NETLINK_ROUTE.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustc_hash::FxHashSet;

use crate::linux::sock_diag::{NetlinkConnection, SEQUENCE, messages};

/// Routes and addresses that are read at most. Anybody can fill the tables of a namespace of their own.
const MOST: usize = 1 << 16;
/// More than the 32 KiB that the kernel puts into one datagram of a dump.
const BATCH: usize = 64 << 10;
const HEADER: usize = 16;

// include/uapi/linux/rtnetlink.h, include/uapi/linux/if_addr.h
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RT_TABLE_LOCAL: u8 = 255;
const RTN_LOCAL: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
/// `size_of::<ifaddrmsg>()`.
const ADDRESS_MESSAGE: usize = 8;
/// `size_of::<rtmsg>()`.
const ROUTE_MESSAGE: usize = 12;
/// The high bits of `nla_type` are flags.
const TYPE_MASK: u16 = 0x3fff;

/// The addresses of one network namespace.
#[derive(Debug, Default)]
pub struct LocalAddresses {
    single: FxHashSet<Ipv6Addr>,
    /// By the length of their prefix, of which there are few however many ranges there are.
    ranges: BTreeMap<u32, FxHashSet<u128>>,
    /// Messages that were read.
    read: usize,
}

impl LocalAddresses {
    /// Those of this thread's namespace.
    ///
    /// # Errors
    /// When the kernel does not list them, or has too many.
    pub fn read() -> io::Result<Self> {
        let mut found = Self::default();
        // An interface of a VRF has its local routes in another table than the local one.
        dump(RTM_GETADDR, &[0; ADDRESS_MESSAGE], |message| found.add_address(message))?;
        let mut routes = [0; ROUTE_MESSAGE];
        (routes[4], routes[7]) = (RT_TABLE_LOCAL, RTN_LOCAL);
        dump(RTM_GETROUTE, &routes, |message| found.add_route(message))?;
        Ok(found)
    }

    pub fn contains(&self, address: Ipv6Addr) -> bool {
        let is_in =
            |(&length, prefixes): (&u32, &FxHashSet<u128>)| prefixes.contains(&prefix(address, length));
        self.single.contains(&address) || self.ranges.iter().any(is_in)
    }

    /// A `struct ifaddrmsg` with its attributes. Of a tunnel's two ends IFA_LOCAL is ours.
    fn add_address(&mut self, message: &[u8]) -> ControlFlow<()> {
        let ours = attribute(message, ADDRESS_MESSAGE, IFA_LOCAL);
        if let Some(address) = ours.or_else(|| attribute(message, ADDRESS_MESSAGE, IFA_ADDRESS)) {
            self.single.insert(address);
        }
        self.full()
    }

    /// A `struct rtmsg` with its attributes.
    fn add_route(&mut self, message: &[u8]) -> ControlFlow<()> {
        let family = message.first().copied().map(i32::from);
        let (Some(length), Some(&table), Some(&kind)) = (message.get(1), message.get(4), message.get(7))
        else {
            return self.full();
        };
        // Kernels before 4.20 do not filter, and a route of length 0 has no destination.
        if let Some(first) = attribute(message, ROUTE_MESSAGE, RTA_DST)
            && (table, kind) == (RT_TABLE_LOCAL, RTN_LOCAL)
        {
            let length = u32::from(*length) + if family == Some(libc::AF_INET) { 96 } else { 0 };
            self.add_range(first, length);
        }
        self.full()
    }

    fn add_range(&mut self, first: Ipv6Addr, length: u32) {
        match length {
            128.. => _ = self.single.insert(first),
            _ => _ = self.ranges.entry(length).or_default().insert(prefix(first, length)),
        }
    }

    fn full(&mut self) -> ControlFlow<()> {
        self.read += 1;
        match self.read > MOST {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// The first `length` bits of an address.
const fn prefix(address: Ipv6Addr, length: u32) -> u128 {
    match length {
        0 => 0,
        _ => address.to_bits() & (u128::MAX << (128 - length)),
    }
}

/// The address in the attribute `kind` of `message`, whose attributes begin at `at`.
fn attribute(message: &[u8], at: usize, kind: u16) -> Option<Ipv6Addr> {
    let mut rest = message.get(at..)?;
    loop {
        let header = rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK == kind {
            return match value.len() {
                4 => Some(Ipv4Addr::from(*value.first_chunk::<4>()?).to_ipv6_mapped()),
                _ => Some(Ipv6Addr::from(*value.first_chunk::<16>()?)),
            };
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// Passes every message of a dump to `take`, until that breaks.
///
/// # Errors
/// Also when `take` breaks.
fn dump(kind: u16, request: &[u8], mut take: impl FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<()> {
    let mut bytes = vec![0; HEADER + request.len()];
    let mut header = NetlinkBuffer::new(&mut bytes[..]);
    header.set_length((HEADER + request.len()) as u32);
    header.set_message_type(kind);
    header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    header.set_sequence_number(SEQUENCE);
    header.set_port_number(0);
    header.payload_mut().copy_from_slice(request);
    let mut connection = NetlinkConnection::open(NETLINK_ROUTE, BATCH)?;
    // Since 4.20: the kernel filters.
    connection.ask_strictly();
    connection.send(&bytes)?;
    loop {
        let mut is_full = false;
        let over = messages(connection.receive()?, |_, payload| {
            let next = take(payload);
            is_full |= next.is_break();
            next
        })?;
        if is_full {
            return Err(io::Error::new(ErrorKind::OutOfMemory, "too many local addresses"));
        }
        if over.is_break() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_addresses_are_known_and_others_are_not() {
        let own = LocalAddresses::read().unwrap();
        for (address, expected) in [("127.0.0.1", true), ("127.3.2.1", true), ("192.0.2.77", false)] {
            let address: Ipv4Addr = address.parse().unwrap();
            assert_eq!(own.contains(address.to_ipv6_mapped()), expected, "{address}: {own:?}");
        }
    }

    #[test]
    fn a_range_has_its_prefix() {
        let mut own = LocalAddresses::default();
        own.add_range("2001:db8::".parse().unwrap(), 32);
        own.add_range("::ffff:10.0.0.0".parse().unwrap(), 104);
        let has = |address: &str| own.contains(address.parse().unwrap());
        assert!(has("2001:db8:ffff::1") && has("::ffff:10.255.0.1"));
        assert!(!has("2001:db9::1") && !has("::ffff:11.0.0.1") && !has("::1"));
        let mut all = LocalAddresses::default();
        all.add_range(Ipv6Addr::UNSPECIFIED, 0);
        assert!(all.contains("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn bytes_cut_short_have_no_address() {
        // IFA_ADDRESS 10.0.0.2, the other end of a tunnel, and IFA_LOCAL 10.0.0.1.
        let mut message = vec![2, 32, 0, 0, 1, 0, 0, 0];
        for (kind, last) in [(IFA_ADDRESS, 2), (IFA_LOCAL, 1)] {
            message.extend(8_u16.to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend([10, 0, 0, last]);
        }
        let mut found = LocalAddresses::default();
        assert!(found.add_address(&message).is_continue());
        assert!(found.single.iter().eq(&[Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped()]));
        for length in 0..message.len() {
            assert_eq!(attribute(&message[..length], ADDRESS_MESSAGE, IFA_LOCAL), None);
            let _ = LocalAddresses::default().add_route(&message[..length]);
        }
        // A length that never advances.
        message[8..10].fill(0);
        assert_eq!(attribute(&message, ADDRESS_MESSAGE, IFA_LOCAL), None);
    }
}
