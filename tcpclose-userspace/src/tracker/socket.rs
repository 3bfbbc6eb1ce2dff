//! One socket's life in the close phase, from its first step until nothing of it is left in the kernel.

use std::num::NonZeroU32;

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

    /// How long before `now_ns` that was. Clocks of two CPUs can invert by a little: never negative.
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
    /// The full socket. The tracepoint reports what it does.
    Socket,
    /// The timewait minisocket. Only dumps see it.
    Minisocket,
}

/// The process that made this side's FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closer {
    /// As the first PID namespace numbers it.
    pub pid: NonZeroU32,
    /// When it did, CLOCK_MONOTONIC nanoseconds.
    pub at_ns: u64,
}

/// Whether a minisocket was made for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinisocketState {
    /// No hook has told of it: there is none, it is not time yet, or the record of it was lost.
    Untold,
    Born,
    /// The table was full, or there was no memory.
    Refused,
}

/// One socket's life.
#[derive(Clone, Copy, Debug)]
pub struct TrackedSocket {
    /// The socket cookie; 0 while it is not known.
    pub cookie: u64,
    /// Of a full socket [`Self::sk`], of a minisocket [`Self::expires_ns`].
    pub(crate) mark: u64,
    /// Both ends; without addresses when the opening record was never seen.
    pub flow: Flow,
    /// What identifies its network namespace, as in a record's [`netns`](tcpclose_common::event::Head::netns); 0 while
    /// unknown.
    pub netns: u32,
    /// The service port.
    pub port: u16,
    pub side: Side,
    pub role: Role,
    pub phase: Phase,
    pub body: SocketKind,
    /// What hooks have told of its minisocket's birth.
    pub birth: MinisocketState,
    /// The connection is counted in `tcpclose_closes_total`, or never will be.
    pub counted: bool,
    /// When the present phase was entered.
    pub since: EnteredAt,
    /// The last record of it; 0 if none.
    pub event_ns: u64,
    /// The last dump that saw it; 0 if none.
    pub seen_ns: u64,
    /// The last dump that should have seen it did not, and nothing was heard of it since.
    pub missed: bool,
    /// In CLOSE-WAIT [`Self::sent_ns`], later when [`Self::closer`] closed it.
    pub(crate) acted_ns: u64,
    pub(crate) closer_pid: Option<NonZeroU32>,
}

impl TrackedSocket {
    pub const fn pair(&self) -> PortKey {
        PortKey { side: self.side, port: self.port }
    }

    /// The address of the `struct sock`, by which the classic tracepoint knows it; 0 at the tp_btf backend and after →CLOSE.
    pub fn sk(&self) -> u64 {
        if self.body == SocketKind::Socket { self.mark } else { 0 }
    }

    /// When the minisocket's timer will run out, as the last dump had it; 0 if none has.
    pub fn expires_ns(&self) -> u64 {
        if self.body == SocketKind::Minisocket { self.mark } else { 0 }
    }

    /// Makes of a full socket a minisocket that no dump has seen; what is one stays it.
    pub(super) fn become_body(&mut self, body: SocketKind) {
        if self.body != body {
            (self.body, self.mark) = (body, 0);
        }
    }

    /// The last time that the program is known to have written to a socket in CLOSE-WAIT; 0 if no dump told.
    pub fn sent_ns(&self) -> u64 {
        if self.phase == Phase::CloseWait && self.closer_pid.is_none() { self.acted_ns } else { 0 }
    }

    /// Takes in when that was, in CLOSE-WAIT.
    pub fn set_sent_ns(&mut self, ns: u64) {
        if self.phase == Phase::CloseWait && self.closer_pid.is_none() {
            self.acted_ns = ns;
        }
    }

    /// Who closed this side, or shut it down, where a record told.
    pub fn closer(&self) -> Option<Closer> {
        self.closer_pid.map(|pid| Closer { pid, at_ns: self.acted_ns })
    }

    pub(super) fn set_closer(&mut self, closer: Closer) {
        (self.closer_pid, self.acted_ns) = (Some(closer.pid), closer.at_ns);
    }
}

/// A million of them are nothing unheard of.
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
