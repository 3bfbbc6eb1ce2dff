//! In which listeners' accept queues connections wait that no program has accepted.
//!
//! The kernel tells how many connections each queue has (`idiag_rqueue` of a listener is its `sk_ack_backlog`:
//! net/ipv4/tcp_diag.c, `tcp_diag_get_info()`, 5.8 to 6.18), and not which. A connection is in a queue that is not empty, so
//! that of several listeners on one port (SO_REUSEPORT) often only one is left. A listener on another address and port can
//! have it too: TPROXY and programs of the type sk_lookup choose one by their own rules.

use std::cmp::Reverse;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tcpclose_common::state::TcpState;

use crate::linux::sock_diag::Socket;
use crate::report::sockets::Listener;

/// Listeners that are named of one socket; those with the longest queues, if there are more.
pub const MOST: usize = 16;

const ANY_V4: Ipv6Addr = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();

/// Whether `socket` waits in an accept queue: such a child has no struct socket yet, and so no inode (net/core/sock.c,
/// `sock_i_ino()`, 5.8 to 6.18); an orphan is in neither of these states, for close() leaves them.
pub fn waits(socket: &Socket) -> bool {
    socket.inode == 0
        && !socket.minisocket
        && matches!(socket.state, TcpState::Established | TcpState::CloseWait)
}

/// The local end of waiting connections, and what they have of their listener. Those with the same may be in the same queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Destination {
    address: Ipv6Addr,
    port: u16,
    interface: u32,
    transparent: Option<bool>,
}

impl Destination {
    fn of(socket: &Socket) -> Self {
        let Socket { flow, interface, transparent, .. } = *socket;
        Self { address: flow.local, port: flow.local_port, interface, transparent }
    }

    fn class(&self) -> Class {
        Class { is_v4: is_v4(self.address), interface: self.interface, transparent: self.transparent }
    }
}

/// What says which listeners on other addresses may have a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Class {
    is_v4: bool,
    interface: u32,
    transparent: Option<bool>,
}

impl Class {
    /// Whether listeners of `group` may have its connections: of its family and device, and as transparent as they are.
    fn fits(&self, group: &QueueKey) -> bool {
        let family = match (self.is_v4, is_v4(group.address)) {
            (true, false) => group.address == Ipv6Addr::UNSPECIFIED && !group.v6_only,
            (own, others) => own == others,
        };
        family && [0, self.interface].contains(&group.interface) && self.is_as_transparent(group)
    }

    fn is_as_transparent(&self, group: &QueueKey) -> bool {
        self.transparent.is_none() || group.transparent.is_none() || self.transparent == group.transparent
    }
}

fn is_v4(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

/// What listeners that share a port (SO_REUSEPORT) have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct QueueKey {
    address: Ipv6Addr,
    port: u16,
    interface: u32,
    transparent: Option<bool>,
    v6_only: bool,
}

#[derive(Debug)]
struct QueueGroup<'a> {
    key: QueueKey,
    listeners: Vec<&'a Socket>,
    /// The length of all their queues.
    queued: u64,
    /// Connections to their own address that wait in these queues, or in those of other groups.
    known: u64,
}

/// By their keys.
struct Groups<'a> {
    all: Vec<QueueGroup<'a>>,
    by_key: FxHashMap<QueueKey, usize>,
}

impl<'a> Groups<'a> {
    fn new(listeners: &'a [Socket]) -> Self {
        let mut groups = Self { all: Vec::new(), by_key: FxHashMap::default() };
        for listener in listeners.iter().filter(|listener| listener.state == TcpState::Listen) {
            let Socket { flow, interface, transparent, v6_only, .. } = *listener;
            let key =
                QueueKey { address: flow.local, port: flow.local_port, interface, transparent, v6_only };
            let at = *groups.by_key.entry(key).or_insert(groups.all.len());
            if at == groups.all.len() {
                groups.all.push(QueueGroup { key, listeners: Vec::new(), queued: 0, known: 0 });
            }
            if let Some(group) = groups.all.get_mut(at) {
                group.listeners.push(listener);
                group.queued += u64::from(listener.unread);
            }
        }
        groups
    }

