//! The table of tracked sockets: what the tracker holds, how a socket is found, inserted, changed and removed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use rustc_hash::{FxBuildHasher, FxHashMap};
use slab::Slab;

use crate::names::{Flow, HookCoverage, LastWrite, Listening, Phase, PortKind, Side};
use crate::tracker::changes::ChangedSockets;
use crate::tracker::dump::{DumpProgress, DumpedSocket, meant_length};
use crate::tracker::index::Index;
use crate::tracker::loss::RecordLoss;
use crate::tracker::pending_reset::{PendingReset, RecentResets};
use crate::tracker::saved::SavedState;
use crate::tracker::silence::{Silence, SilentHook};
use crate::tracker::socket::{SocketKind, TrackedSocket};
use crate::tracker::tombstones::Tombstones;

/// What the tracker must know of the host.
#[derive(Clone, Debug)]
pub struct HostParameters {
    /// The agent's own network namespace, as a record's [`netns`](tcpclose_common::event::RecordHeader::netns).
    pub netns: u32,
    /// Dumps see the other namespaces too.
    pub everywhere: bool,
    /// Records have the namespace (BTF). Where they do not, one flow is one socket, whichever namespace it is in.
    pub netns_known: bool,
    /// `ip_local_port_range`.
    pub ephemeral: RangeInclusive<u16>,
}

/// Hashes keys that others can choose with a secret, as std's hash does, for a fifth of its time: nobody outside is
/// shown an order or a hash to learn the secret from.
pub(super) type Keyed = foldhash::fast::RandomState;

/// All tracked sockets.
pub struct Tracker {
    pub(super) host: HostParameters,
    pub(super) sockets: Slab<TrackedSocket>,
    /// By cookie (tp_btf) or by address of the full socket (classic tracepoint; by cookie while that is unknown). A
    /// minisocket stands under its cookie's complement: the socket that it was made of may live on in a program that
    /// connects it again, and keeps its cookie (net/ipv4/tcp.c, tcp_disconnect leaves sk_cookie alone, 5.8 to 6.18). The
    /// kernel gives these out and nobody else has a choice in them, so the hash needs no secret.
    pub(super) by_key: Index<u64, FxBuildHasher>,
    /// By cookie, at the classic tracepoint: sockets whose minisocket is made. Should the record of the →CLOSE be lost,
    /// the socket's address leads nowhere any more. (At the tp_btf backend the cookie still does.)
    pub(super) by_minisocket: FxHashMap<u64, usize>,
    /// By namespace and flow, at the classic tracepoint only, where the socket's address is forgotten at →CLOSE. Peers
    /// choose half of this key, so it is hashed with a secret.
    pub(super) by_flow: Index<(u32, u64), Keyed>,
    /// The listening addresses, by namespace, as of the last dump of it.
    pub(super) listening: HashMap<(u32, Ipv6Addr, u16), Listening, Keyed>,
    /// The namespaces and ports of those listeners that have no backlog.
    pub(super) without_backlog: HashSet<(u32, u16), Keyed>,
    /// Sockets that ended, or whose flow another socket took, while a dump is under way: what it shows of them is old.
    pub(super) ended_during_dump: Option<HashSet<Identity>>,
    /// The dump that is under way.
    pub(super) dump: DumpProgress,
    /// The length of TIME-WAIT here, nanoseconds: measured.
    pub(super) time_wait_ns: Option<u64>,
    /// Whether sockets are keyed by cookie (tp_btf) or by socket address and flow (classic tracepoint).
    pub(super) by_cookie: bool,
    /// What is known of a state hook that reports nothing.
    pub(super) silence: Silence,
    /// Records were lost, at any time: what dumps had to add since may be older than the agent or not, and nothing tells.
    pub(super) ever_lost: bool,
    /// Records were lost, and the tracker may still lack what they had.
    pub(super) loss: Option<RecordLoss>,
    /// A dump missed more sockets than could be looked up.
    pub(super) unsettled: bool,
    /// A phase entered before this was there before the agent, unless its record was lost: the end of the first dump.
    /// `None` until then.
    pub(super) complete_ns: Option<u64>,
    /// The hooks in use.
    pub(super) hooks: HookCoverage,
    pub(super) tombstones: Tombstones,
    /// In the order of their closes.
    pub(super) pending_resets: VecDeque<PendingReset>,
    pub(super) recent_resets: RecentResets,
    /// What an agent before this one has saved, until the first dump is in.
    pub(super) former: Option<SavedState>,
    /// What is to be saved for the next agent, if anything is.
    pub(super) changes: Option<ChangedSockets>,
    /// The interface of those few sockets that are bound to one, by cookie.
    pub(super) interfaces: FxHashMap<u64, u32>,
    /// The last write to each socket in CLOSE-WAIT that a dump has seen, by cookie.
    pub(super) writes: FxHashMap<u64, LastWrite>,
    /// `ip_local_port_range` by the ID of a namespace, as of its last dump.
    local_ports: ByNetns<RangeInclusive<u16>>,
    /// `ns.inum` by the ID of a namespace.
    inums: ByNetns<u32>,
    /// The last entry of these that was learned.
    last_inum: (u32, u32),
    /// See [`Self::take_gave_back`].
    gave_back: bool,
}

