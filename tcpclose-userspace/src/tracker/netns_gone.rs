//! Lives in network namespaces that are gone, or that no dump reaches.
//!
//! A full socket holds its namespace; a minisocket does not, and goes with it (net/ipv4/inet_timewait_sock.c,
//! inet_twsk_purge(), 5.8 to 6.18).

use crate::names::{Correction, Outcome, TimeWaitEnd, UnmeasuredReason};

use crate::tracker::Tracker;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::reconcile::MARGIN_NS;
use crate::tracker::socket::{SocketKind, TrackedSocket};
use crate::tracker::transition::Evidence;

/// What a search for every network namespace of the host has come to.
pub struct NetnsSearchResult<'a> {
    /// Whether it has found this one.
    pub found: &'a dyn Fn(u32) -> bool,
    /// Whether an earlier one had.
    pub former: &'a dyn Fn(u32) -> bool,
    /// Nothing was hidden from it: what it has not found no process is in, nothing is mounted on, and no descriptor leads to.
    pub sure: bool,
    /// Records were lost since the one before.
    pub lost: bool,
    /// CLOCK_MONOTONIC when it began.
    pub started_ns: u64,
    /// CLOCK_MONOTONIC when it was done.
    pub finished_ns: u64,
}

/// Records that were lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct GoneNetns {
    /// CLOCK_MONOTONIC: they were lost before.
    noticed_ns: u64,
    /// Whole rounds since, one after the other, in which every life could be compared with the kernel.
    rounds: u8,
}

impl GoneNetns {
    pub(super) const fn new(noticed_ns: u64) -> Self {
        Self { noticed_ns, rounds: 0 }
    }
}

impl Tracker {
    /// Ends the lives whose namespace a search has not found, as far as that proves their end.
    pub fn round(&mut self, round: &NetnsSearchResult<'_>, out: &mut impl EventSink) {
        let mut over = Vec::new();
        let own = self.host.netns;
        for (at, life) in &mut self.lives {
            let heard_of = life.event_ns.max(life.seen_ns) + MARGIN_NS > round.started_ns;
            if life.netns == 0 || life.netns == own || (round.found)(life.netns) || heard_of {
                continue;
            }
            let gone = round.sure && (round.former)(life.netns);
            let again = std::mem::replace(&mut life.missed, true);
            let ends = match life.body {
                // What hooks follow they follow to its end, which may be a moment after the namespace's.
                SocketKind::Minisocket if self.told.ends => gone && again || round.sure && round.lost,
                // Nothing more will be heard of it.
                SocketKind::Minisocket => true,
                // It holds its namespace, if nothing else does, until its end is told (an orphan, or one whose holder is
                // elsewhere); unless that was lost.
                SocketKind::Socket => self.loss.is_some() && gone && again || round.sure && round.lost,
            };
            if ends {
                over.push((at, gone));
            }
        }
        for (at, gone) in over {
            let body = self.lives[at].body;
            if body == SocketKind::Socket || self.told.ends {
                out.fact(round.finished_ns, TrackerEvent::Corrected { what: Correction::Vanished });
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
                SocketKind::Minisocket => self.lose_sight(at, round.finished_ns, out),
            }
        }
        self.mend(round);
    }

    /// Whether a loss is mended by now. A life whose last record came before the loss was noticed is what the kernel says
    /// once a dump that began later has met or missed it; one with a record since was compared with that record. What a dump
    /// leaves alone, since its record is younger than the margin, the next round's does not.
    fn mend(&mut self, round: &NetnsSearchResult<'_>) {
        let Some(mut loss) = self.loss else { return };
        let own = self.host.netns;
        let dumped = |life: &TrackedSocket| life.netns == own || (round.found)(life.netns);
        let whole = round.sure
            && round.started_ns > loss.noticed_ns
            && !std::mem::take(&mut self.unsettled)
            && !self.lives.iter().any(|(_, life)| !dumped(life) && life.event_ns <= loss.noticed_ns);
        loss.rounds = if whole { loss.rounds + 1 } else { 0 };
        self.loss = (loss.rounds < 2).then_some(loss);
    }

    /// A minisocket where no dump looks, and no hook tells.
    pub(super) fn lose_sight(&mut self, at: usize, now: u64, out: &mut impl EventSink) {
        let phase = self.lives[at].phase;
        out.fact(now, TrackerEvent::Unmeasured { phase, why: UnmeasuredReason::Namespace });
        self.count(at, now, Outcome::Unknown, out);
        self.remove(at);
    }
}