    /// The groups that match an address, port and device, the best first, as the kernel ranks listeners
    /// (net/ipv4/inet_hashtables.c, `compute_score()`; include/net/inet_sock.h, `inet_request_bound_dev_if()`; 5.8 to 6.18):
    /// each item is all of one rank.
    fn ranks(&self, to: Destination) -> impl Iterator<Item = Vec<usize>> {
        let addresses = [Some(to.address), Some(ANY_V4), Some(Ipv6Addr::UNSPECIFIED)];
        let addresses = addresses.into_iter().enumerate().filter_map(move |(nth, address)| {
            // The exact address may be one of the others.
            address.filter(|address| nth == 0 || *address != to.address)
        });
        let places = addresses.flat_map(move |address| {
            let unbound = (to.interface != 0).then_some((address, 0));
            [Some((address, to.interface)), unbound].into_iter().flatten()
        });
        places.map(move |(address, interface)| {
            let keys = [None, Some(false), Some(true)].into_iter().flat_map(|transparent| {
                [false, true].map(|v6_only| QueueKey {
                    address,
                    port: to.port,
                    interface,
                    transparent,
                    v6_only,
                })
            });
            let any = Class { transparent: None, ..to.class() };
            let fitting = keys.filter(|key| any.fits(key));
            fitting.filter_map(|key| self.by_key.get(&key).copied()).collect()
        })
    }

    fn get(&self, at: usize) -> Option<&QueueGroup<'a>> {
        self.all.get(at)
    }

    /// Where connections to `to` wait by its address: the best groups that match and have a queue that is not empty, and
    /// `true`; where all are empty, the best of all: a listener is dumped a moment before what came into its queue.
    fn own(&self, to: Destination) -> (Vec<usize>, bool) {
        let has_queue = |group: &QueueGroup<'_>| group.queued > 0 && to.class().is_as_transparent(&group.key);
        let waited_for = self.ranks(to).find_map(|mut rank| {
            rank.retain(|&at| self.get(at).is_some_and(has_queue));
            (!rank.is_empty()).then_some(rank)
        });
        match waited_for {
            Some(groups) => (groups, true),
            None => (self.ranks(to).find(|rank| !rank.is_empty()).unwrap_or_default(), false),
        }
    }

    /// The listeners that connections of `class` may wait for whatever their address: with a queue that the connections to its
    /// own address do not explain.
    fn spare(&self, class: Class) -> Vec<&'a Socket> {
        let spare = |group: &&QueueGroup<'_>| group.queued > group.known && class.fits(&group.key);
        let listeners = self.all.iter().filter(spare).flat_map(|group| &group.listeners).copied();
        listeners.filter(|listener| listener.unread > 0).collect()
    }

    /// The listeners of the groups at `places`; those with a queue only, unless all are empty.
    fn listeners(&self, places: &[usize]) -> Vec<&'a Socket> {
        let all = || places.iter().filter_map(|&at| self.get(at)).flat_map(|group| &group.listeners).copied();
        let queued: Vec<&Socket> = all().filter(|listener| listener.unread > 0).collect();
        if queued.is_empty() { all().collect() } else { queued }
    }
}

/// Groups by their places, and what says which listeners elsewhere may have a connection, if those may.
type QueuePlaces = (Vec<usize>, Option<Class>);

/// The listeners in whose queues the waiting connections of one network namespace can be.
#[derive(Debug, Default)]
pub struct AcceptQueues {
    of: FxHashMap<Destination, Arc<[Listener]>>,
    /// See [`Self::cut`].
    cut: usize,
    /// See [`Self::is_unsure`].
    is_unsure: bool,
}