/// What tells one socket from another across records and dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Identity {
    Cookie(u64),
    Flow(u32, u64),
}

/// Facts about network namespaces, and the number from which those without a tracked socket are forgotten.
#[derive(Debug)]
struct ByNetns<T>(FxHashMap<u32, T>, usize);

impl<T> Default for ByNetns<T> {
    fn default() -> Self {
        Self(FxHashMap::default(), Self::MANY)
    }
}

impl<T> ByNetns<T> {
    const MANY: usize = 4096;

    fn insert(&mut self, netns: u32, fact: T, sockets: &Slab<TrackedSocket>) {
        let Self(facts, most) = self;
        if facts.len() >= *most && !facts.contains_key(&netns) {
            let in_use: HashSet<u32> = sockets.iter().map(|(_, socket)| socket.netns).collect();
            facts.retain(|netns, _| in_use.contains(netns));
            // As many again until the next look at all sockets.
            *most = Self::MANY.max(2 * facts.len());
        }
        facts.insert(netns, fact);
    }
}

impl Tracker {
    /// `by_cookie`: whether the records carry cookies (the tp_btf backend).
    pub fn new(host: HostParameters, by_cookie: bool) -> Self {
        Self {
            host,
            sockets: Slab::new(),
            by_key: Index::default(),
            by_minisocket: FxHashMap::default(),
            by_flow: Index::default(),
            listening: HashMap::default(),
            without_backlog: HashSet::default(),
            ended_during_dump: None,
            dump: DumpProgress::default(),
            time_wait_ns: None,
            by_cookie,
            silence: Silence::default(),
            ever_lost: false,
            loss: None,
            unsettled: false,
            complete_ns: None,
            hooks: HookCoverage::default(),
            tombstones: Tombstones::default(),
            pending_resets: VecDeque::new(),
            recent_resets: RecentResets::default(),
            former: None,
            changes: None,
            interfaces: FxHashMap::default(),
            writes: FxHashMap::default(),
            local_ports: ByNetns::default(),
            inums: ByNetns::default(),
            last_inum: (0, 0),
            gave_back: false,
        }
    }

    /// Sets the hooks in use.
    pub fn set_hooks(&mut self, hooks: HookCoverage) {
        self.hooks = hooks;
    }

    /// The state hook's silence, if it is proven. Records must not have been lost without [`Self::records_lost`].
    pub fn silent_hook(&self) -> Option<SilentHook> {
        self.silence.proven(self.hooks.since_ns)
    }

    /// Every tracked socket, in no order.
    pub fn sockets(&self) -> impl Iterator<Item = &TrackedSocket> {
        self.sockets.iter().map(|(_, socket)| socket)
    }

    /// The same, with [`Self::last_write`].
    pub fn sockets_and_writes(&self) -> impl Iterator<Item = (&TrackedSocket, Option<&LastWrite>)> {
        self.sockets().map(|socket| (socket, self.last_write(socket)))
    }

    /// The number of tracked sockets and minisockets.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// The socket with this cookie, or else the one of this flow in this namespace.
    pub fn find(&self, netns: u32, cookie: u64, flow: &Flow) -> Option<&TrackedSocket> {
        let at = self.slot_of(netns, cookie, flow)?;
        self.sockets.get(at)
    }

    /// TIME-WAIT's measured length, nanoseconds; `None` before the first measurement.
    pub fn time_wait_ns(&self) -> Option<u64> {
        self.time_wait_ns
    }

    pub fn set_time_wait_ns(&mut self, ns: u64) {
        self.time_wait_ns = Some(meant_length(ns));
    }

    /// Sets whether dumps see other namespaces than the agent's own.
    pub fn set_everywhere(&mut self, everywhere: bool) {
        self.host.everywhere = everywhere;
    }

    /// Whether dumps look at this namespace, as far as is known.
    pub(super) fn is_dumped(&self, netns: u32) -> bool {
        self.host.everywhere || netns == self.host.netns || netns == 0
    }

