//! Which life a record, a notice or a dump speaks of, and how lives come and go.

use std::collections::HashSet;

use tcpclose_common::event::RecordHeader;

use crate::names::Flow;

use crate::tracker::event::EventSink;
use crate::tracker::socket::{SocketKind, TrackedSocket};
use crate::tracker::transition::Evidence;
use crate::tracker::{HostParameters, Identity, Tracker};

impl Tracker {
    /// The life that a step belongs to.
    pub(super) fn slot_of_step(&self, head: &RecordHeader, flow_hash: u64) -> Option<usize> {
        if let Some(at) = self.at(head.key) {
            return Some(at);
        }
        if self.by_cookie {
            // A dump that ran between the hash of the minisocket and the →CLOSE of the socket was faster.
            let at = self.at(!head.key)?;
            let Flow { local_port, remote_port, .. } = self.lives[at].flow;
            return ((local_port, remote_port) == (head.local_port, head.remote_port)).then_some(at);
        }
        let at = self.slot_of_flow(head.netns, flow_hash)?;
        // The flow's minisocket does not step; this is a later socket of which the first record was lost.
        (self.lives[at].body == SocketKind::Socket).then_some(at)
    }

    /// Clears, at the classic tracepoint, what stands under the address or the flow of a socket that steps and whose first record
    /// was lost.
    pub(super) fn make_way(&mut self, head: &RecordHeader, flow_hash: u64, out: &mut impl EventSink) {
        if self.by_cookie {
            return;
        }
        if let Some(at) = self.at(head.key) {
            let known = self.lives[at].flow.hash64();
            if known != 0 && known != flow_hash {
                // The slab gave the address to another socket; the end of this one was lost, too.
                self.displaced(at, head.time_ns, out);
            } else {
                return;
            }
        }
        // One flow, one socket: the earlier connection's minisocket is gone.
        if let Some(at) = self.slot_of_flow(head.netns, flow_hash)
            && self.lives[at].body == SocketKind::Minisocket
        {
            self.end_minisocket(at, head.time_ns, Evidence::BY_ANOTHER, out);
        }
    }

    /// The life that is kept under `key`.
    pub(super) fn at(&self, key: u64) -> Option<usize> {
        self.by_key.get(key, |at| self.lives.get(at).and_then(|life| key_of(self.by_cookie, life)))
    }

    /// The life of a flow in `netns`, as a record or a dump tells that.
    pub(super) fn slot_of_flow(&self, netns: u32, flow_hash: u64) -> Option<usize> {
        let flow = (netns_key(&self.host, netns), flow_hash);
        self.by_flow
            .get(flow, |at| self.lives.get(at).and_then(|life| flow_of(&self.host, self.by_cookie, life)))
    }

    /// The life that a dump speaks of.
    pub(super) fn slot_of(&self, netns: u32, cookie: u64, flow: &Flow) -> Option<usize> {
        if self.by_cookie {
            let mut slots = [cookie, !cookie].into_iter().filter_map(|key| self.at(key));
            let same = |at: &usize| self.lives[*at].flow == *flow || !self.lives[*at].flow.has_addresses();
            return slots.find(same);
        }
        // Hooks tell a cookie and no flow.
        let told = || self.at(!cookie).or_else(|| self.by_birth.get(&cookie).copied());
        self.slot_of_flow(netns, flow.hash64())
            .or_else(|| told().filter(|&at| self.lives[at].flow.hash64() == 0))
    }

    pub(super) fn insert(&mut self, life: TrackedSocket) -> usize {
        let (key, flow) = (key_of(self.by_cookie, &life), flow_of(&self.host, self.by_cookie, &life));
        // By little at a time, not twofold: memory that nobody uses is what a life costs too. The C library lets large blocks
        // grow where they are, or moves their pages and not what is in them.
        if self.lives.len() == self.lives.capacity() {
            self.lives.reserve_exact(self.lives.len() / 32 + 16);
        }
        let at = self.lives.insert(life);
        self.index(at, key, flow);
        at
    }