impl AcceptQueues {
    /// `waiting`: connections that [wait](waits). `listeners`: all of the namespace.
    pub fn new<'a>(waiting: impl Iterator<Item = &'a Socket>, listeners: &[Socket]) -> Self {
        let mut counts: FxHashMap<Destination, u64> = FxHashMap::default();
        for socket in waiting {
            *counts.entry(Destination::of(socket)).or_default() += 1;
        }
        if counts.is_empty() {
            return Self::default();
        }
        let mut groups = Groups::new(listeners);
        let mut own = Vec::with_capacity(counts.len());
        for (to, count) in counts {
            let (places, waits_here) = groups.own(to);
            if waits_here {
                for &at in &places {
                    if let Some(group) = groups.all.get_mut(at) {
                        group.known += count;
                    }
                }
            }
            own.push((to, places, waits_here));
        }
        Self::named(&groups, own)
    }

    /// `own`: of each destination the groups on its address, and whether connections wait there.
    fn named(groups: &Groups<'_>, own: Vec<(Destination, Vec<usize>, bool)>) -> Self {
        let mut queues = Self::default();
        // Not one list for each of many addresses, for all may be of the same groups.
        let mut by_groups: FxHashMap<QueuePlaces, Arc<[Listener]>> = FxHashMap::default();
        let mut spare: FxHashMap<Class, Vec<&Socket>> = FxHashMap::default();
        for (to, places, waits_here) in own {
            let mut of_places = places.iter().filter_map(|&at| groups.get(at));
            let are_enough = waits_here && of_places.all(|group| group.known <= group.queued);
            let strays = (!are_enough).then(|| to.class());
            let key = (places, strays);
            let found = match by_groups.get(&key) {
                Some(found) => found.clone(),
                None => {
                    let elsewhere = strays.map(|class| {
                        &**spare.entry(class).or_insert_with(|| queues.longest(groups.spare(class)))
                    });
                    let found = queues.find(groups, &key.0, waits_here, elsewhere.unwrap_or_default());
                    by_groups.entry(key).or_insert(found).clone()
                }
            };
            queues.of.insert(to, found);
        }
        queues
    }

    /// The listeners of the groups at `places`, where connections wait by their address or do not, and those `elsewhere` that
    /// they can wait for too.
    fn find(
        &mut self,
        groups: &Groups<'_>,
        places: &[usize],
        waits_here: bool,
        elsewhere: &[&Socket],
    ) -> Arc<[Listener]> {
        let are_strays = !elsewhere.is_empty();
        let mut all = if are_strays && !waits_here { Vec::new() } else { groups.listeners(places) };
        all.extend(elsewhere);
        let candidate = are_strays || all.len() > 1;
        self.is_unsure |= are_strays && all.len() > 1;
        self.longest(all).into_iter().map(|listener| named(listener, candidate)).collect()
    }

    /// The [`MOST`] with the longest queues.
    fn longest<'a>(&mut self, mut all: Vec<&'a Socket>) -> Vec<&'a Socket> {
        all.sort_unstable_by_key(|listener| (Reverse(listener.unread), listener.inode));
        self.cut = self.cut.max(all.len().saturating_sub(MOST));
        all.truncate(MOST);
        all
    }

    /// The listeners in whose queues `socket` can be, the longest queue first; none for a socket that does not wait.
    pub fn of(&self, socket: &Socket) -> &[Listener] {
        match waits(socket) {
            true => self.of.get(&Destination::of(socket)).map_or(&[], |listeners| listeners),
            false => &[],
        }
    }

    /// Whether listeners on other addresses are among several candidates: if all that wait is known, and not only what a dump
    /// of the close phase has, fewer are left.
    pub fn is_unsure(&self) -> bool {
        self.is_unsure
    }

    /// How many more listeners than [`MOST`] one socket can wait for.
    pub fn cut(&self) -> usize {
        self.cut
    }
}