    /// The listeners for connections to this end: on its address, or on every one of its family's. `local`:
    /// `None` where the address is unknown; then those without a backlog are the ones on any address.
    pub(super) fn listening(&self, netns: u32, local: Option<Ipv6Addr>, port: u16) -> Listening {
        const ANY_V4: Ipv6Addr = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
        let Some(local) = local else {
            return Listening { any: false, without_backlog: self.without_backlog.contains(&(netns, port)) };
        };
        let v4 = local.to_ipv4_mapped().map(|_| ANY_V4);
        let addresses = [Some(local), Some(Ipv6Addr::UNSPECIFIED), v4].into_iter().flatten();
        let there = addresses.filter_map(|address| self.listening.get(&(netns, address, port)));
        there.fold(Listening::default(), |all, one| Listening {
            any: true,
            without_backlog: all.without_backlog || one.without_backlog,
        })
    }

    /// Forgets the listeners of the namespaces that `is_of` accepts: a dump of them begins.
    pub(super) fn forget_listeners(&mut self, is_of: impl Fn(u32) -> bool) {
        self.listening.retain(|(netns, ..), _| !is_of(*netns));
        self.without_backlog.retain(|(netns, _)| !is_of(*netns));
    }

    /// A listener, in a dump.
    pub(super) fn add_listener(&mut self, seen: &DumpedSocket) {
        let place = (seen.netns, seen.flow.local, seen.flow.local_port);
        let listening = self.listening.entry(place).or_default();
        listening.any = true;
        if seen.without_backlog {
            listening.without_backlog = true;
            self.without_backlog.insert((seen.netns, seen.flow.local_port));
        }
    }

    /// The service port of a connection on this `side`.
    pub fn service_port(&self, netns: u32, side: Side, local: u16, remote: u16) -> u16 {
        side.service_port(local, remote, self.local_ports(netns))
    }

    /// How surely the port of `socket` is a service's.
    pub fn port_kind(&self, socket: &TrackedSocket) -> PortKind {
        if self.local_ports(socket.netns).contains(&socket.port) {
            PortKind::Chance
        } else if socket.side == Side::Unknown && self.host.netns_known {
            PortKind::Unproven
        } else {
            PortKind::Service
        }
    }

    /// `ip_local_port_range` of `netns`, or what a new network namespace begins with until a dump has been there.
    fn local_ports(&self, netns: u32) -> &RangeInclusive<u16> {
        /// net/ipv4/af_inet.c, inet_init_net() (5.8 to 6.18).
        const INITIAL: RangeInclusive<u16> = 32768..=60999;
        match self.local_ports.0.get(&netns) {
            Some(range) => range,
            None if netns == 0 || netns == self.host.netns => &self.host.ephemeral,
            None => const { &INITIAL },
        }
    }

    /// Sets `ip_local_port_range` of `netns`. Must come before the chunk with its sockets.
    pub fn set_local_ports(&mut self, netns: u32, range: RangeInclusive<u16>) {
        let Self { local_ports, sockets, .. } = self;
        local_ports.insert(netns, range, sockets);
    }

    /// The slot of `key`.
    pub(super) fn slot_of_key(&self, key: u64) -> Option<usize> {
        self.by_key.get(key, |at| self.sockets.get(at).and_then(|socket| key_of(self.by_cookie, socket)))
    }

    /// The slot of a flow in `netns`, by the ID in records and dumps.
    pub(super) fn slot_of_flow(&self, netns: u32, flow_hash: u64) -> Option<usize> {
        let flow = (netns_key(&self.host, netns), flow_hash);
        self.by_flow.get(flow, |at| {
            self.sockets.get(at).and_then(|socket| flow_of(&self.host, self.by_cookie, socket))
        })
    }

    /// The slot of a socket in a dump.
    pub(super) fn slot_of(&self, netns: u32, cookie: u64, flow: &Flow) -> Option<usize> {
        if self.by_cookie {
            let mut slots = [cookie, !cookie].into_iter().filter_map(|key| self.slot_of_key(key));
            let same =
                |at: &usize| self.sockets[*at].flow == *flow || !self.sockets[*at].flow.has_addresses();
            return slots.find(same);
        }
        // Hook records have a cookie and no flow.
        let hooked = || self.slot_of_key(!cookie).or_else(|| self.by_minisocket.get(&cookie).copied());
        self.slot_of_flow(netns, flow.hash64())
            .or_else(|| hooked().filter(|&at| self.sockets[at].flow.hash64() == 0))
    }

