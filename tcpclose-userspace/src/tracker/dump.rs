//! Dumps of the kernel's sockets, as data.

use tcpclose_common::state::TcpState;

use crate::names::{Age, Flow, Opening, WriteLook};
use crate::tracker::socket::SocketKind;

/// The margin around a dump's start: the tracepoint precedes the state change that the dump sees.
pub(super) const MARGIN_NS: u64 = 100_000_000;

/// The error of an instant that is read from a timer: jiffies and the time between a step and its timer make up some
/// 10 ms. A measured length of TIME-WAIT counts as a new one when it differs by more.
pub(super) const TIMER_TOLERANCE_NS: u64 = 50_000_000;

/// How much too early a timer may appear to have been set: two of the longest ticks, as in `linux/host.rs`.
pub(super) const TIMER_TICKS_NS: u64 = 20_000_000;

/// A measurement this close to a whole number of seconds means that number.
const WHOLE_TOLERANCE_NS: u64 = 250_000_000;

/// The length of TIME-WAIT that a measurement means. It is a whole number of seconds wherever it is known
/// (TCP_TIMEWAIT_LEN is 60 * HZ; tcp_tw_timeout, the sysctl of some vendors, counts seconds). The rest of a measurement
/// is the delay of a busy machine and of its jiffies: 90 ms on two emulated CPUs with other work, which would make every
/// age that is read from a timer wrong.
pub(super) fn meant_length(measured_ns: u64) -> u64 {
    const SECOND_NS: u64 = 1_000_000_000;
    let whole = (measured_ns + SECOND_NS / 2) / SECOND_NS * SECOND_NS;
    if whole != 0 && whole.abs_diff(measured_ns) <= WHOLE_TOLERANCE_NS { whole } else { measured_ns }
}

/// One socket or minisocket, as a dump saw it.
#[derive(Clone, Copy, Debug)]
pub struct DumpedSocket {
    pub state: TcpState,
    pub kind: SocketKind,
    pub flow: Flow,
    pub cookie: u64,
    /// The ID of its network namespace.
    pub netns: u32,
    /// The interface that it is bound to; 0 for none.
    pub interface: u32,
    /// CLOCK_MONOTONIC of the sighting.
    pub seen_ns: u64,
    /// The time left on the timer of a minisocket.
    pub expires_ns: u64,
    /// What the kernel proves of the time a full socket has spent in its state.
    pub age: Age,
    /// What it proves of the program's last write, if the dump has that.
    pub write: Option<WriteLook>,
    /// What the dump proves of a full socket's opening.
    pub opening: Opening,
    /// A listener with a backlog of 0, which its children inherit.
    pub without_backlog: bool,
}

/// What all chunks of a dump have in common.
#[derive(Clone, Copy, Debug)]
pub struct DumpScope {
    /// The states it asks for, a mask of `1 << state`.
    pub states: u32,
    /// CLOCK_MONOTONIC before its first request.
    pub started_ns: u64,
    /// It is the first: what it finds was there before the agent.
    pub first: bool,
}

/// A part of the dumps of network namespaces, made one after the other.
#[derive(Clone, Copy, Debug)]
pub struct DumpChunk<'a> {
    /// Namespaces whose dump begins here: the ID and the inode of each. If the dump asks for listeners, all of theirs are
    /// in this chunk.
    pub entered: &'a [(u32, u32)],
    pub seen: &'a [DumpedSocket],
}

/// The result of the chunks of a dump so far.
#[derive(Debug, Default)]
pub(super) struct DumpProgress {
    /// The shortest TIME-WAIT measured, and the number of measurements.
    pub(super) shortest: Option<u64>,
    pub(super) samples: usize,
    /// The latest sighting.
    pub(super) last_ns: u64,
}