    /// Changes what a life is found by.
    pub(super) fn change(&mut self, at: usize, change: impl FnOnce(&mut TrackedSocket)) {
        let life = &mut self.lives[at];
        let before = (key_of(self.by_cookie, life), flow_of(&self.host, self.by_cookie, life));
        let cookie = life.cookie;
        change(life);
        if life.cookie != cookie {
            self.forget_birth(at, cookie);
        }
        let life = &self.lives[at];
        let (key, flow) = (key_of(self.by_cookie, life), flow_of(&self.host, self.by_cookie, life));
        self.forget_key(at, before.0.filter(|_| before.0 != key));
        self.forget_flow(at, before.1.filter(|_| before.1 != flow));
        self.index(at, key, flow);
    }

    /// Makes the life at `at` the one that its key and its flow lead to.
    pub(super) fn index(&mut self, at: usize, key: Option<u64>, flow: Option<(u32, u64)>) {
        self.changed(at);
        if let Some(key) = key {
            let Self { by_key, lives, by_cookie, .. } = self;
            by_key.insert(key, at, |at| lives.get(at).and_then(|life| key_of(*by_cookie, life)));
        }
        if let Some(flow) = flow {
            let Self { by_flow, lives, host, by_cookie, .. } = self;
            by_flow.insert(flow, at, |at| lives.get(at).and_then(|life| flow_of(host, *by_cookie, life)));
        }
    }

    /// Takes back that `key` leads to the life at `at`, but not that it leads to a later one by now.
    pub(super) fn forget_key(&mut self, at: usize, key: Option<u64>) {
        if let Some(key) = key {
            self.by_key.remove(key, at);
        }
    }

    /// The same of the birth of a minisocket with `cookie`.
    pub(super) fn forget_birth(&mut self, at: usize, cookie: u64) {
        if !self.by_birth.is_empty() && self.by_birth.get(&cookie) == Some(&at) {
            self.by_birth.remove(&cookie);
        }
    }

    /// The same of `flow`.
    pub(super) fn forget_flow(&mut self, at: usize, flow: Option<(u32, u64)>) {
        if let Some(flow) = flow {
            self.by_flow.remove(flow, at);
        }
    }

    pub(super) fn remove(&mut self, at: usize) -> TrackedSocket {
        let life = self.lives.remove(at);
        self.changed(at);
        self.forget_key(at, key_of(self.by_cookie, &life));
        self.forget_flow(at, flow_of(&self.host, self.by_cookie, &life));
        self.forget_birth(at, life.cookie);
        if !self.interfaces.is_empty() {
            self.interfaces.remove(&life.cookie);
        }
        if life.body == SocketKind::Minisocket && life.cookie != 0 && self.told.ends {
            self.just_ended.push(life.cookie);
        }
        self.no_news_of(&life);
        life
    }

    /// What a dump that is under way says of `life` is older than what is known: that it is over, or that another socket
    /// has its flow.
    pub(super) fn no_news_of(&mut self, life: &TrackedSocket) {
        if let Some(ended) = &mut self.ended_meanwhile {
            ended.insert(identity_of(&self.host, self.by_cookie, life.netns, life.cookie, &life.flow));
        }
    }

    /// The interface that it is bound to, as the last dump had it: a look-up needs it. 0 for none.
    pub fn interface_of(&self, life: &TrackedSocket) -> u32 {
        if self.interfaces.is_empty() {
            return 0;
        }
        self.interfaces.get(&life.cookie).copied().unwrap_or(0)
    }

    /// Takes in the interface of the socket with this cookie, by a dump.
    pub(super) fn bound_to(&mut self, cookie: u64, interface: u32) {
        if interface != 0 {
            self.interfaces.insert(cookie, interface);
        } else if !self.interfaces.is_empty() {
            self.interfaces.remove(&cookie);
        }
    }

