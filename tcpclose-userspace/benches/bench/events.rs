//! Records as the probe makes them of whole connections, and a tracker and a ledger to take them.

use std::net::Ipv4Addr;
use std::ops::Range;

use tcpclose::metrics::Metrics;
use tcpclose::metrics::port_labels::PortLabels;
use tcpclose::names::words_of;
use tcpclose::tracker::{HostParameters, Tracker};
use tcpclose_common::event::{
    FlowStepRecord, HeaderDetail, HookKind, HookRecord, Numbers, OpenRecord, Record, RecordHeader,
    SocketOrRcvNxt, StepRecord, flags, flow_hash,
};
use tcpclose_common::state::TcpState::{self, *};

const NETNS: u32 = 4_026_531_840;
/// Connections whose records are mixed with each other.
const AT_ONCE: u64 = 64;

pub fn tracker(by_cookie: bool) -> Tracker {
    let mut tracker = Tracker::new(
        HostParameters { netns: NETNS, everywhere: false, netns_known: true, ephemeral: 32768..=60999 },
        by_cookie,
    );
    tracker.set_time_wait_ns(60_000_000_000);
    tracker
}

pub fn ledger() -> Metrics {
    Metrics::new(PortLabels::new(32, &[]))
}

/// Records one after the other, as bytes: each has its length before it.
#[derive(Default)]
pub struct Stream {
    bytes: Vec<u8>,
    pub records: usize,
}

impl Stream {
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let (&length, after) = rest.split_first()?;
            let (record, after) = after.split_at(length.into());
            rest = after;
            Some(record)
        })
    }

    fn push<T: Copy>(&mut self, record: T) {
        // SAFETY: the records are repr(C), Copy, and have no padding (tcpclose-common asserts their sizes).
        let bytes = unsafe { std::slice::from_raw_parts((&raw const record).cast::<u8>(), size_of::<T>()) };
        self.bytes.push(bytes.len() as u8);
        self.bytes.extend_from_slice(bytes);
        self.records += 1;
    }
}

/// One end of a connection.
struct End {
    cookie: u64,
    local: (Ipv4Addr, u16),
    remote: (Ipv4Addr, u16),
    more: u16,
}

impl End {
    /// The client's or the server's of the `nth` connection.
    fn of(nth: u64, server: bool) -> Self {
        let client =
            (Ipv4Addr::from_bits(0x0a00_0000 + (nth / 20_000) as u32), 33_000 + (nth % 20_000) as u16);
        let service = (Ipv4Addr::new(192, 0, 2, 1), 8000 + (nth % 8) as u16);
        // The kernel hands cookies out to its processors in batches; one processor's follow each other.
        let cookie = 0x1000 + 2 * nth + u64::from(server);
        match server {
            false => Self { cookie, local: client, remote: service, more: 0 },
            true => Self { cookie, local: service, remote: client, more: flags::ACCEPTED },
        }
    }

    fn head(&self, at_ns: u64, (old, new): (TcpState, TcpState), more: u16) -> RecordHeader {
        RecordHeader {
            key: self.cookie,
            time_ns: at_ns,
            local_port: self.local.1,
            remote_port: self.remote.1,
            old: old.raw(),
            new: new.raw(),
            flags: flags::COOKIE | flags::FACTS | self.more | more,
            netns: NETNS,
            detail: HeaderDetail::NONE,
        }
    }

    fn open(&self, stream: &mut Stream, at_ns: u64, new: TcpState) {
        let [local, remote] = [self.local.0, self.remote.0].map(|ip| words_of(ip.to_ipv6_mapped()));
        let head = self.head(at_ns, (Established, new), flags::OPEN);
        stream.push(OpenRecord { head, numbers: Numbers::default(), local, remote, inum: NETNS, spare: 0 });
    }

    fn step(&self, stream: &mut Stream, at_ns: u64, (old, new): (TcpState, TcpState), more: u16) {
        stream.push(StepRecord { head: self.head(at_ns, (old, new), more), numbers: Numbers::default() });
    }
}

/// The records of `connections` whole ones. The client closes first, and its TIME-WAIT ends, as hooks would tell, when
/// `waiting` more have begun; with `waiting` of `connections` or more, none ends.
pub fn connections(connections: u64, waiting: u64) -> Stream {
    some_connections(0..connections, waiting)
}

/// The same of those with these numbers.
pub fn some_connections(numbers: Range<u64>, waiting: u64) -> Stream {
    let mut stream = Stream::default();
    for first in numbers.clone().step_by(AT_ONCE as usize) {
        let some = first..(first + AT_ONCE).min(numbers.end);
        let time =
            |nth: u64, step: u64| 1_000_000_000_000 + first * 15_000 + step * 200_000 + (nth - first) * 500;
        let mut each = |step: u64, make: &dyn Fn(&mut Stream, u64, u64)| {
            for nth in some.clone() {
                make(&mut stream, nth, time(nth, step));
            }
        };
        let (client, server) = (|nth| End::of(nth, false), |nth| End::of(nth, true));
        each(0, &|stream, nth, at| client(nth).open(stream, at, FinWait1));
        each(1, &|stream, nth, at| server(nth).open(stream, at, CloseWait));
        each(2, &|stream, nth, at| client(nth).step(stream, at, (FinWait1, FinWait2), flags::FIN_ACKED));
        each(3, &|stream, nth, at| {
            server(nth).step(stream, at, (CloseWait, LastAck), flags::DONE | flags::OWNED)
        });
        each(4, &|stream, nth, at| {
            client(nth).step(stream, at, (FinWait2, Close), flags::DONE | flags::FIN_ACKED);
        });
        each(5, &|stream, nth, at| {
            server(nth).step(stream, at, (LastAck, Close), flags::DONE | flags::FIN_ACKED);
        });
        each(6, &|stream, nth, at| {
            if let Some(nth) = nth.checked_sub(waiting) {
                let end = client(nth);
                let head = RecordHeader {
                    detail: HeaderDetail::of_hook(HookKind::Expired),
                    ..end.head(at, (TimeWait, Close), flags::HOOK)
                };
                stream.push(HookRecord { head, subject: SocketOrRcvNxt::of_socket(0) });
            }
        });
    }
    stream
}

/// The same records as the classic tracepoint makes them: keyed by the socket's address, joined by flow.
pub fn as_classic(stream: &Stream) -> Stream {
    let mut classic = Stream::default();
    for bytes in stream.iter() {
        let Some(record) = Record::decode(bytes) else { continue };
        let flags = record.head().flags & !flags::COOKIE;
        match record {
            Record::Open(open) => {
                classic.push(OpenRecord { head: RecordHeader { flags, ..open.head }, ..open });
            }
            Record::Step(step, _) => {
                let cookie = step.head.key - 0x1000;
                let end = End::of(cookie / 2, cookie % 2 == 1);
                let [local, remote] = [end.local.0, end.remote.0].map(|ip| words_of(ip.to_ipv6_mapped()));
                let flow = flow_hash(&local, &remote, end.local.1, end.remote.1);
                let step = StepRecord { head: RecordHeader { flags, ..step.head }, ..step };
                classic.push(FlowStepRecord { step, flow });
            }
            // That backend has no hooks' notices here: dumps tell the ends.
            Record::Hook(..) | Record::Mptcp(_) => {}
        }
    }
    classic
}