fn named(listener: &Socket, candidate: bool) -> Listener {
    Listener {
        local: listener.flow.local(),
        interface: listener.interface,
        inode: listener.inode,
        queued: listener.unread,
        candidate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixtures::dumped_socket;

    /// A listener: where, its inode, the length of its queue.
    fn listen(local: &str, inode: u32, unread: u32) -> Socket {
        let any = if local.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let transparent = Some(false);
        Socket { unread, transparent, ..dumped_socket(TcpState::Listen, local, any, inode) }
    }

    fn waiting(local: &str) -> Socket {
        let peer = if local.starts_with('[') { "[2001:db8::9]:41234" } else { "10.0.0.9:41234" };
        Socket { transparent: Some(false), ..dumped_socket(TcpState::CloseWait, local, peer, 0) }
    }

    fn transparent(socket: Socket) -> Socket {
        Socket { transparent: Some(true), ..socket }
    }

    /// The inodes of the listeners of the first of `sockets`; below 0 those that are candidates only.
    fn found(sockets: &[Socket], listeners: &[Socket]) -> Vec<i64> {
        let queues = AcceptQueues::new(sockets.iter(), listeners);
        let sign = |listener: &Listener| match listener.candidate {
            true => -i64::from(listener.inode),
            false => i64::from(listener.inode),
        };
        queues.of(&sockets[0]).iter().map(sign).collect()
    }

    #[test]
    fn of_listeners_on_one_port_the_one_with_a_queue_has_the_connection() {
        let sockets = [waiting("10.0.0.5:8080"); 19];
        let group = |queues: [u32; 3]| {
            [1, 2, 3].map(|inode| listen("0.0.0.0:8080", inode, queues[inode as usize - 1]))
        };
        assert_eq!(found(&sockets, &group([0, 19, 0])), [2]);
        // More may wait than are in CLOSE-WAIT.
        assert_eq!(found(&sockets, &group([0, 30, 0])), [2]);
        // The kernel does not say which of two: both, the longer queue first.
        assert_eq!(found(&sockets, &group([3, 16, 0])), [-2, -1]);
        // They came after the listeners were dumped, or have just been accepted.
        assert_eq!(found(&sockets, &group([0, 0, 0])), [-1, -2, -3]);
        assert_eq!(found(&sockets, &group([0, 0, 0])[..1]), [1]);
        let queues = AcceptQueues::new(sockets.iter(), &group([3, 16, 0]));
        assert_eq!(queues.of(&sockets[0])[0].queued, 16);
        // What a program holds waits for nobody.
        assert!(queues.of(&Socket { inode: 7, ..sockets[0] }).is_empty());
    }

    #[test]
    fn a_listener_of_before_keeps_its_queue_when_a_closer_one_comes() {
        let listeners = [listen("0.0.0.0:8080", 1, 1), listen("10.0.0.5:8080", 2, 0)];
        assert_eq!(found(&[waiting("10.0.0.5:8080")], &listeners), [1]);
        let listeners = [listen("0.0.0.0:8080", 1, 1), listen("10.0.0.5:8080", 2, 1)];
        assert_eq!(found(&[waiting("10.0.0.5:8080")], &listeners), [2]);
    }

    #[test]
    fn families_and_devices_are_kept_apart() {
        let both = listen("[::]:8080", 1, 1);
        assert_eq!(found(&[waiting("10.0.0.5:8080")], &[both]), [1]);
        let v6_only = Socket { v6_only: true, ..both };
        assert!(found(&[waiting("10.0.0.5:8080")], &[v6_only]).is_empty());
        assert_eq!(found(&[waiting("[2001:db8::5]:8080")], &[v6_only, listen("0.0.0.0:8080", 2, 1)]), [1]);
        let on = |interface, socket| Socket { interface, ..socket };
        let listeners = [on(2, listen("0.0.0.0:8080", 1, 1)), on(3, listen("0.0.0.0:8080", 2, 1))];
        assert_eq!(found(&[on(3, waiting("10.0.0.5:8080"))], &listeners), [2]);
        assert!(found(&[waiting("10.0.0.5:8080")], &listeners).is_empty());
    }

    #[test]
    fn a_listener_elsewhere_with_a_queue_that_nothing_explains_is_a_candidate() {
        let sockets = [waiting("192.0.2.1:443"); 2];
        let proxy = listen("127.0.0.1:15001", 1, 2);
        assert_eq!(found(&sockets, &[proxy, listen("0.0.0.0:22", 2, 0)]), [-1]);
        // What waits at a listener's own address explains its queue.
        let [first, second] = sockets;
        let ssh = [listen("0.0.0.0:22", 2, 1)];
        let all = [first, second, waiting("10.0.0.5:22")];
        assert_eq!(found(&all, &[proxy, ssh[0]]), [-1]);
        assert_eq!(found(&[all[2], first, second], &[proxy, ssh[0]]), [2]);
        // A listener on the connection's own address is none of TPROXY's if nothing waits there.
        assert_eq!(found(&sockets, &[proxy, listen("0.0.0.0:443", 3, 0)]), [-1]);
        // Nor has it all of them if its queue is shorter than that.
        assert_eq!(found(&sockets, &[proxy, listen("0.0.0.0:443", 3, 1)]), [-1, -3]);
        // No queue at all: no listener is named.
        assert!(found(&sockets, &[listen("127.0.0.1:15001", 1, 0)]).is_empty());
    }

    #[test]
    fn a_transparent_connection_is_of_a_transparent_listener() {
        let sockets = [transparent(waiting("192.0.2.1:443"))];
        let proxy = transparent(listen("0.0.0.0:15001", 1, 1));
        let others = [proxy, listen("0.0.0.0:22", 2, 5), listen("0.0.0.0:443", 3, 5)];
        assert_eq!(found(&sockets, &others), [-1]);
        assert_eq!(found(&[waiting("192.0.2.1:80")], &others), [-2, -3]);
        // Where the kernel does not say who is transparent, all are candidates.
        let untold = |socket| Socket { transparent: None, ..socket };
        assert_eq!(found(&sockets.map(untold), &others[..2]), [-2, -1]);
        // The listener's own address serves transparent connections too.
        assert_eq!(found(&[transparent(waiting("10.0.0.5:15001"))], &others), [1]);
    }

    #[test]
    fn everything_that_waits_leaves_fewer_candidates() {
        let stray = waiting("192.0.2.1:443");
        let listeners = [listen("127.0.0.1:15001", 1, 1), listen("0.0.0.0:22", 2, 1)];
        let unsure = AcceptQueues::new([stray].iter(), &listeners);
        assert!(unsure.is_unsure() && unsure.of(&stray).len() == 2);
        let open = Socket { state: TcpState::Established, ..waiting("10.0.0.5:22") };
        let sure = AcceptQueues::new([stray, open].iter(), &listeners);
        assert!(!sure.is_unsure());
        assert_eq!(sure.of(&stray).iter().map(|listener| listener.inode).collect::<Vec<_>>(), [1]);
        assert_eq!(sure.of(&open).len(), 1);
    }

    #[test]
    fn so_many_listeners_are_named_and_the_others_counted() {
        let listeners: Vec<Socket> = (1..=100).map(|inode| listen("0.0.0.0:8080", inode, inode)).collect();
        let sockets = [waiting("10.0.0.5:8080")];
        let queues = AcceptQueues::new(sockets.iter(), &listeners);
        assert_eq!((queues.of(&sockets[0]).len(), queues.cut()), (MOST, 100 - MOST));
        assert_eq!(queues.of(&sockets[0])[0].queued, 100);
        assert_eq!(AcceptQueues::default().cut(), 0);
    }
}
