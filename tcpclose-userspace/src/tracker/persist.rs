//! What outlives the agent: which lives are kept, which of them changed since they were last written, and how the next
//! agent takes them up.
//!
//! Only what the kernel does not tell is kept: entries, sides and roles of full sockets and of FIN-WAIT-2 minisockets.
//! A TIME-WAIT's entry is on its timer, and there may be hundreds of thousands of them.
//!
//! A kept life is a claim about a socket, and the first dump is what it is checked against: a socket that the dump does
//! not see is gone, and one that has stepped on while no agent ran entered its state after the last save.

use std::collections::HashMap;

use rustc_hash::FxHashMap;
use tcpclose_common::event::{RecordHeader, flags};

use crate::names::{Flow, Phase, Role, Side};

use crate::tracker::Tracker;
use crate::tracker::reconcile::DumpedSocket;
use crate::tracker::socket::{EnteredAt, SocketKind, TrackedSocket};

/// What is kept of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedSocket {
    /// 0 while it was not known.
    pub cookie: u64,
    pub flow: Flow,
    /// As the tracker names its network namespace; 0 while unknown.
    pub netns: u32,
    pub port: u16,
    pub side: Side,
    pub role: Role,
    pub phase: Phase,
    pub body: SocketKind,
    pub counted: bool,
    pub since: EnteredAt,
}

impl SavedSocket {
    /// What is worth keeping of `life`. One without addresses gets them from the next dump.
    pub(super) fn of(life: &TrackedSocket) -> Option<Self> {
        let TrackedSocket { cookie, flow, netns, port, side, role, phase, body, counted, since, .. } = *life;
        let kept = Self { cookie, flow, netns, port, side, role, phase, body, counted, since };
        (phase != Phase::TimeWait && flow.has_addresses()).then_some(kept)
    }

    /// What it is found by when its cookie is known: as in [`Tracker`], a minisocket's is the complement.
    const fn key(&self) -> u64 {
        match self.body {
            SocketKind::Socket => self.cookie,
            SocketKind::Minisocket => !self.cookie,
        }
    }

    /// Whether the socket that was kept can be the one now in `phase`, with this `body`. (The socket that a minisocket
    /// was made of keeps its cookie when its program connects it again.)
    fn leads_to(&self, phase: Phase, body: SocketKind) -> bool {
        use Phase::{CloseWait, Closing, FinWait1, FinWait2, LastAck, TimeWait};
        if self.body == SocketKind::Minisocket && body == SocketKind::Socket {
            return false;
        }
        self.phase == phase
            || matches!(
                (self.phase, phase),
                (FinWait1, FinWait2 | Closing | TimeWait)
                    | (FinWait2 | Closing, TimeWait)
                    | (CloseWait, LastAck)
            )
    }
}

/// What an agent before this one has kept.
#[derive(Debug, Default)]
pub struct SavedState {
    /// The instant of its last save: every step until then is in it. 0 when records were lost.
    until_ns: u64,
    by_key: FxHashMap<u64, SavedSocket>,
    /// Those without a cookie. Peers choose half of this key, so it is hashed with a secret.
    by_flow: HashMap<(u32, Flow), SavedSocket>,
}

impl SavedState {
    /// `until_ns`: up to when every step is known; 0 when that is not known.
    pub fn new(kept: impl IntoIterator<Item = SavedSocket>, until_ns: u64) -> Self {
        let mut former = Self { until_ns, ..Self::default() };
        for kept in kept {
            if kept.cookie == 0 {
                former.by_flow.insert((kept.netns, kept.flow), kept);
            } else {
                former.by_key.insert(kept.key(), kept);
            }
        }
        former
    }

    pub fn until_ns(&self) -> u64 {
        self.until_ns
    }

    /// Every kept life, in no order.
    pub fn lives(&self) -> impl Iterator<Item = &SavedSocket> {
        self.by_key.values().chain(self.by_flow.values())
    }

    pub fn len(&self) -> usize {
        self.by_key.len() + self.by_flow.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was kept of the socket with this cookie, for which `same` speaks: it may have become a minisocket since.
    fn with_cookie(
        &mut self,
        cookie: u64,
        body: SocketKind,
        same: impl Fn(&SavedSocket) -> bool,
    ) -> Option<SavedSocket> {
        let keys: &[u64] = match body {
            SocketKind::Socket => &[cookie],
            SocketKind::Minisocket => &[!cookie, cookie],
        };
        let key = keys.iter().find(|key| self.by_key.get(key).is_some_and(&same))?;
        self.by_key.remove(key)
    }

    /// What was kept of a socket that a dump saw in `netns`.
    fn of_seen(&mut self, seen: &DumpedSocket, netns: u32) -> Option<SavedSocket> {
        let by_cookie = self.with_cookie(seen.cookie, seen.body, |kept| kept.flow == seen.flow);
        by_cookie
            .or_else(|| self.by_flow.remove(&(netns, seen.flow)))
            .or_else(|| self.by_flow.remove(&(0, seen.flow)))
    }
}

/// Slots whose lives have changed since the last save.
#[derive(Debug, Default)]
pub(super) struct ChangedSockets {
    slots: Vec<u32>,
    noted: BitSet,
    /// The slots were numbered anew.
    pub(super) all: bool,
}

impl ChangedSockets {
    fn note(&mut self, slot: usize) {
        // A slab of 2³² lives would not fit in memory. Where all is to be written, nothing has to be noted.
        if !self.all
            && self.noted.set(slot)
            && let Ok(slot) = u32::try_from(slot)
        {
            self.slots.push(slot);
        }
    }

