//! Saved sockets: what one agent keeps for the next.

use std::collections::HashMap;

use rustc_hash::FxHashMap;

use crate::names::{Flow, Phase, Role, Side};
use crate::tracker::dump::DumpedSocket;
use crate::tracker::socket::{EnteredAt, SocketKind, TrackedSocket};

/// The saved part of a tracked socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedSocket {
    /// 0 while it was unknown.
    pub cookie: u64,
    pub flow: Flow,
    /// The ID of its network namespace in the tracker; 0 while unknown.
    pub netns: u32,
    pub port: u16,
    pub side: Side,
    pub role: Role,
    pub phase: Phase,
    pub kind: SocketKind,
    pub counted: bool,
    pub since: EnteredAt,
}

impl SavedSocket {
    /// The part of `socket` worth saving. One without addresses gets them from the next dump.
    pub(super) fn of(socket: &TrackedSocket) -> Option<Self> {
        let TrackedSocket { cookie, flow, netns, port, side, role, phase, kind, counted, since, .. } =
            *socket;
        let saved = Self { cookie, flow, netns, port, side, role, phase, kind, counted, since };
        (phase != Phase::TimeWait && flow.has_addresses()).then_some(saved)
    }

    /// Its key when its cookie is known: as in the tracker, a minisocket's is the complement.
    const fn key(&self) -> u64 {
        match self.kind {
            SocketKind::Socket => self.cookie,
            SocketKind::Minisocket => !self.cookie,
        }
    }

    /// Whether the saved socket can be the one now in `phase`, of this `kind`. (The socket that a minisocket was made of
    /// keeps its cookie when its program connects it again.)
    pub(super) fn leads_to(&self, phase: Phase, kind: SocketKind) -> bool {
        use Phase::{CloseWait, Closing, FinWait1, FinWait2, LastAck, TimeWait};
        if self.kind == SocketKind::Minisocket && kind == SocketKind::Socket {
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

    /// Adds to `socket` what no dump has.
    pub(super) fn describe(&self, socket: &mut TrackedSocket) {
        socket.counted |= self.counted;
        if self.side != Side::Unknown {
            (socket.side, socket.port) = (self.side, self.port);
        }
        if self.role != Role::Unknown {
            socket.role = self.role;
        }
    }
}

/// The sockets that an agent before this one has saved.
#[derive(Debug, Default)]
pub struct SavedState {
    /// The instant of its last save: every step until then is in it. 0 when records were lost.
    until_ns: u64,
    by_key: FxHashMap<u64, SavedSocket>,
    /// Those without a cookie. Peers choose half of this key, so it is hashed with a secret.
    by_flow: HashMap<(u32, Flow), SavedSocket>,
}

impl SavedState {
    /// `until_ns`: up to when every step is known; 0 when that is unknown.
    pub fn new(sockets: impl IntoIterator<Item = SavedSocket>, until_ns: u64) -> Self {
        let mut state = Self { until_ns, ..Self::default() };
        for saved in sockets {
            if saved.cookie == 0 {
                state.by_flow.insert((saved.netns, saved.flow), saved);
            } else {
                state.by_key.insert(saved.key(), saved);
            }
        }
        state
    }

    pub fn until_ns(&self) -> u64 {
        self.until_ns
    }

    /// Every saved socket, in no order.
    pub fn sockets(&self) -> impl Iterator<Item = &SavedSocket> {
        self.by_key.values().chain(self.by_flow.values())
    }

    pub fn len(&self) -> usize {
        self.by_key.len() + self.by_flow.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the saved socket with this cookie, if `same` accepts it: it may have become a minisocket since.
    pub(super) fn take_by_cookie(
        &mut self,
        cookie: u64,
        kind: SocketKind,
        same: impl Fn(&SavedSocket) -> bool,
    ) -> Option<SavedSocket> {
        let keys: &[u64] = match kind {
            SocketKind::Socket => &[cookie],
            SocketKind::Minisocket => &[!cookie, cookie],
        };
        let key = keys.iter().find(|key| self.by_key.get(key).is_some_and(&same))?;
        self.by_key.remove(key)
    }

    /// Takes the saved socket that a dump saw in `netns`.
    pub(super) fn take_seen(&mut self, seen: &DumpedSocket, netns: u32) -> Option<SavedSocket> {
        let by_cookie = self.take_by_cookie(seen.cookie, seen.kind, |saved| saved.flow == seen.flow);
        by_cookie
            .or_else(|| self.by_flow.remove(&(netns, seen.flow)))
            .or_else(|| self.by_flow.remove(&(0, seen.flow)))
    }
}
