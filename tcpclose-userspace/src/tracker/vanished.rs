//! Sockets that should be in a dump and are not: an absence is only a suspicion until an exact lookup confirms it, but for
//! a minisocket whose timer was due. Looked for when all chunks of the dump are in.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;

use crate::names::{Correction, Flow, Phase};
use crate::tracker::dump::{DumpScope, MARGIN_NS};
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::socket::{SocketKind, TrackedSocket};
use crate::tracker::table::{Keyed, Tracker};
use crate::tracker::transition::Evidence;

/// Namespaces that a dump has looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpCoverage {
    /// The ID of each, and its inode.
    pub netns: HashMap<u32, u32>,
    /// They are all that dumps can look at: a socket whose namespace is in no record (without BTF) is in one of them.
    pub all: bool,
}

impl DumpCoverage {
    /// Whether a dump of these should have seen `socket`.
    fn should_show(&self, socket: &TrackedSocket) -> bool {
        match socket.netns {
            // A full socket may be where dumps cannot look.
            0 => self.all && socket.kind == SocketKind::Minisocket,
            netns => self.netns.contains_key(&netns),
        }
    }
}

/// A tracked socket that a dump should have seen and did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The ID of its network namespace; 0 where unknown.
    pub netns: u32,
    pub flow: Flow,
    pub cookie: u64,
    pub interface: u32,
    /// A full socket, no minisocket.
    pub is_full: bool,
    /// May be stale when it comes back: [`Tracker::gone`] compares the rest.
    slot: usize,
    event_ns: u64,
    seen_ns: u64,
}

impl Tracker {
    /// An exact lookup has confirmed, at `now_ns`, that `suspect` is no longer in the kernel.
    pub fn gone(&mut self, suspect: &Suspect, now_ns: u64, out: &mut impl EventSink) {
        let Some(socket) = self.sockets.get(suspect.slot) else { return };
        let same = socket.flow == suspect.flow
            && socket.cookie == suspect.cookie
            && socket.event_ns == suspect.event_ns
            && socket.seen_ns == suspect.seen_ns;
        if !same {
            return;
        }
        self.end_absent(suspect.slot, now_ns, out);
    }

    /// Ends a socket that is no longer in the kernel, found out at `now_ns`.
    fn end_absent(&mut self, at: usize, now_ns: u64, out: &mut impl EventSink) {
        let body = self.sockets[at].kind;
        // Only hooks report the end of a minisocket, so only with them is its absence an error.
        if body == SocketKind::Socket || self.hooks.ends {
            out.event(now_ns, TrackerEvent::Corrected { what: Correction::Vanished });
        }
        match body {
            SocketKind::Minisocket => self.end_minisocket(at, now_ns, Evidence::BY_DUMP, out),
            SocketKind::Socket => self.vanish(at, now_ns, out),
        }
    }

    /// Sockets that this dump should have seen and did not. A minisocket ends when its timer was due or another socket has
    /// its flow now; the others are suspects. Of those that are too many to be looked up, or have no addresses to be found
    /// by, the ones that the dump before this one should have seen too are gone: what a dump skips depends on where its
    /// batches end, and is not skipped twice. So a full table of minisockets, where nothing is left of each close and the
    /// `diag` backend reports nothing, cannot make the tracker hold more than what closes within a few dumps.
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
        let interface_of = |socket: &TrackedSocket| interfaces.get(&socket.cookie).copied().unwrap_or(0);
        for (at, socket) in &mut self.sockets {
            if !is_absent(socket, asked, covers) {
                continue;
            }
            let is_taken =
                !taken.is_empty() && taken.contains(&keyed.hash_one(place_of(socket, interface_of(socket))));
            let can_ask = suspects.len() < most && socket.flow.has_addresses();
            // The FIN that sets the timer anew may have come since, and the dump have skipped it.
            let is_over =
                ends_when_due && is_due(socket, asked) && !(can_ask && socket.phase == Phase::FinWait2);
            if socket.kind == SocketKind::Minisocket && (is_over || is_taken) {
                over.push(at);
            } else if socket.kind == SocketKind::Socket && is_taken {
                gone.push(at);
            } else if can_ask {
                suspects.push(Suspect {
                    netns: socket.netns,
                    flow: socket.flow,
                    cookie: socket.cookie,
                    interface: interface_of(socket),
                    is_full: socket.kind == SocketKind::Socket,
                    slot: at,
                    event_ns: socket.event_ns,
                    seen_ns: socket.seen_ns,
                });
            } else if socket.missed {
                gone.push(at);
            } else {
                self.unsettled = true;
            }
            socket.missed = true;
        }
        for at in over {
            self.end_minisocket(at, asked.started_ns, Evidence::BY_DUMP, out);
        }
        for at in gone {
            self.end_absent(at, asked.started_ns, out);
        }
        suspects
    }

    /// Whether a minisocket that is absent when its timer is due has just ended. (Hooks report every end, unless the record
    /// was lost.)
    fn ends_when_due(&self) -> bool {
        !self.hooks.ends || self.loss.is_some()
    }

    /// Hashes of the places of absent sockets that another socket has now. One flow, one socket: where flows are reused fast,
    /// more minisockets end this way between two dumps than can be looked up one by one. (At the classic tracepoint the later
    /// socket's first record has ended them. Where that was lost, a look-up could not tell what has no cookie from the
    /// later socket.)
    ///
    /// Everything in the dump is tracked by now: only the absent sockets' hashes have to be remembered.
    fn taken(&self, asked: &DumpScope, covers: &DumpCoverage, keyed: &Keyed) -> HashSet<u64, Keyed> {
        let hash = |socket: &TrackedSocket| keyed.hash_one(place_of(socket, self.interface_of(socket)));
        let may_be = |socket: &TrackedSocket| {
            let unnamed = !self.by_cookie && socket.cookie == 0;
            let is_over =
                self.ends_when_due() && socket.kind == SocketKind::Minisocket && is_due(socket, asked);
            !is_over && (unnamed || self.by_cookie && socket.kind == SocketKind::Minisocket)
        };
        let absent = self.sockets().filter(|socket| is_absent(socket, asked, covers) && may_be(socket));
        let absent: HashSet<u64, Keyed> = absent.map(hash).collect();
        if absent.is_empty() {
            return absent;
        }
        // At the classic tracepoint what has stepped since was seen, and left to the next dump.
        let is_met = |socket: &TrackedSocket| {
            socket.seen_ns >= asked.started_ns || !self.by_cookie && socket.event_ns >= asked.started_ns
        };
        self.sockets()
            .filter(|socket| is_met(socket))
            .map(hash)
            .filter(|hash| absent.contains(hash))
            .collect()
    }
}

/// Whether the dump should have met `socket` and did not.
fn is_absent(socket: &TrackedSocket, asked: &DumpScope, covers: &DumpCoverage) -> bool {
    covers.should_show(socket)
        && asked.states & socket.phase.state().bit() != 0
        && socket.seen_ns < asked.started_ns
        && socket.event_ns + MARGIN_NS <= asked.started_ns
}

fn is_due(socket: &TrackedSocket, asked: &DumpScope) -> bool {
    socket.expires_ns() != 0 && socket.expires_ns() <= asked.started_ns
}

/// What no two sockets share at a time.
const fn place_of(socket: &TrackedSocket, interface: u32) -> (u32, Flow, u32) {
    (socket.netns, socket.flow, interface)
}