    /// Every slot noted so far, each once.
    pub(super) fn take(&mut self) -> Vec<u32> {
        let slots = std::mem::take(&mut self.slots);
        for &slot in &slots {
            self.noted.clear(slot as usize);
        }
        slots
    }

    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// A set of small numbers.
#[derive(Debug, Default)]
pub(super) struct BitSet {
    words: Vec<u64>,
    len: usize,
}

impl BitSet {
    /// Adds `n`; whether it was not there.
    pub(super) fn set(&mut self, n: usize) -> bool {
        let (word, bit) = (n / 64, 1 << (n % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let Some(bits) = self.words.get_mut(word) else { return false };
        let new = *bits & bit == 0;
        *bits |= bit;
        self.len += usize::from(new);
        new
    }

    /// Takes `n` away; whether it was there.
    pub(super) fn clear(&mut self, n: usize) -> bool {
        let (word, bit) = (n / 64, 1 << (n % 64));
        let Some(bits) = self.words.get_mut(word) else { return false };
        let there = *bits & bit != 0;
        *bits &= !bit;
        self.len -= usize::from(there);
        there
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

impl Tracker {
    /// From here on, notes which lives change.
    pub fn note_changes(&mut self) {
        self.changes = Some(ChangedSockets { all: true, ..ChangedSockets::default() });
    }

    /// Something of the life at `at` that is kept may have changed.
    pub(super) fn changed(&mut self, at: usize) {
        if let Some(changes) = &mut self.changes {
            changes.note(at);
        }
    }

    /// Takes up what an agent before this one has kept; the first dump tells what of it still holds.
    pub fn set_former(&mut self, former: SavedState) {
        self.former = Some(former).filter(|former| !former.is_empty());
    }

    /// Says that every socket of the host has been looked at: what the former agent has kept besides is gone.
    pub fn forget_former(&mut self) {
        self.former = None;
    }

    /// Adds what the former agent knew to the life at `at`, which has just been made of `seen`.
    pub(super) fn take_up(&mut self, at: usize, seen: &DumpedSocket) {
        let Some(former) = &mut self.former else { return };
        let Some(life) = self.lives.get_mut(at) else { return };
        let Some(kept) = former.of_seen(seen, life.netns) else { return };
        let Some(since) = entry(&kept, life, former.until_ns) else { return };
        life.since = since;
        // Without a cookie, another connection may have the flow by now. If it had, the kernel would remember no data
        // from before its time, and so prove an entry that the one that was kept contradicts.
        let proven = kept.cookie != 0 || (kept.phase == life.phase && since.earliest_ns != 0);
        if proven && kept.leads_to(life.phase, life.body) {
            kept.describe(life);
        }
    }

    /// What the former agent knew of a socket that leaves `left` by the record of `head`, before the first dump.
    pub(super) fn former_of(
        &mut self,
        head: &RecordHeader,
        left: Phase,
        body: SocketKind,
    ) -> Option<TrackedSocket> {
        if head.flags & flags::COOKIE == 0 || head.key == 0 {
            return None;
        }
        let same = |kept: &SavedSocket| {
            let ports = (kept.flow.local_port, kept.flow.remote_port) == (head.local_port, head.remote_port);
            ports && kept.phase == left && kept.since.latest_ns <= head.time_ns
        };
        let kept = self.former.as_mut()?.with_cookie(head.key, body, same)?;
        let mut life = TrackedSocket { flow: kept.flow, since: kept.since, ..Self::blank(head, left) };
        life.become_body(body);
        kept.describe(&mut life);
        Some(life)
    }
}

impl SavedSocket {
    /// Adds what no dump tells.
    fn describe(&self, life: &mut TrackedSocket) {
        life.counted |= self.counted;
        if self.side != Side::Unknown {
            (life.side, life.port) = (self.side, self.port);
        }
        if self.role != Role::Unknown {
            life.role = self.role;
        }
    }
}

/// When `life`, of which the dump proves `life.since`, entered its phase, seen in the light of what was `kept`: `None`
/// if that was another connection's.
fn entry(kept: &SavedSocket, life: &TrackedSocket, until_ns: u64) -> Option<EnteredAt> {
    let proven = life.since;
    let nothing_proven = proven.earliest_ns == 0;
    if kept.phase == life.phase {
        if !kept.leads_to(life.phase, life.body) || (kept.cookie == 0 && nothing_proven) {
            return None;
        }
        let both = EnteredAt {
            earliest_ns: proven.earliest_ns.max(kept.since.earliest_ns),
            latest_ns: proven.latest_ns.min(kept.since.latest_ns),
        };
        return (both.earliest_ns <= both.latest_ns).then_some(both);
    }
    // At the last save the flow was in another state, whosever it was. (A minisocket may have been: without hooks its
    // switch to TIME-WAIT is known by the next dump only.)
    let floor = if kept.body == SocketKind::Socket { until_ns } else { 0 };
    Some(EnteredAt { earliest_ns: proven.earliest_ns.max(floor).min(proven.latest_ns), ..proven })
}
