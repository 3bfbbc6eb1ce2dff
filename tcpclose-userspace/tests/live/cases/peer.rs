//! The hand-made end of a connection: it sends what the script says, when the script says it, and nothing else.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::place::Tun;
use super::wire::{ACK, FIN, PSH, RST, SYN, Segment};

/// How long the kernel may take to send what is expected of it: retransmissions come after 0.2 s, 0.6 s, 1.4 s.
const PATIENCE: Duration = Duration::from_secs(10);

/// What makes one segment like another here.
const KIND: u8 = FIN | SYN | RST;

pub struct Peer {
    wire: Tun,
    /// Its own address, and the kernel's.
    pub here: SocketAddr,
    pub kernel: SocketAddr,
    /// The sequence number of its next byte.
    pub next: u32,
    /// What it has received, and what it admits to have received.
    got: u32,
    acked: u32,
    /// What it has room for.
    pub window: u16,
    /// With the timestamps option.
    pub timestamps: bool,
    /// The clock of its timestamps, milliseconds, and the kernel's last.
    clock: u32,
    echo: u32,
    last: Option<Segment>,
}

impl Peer {
    pub fn new(wire: Tun, here: SocketAddr, kernel: SocketAddr) -> Self {
        Self {
            wire,
            here,
            kernel,
            // Near the end of the sequence space, which every connection so passes.
            next: 0xffff_ff00,
            got: 0,
            acked: 0,
            window: 60_000,
            timestamps: false,
            clock: 1000,
            echo: 0,
            last: None,
        }
    }

    /// Sends a segment at the next sequence number.
    fn send(&mut self, flags: u8, data: &[u8]) {
        let segment = self.segment(flags, data);
        self.wire.send(&segment.to_bytes());
        self.next = self.next.wrapping_add(segment.length());
        self.last = Some(segment);
    }

    fn segment(&mut self, flags: u8, data: &[u8]) -> Segment {
        self.clock += 1;
        Segment {
            from: self.here,
            to: self.kernel,
            seq: self.next,
            ack: self.acked,
            flags,
            window: self.window,
            times: self.timestamps.then_some((self.clock, self.echo)),
            data: data.to_vec(),
        }
    }

    /// Opens the connection: SYN, its answer, ACK.
    pub fn connect(&mut self) {
        self.syn();
        self.expect(SYN | ACK);
        self.ack();
    }

    pub fn syn(&mut self) {
        (self.got, self.acked, self.echo) = (0, 0, 0);
        self.send(SYN, b"");
    }

    /// Answers the kernel's SYN.
    pub fn accept(&mut self) {
        let syn = self.expect(SYN);
        self.timestamps &= syn.times.is_some();
        self.acked = self.got;
        self.send(SYN | ACK, b"");
        self.expect(ACK);
    }

    /// Acknowledges all that has come.
    pub fn ack(&mut self) {
        self.acked = self.got;
        self.send(ACK, b"");
    }

    /// Its FIN, which acknowledges nothing new.
    pub fn fin(&mut self) {
        self.send(FIN | ACK, b"");
    }

    /// Its FIN, riding on data; acknowledges nothing new.
    pub fn fin_with(&mut self, data: &[u8]) {
        self.send(FIN | PSH | ACK, data);
    }

    /// Its FIN, which acknowledges all that has come.
    pub fn fin_and_ack(&mut self) {
        self.acked = self.got;
        self.fin();
    }

    /// Data; acknowledges nothing new.
    pub fn data(&mut self, data: &[u8]) {
        self.send(PSH | ACK, data);
    }

    /// A RST that the kernel must believe: at exactly the sequence number that it waits for (RFC 5961, 3.2).
    pub fn rst(&mut self) {
        self.acked = self.got;
        self.send(RST | ACK, b"");
    }

    /// The last segment once more.
    pub fn again(&mut self) {
        let last = self.last.clone().expect("something was sent");
        self.wire.send(&last.to_bytes());
    }

    /// A segment `ahead` of the next sequence number, which is left as it is.
    pub fn ahead(&mut self, ahead: u32, flags: u8, data: &[u8]) {
        let mut segment = self.segment(flags, data);
        segment.seq = segment.seq.wrapping_add(ahead);
        self.wire.send(&segment.to_bytes());
    }

    /// A keepalive: one byte back, with nothing in it.
    pub fn keepalive(&mut self) {
        self.ahead(u32::MAX, ACK, b"");
    }

    /// Waits for the kernel's next segment with these of FIN, SYN and RST, and takes it as received. Bare ACKs and what
    /// was sent before are passed over, unless `flags` is a bare ACK itself; anything else fails the case.
    pub fn expect(&mut self, flags: u8) -> Segment {
        let until = Instant::now() + PATIENCE;
        loop {
            let Some(segment) = self.receive(until) else {
                panic!("the kernel did not send flags {flags:#x} within {PATIENCE:?}");
            };
            if segment.flags & KIND == flags & KIND && segment.has(flags & ACK) {
                return segment;
            }
            let bare = segment.flags & KIND == 0;
            let old = !segment.has(SYN) && (segment.seq.wrapping_sub(self.got) as i32) < 0;
            assert!(bare || old, "expected flags {flags:#x}, the kernel sent {segment:?}");
        }
    }

    /// Waits for the kernel's FIN, and acknowledges what comes before it, but not the FIN: after a loss (no answer for
    /// longer than the retransmission timer) the kernel sends one segment for each ACK.
    pub fn expect_fin_after_data(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.receive(until).expect("the kernel's FIN").has(FIN) {
            self.ack();
        }
    }

    /// The next segment of this connection, taken as received if it is next in order.
    pub fn receive(&mut self, until: Instant) -> Option<Segment> {
        loop {
            let packet = self.wire.receive(until)?;
            let Some(segment) = Segment::from_bytes(&packet) else { continue };
            if segment.to.port() != self.here.port() {
                continue;
            }
            self.kernel.set_port(segment.from.port());
            if segment.has(SYN) {
                self.got = segment.seq;
            }
            if segment.seq == self.got {
                self.got = self.got.wrapping_add(segment.length());
            }
            if let Some((value, _)) = segment.times {
                self.echo = value;
            }
            return Some(segment);
        }
    }

    /// Takes all that the kernel has sent by now.
    pub fn take_all(&mut self) {
        while self.receive(Instant::now() + Duration::from_millis(2)).is_some() {}
    }
}
