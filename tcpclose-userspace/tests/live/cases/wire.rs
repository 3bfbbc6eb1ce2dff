//! TCP segments by hand: IPv4 or IPv6, bytes out, bytes in, checksums both ways.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

const TCP: u8 = 6;
const TTL: u8 = 64;

/// The segment size that both ends announce: fits any MTU here.
const MSS: u16 = 1200;

/// One segment.
#[derive(Clone, PartialEq, Eq)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// The timestamps option: value and echo.
    pub times: Option<(u32, u32)>,
    pub data: Vec<u8>,
}

impl Segment {
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// What it takes of the sequence space.
    pub fn length(&self) -> u32 {
        self.data.len() as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    /// The whole IP packet.
    pub fn to_bytes(&self) -> Vec<u8> {
        let tcp = self.tcp();
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, &tcp),
            (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, &tcp),
            _ => panic!("one family on both ends"),
        }
    }

    fn tcp(&self) -> Vec<u8> {
        let options = self.options();
        let mut tcp = Vec::with_capacity(20 + options.len() + self.data.len());
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(if self.has(ACK) { self.ack } else { 0 }.to_be_bytes());
        tcp.push(((20 + options.len()) as u8 / 4) << 4);
        tcp.push(self.flags);
        tcp.extend(self.window.to_be_bytes());
        // Checksum and urgent pointer.
        tcp.extend([0; 4]);
        tcp.extend(&options);
        tcp.extend(&self.data);
        let sum = tcp_checksum(self.from.ip(), self.to.ip(), &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }

    fn options(&self) -> Vec<u8> {
        let mut options = Vec::new();
        if self.has(SYN) {
            options.extend([2, 4]);
            options.extend(MSS.to_be_bytes());
        }
        if let Some((value, echo)) = self.times {
            options.extend([1, 1, 8, 10]);
            options.extend(value.to_be_bytes());
            options.extend(echo.to_be_bytes());
        }
        options
    }

    /// Reads an IP packet; `None` if it is not TCP, or is damaged.
    pub fn from_bytes(packet: &[u8]) -> Option<Self> {
        let (from, to, tcp) = match packet.first()? >> 4 {
            4 => {
                let header = usize::from(packet[0] & 15) * 4;
                let total = usize::from(u16::from_be_bytes(take(packet, 2)?));
                if *packet.get(9)? != TCP {
                    return None;
                }
                let from = IpAddr::from(Ipv4Addr::from(take::<4>(packet, 12)?));
                (from, IpAddr::from(Ipv4Addr::from(take::<4>(packet, 16)?)), packet.get(header..total)?)
            }
            6 => {
                if *packet.get(6)? != TCP {
                    return None;
                }
                let from = IpAddr::from(Ipv6Addr::from(take::<16>(packet, 8)?));
                (from, IpAddr::from(Ipv6Addr::from(take::<16>(packet, 24)?)), packet.get(40..)?)
            }
            _ => return None,
        };
        assert_eq!(tcp_checksum(from, to, tcp), 0, "the kernel's own checksum is right");
        let start = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: SocketAddr::new(from, u16::from_be_bytes(take(tcp, 0)?)),
            to: SocketAddr::new(to, u16::from_be_bytes(take(tcp, 2)?)),
            seq: u32::from_be_bytes(take(tcp, 4)?),
            ack: u32::from_be_bytes(take(tcp, 8)?),
            flags: *tcp.get(13)?,
            window: u16::from_be_bytes(take(tcp, 14)?),
            times: times(tcp.get(20..start)?),
            data: tcp.get(start..)?.to_vec(),
        })
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flag, name) in [(SYN, "SYN "), (FIN, "FIN "), (RST, "RST "), (PSH, "PSH "), (ACK, "ACK ")] {
            if self.has(flag) {
                f.write_str(name)?;
            }
        }
        write!(f, "seq {} ack {} data {} win {}", self.seq, self.ack, self.data.len(), self.window)
    }
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, tcp: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + tcp.len() as u16).to_be_bytes());
    // No id; may not be fragmented.
    packet.extend([0, 0, 0x40, 0, TTL, TCP, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = !folded(sum(&packet));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(tcp);
    packet
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, tcp: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((tcp.len() as u16).to_be_bytes());
    packet.extend([TCP, TTL]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(tcp);
    packet
}

/// The checksum over pseudo-header and segment (RFC 9293, 3.1): 0 over a segment that holds the right one.
fn tcp_checksum(from: IpAddr, to: IpAddr, tcp: &[u8]) -> u16 {
    let address = |ip| match ip {
        IpAddr::V4(ip) => sum(&Ipv4Addr::octets(&ip)),
        IpAddr::V6(ip) => sum(&Ipv6Addr::octets(&ip)),
    };
    !folded(address(from) + address(to) + u64::from(TCP) + tcp.len() as u64 + sum(tcp))
}

fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    words.map(u64::from).sum()
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The timestamps option among `options`.
fn times(mut options: &[u8]) -> Option<(u32, u32)> {
    loop {
        match *options.first()? {
            0 => return None,
            1 => options = &options[1..],
            8 => {
                let word = |at| take(options, at).map(u32::from_be_bytes);
                return Some((word(2)?, word(6)?));
            }
            _ => options = options.get(usize::from(*options.get(1)?).max(2)..)?,
        }
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_its_checksums_hold() {
        for (from, to) in [("10.1.2.3:11000", "10.1.2.4:40000"), ("[fd77::2]:11000", "[fd77::1]:40000")] {
            for data in [&b""[..], b"x", b"data"] {
                for times in [None, Some((7, 0xffff_fff0))] {
                    let segment = Segment {
                        from: from.parse().unwrap(),
                        to: to.parse().unwrap(),
                        seq: 0xffff_fffe,
                        ack: 17,
                        flags: SYN | ACK | PSH,
                        window: 65_535,
                        times,
                        data: data.to_vec(),
                    };
                    let bytes = segment.to_bytes();
                    assert_eq!(Segment::from_bytes(&bytes).unwrap(), segment);
                    if bytes[0] >> 4 == 4 {
                        assert_eq!(folded(sum(&bytes[..20])), 0xffff);
                    }
                }
            }
        }
    }

    #[test]
    fn a_known_ipv4_header_has_its_known_checksum() {
        // The example of RFC 1071's readers: 45 00 00 73 … b8 61.
        let header: [u8; 20] =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(!folded(sum(&header)), 0xb861);
    }
}
