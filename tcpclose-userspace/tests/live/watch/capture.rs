//! The TCP segments on loopback, as a packet socket has them.

use std::io::ErrorKind;
use std::mem::MaybeUninit;

use socket2::{Domain, Protocol, Socket, Type};

/// What of a segment the drawing speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub from: u16,
    pub to: u16,
    pub seq: u32,
    pub ack: u32,
    pub fin: bool,
    /// Bytes of data.
    pub length: u32,
}

impl Segment {
    /// The sequence number of its FIN.
    pub fn fin_seq(&self) -> u32 {
        self.seq.wrapping_add(self.length)
    }
}

pub struct Capture {
    socket: Socket,
}

impl Capture {
    /// Of the calling thread's network namespace, from now on.
    pub fn begin() -> Self {
        let ip = i32::from((libc::ETH_P_IP as u16).to_be());
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(ip))).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket }
    }

    /// Every segment so far. Loopback shows each twice, as it goes out and as it comes in.
    pub fn take(&self) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut packet = [MaybeUninit::uninit(); 2048];
        loop {
            match self.socket.recv(&mut packet) {
                Ok(length) => {
                    // SAFETY: recv has filled so many.
                    let bytes: Vec<u8> =
                        packet[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
                    segments.extend(segment(&bytes));
                }
                Err(why) if why.kind() == ErrorKind::WouldBlock => return segments,
                Err(why) => panic!("{why}"),
            }
        }
    }
}

/// Reads an IPv4 packet. Its checksum is not there yet: loopback leaves that to nobody.
fn segment(packet: &[u8]) -> Option<Segment> {
    let two = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    let four = |at: usize| Some(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?));
    if *packet.get(9)? != 6 {
        return None;
    }
    let ip = usize::from(packet.first()? & 15) * 4;
    let tcp = usize::from(packet.get(ip + 12)? >> 4) * 4;
    let length = usize::from(two(2)?) - ip - tcp;
    Some(Segment {
        from: two(ip)?,
        to: two(ip + 2)?,
        seq: four(ip + 4)?,
        ack: four(ip + 8)?,
        fin: packet.get(ip + 13)? & 1 != 0,
        length: length as u32,
    })
}
