//! A state hook that is attached and reports nothing, while sockets close: its tracepoint has another layout than the one it
//! was loaded for, or something has taken it off.
//!
//! Every step into a close-phase state has a record, which is in the ring before a dump can see the state. So a socket proves
//! the silence of the hook if it has taken such a step since the hook's last record (or since the hook was attached, or since
//! records were last lost), with [`MARGIN_NS`] to spare for an event that the kernel left out because it interrupted another
//! one. Sockets that were there first prove nothing, nor does an idle host.

use rustc_hash::FxHashMap;

use crate::tracker::dump::{DumpScope, DumpedSocket, MARGIN_NS};
use crate::tracker::socket::{EnteredAt, SocketKind};

/// The least number of such sockets. One is a proof; more of them need no trust in any single look of a dump.
const LEAST: u32 = 3;

/// The states of a dump that shows every socket of the close phase.
const ALL_STATES: u32 =
    tcpclose_common::state::CLOSE_PHASE | tcpclose_common::state::TcpState::TimeWait.bit();

/// Sockets that closed without a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SilentHook {
    /// CLOCK_MONOTONIC: the state hook has reported nothing since.
    pub since_ns: u64,
    /// So many sockets have closed since.
    pub sockets: u32,
}

/// What is known of the state hook's silence.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// The hook's last record, or the last loss of records; 0 for neither.
    since_ns: u64,
    /// Sockets that have taken a step since.
    sockets: u32,
    /// When the last dump of every close-phase state began, by namespace.
    dumped: FxHashMap<u32, u64>,
}

impl Silence {
    /// The hook made a record at `at_ns`, or may have made one until then.
    pub(super) fn ends(&mut self, at_ns: u64) {
        self.since_ns = self.since_ns.max(at_ns);
        self.sockets = 0;
    }

    fn begins(&self, attached_ns: u64) -> u64 {
        self.since_ns.max(attached_ns)
    }

    /// The silence of a hook that was attached at `attached_ns`, if it is proven.
    pub(super) fn proven(&self, attached_ns: u64) -> Option<SilentHook> {
        let since_ns = self.begins(attached_ns);
        (self.sockets >= LEAST).then_some(SilentHook { since_ns, sockets: self.sockets })
    }

    /// A hook reports the birth of a minisocket whose full socket took no step that is known. Its →CLOSE follows at once
    /// (net/ipv4/tcp_minisocks.c, tcp_time_wait() ends with tcp_done(), 5.8 to 6.18).
    pub(super) fn birth(&mut self, at_ns: u64, attached_ns: u64) {
        if at_ns > self.begins(attached_ns) {
            self.sockets = self.sockets.saturating_add(1);
        }
    }

    /// A dump, not the first, shows a socket that is not tracked, in a state that it `entered`. `complete_ns`: the end of the
    /// first dump, before which the hook was attached.
    pub(super) fn sighting(
        &mut self,
        seen: &DumpedSocket,
        entered: EnteredAt,
        attached_ns: u64,
        complete_ns: u64,
    ) {
        let since_ns = self.begins(attached_ns);
        // A minisocket flips to TIME-WAIT without a record of this hook, and a late segment sets its timer anew.
        let by_age = seen.kind == SocketKind::Socket
            && entered.earliest_ns > since_ns.max(complete_ns).saturating_add(MARGIN_NS);
        // It was not there then.
        let by_absence = self.dumped.get(&seen.netns).is_some_and(|&dumped_ns| dumped_ns > since_ns);
        if by_age || by_absence {
            self.sockets = self.sockets.saturating_add(1);
        }
    }

    /// A dump of the namespaces `netns` is in.
    pub(super) fn dumped(&mut self, asked: &DumpScope, netns: impl Iterator<Item = u32>) {
        /// Without them fewer sockets prove something.
        const MANY: usize = 16_384;
        if asked.states & ALL_STATES != ALL_STATES {
            return;
        }
        if self.dumped.len() > MANY {
            self.dumped.clear();
        }
        self.dumped.extend(netns.map(|netns| (netns, asked.started_ns)));
    }
}
