//! MPTCP sockets in CLOSE-WAIT, which no program has closed yet. They have records and dumps of their own, and are kept apart from
//! the TCP sockets of the tracker, among which are their subflows.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use tcpclose_common::event::{OpenRecord, RecordHeader, flags};
use tcpclose_common::state::TcpState;

use crate::linux::age::{proven_age, write_look};
use crate::linux::sock_diag::Socket;
use crate::names::{Flow, LastWrite, Phase, PortKey, Role, Side, UnmeasuredReason, address_of};
use crate::tracker::Tracker;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::socket::{AddressOrExpiry, AtFin, EnteredAt, MinisocketState, SocketKind, TrackedSocket};
use crate::tracker::vanished::DumpCoverage;

/// A walk over so few is one batch of the dump, and skips none.
const ONE_BATCH: usize = 64;
/// Ends that are kept at most for dumps that began before them.
const ENDS: usize = 4096;

/// The network namespace and the addresses of a connection.
type ConnectionKey = (u32, Flow);

/// What records and dumps have told.
#[derive(Debug, Default)]
pub struct MptcpSockets {
    /// Users choose addresses and ports, so the hash has a secret.
    sockets: HashMap<ConnectionKey, (TrackedSocket, Option<LastWrite>), RandomState>,
    /// The sockets that left CLOSE-WAIT since the last dump began, and when, CLOCK_MONOTONIC nanoseconds.
    left: HashMap<ConnectionKey, u64, RandomState>,
}

impl MptcpSockets {
    /// Takes the record of a step into CLOSE-WAIT, or out of it.
    pub fn record(&mut self, step: &OpenRecord, tracker: &Tracker, out: &mut impl EventSink) {
        let RecordHeader { key, time_ns, netns, new, flags, .. } = step.head;
        let flow = Flow {
            local: address_of(step.local),
            remote: address_of(step.remote),
            local_port: step.head.local_port,
            remote_port: step.head.remote_port,
        };
        let ends = (netns, flow);
        if new == TcpState::CloseWait.raw() {
            let cookie = if flags & flags::COOKIE != 0 { key } else { 0 };
            let entered = tracked(ends, cookie, EnteredAt::exact(time_ns), tracker);
            self.sockets.insert(ends, (TrackedSocket { event_ns: time_ns, ..entered }, None));
            return;
        }
        // Of more, one that a running dump has seen before is listed until the next dump.
        if self.left.len() < ENDS {
            self.left.insert(ends, time_ns);
        }
        let known = self.sockets.remove(&ends);
        let (socket, _) = known.unwrap_or_else(|| {
            (tracked(ends, 0, EnteredAt { earliest_ns: 0, latest_ns: time_ns }, tracker), None)
        });
        let event = match socket.since.until(time_ns) {
            Some(ns) => TrackerEvent::StateDuration { phase: Phase::CloseWait, pair: socket.pair(), ns },
            None => TrackerEvent::Unmeasured { phase: Phase::CloseWait, why: UnmeasuredReason::BeforeAgent },
        };
        out.event_of(time_ns, event, tracker.port_kind(&socket));
    }

    /// Takes what a dump of the namespace `netns` saw of `socket`.
    pub fn see(&mut self, socket: &Socket, netns: u32, uptime_ns: u64, tracker: &Tracker) {
        let ends = (netns, socket.flow);
        if self.left.get(&ends).is_some_and(|&at_ns| at_ns >= socket.seen_ns) {
            return;
        }
        let proven = EnteredAt::of_age(proven_age(socket, uptime_ns), socket.seen_ns);
        let seen = || (tracked(ends, socket.cookie, proven, tracker), None);
        let (known, write) = self.sockets.entry(ends).or_insert_with(seen);
        if known.cookie != 0 && known.cookie != socket.cookie {
            // A later connection of the same ends.
            (*known, *write) = seen();
        }
        (known.cookie, known.seen_ns, known.missed) = (socket.cookie, socket.seen_ns, false);
        if let Some(look) = write_look(socket, uptime_ns) {
            *write = Some(LastWrite::seen(*write, look));
        }
    }

    /// Takes what a dump of the namespace `netns` saw of a TCP socket. Where the peer knows only TCP, the subflow is in CLOSE-WAIT
    /// too, and proves the side of both.
    pub fn see_tcp(&mut self, socket: &Socket, netns: u32, tracker: &Tracker) {
        if socket.state == TcpState::CloseWait
            && let Some((known, _)) = self.sockets.get_mut(&(netns, socket.flow))
            && let Some(subflow) = tracker.find(netns, socket.cookie, &socket.flow)
        {
            PortKey { side: known.side, port: known.port } = subflow.pair();
        }
    }

    /// A dump that `covers` these namespaces, and began at `started_ns`, is in: what it did not see is over.
    pub fn dumped(&mut self, covers: &DumpCoverage, started_ns: u64) {
        // The next dump begins later.
        self.left.retain(|_, at_ns| *at_ns >= started_ns);
        let few = self.sockets.len() <= ONE_BATCH;
        self.sockets.retain(|_, (socket, _)| {
            let known_ns = socket.seen_ns.max(socket.event_ns);
            let is_absent = covers.netns.contains_key(&socket.netns) && known_ns < started_ns;
            !is_absent || !few && !std::mem::replace(&mut socket.missed, true)
        });
    }