    pub(super) fn insert(&mut self, socket: TrackedSocket) -> usize {
        let (key, flow) = (key_of(self.by_cookie, &socket), flow_of(&self.host, self.by_cookie, &socket));
        // By little at a time, not twofold: unused memory is part of the cost of a socket too. The C library lets large
        // blocks grow where they are, or moves their pages and not their content.
        if self.sockets.len() == self.sockets.capacity() {
            self.sockets.reserve_exact(self.sockets.len() / 32 + 16);
        }
        let at = self.sockets.insert(socket);
        self.index(at, key, flow);
        at
    }

    /// Changes what a socket is found by.
    pub(super) fn change(&mut self, at: usize, change: impl FnOnce(&mut TrackedSocket)) {
        let socket = &mut self.sockets[at];
        let before = (key_of(self.by_cookie, socket), flow_of(&self.host, self.by_cookie, socket));
        let cookie = socket.cookie;
        change(socket);
        if socket.cookie != cookie {
            self.forget_minisocket(at, cookie);
        }
        let socket = &self.sockets[at];
        let (key, flow) = (key_of(self.by_cookie, socket), flow_of(&self.host, self.by_cookie, socket));
        self.forget_key(at, before.0.filter(|_| before.0 != key));
        self.forget_flow(at, before.1.filter(|_| before.1 != flow));
        self.index(at, key, flow);
    }

    /// Makes `key` and `flow` lead to the socket at `at`.
    fn index(&mut self, at: usize, key: Option<u64>, flow: Option<(u32, u64)>) {
        self.changed(at);
        if let Some(key) = key {
            let Self { by_key, sockets, by_cookie, .. } = self;
            by_key.insert(key, at, |at| sockets.get(at).and_then(|socket| key_of(*by_cookie, socket)));
        }
        if let Some(flow) = flow {
            let Self { by_flow, sockets, host, by_cookie, .. } = self;
            by_flow
                .insert(flow, at, |at| sockets.get(at).and_then(|socket| flow_of(host, *by_cookie, socket)));
        }
    }

    /// Removes `key` from the index if it leads to the socket at `at`, but not if it leads to a later one by now.
    fn forget_key(&mut self, at: usize, key: Option<u64>) {
        if let Some(key) = key {
            self.by_key.remove(key, at);
        }
    }

    /// The same for the minisocket with `cookie`.
    pub(super) fn forget_minisocket(&mut self, at: usize, cookie: u64) {
        if !self.by_minisocket.is_empty() && self.by_minisocket.get(&cookie) == Some(&at) {
            self.by_minisocket.remove(&cookie);
        }
    }

    /// The same for `flow`.
    fn forget_flow(&mut self, at: usize, flow: Option<(u32, u64)>) {
        if let Some(flow) = flow {
            self.by_flow.remove(flow, at);
        }
    }

    /// Gives the flow of the socket at `at` up to another socket, at the classic tracepoint.
    pub(super) fn yield_flow(&mut self, at: usize) {
        let socket = self.sockets[at];
        self.ignore_in_dump(&socket);
        self.forget_flow(at, flow_of(&self.host, false, &socket));
    }

    pub(super) fn remove(&mut self, at: usize) -> TrackedSocket {
        self.forget_write(at);
        let socket = self.sockets.remove(at);
        self.changed(at);
        self.forget_key(at, key_of(self.by_cookie, &socket));
        self.forget_flow(at, flow_of(&self.host, self.by_cookie, &socket));
        self.forget_minisocket(at, socket.cookie);
        if !self.interfaces.is_empty() {
            self.interfaces.remove(&socket.cookie);
        }
        if socket.kind == SocketKind::Minisocket && socket.cookie != 0 && self.hooks.ends {
            self.tombstones.push(socket.cookie);
        }
        self.ignore_in_dump(&socket);
        socket
    }

    /// `socket` is over, or another socket has its flow: a dump that is under way is older than that.
    fn ignore_in_dump(&mut self, socket: &TrackedSocket) {
        if let Some(ended) = &mut self.ended_during_dump {
            ended.insert(identity_of(&self.host, self.by_cookie, socket.netns, socket.cookie, &socket.flow));
        }
    }

    /// Something that is saved of the socket at `at` may have changed.
    pub(super) fn changed(&mut self, at: usize) {
        if let Some(changes) = &mut self.changes {
            changes.note(at);
        }
    }

    /// The interface that it is bound to, by the last dump: a look-up needs it. 0 for none.
    pub fn interface_of(&self, socket: &TrackedSocket) -> u32 {
        if self.interfaces.is_empty() {
            return 0;
        }
        self.interfaces.get(&socket.cookie).copied().unwrap_or(0)
    }

