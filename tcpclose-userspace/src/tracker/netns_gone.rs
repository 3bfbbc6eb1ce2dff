//! Sockets in network namespaces that are gone, or that no dump reaches.
//!
//! A full socket holds its namespace; a minisocket does not, and goes with it (net/ipv4/inet_timewait_sock.c,
//! inet_twsk_purge(), 5.8 to 6.18).

use crate::names::{Correction, TimeWaitEnd};
use crate::tracker::dump::MARGIN_NS;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::socket::{SocketKind, TrackedSocket};
use crate::tracker::table::Tracker;
use crate::tracker::transition::Evidence;

/// The result of a search for every network namespace of the host.
pub struct NetnsSearchResult<'a> {
    /// Whether it has found this one.
    pub found: &'a dyn Fn(u32) -> bool,
    /// Whether an earlier one had.
    pub former: &'a dyn Fn(u32) -> bool,
    /// Nothing was hidden from it: no process is in a namespace that it has not found, no mount holds one, and no descriptor
    /// leads to one.
    pub sure: bool,
    /// Records were lost since the one before.
    pub lost: bool,
    /// CLOCK_MONOTONIC when it began.
    pub started_ns: u64,
    /// CLOCK_MONOTONIC when it was done.
    pub finished_ns: u64,
}

impl Tracker {
    /// Ends the sockets whose namespace a search has not found, as far as that proves their end.
    pub fn round(&mut self, round: &NetnsSearchResult<'_>, out: &mut impl EventSink) {
        let mut over = Vec::new();
        let own = self.host.netns;
        for (at, socket) in &mut self.sockets {
            let recent = socket.event_ns.max(socket.seen_ns) + MARGIN_NS > round.started_ns;
            if socket.netns == 0 || socket.netns == own || (round.found)(socket.netns) || recent {
                continue;
            }
            let gone = round.sure && (round.former)(socket.netns);
            let again = std::mem::replace(&mut socket.missed, true);
            let ends = match socket.kind {
                // Hooks report its end, which may be a moment after the namespace's.
                SocketKind::Minisocket if self.hooks.ends => gone && again || round.sure && round.lost,
                // Nothing more will be reported of it.
                SocketKind::Minisocket => true,
                // It holds its namespace, if nothing else does, until its end is reported (an orphan, or one whose holder is
                // elsewhere); unless that record was lost.
                SocketKind::Socket => self.loss.is_some() && gone && again || round.sure && round.lost,
            };
            if ends {
                over.push((at, gone));
            }
        }
        for (at, gone) in over {
            let body = self.sockets[at].kind;
            if body == SocketKind::Socket || self.hooks.ends {
                out.event(round.finished_ns, TrackerEvent::Corrected { what: Correction::Vanished });
            }
            match body {
                SocketKind::Socket => self.vanish(at, round.finished_ns, out),
                SocketKind::Minisocket if gone => {
                    self.end_minisocket_by(
                        at,
                        round.finished_ns,
                        TimeWaitEnd::Purged,
                        Evidence::BY_DUMP,
                        out,
                    );
                }
                SocketKind::Minisocket => self.end_unobserved(at, round.finished_ns, out),
            }
        }
        self.check_loss(round);
    }

    /// Whether a loss is made good by now. A socket whose last record came before the loss was noticed agrees with the kernel
    /// once a dump that began later has met or missed it; one with a record since was compared with that record. A socket
    /// whose record is younger than the margin is left to the next round's dump.
    fn check_loss(&mut self, round: &NetnsSearchResult<'_>) {
        let Some(mut loss) = self.loss else { return };
        let own = self.host.netns;
        let dumped = |socket: &TrackedSocket| socket.netns == own || (round.found)(socket.netns);
        let whole = round.sure
            && round.started_ns > loss.noticed_ns
            && !std::mem::take(&mut self.unsettled)
            && !self.sockets.iter().any(|(_, socket)| !dumped(socket) && socket.event_ns <= loss.noticed_ns);
        loss.rounds = if whole { loss.rounds + 1 } else { 0 };
        self.loss = (loss.rounds < 2).then_some(loss);
    }
}