    /// Forgets those of namespaces that are gone.
    pub fn retain_netns(&mut self, is_there: impl Fn(u32) -> bool) {
        self.sockets.retain(|_, (socket, _)| is_there(socket.netns));
    }

    pub fn get(&self, netns: u32, flow: &Flow) -> Option<(&TrackedSocket, Option<&LastWrite>)> {
        self.sockets.get(&(netns, *flow)).map(|(socket, write)| (socket, write.as_ref()))
    }

    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&TrackedSocket, Option<&LastWrite>)> {
        self.sockets.values().map(|(socket, write)| (socket, write.as_ref()))
    }

    /// Those of `sockets`, which are TCP, that stand for a connection of their own: no subflow that is in CLOSE-WAIT as its MPTCP
    /// socket is.
    pub fn without_subflows<'a>(
        &'a self,
        sockets: impl Iterator<Item = (&'a TrackedSocket, Option<&'a LastWrite>)>,
    ) -> impl Iterator<Item = (&'a TrackedSocket, Option<&'a LastWrite>)> {
        let is_below = |socket: &TrackedSocket| {
            socket.phase == Phase::CloseWait && self.sockets.contains_key(&(socket.netns, socket.flow))
        };
        sockets.filter(move |(socket, _)| self.sockets.is_empty() || !is_below(socket))
    }
}

/// An MPTCP socket in CLOSE-WAIT. It has no counters that prove its side, and a listener on the port proves none.
fn tracked((netns, flow): ConnectionKey, cookie: u64, since: EnteredAt, tracker: &Tracker) -> TrackedSocket {
    let side = Side::Unknown;
    TrackedSocket {
        cookie,
        address_or_expiry: AddressOrExpiry::NONE,
        flow,
        netns,
        port: tracker.service_port(netns, side, flow.local_port, flow.remote_port),
        side,
        role: Role::Passive,
        phase: Phase::CloseWait,
        kind: SocketKind::Socket,
        minisocket: MinisocketState::Unknown,
        counted: true,
        since,
        event_ns: 0,
        seen_ns: 0,
        missed: false,
        between_dumps: false,
        at_fin: AtFin::Unknown,
        closed_ns: 0,
        closer_pid: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::HostParameters;
    use std::net::Ipv4Addr;
    use tcpclose_common::event::Numbers;

    const NETNS: u32 = 7;

    fn tracker() -> Tracker {
        let host =
            HostParameters { netns: NETNS, everywhere: true, netns_known: true, ephemeral: 32768..=60999 };
        Tracker::new(host, true)
    }

    fn step(at_ns: u64, old: TcpState, new: TcpState) -> OpenRecord {
        let words = |last| [0, 0, 0xffff_u32.to_be(), u32::from(Ipv4Addr::new(10, 0, 0, last)).to_be()];
        let head = RecordHeader {
            key: 5,
            time_ns: at_ns,
            local_port: 80,
            remote_port: 40_000,
            old: old.raw(),
            new: new.raw(),
            flags: flags::OPEN | flags::HOOK | flags::COOKIE,
            netns: NETNS,
            ..RecordHeader::default()
        };
        OpenRecord { head, numbers: Numbers::default(), local: words(1), remote: words(2), inum: 0, spare: 0 }
    }

    #[test]
    fn the_time_until_the_program_closes_is_the_mptcp_sockets() {
        let (mut mptcp, tracker, mut events) = (MptcpSockets::default(), tracker(), Vec::new());
        mptcp.record(&step(1_000, TcpState::Established, TcpState::CloseWait), &tracker, &mut events);
        assert_eq!((mptcp.iter().count(), events.len()), (1, 0));
        mptcp.record(&step(51_000, TcpState::CloseWait, TcpState::LastAck), &tracker, &mut events);
        let pair = PortKey { side: Side::Unknown, port: 80 };
        assert_eq!(events, [TrackerEvent::StateDuration { phase: Phase::CloseWait, pair, ns: 50_000 }]);
        assert_eq!(mptcp.iter().count(), 0);
        // Its entry was before the agent.
        mptcp.record(&step(61_000, TcpState::CloseWait, TcpState::Close), &tracker, &mut events);
        let why = UnmeasuredReason::BeforeAgent;
        assert_eq!(events[1..], [TrackerEvent::Unmeasured { phase: Phase::CloseWait, why }]);
    }

    #[test]
    fn an_entry_after_the_dump_began_is_not_over_for_it() {
        let (mut mptcp, tracker, mut events) = (MptcpSockets::default(), tracker(), Vec::new());
        mptcp.record(&step(1_000, TcpState::Established, TcpState::CloseWait), &tracker, &mut events);
        let mut covers = DumpCoverage::default();
        covers.netns.insert(NETNS, 1);
        mptcp.dumped(&covers, 900);
        assert_eq!(mptcp.iter().count(), 1);
        mptcp.dumped(&covers, 1_100);
        assert_eq!(mptcp.iter().count(), 0);
    }
}
