//! One tracked socket, from its first close-phase step until nothing of it is left in the kernel.

use std::num::NonZeroU32;

use tcpclose_common::event::{RecordHeader, flags};
use tcpclose_common::state::TcpState;

use crate::names::{Age, Flow, Phase, PortKey, Role, Side};

/// When the present phase was entered, CLOCK_MONOTONIC nanoseconds: seen, or proven to lie between two instants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnteredAt {
    /// Not before this; 0 where nothing is proven.
    pub earliest_ns: u64,
    /// Not after this.
    pub latest_ns: u64,
}

impl EnteredAt {
    pub const fn exact(ns: u64) -> Self {
        Self { earliest_ns: ns, latest_ns: ns }
    }

    /// From an age proven at `now_ns`.
    pub fn of_age(age: Age, now_ns: u64) -> Self {
        Self {
            earliest_ns: age.max_ns.map_or(0, |max| now_ns.saturating_sub(max)),
            latest_ns: now_ns.saturating_sub(age.min_ns),
        }
    }

    /// The age at `now_ns`. Clocks of two CPUs can invert by a little: never negative.
    pub fn age(&self, now_ns: u64) -> Age {
        Age {
            min_ns: now_ns.saturating_sub(self.latest_ns),
            max_ns: (self.earliest_ns != 0).then(|| now_ns.saturating_sub(self.earliest_ns)),
        }
    }

    /// The length of a phase that ended at `end_ns`, when it is known to 5 % or better; the proven minimum then.
    pub fn until(&self, end_ns: u64) -> Option<u64> {
        let age = self.age(end_ns);
        let max = age.max_ns?;
        ((max - age.min_ns).saturating_mul(20) <= max).then_some(age.min_ns)
    }
}

/// What of the socket is left in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// The full socket. The tracepoint reports its steps.
    Socket,
    /// The timewait minisocket. Only dumps and hooks see it.
    Minisocket,
}

/// The process that made this side's FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closer {
    /// In the first PID namespace.
    pub pid: NonZeroU32,
    /// When it did, CLOCK_MONOTONIC nanoseconds.
    pub at_ns: u64,
}

impl Closer {
    /// The closer in a record, if it has one.
    pub(super) fn of(head: &RecordHeader) -> Option<Self> {
        head.closer().and_then(NonZeroU32::new).map(|pid| Self { pid, at_ns: head.time_ns })
    }
}

/// What the record of the step into CLOSE-WAIT showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtFin {
    /// There was no such record, or its fields were not read.
    Unknown,
    /// The peer had acknowledged every byte that the program had written.
    AllAcknowledged,
    /// It had not.
    Unacknowledged,
    /// A subflow of an MPTCP connection: the time until the program closes is the MPTCP socket's.
    Subflow,
}

impl AtFin {
    fn of(head: &RecordHeader) -> Self {
        let is = |flag: u16| head.flags & flag != 0;
        match head.is_subflow() {
            true => Self::Subflow,
            false if head.new != TcpState::CloseWait.raw() || !is(flags::FACTS) => Self::Unknown,
            false if is(flags::FIN_ACKED) => Self::AllAcknowledged,
            false => Self::Unacknowledged,
        }
    }
}

/// Whether a minisocket was made for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinisocketState {
    /// No hook has reported it: there is none, there is none yet, or its record was lost.
    Unknown,
    Made,
    /// The table was full, or there was no memory.
    Refused,
}

/// The address of a full socket's `struct sock`, or the instant at which a minisocket's timer runs out, nanoseconds:
/// [`TrackedSocket::kind`] says which. 0 for neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct AddressOrExpiry(u64);

impl AddressOrExpiry {
    pub const NONE: Self = Self(0);

    pub const fn of_address(sk: u64) -> Self {
        Self(sk)
    }

    pub const fn of_expiry(expires_ns: u64) -> Self {
        Self(expires_ns)
    }
}

const _: () = assert!(size_of::<AddressOrExpiry>() == 8);

/// A tracked socket or minisocket.
#[derive(Clone, Copy, Debug)]
pub struct TrackedSocket {
    /// The socket cookie; 0 while unknown.
    pub cookie: u64,
    /// Of a full socket [`Self::sk`], of a minisocket [`Self::expires_ns`].
    pub(crate) address_or_expiry: AddressOrExpiry,
    /// Both ends; without addresses when the record of the first step was never seen.
    pub flow: Flow,
    /// The ID of its network namespace, as in [`RecordHeader::netns`]; 0 while unknown.
    pub netns: u32,
    /// The service port.
    pub port: u16,
    pub side: Side,
    pub role: Role,
    pub phase: Phase,
    pub kind: SocketKind,
    /// What hooks have reported of its minisocket.
    pub minisocket: MinisocketState,
    /// The connection is counted in `tcpclose_closes_total`, or never will be.
    pub counted: bool,
    /// When the present phase was entered.
    pub since: EnteredAt,
    /// The last record of it; 0 if none.
    pub event_ns: u64,
    /// The last dump that saw it; 0 if none.
    pub seen_ns: u64,
    /// The last dump that should have seen it did not, and no record of it came since.
    pub missed: bool,
    /// [`Self::since`] lies between two dumps that followed each other, or a record and the next dump: no wider than the error of an
    /// end that a dump tells.
    pub between_dumps: bool,
    pub at_fin: AtFin,
    /// When [`Self::closer_pid`] closed it.
    pub(crate) closed_ns: u64,
    pub(crate) closer_pid: Option<NonZeroU32>,
}

