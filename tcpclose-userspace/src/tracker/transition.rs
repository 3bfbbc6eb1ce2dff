//! One step with all that is known of its socket, for watchers. Counters need none of it, so it is only put together
//! while somebody watches.

use tcpclose_common::event::{Numbers, RecordHeader, flags};
use tcpclose_common::state::TcpState;

use crate::names::{Age, Flow, Outcome, Role, Side, TransitionSource};
use crate::tracker::dump::TIMER_TOLERANCE_NS;
use crate::tracker::socket::{Closer, EnteredAt, TrackedSocket};

/// One step of one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub at_ns: u64,
    pub from: TcpState,
    pub to: TcpState,
    /// The time spent in `from`.
    pub spent: Age,
    /// 0 while unknown.
    pub cookie: u64,
    pub flow: Flow,
    /// As in [`TrackedSocket`].
    pub netns: u32,
    /// `ns.inum` of the network namespace; 0 while unknown.
    pub inum: u32,
    pub side: Side,
    pub port: u16,
    pub role: Role,
    pub closer: Option<Closer>,
    /// How the connection ended: at the step to CLOSED.
    pub outcome: Option<Outcome>,
    pub source: TransitionSource,
    /// At the step out of CLOSE-WAIT: the program had written after the peer's FIN, and the peer's RST answered that.
    pub stale_write: bool,
    /// The kernel's reason for the RST that it sent: at the step to CLOSED.
    pub reset_reason: Option<&'static str>,
    /// The sequence numbers at this step, if the backend in use has them.
    pub snd: Option<u32>,
    pub rcv: Option<u32>,
}

/// The source of a step, and the sequence numbers that it has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    pub(super) source: TransitionSource,
    pub(super) snd: Option<u32>,
    pub(super) rcv: Option<u32>,
    /// As in [`Transition`].
    pub(super) stale_write: bool,
    pub(super) reset_reason: Option<&'static str>,
    /// How far off its instants may be, nanoseconds.
    pub(super) error_ns: u64,
}

impl Evidence {
    pub(super) const BY_HOOK: Self = Self {
        source: TransitionSource::Hooks,
        snd: None,
        rcv: None,
        stale_write: false,
        reset_reason: None,
        error_ns: 0,
    };
    /// By a minisocket's timer, which counts in jiffies; and a busy machine looks late.
    pub(super) const BY_DUMP: Self =
        Self { source: TransitionSource::Diag, error_ns: TIMER_TOLERANCE_NS, ..Self::BY_HOOK };
    /// By the record of another socket's step: what ended here may be known by its timer only.
    pub(super) const BY_ANOTHER: Self = Self { source: TransitionSource::Tracepoint, ..Self::BY_DUMP };

    pub(super) fn by_record(head: &RecordHeader, numbers: Numbers) -> Self {
        let read = head.flags & flags::FACTS != 0;
        let known = |number| read.then_some(number);
        let (snd, rcv) = (known(numbers.snd), known(numbers.rcv));
        Self { source: TransitionSource::Tracepoint, snd, rcv, ..Self::BY_HOOK }
    }
}

/// A step as the tracker makes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct PhaseChange {
    pub(super) at_ns: u64,
    pub(super) from: TcpState,
    pub(super) to: TcpState,
    pub(super) spent: Age,
    pub(super) outcome: Option<Outcome>,
    pub(super) evidence: Evidence,
}

impl PhaseChange {
    pub(super) fn of(&self, socket: &TrackedSocket, inum: u32) -> Transition {
        let Self { at_ns, from, to, spent, outcome, evidence } = *self;
        let Evidence { source, snd, rcv, stale_write, reset_reason, error_ns } = evidence;
        let TrackedSocket { cookie, flow, netns, side, port, role, .. } = *socket;
        Transition {
            at_ns,
            from,
            to,
            spent: spent.give_or_take(error_ns),
            cookie,
            flow,
            netns,
            inum,
            side,
            port,
            role,
            closer: socket.closer(),
            outcome,
            source,
            stale_write,
            reset_reason,
            snd,
            rcv,
        }
    }
}

/// The time from an entry to an end that lie in two intervals.
pub(super) fn between(entry: EnteredAt, end: EnteredAt) -> Age {
    let max_ns = end.longest_since(entry);
    Age { min_ns: end.earliest_ns.saturating_sub(entry.latest_ns), max_ns }
}

impl EnteredAt {
    /// The longest time that can lie between `entry` and this. Clocks of two CPUs invert by a little: the record of an
    /// end can be older than the last record before it.
    fn longest_since(&self, entry: EnteredAt) -> Option<u64> {
        let latest_ns = self.latest_ns.max(self.earliest_ns);
        (entry.earliest_ns != 0).then(|| latest_ns.saturating_sub(entry.earliest_ns))
    }
}

/// A client that closed first, after one to two seconds in FIN-WAIT-2.
#[cfg(test)]
pub fn fin_wait_2_to_time_wait() -> Transition {
    Transition {
        at_ns: 1_002_000_000_000,
        from: TcpState::FinWait2,
        to: TcpState::TimeWait,
        spent: Age { min_ns: 1_000_000_000, max_ns: Some(2_000_000_000) },
        cookie: 7,
        flow: Flow::new("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:80".parse().unwrap()),
        netns: 1,
        inum: 4_026_531_840,
        side: Side::Client,
        port: 80,
        role: Role::Active,
        closer: None,
        outcome: None,
        source: TransitionSource::Diag,
        stale_write: false,
        reset_reason: None,
        snd: None,
        rcv: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_an_interval_even_where_clocks_invert() {
        let entry = EnteredAt { earliest_ns: 100, latest_ns: 150 };
        let spent = |earliest_ns, latest_ns| between(entry, EnteredAt { earliest_ns, latest_ns });
        assert_eq!(spent(300, 400), Age { min_ns: 150, max_ns: Some(300) });
        assert_eq!(spent(300, 50), Age { min_ns: 150, max_ns: Some(200) });
        assert_eq!(spent(20, 50), Age { min_ns: 0, max_ns: Some(0) });
    }
}
