//! What is not in a dump and should be: an absence is only a suspicion until an exact lookup confirms it, but for a
//! minisocket whose timer was due. Asked when all chunks of the dump are in.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;

use crate::names::{Correction, Flow};

use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::reconcile::{DumpScope, MARGIN_NS};
use crate::tracker::socket::{SocketKind, TrackedSocket};
use crate::tracker::transition::Evidence;
use crate::tracker::{Keyed, Tracker};

/// Namespaces that a dump has looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpCoverage {
    /// What identifies each, and its inode.
    pub netns: HashMap<u32, u32>,
    /// They are all that dumps can look at: a life of which no record told the namespace (without BTF) is in one.
    pub all: bool,
}

impl DumpCoverage {
    /// Whether a life should have been seen.
    fn should_show(&self, life: &TrackedSocket) -> bool {
        match life.netns {
            // A full socket may be where dumps cannot look.
            0 => self.all && life.body == SocketKind::Minisocket,
            netns => self.netns.contains_key(&netns),
        }
    }
}

/// A tracked socket that a dump should have seen and did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// What identifies its network namespace; 0 where nobody told.
    pub netns: u32,
    pub flow: Flow,
    pub cookie: u64,
    pub interface: u32,
    /// May be stale when it comes back: [`Tracker::gone`] compares the rest.
    slot: usize,
    event_ns: u64,
    seen_ns: u64,
}

impl Tracker {
    /// An exact lookup has confirmed, at `now_ns`, that `suspect` is no longer in the kernel.
    pub fn gone(&mut self, suspect: &Suspect, now_ns: u64, out: &mut impl EventSink) {
        let Some(life) = self.lives.get(suspect.slot) else { return };
        let same = life.flow == suspect.flow
            && life.cookie == suspect.cookie
            && life.event_ns == suspect.event_ns
            && life.seen_ns == suspect.seen_ns;
        if !same {
            return;
        }
        self.end_absent(suspect.slot, now_ns, out);
    }

    /// Ends a life that is no longer in the kernel, found out at `now_ns`.
    fn end_absent(&mut self, at: usize, now_ns: u64, out: &mut impl EventSink) {
        let body = self.lives[at].body;
        // The end of a minisocket is told by hooks only.
        if body == SocketKind::Socket || self.told.ends {
            out.fact(now_ns, TrackerEvent::Corrected { what: Correction::Vanished });
        }
        match body {
            SocketKind::Minisocket => self.end_minisocket(at, now_ns, Evidence::BY_DUMP, out),
            SocketKind::Socket => self.vanish(at, now_ns, out),
        }
    }

    /// Lives that this dump should have seen. A minisocket whose timer was due ends, and one whose flow has another
    /// socket now; the others are suspects. Of those that are too many to be looked up, or have no addresses to be found
    /// by, the ones that the dump before this one should have seen too are gone: what a dump skips is a chance of where
    /// its batches end, and does not strike twice. So a table of minisockets that is full, which leaves nothing of each
    /// close, and on the `diag` backend no word of that, cannot make us hold more than what closes within a few dumps.
    pub(super) fn absent(
        &mut self,
        asked: &DumpScope,
        covers: &DumpCoverage,
        most: usize,
        out: &mut impl EventSink,
    ) -> Vec<Suspect> {
        let mut over = Vec::new();
        let mut gone = Vec::new();
        let mut suspects = Vec::new();
        let keyed = Keyed::default();
        let taken = self.taken(asked, covers, &keyed);
        let ends_when_due = self.ends_when_due();
        let interfaces = &self.interfaces;
        let interface_of = |life: &TrackedSocket| interfaces.get(&life.cookie).copied().unwrap_or(0);
        for (at, life) in &mut self.lives {
            if !is_absent(life, asked, covers) {
                continue;
            }
            let is_taken =
                !taken.is_empty() && taken.contains(&keyed.hash_one(place_of(life, interface_of(life))));
            if life.body == SocketKind::Minisocket && (ends_when_due && is_due(life, asked) || is_taken) {
                over.push(at);
            } else if life.body == SocketKind::Socket && is_taken {
                gone.push(at);
            } else if suspects.len() < most && life.flow.has_addresses() {
                suspects.push(Suspect {
                    netns: life.netns,
                    flow: life.flow,
                    cookie: life.cookie,
                    interface: interface_of(life),
                    slot: at,
                    event_ns: life.event_ns,
                    seen_ns: life.seen_ns,
                });
            } else if life.missed {
                gone.push(at);
            } else {
                self.unsettled = true;
            }
            life.missed = true;
        }
        for at in over {
            self.end_minisocket(at, asked.started_ns, Evidence::BY_DUMP, out);
        }
        for at in gone {
            self.end_absent(at, asked.started_ns, out);
        }
        suspects
    }

    /// Whether a minisocket that is absent when its timer is due has just ended. (Hooks tell of every end, unless the record
    /// was lost.)
    fn ends_when_due(&self) -> bool {
        !self.told.ends || self.loss.is_some()
    }

    /// Hashes of the places of absent lives that another socket has now. One flow, one socket: where flows are reused fast,
    /// more minisockets end this way between two dumps than can be looked up one by one. (At the classic tracepoint the later
    /// socket's first record has ended them. Where that was lost, a look-up could not tell what has no cookie from the
    /// later socket.)
    ///
    /// What the dump has met is tracked by now: nothing more of it has to be remembered than the absent lives' hashes.
    fn taken(&self, asked: &DumpScope, covers: &DumpCoverage, keyed: &Keyed) -> HashSet<u64, Keyed> {
        let hash = |life: &TrackedSocket| keyed.hash_one(place_of(life, self.interface_of(life)));
        let may_be = |life: &TrackedSocket| {
            let nameless = !self.by_cookie && life.cookie == 0;
            let is_over = self.ends_when_due() && life.body == SocketKind::Minisocket && is_due(life, asked);
            !is_over && (nameless || self.by_cookie && life.body == SocketKind::Minisocket)
        };
        let absent = self.lives().filter(|life| is_absent(life, asked, covers) && may_be(life));
        let absent: HashSet<u64, Keyed> = absent.map(hash).collect();
        if absent.is_empty() {
            return absent;
        }
        // At the classic tracepoint what has stepped since was seen, and left to the next dump.
        let is_met = |life: &TrackedSocket| {
            life.seen_ns >= asked.started_ns || !self.by_cookie && life.event_ns >= asked.started_ns
        };
        self.lives().filter(|life| is_met(life)).map(hash).filter(|hash| absent.contains(hash)).collect()
    }
}

/// Whether the dump should have met `life` and did not.
fn is_absent(life: &TrackedSocket, asked: &DumpScope, covers: &DumpCoverage) -> bool {
    covers.should_show(life)
        && asked.states & life.phase.state().bit() != 0
        && life.seen_ns < asked.started_ns
        && life.event_ns + MARGIN_NS <= asked.started_ns
}

fn is_due(life: &TrackedSocket, asked: &DumpScope) -> bool {
    life.expires_ns() != 0 && life.expires_ns() <= asked.started_ns
}

/// What no two sockets have at a time.
const fn place_of(life: &TrackedSocket, interface: u32) -> (u32, Flow, u32) {
    (life.netns, life.flow, interface)
}