impl TrackedSocket {
    /// A socket in `phase` of which only the record is known.
    pub(super) fn of_record(head: &RecordHeader, phase: Phase) -> Self {
        let by_cookie = head.flags & flags::COOKIE != 0;
        let closer = Closer::of(head);
        Self {
            cookie: if by_cookie { head.key } else { 0 },
            address_or_expiry: AddressOrExpiry::of_address(if by_cookie { 0 } else { head.key }),
            flow: Flow::of_hash(0, head.local_port, head.remote_port),
            netns: head.netns,
            port: 0,
            side: Side::Unknown,
            role: Role::proven_by(phase),
            phase,
            kind: SocketKind::Socket,
            minisocket: MinisocketState::Unknown,
            counted: false,
            since: EnteredAt { earliest_ns: 0, latest_ns: head.time_ns },
            event_ns: head.time_ns,
            seen_ns: 0,
            missed: false,
            between_dumps: false,
            at_fin: AtFin::of(head),
            closed_ns: closer.map_or(0, |closer| closer.at_ns),
            closer_pid: closer.map(|closer| closer.pid),
        }
    }

    pub const fn pair(&self) -> PortKey {
        PortKey { side: self.side, port: self.port }
    }

    /// The address of the `struct sock`, its key at the classic tracepoint; 0 at the tp_btf backend and after →CLOSE.
    pub fn sk(&self) -> u64 {
        if self.kind == SocketKind::Socket { self.address_or_expiry.0 } else { 0 }
    }

    /// Sets [`Self::sk`] of a full socket.
    pub(super) fn set_sk(&mut self, sk: u64) {
        if self.kind == SocketKind::Socket {
            self.address_or_expiry = AddressOrExpiry::of_address(sk);
        }
    }

    /// When the minisocket's timer runs out, by the last dump; 0 if none has seen it.
    pub fn expires_ns(&self) -> u64 {
        if self.kind == SocketKind::Minisocket { self.address_or_expiry.0 } else { 0 }
    }

    /// Sets [`Self::expires_ns`] of a minisocket.
    pub(super) fn set_expires_ns(&mut self, ns: u64) {
        if self.kind == SocketKind::Minisocket {
            self.address_or_expiry = AddressOrExpiry::of_expiry(ns);
        }
    }

    /// Changes the kind; a minisocket made of a full socket has been seen by no dump.
    pub(super) fn set_kind(&mut self, kind: SocketKind) {
        if self.kind != kind {
            (self.kind, self.address_or_expiry) = (kind, AddressOrExpiry::NONE);
        }
    }

    /// Who closed this side, or shut it down, if a record has it.
    pub fn closer(&self) -> Option<Closer> {
        self.closer_pid.map(|pid| Closer { pid, at_ns: self.closed_ns })
    }

    pub(super) fn set_closer(&mut self, closer: Closer) {
        (self.closer_pid, self.closed_ns) = (Some(closer.pid), closer.at_ns);
    }
}

/// A host may have a million of them.
const _: () = assert!(size_of::<TrackedSocket>() <= 112);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_needs_an_entry_known_to_five_percent() {
        let since = EnteredAt { earliest_ns: 1000, latest_ns: 1050 };
        assert_eq!(since.until(2000), Some(950));
        assert_eq!(since.until(1999), None, "49.95 of 999 allowed, 50 known");
        assert_eq!(EnteredAt { earliest_ns: 0, latest_ns: 1050 }.until(1 << 40), None);
        assert_eq!(EnteredAt::exact(7).until(7), Some(0));
        assert_eq!(EnteredAt::exact(7).until(5), Some(0), "clocks of two CPUs may invert");
    }

    #[test]
    fn an_age_and_its_entry_are_the_same_fact() {
        let age = Age { min_ns: 30, max_ns: Some(50) };
        let since = EnteredAt::of_age(age, 100);
        assert_eq!(since, EnteredAt { earliest_ns: 50, latest_ns: 70 });
        assert_eq!(since.age(100), age);
        assert_eq!(EnteredAt::of_age(Age { min_ns: 30, max_ns: None }, 100).age(110).max_ns, None);
    }
}