    /// `ns.inum` of a network namespace that lives are in, as a record or a dump told it; 0 where none did.
    pub fn inum_of(&self, netns: u32) -> u32 {
        self.inums.get(&netns).copied().unwrap_or(0)
    }

    pub(super) fn told_inum(&mut self, netns: u32, inum: u32) {
        /// Namespaces that no life is in any more are forgotten at the latest when there are so many.
        const MANY: usize = 4096;
        // Records come in runs of one namespace.
        if self.last_inum == (netns, inum) || inum == 0 || netns == 0 {
            return;
        }
        self.last_inum = (netns, inum);
        if self.inums.get(&netns) == Some(&inum) {
            return;
        }
        if self.inums.len() >= MANY {
            let live: HashSet<u32> = self.lives.iter().map(|(_, life)| life.netns).collect();
            self.inums.retain(|netns, _| live.contains(netns));
        }
        self.inums.insert(netns, inum);
    }

    /// Gives the memory of a past flood back, once three quarters of it lie idle.
    pub(super) fn give_back(&mut self) {
        /// Not worth the trouble below this many lives.
        const SMALL: usize = 1024;
        if self.lives.capacity() <= SMALL || self.lives.len() * 4 > self.lives.capacity() {
            return;
        }
        if let Some(changes) = &mut self.changes {
            changes.all = true;
        }
        let Self { host, lives, by_key, by_birth, by_flow, by_cookie, .. } = self;
        lives.compact(|life, from, to| {
            let key = key_of(*by_cookie, life);
            if let Some(key) = key {
                by_key.moved(key, from, to);
            }
            if let Some(at) = by_birth.get_mut(&life.cookie).filter(|at| **at == from) {
                *at = to;
            }
            if let Some(flow) = flow_of(host, *by_cookie, life) {
                by_flow.moved(flow, from, to);
            }
            true
        });
        lives.shrink_to_fit();
        by_key.shrink_to_fit(|at| lives.get(at).and_then(|life| key_of(*by_cookie, life)));
        by_flow.shrink_to_fit(|at| lives.get(at).and_then(|life| flow_of(host, *by_cookie, life)));
        self.gave_back = true;
    }

    /// Whether memory was given back since the last call.
    pub fn take_gave_back(&mut self) -> bool {
        std::mem::take(&mut self.gave_back)
    }

    pub(super) fn identity(&self, netns: u32, cookie: u64, flow: &Flow) -> Identity {
        identity_of(&self.host, self.by_cookie, netns, cookie, flow)
    }
}

fn identity_of(host: &HostParameters, by_cookie: bool, netns: u32, cookie: u64, flow: &Flow) -> Identity {
    if by_cookie { Identity::Cookie(cookie) } else { Identity::Flow(netns_key(host, netns), flow.hash64()) }
}

/// What of a namespace tells flows apart.
fn netns_key(host: &HostParameters, netns: u32) -> u32 {
    if host.told { netns } else { 0 }
}

/// What a life is kept under in `by_key`. Hooks know a minisocket by its cookie at the classic tracepoint too, and a socket that
/// a dump told of before it stepped; a cookie, which counts up from 1, and its complement are no addresses of a slab's.
fn key_of(by_cookie: bool, life: &TrackedSocket) -> Option<u64> {
    let known = |key: u64| (key != 0).then_some(key);
    match life.body {
        SocketKind::Minisocket => known(life.cookie).map(|cookie| !cookie),
        SocketKind::Socket if by_cookie => known(life.cookie),
        SocketKind::Socket => known(life.sk()).or(known(life.cookie)),
    }
}

/// What a life is kept under in `by_flow`.
pub(super) fn flow_of(host: &HostParameters, by_cookie: bool, life: &TrackedSocket) -> Option<(u32, u64)> {
    if by_cookie {
        return None;
    }
    let hash = life.flow.hash64();
    (hash != 0).then(|| (netns_key(host, life.netns), hash))
}
