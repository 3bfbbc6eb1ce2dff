//! Who is charged for a port's name: what dumps show of the users that have the sockets of a port.

use std::collections::HashMap;

use crate::names::{NetnsOwner, PortKey, Side};

/// Ids from here on are commonly subordinate ones (subuid(5)), of which one user can have thousands: they share one charge
/// within the host's network namespace.
const SHARED_IDS: u32 = 1 << 16;

/// The most pairs whose holders are remembered at a time.
const MOST_HOLDERS: usize = 16_384;

/// A user, or what stands for one. Of several that have a port the first in this order is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Charge {
    /// Root in the host's network namespace, who may have all names.
    Root,
    User(u32),
    /// A container: a network namespace that root made, by its id. Its programs can have any id of the host.
    Container(u32),
    /// No dump has seen a socket of it.
    Unknown,
}

impl Charge {
    /// Of a socket of the user `uid` in the network namespace `netns`, which `creator` made if it is a user's.
    pub fn of(owner: NetnsOwner, netns: u32, creator: u32, uid: u32) -> Self {
        match owner {
            NetnsOwner::Host if uid == 0 => Self::Root,
            NetnsOwner::Host => Self::User(uid.min(SHARED_IDS)),
            NetnsOwner::Container => Self::Container(netns),
            NetnsOwner::User => Self::User(creator),
        }
    }
}

/// What dumps show of ports. Dumps go over the namespaces in rounds: what neither this round nor the one before has seen is
/// forgotten.
#[derive(Debug, Default)]
pub struct PortFacts {
    now: Seen,
    before: Seen,
}

#[derive(Debug, Default)]
struct Seen {
    listeners: HashMap<u16, Charge>,
    /// Those that hold sockets in CLOSE-WAIT.
    holders: HashMap<PortKey, Charge>,
}

impl PortFacts {
    /// A dump met a listener.
    pub fn listens(&mut self, port: u16, charge: Charge) {
        let first = self.now.listeners.entry(port).or_insert(charge);
        *first = charge.min(*first);
    }

    /// A dump met a socket in CLOSE-WAIT.
    pub fn holds(&mut self, pair: PortKey, charge: Charge) {
        let holders = &mut self.now.holders;
        if holders.len() < MOST_HOLDERS || holders.contains_key(&pair) {
            let first = holders.entry(pair).or_insert(charge);
            *first = charge.min(*first);
        }
    }

    /// A round over the namespaces is complete.
    pub fn round_done(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    pub(super) fn is_listened(&self, port: u16) -> bool {
        [&self.now, &self.before].iter().any(|seen| seen.listeners.contains_key(&port))
    }

    /// Who is charged for a name of `pair`.
    pub(super) fn charge(&self, pair: PortKey) -> Charge {
        let of = |seen: &Seen| {
            let listener = seen.listeners.get(&pair.port).filter(|_| pair.side == Side::Server).copied();
            [listener, seen.holders.get(&pair).copied()]
        };
        [&self.now, &self.before].into_iter().flat_map(of).flatten().min().unwrap_or(Charge::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: PortKey = PortKey { side: Side::Server, port: 80 };

    #[test]
    fn who_is_charged() {
        let host = |uid| Charge::of(NetnsOwner::Host, 1, 0, uid);
        assert_eq!((host(0), host(1000)), (Charge::Root, Charge::User(1000)));
        assert_eq!(host(100_000), host(165_535), "one user's subordinate ids");
        assert_eq!(Charge::of(NetnsOwner::Container, 7, 0, 0), Charge::Container(7));
        assert_eq!(Charge::of(NetnsOwner::User, 7, 1000, 100_000), host(1000));
    }

    #[test]
    fn a_fact_outlives_one_round_and_root_comes_first() {
        let mut facts = PortFacts::default();
        assert_eq!((facts.is_listened(80), facts.charge(PAIR)), (false, Charge::Unknown));
        facts.listens(80, Charge::User(5));
        facts.holds(PAIR, Charge::Container(7));
        facts.round_done();
        assert_eq!((facts.is_listened(80), facts.charge(PAIR)), (true, Charge::User(5)));
        facts.holds(PAIR, Charge::Root);
        assert_eq!(facts.charge(PAIR), Charge::Root);
        assert_eq!(facts.charge(PortKey { side: Side::Client, ..PAIR }), Charge::Unknown);
        facts.round_done();
        assert_eq!((facts.is_listened(80), facts.charge(PAIR)), (false, Charge::Root));
        facts.round_done();
        assert_eq!(facts.charge(PAIR), Charge::Unknown);
    }

    #[test]
    fn holders_are_bounded() {
        let mut facts = PortFacts::default();
        for port in 0..=u16::MAX {
            facts.holds(PortKey { side: Side::Client, port }, Charge::Unknown);
        }
        assert_eq!(facts.now.holders.len(), MOST_HOLDERS);
    }
}