    /// Sets the interface of the socket with this cookie, by a dump.
    pub(super) fn set_interface(&mut self, cookie: u64, interface: u32) {
        if interface != 0 {
            self.interfaces.insert(cookie, interface);
        } else if !self.interfaces.is_empty() {
            self.interfaces.remove(&cookie);
        }
    }

    /// When the program last wrote to a socket in CLOSE-WAIT, by the dumps that have seen it there; `None` before the first.
    pub fn last_write(&self, socket: &TrackedSocket) -> Option<&LastWrite> {
        if socket.phase == Phase::CloseWait { self.writes.get(&socket.cookie) } else { None }
    }

    /// Takes what a dump shows of the last write to a socket in `phase`.
    pub(super) fn note_write(&mut self, seen: &DumpedSocket, phase: Phase) {
        if let Some(look) = seen.write.filter(|_| phase == Phase::CloseWait && seen.cookie != 0) {
            let known = self.writes.get(&seen.cookie).copied();
            self.writes.insert(seen.cookie, LastWrite::seen(known, look));
        }
    }

    /// The socket at `at` leaves its phase.
    pub(super) fn forget_write(&mut self, at: usize) {
        let Some(socket) = self.sockets.get(at).filter(|socket| socket.phase == Phase::CloseWait) else {
            return;
        };
        self.writes.remove(&socket.cookie);
        if self.writes.capacity() > 1024 && self.writes.len() * 8 < self.writes.capacity() {
            self.writes.shrink_to(self.writes.len() * 2);
        }
    }

    /// `ns.inum` of a network namespace with tracked sockets, by a record or a dump; 0 where neither had it.
    pub fn inum_of(&self, netns: u32) -> u32 {
        self.inums.0.get(&netns).copied().unwrap_or(0)
    }

    pub(super) fn set_inum(&mut self, netns: u32, inum: u32) {
        // Records come in runs of one namespace.
        if self.last_inum == (netns, inum) || inum == 0 || netns == 0 {
            return;
        }
        self.last_inum = (netns, inum);
        let Self { inums, sockets, .. } = self;
        if inums.0.get(&netns) != Some(&inum) {
            inums.insert(netns, inum, sockets);
        }
    }

    /// Gives the memory of a past flood back, once three quarters of it are unused.
    pub(super) fn give_back(&mut self) {
        /// Not worth the trouble below this number of sockets.
        const SMALL: usize = 1024;
        if self.sockets.capacity() <= SMALL || self.sockets.len() * 4 > self.sockets.capacity() {
            return;
        }
        if let Some(changes) = &mut self.changes {
            changes.all = true;
        }
        let Self { host, sockets, by_key, by_minisocket, by_flow, by_cookie, .. } = self;
        sockets.compact(|socket, from, to| {
            let key = key_of(*by_cookie, socket);
            if let Some(key) = key {
                by_key.moved(key, from, to);
            }
            if let Some(at) = by_minisocket.get_mut(&socket.cookie).filter(|at| **at == from) {
                *at = to;
            }
            if let Some(flow) = flow_of(host, *by_cookie, socket) {
                by_flow.moved(flow, from, to);
            }
            true
        });
        sockets.shrink_to_fit();
        by_key.shrink_to_fit(|at| sockets.get(at).and_then(|socket| key_of(*by_cookie, socket)));
        by_flow.shrink_to_fit(|at| sockets.get(at).and_then(|socket| flow_of(host, *by_cookie, socket)));
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

/// The part of a namespace's ID in the key of a flow.
fn netns_key(host: &HostParameters, netns: u32) -> u32 {
    if host.netns_known { netns } else { 0 }
}

/// The key of a socket in `by_key`. At the classic tracepoint, too, hooks know a minisocket by its cookie, and so does a
/// dump a socket that has not stepped; a cookie, which counts up from 1, and its complement are no addresses of a slab's.
fn key_of(by_cookie: bool, socket: &TrackedSocket) -> Option<u64> {
    let known = |key: u64| (key != 0).then_some(key);
    match socket.kind {
        SocketKind::Minisocket => known(socket.cookie).map(|cookie| !cookie),
        SocketKind::Socket if by_cookie => known(socket.cookie),
        SocketKind::Socket => known(socket.sk()).or(known(socket.cookie)),
    }
}

/// The key of a socket in `by_flow`.
fn flow_of(host: &HostParameters, by_cookie: bool, socket: &TrackedSocket) -> Option<(u32, u64)> {
    if by_cookie {
        return None;
    }
    let hash = socket.flow.hash64();
    (hash != 0).then(|| (netns_key(host, socket.netns), hash))
}
