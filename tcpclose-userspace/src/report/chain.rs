//! Chains through proxies on this host: which program has to close before a CLOSE-WAIT can end.
//!
//! A proxy that is given the end of the stream passes it on: it sends a FIN of its own on its other connection, which waits in
//! FIN-WAIT-2 until the program behind it closes. So the two connections of a process belong together if the FIN went out right after
//! the other one came, and no other connection of the process fits as well.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;

use rustc_hash::FxHashMap;

use crate::report::chain_link::{Chain, ChainEnd, Link};
use crate::report::sockets::{AgeSeconds, Cookie, Owner, StuckSocket};

/// How long after the end of the stream came a proxy may send it on, seconds.
const WITHIN: f64 = 1.0;
/// How far the ages of two documents may be off, seconds.
const SLACK: f64 = 0.05;
/// Pairs of what came and what went out that are compared for one process; of more nothing is proven.
const MOST_PAIRS: usize = 1_000_000;
/// More programs in a row than anybody has.
const LONGEST: usize = 8;

/// What the end of a stream may have gone on by, and how many compete for these connections.
#[derive(Debug)]
struct PassedOn<'a> {
    rivals: usize,
    candidates: Vec<&'a StuckSocket>,
}

/// Of each process that was met: see [`ChainSockets::passed_on_by`].
type KnownLinks<'a> = FxHashMap<u32, FxHashMap<usize, Rc<PassedOn<'a>>>>;

/// The sockets of which chains are made.
pub struct ChainSockets<'a> {
    close_wait: &'a [StuckSocket],
    /// Those that have sent a FIN and wait: by the process that holds them.
    sent: FxHashMap<u32, Vec<&'a StuckSocket>>,
    /// The places in `close_wait`, by the process that holds them.
    by_owner: FxHashMap<u32, Vec<usize>>,
    by_cookie: FxHashMap<Cookie, usize>,
    /// … by the ends of the connection.
    by_ends: FxHashMap<(SocketAddr, SocketAddr), Vec<usize>>,
    /// How much later the second document was made than the first, seconds.
    later: f64,
}

impl<'a> ChainSockets<'a> {
    /// `sent`: sockets in FIN-WAIT-1 and FIN-WAIT-2, of a document that was made so many seconds later than that of `close_wait`.
    pub fn new(close_wait: &'a [StuckSocket], sent: &'a [StuckSocket], later: f64) -> Self {
        let mut sockets = Self {
            close_wait,
            sent: FxHashMap::default(),
            by_owner: FxHashMap::default(),
            by_cookie: FxHashMap::default(),
            by_ends: FxHashMap::default(),
            later,
        };
        for socket in sent {
            for pid in pids(socket) {
                sockets.sent.entry(pid).or_default().push(socket);
            }
        }
        for (at, socket) in close_wait.iter().enumerate() {
            for pid in pids(socket) {
                sockets.by_owner.entry(pid).or_default().push(at);
            }
            sockets.by_cookie.insert(socket.cookie, at);
            sockets.by_ends.entry((socket.local, socket.peer)).or_default().push(at);
        }
        sockets
    }

    /// The chains of `stuck`, those with the most sockets first.
    pub fn chains<'s>(&self, stuck: impl IntoIterator<Item = &'s StuckSocket>) -> Vec<Chain> {
        type ChainKey = (Option<Link>, Vec<Link>, ChainEnd);
        let mut counts: BTreeMap<ChainKey, usize> = BTreeMap::new();
        let mut known = KnownLinks::default();
        for socket in stuck {
            let client = socket.peer_owners.first().map(|owner| link(owner, socket.port));
            let (links, end) = self.chain_of(socket, &mut known);
            *counts.entry((client, links, end)).or_default() += 1;
        }
        let chain = |((client, links, end), count)| Chain { count, client, links, end };
        let mut chains: Vec<Chain> = counts.into_iter().map(chain).collect();
        chains.sort_by_key(|chain| std::cmp::Reverse(chain.count));
        chains
    }

    fn chain_of(&self, first: &StuckSocket, known: &mut KnownLinks<'a>) -> (Vec<Link>, ChainEnd) {
        let mut links = Vec::new();
        let mut seen: HashSet<Cookie> = HashSet::new();
        let mut socket = first;
        while links.len() < LONGEST && seen.insert(socket.cookie) {
            let Some(owner) = socket.first_owner() else { return (links, ChainEnd::UnknownOwner) };
            links.push(link(owner, socket.port));
            let at = self.by_cookie.get(&socket.cookie).copied().unwrap_or(usize::MAX);
            let of_process = known.entry(owner.pid).or_insert_with(|| self.passed_on_by(owner.pid));
            let Some(passed_on) = of_process.get(&at) else { return (links, ChainEnd::NotClosed) };
            let PassedOn { rivals, candidates } = &**passed_on;
            let Some(one) = candidates.first() else { return (links, ChainEnd::NotClosed) };
            let next: Vec<Option<&StuckSocket>> =
                candidates.iter().map(|sent| self.other_end(sent)).collect();
            let behind = |at: usize| next.get(at).copied().flatten().and_then(StuckSocket::first_owner);
            let same = (1..next.len())
                .all(|at| behind(at).map(|owner| owner.pid) == behind(0).map(|owner| owner.pid));
            if *rivals > candidates.len() || candidates.len() > 1 && !(same && behind(0).is_some()) {
                return (links, ChainEnd::NotProven { candidates: candidates.len() });
            }
            match next.first().copied().flatten() {
                Some(next) => socket = next,
                None => {
                    // Its peer is here, and has not taken the FIN yet, or is no CLOSE-WAIT of a document.
                    if let Some(owner) = one.peer_owners.first() {
                        links.push(link(owner, one.port));
                        return (links, ChainEnd::NotClosed);
                    }
                    return (links, ChainEnd::Elsewhere { peer: one.peer });
                }
            }
        }
        (links, ChainEnd::NotClosed)
    }

    /// What the ends that came to the process `pid` may have gone on by, for each of its sockets in CLOSE-WAIT by its place there. Those that
    /// fit the same connections compete for them.
    fn passed_on_by(&self, pid: u32) -> FxHashMap<usize, Rc<PassedOn<'a>>> {
        let sent = self.sent.get(&pid).map(Vec::as_slice).unwrap_or_default();
        let came = self.by_owner.get(&pid).map(Vec::as_slice).unwrap_or_default();
        if came.len().saturating_mul(sent.len()) > MOST_PAIRS {
            let all = Rc::new(PassedOn { rivals: usize::MAX, candidates: sent.to_vec() });
            return came.iter().map(|&at| (at, all.clone())).collect();
        }
        let fitting = |at: &usize| -> Vec<usize> {
            let Some(came) = self.close_wait.get(*at) else { return Vec::new() };
            let sent = sent.iter().enumerate().filter(|(_, sent)| self.fits(came, sent));
            sent.map(|(nth, _)| nth).collect()
        };
        let fits: Vec<(usize, Vec<usize>)> = came.iter().map(|at| (*at, fitting(at))).collect();
        let mut claimed_by: Vec<Vec<usize>> = vec![Vec::new(); sent.len()];
        for (nth, (_, fitting)) in fits.iter().enumerate() {
            for &of in fitting {
                claimed_by.get_mut(of).into_iter().for_each(|claims| claims.push(nth));
            }
        }
        let mut passed_on = FxHashMap::default();
        for (first, _) in fits.iter().enumerate() {
            if fits.get(first).is_some_and(|(at, _)| passed_on.contains_key(at)) {
                continue;
            }
            let (mut rivals, mut candidates) = (vec![first], Vec::new());
            let mut met: HashSet<usize> = HashSet::from([first]);
            let mut known: HashSet<usize> = HashSet::new();
            let mut next = 0;
            while let Some((_, fitting)) = rivals.get(next).and_then(|&nth| fits.get(nth)) {
                next += 1;
                for &of in fitting.iter().filter(|of| known.insert(**of)) {
                    candidates.extend(sent.get(of).copied());
                    let claims = claimed_by.get(of).into_iter().flatten();
                    rivals.extend(claims.copied().filter(|&nth| met.insert(nth)));
                }
            }
            let found = Rc::new(PassedOn { rivals: rivals.len(), candidates });
            let places = rivals.iter().filter_map(|&nth| fits.get(nth));
            passed_on.extend(places.map(|(at, _)| (*at, found.clone())));
        }
        passed_on
    }

    /// Whether the FIN of `sent` may have gone out right after that of `came` came.
    fn fits(&self, came: &StuckSocket, sent: &StuckSocket) -> bool {
        let (came, sent) = (came.age, later(sent.age, -self.later));
        let delay_at_most = came.max_seconds.map_or(f64::INFINITY, |max| max - sent.min_seconds);
        let delay_at_least = sent.max_seconds.map_or(f64::NEG_INFINITY, |max| came.min_seconds - max);
        delay_at_most >= -SLACK && delay_at_least <= WITHIN + SLACK
    }

    /// The other end of a connection on this host, if it is in CLOSE-WAIT; in whatever network namespace.
    fn other_end(&self, sent: &StuckSocket) -> Option<&'a StuckSocket> {
        let ends = self.by_ends.get(&(sent.peer, sent.local))?;
        // The same addresses may be there in several namespaces.
        let [one] = ends.as_slice() else { return None };
        self.close_wait.get(*one)
    }
}

fn later(age: AgeSeconds, by: f64) -> AgeSeconds {
    let later = |seconds: f64| (seconds + by).max(0.0);
    AgeSeconds { min_seconds: later(age.min_seconds), max_seconds: age.max_seconds.map(later), ..age }
}

fn pids(socket: &StuckSocket) -> impl Iterator<Item = u32> {
    let mut pids: Vec<u32> = socket.owners.iter().map(|owner| owner.pid).collect();
    pids.dedup();
    pids.into_iter()
}

fn link(owner: &Owner, port: u16) -> Link {
    Link { pid: owner.pid, comm: owner.comm.clone(), port }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Phase;
    use crate::report::fixtures::{owner, socket};

    fn of(phase: Phase, age: f64, ends: (&str, &str), pid: u32, cookie: u64) -> StuckSocket {
        let (local, peer): (SocketAddr, SocketAddr) = (ends.0.parse().unwrap(), ends.1.parse().unwrap());
        let age = AgeSeconds { exact: true, min_seconds: age, max_seconds: Some(age) };
        let owners = if pid == 0 { Vec::new() } else { vec![owner(pid, "p", (1, 2))] };
        let port = if phase == Phase::CloseWait { local.port() } else { peer.port() };
        StuckSocket {
            state: phase,
            age,
            local,
            peer,
            owners,
            port,
            cookie: Cookie(cookie),
            ..socket(60, &[])
        }
    }

    fn close_wait(age: f64, ends: (&str, &str), pid: u32, cookie: u64) -> StuckSocket {
        of(Phase::CloseWait, age, ends, pid, cookie)
    }

    fn sent(age: f64, ends: (&str, &str), pid: u32, cookie: u64) -> StuckSocket {
        of(Phase::FinWait2, age, ends, pid, cookie)
    }

    const CLIENT: (&str, &str) = ("10.0.0.1:9000", "10.0.0.9:4000");
    const TO_APP: (&str, &str) = ("10.0.0.1:5000", "10.0.0.2:8080");
    const AT_APP: (&str, &str) = ("10.0.0.2:8080", "10.0.0.1:5000");

    fn told(close_wait: &[StuckSocket], fin_wait: &[StuckSocket]) -> (Vec<u32>, ChainEnd) {
        let chains = ChainSockets::new(close_wait, fin_wait, 0.0).chains(&close_wait[..1]);
        let [chain] = &chains[..] else { panic!("{chains:?}") };
        (chain.links.iter().map(|link| link.pid).collect(), chain.end)
    }

    #[test]
    fn the_program_behind_the_proxy_has_not_closed() {
        let came = [close_wait(60.0, CLIENT, 1, 1), close_wait(59.9, AT_APP, 2, 2)];
        assert_eq!(told(&came, &[sent(59.9, TO_APP, 1, 3)]), (vec![1, 2], ChainEnd::NotClosed));
        // It passed nothing on.
        assert_eq!(told(&came, &[]), (vec![1], ChainEnd::NotClosed));
        // Before the end came, or long after it.
        for age in [61.0, 50.0] {
            assert_eq!(told(&came, &[sent(age, TO_APP, 1, 3)]), (vec![1], ChainEnd::NotClosed));
        }
        // Another process's.
        assert_eq!(told(&came, &[sent(59.9, TO_APP, 7, 3)]), (vec![1], ChainEnd::NotClosed));
        let peer = TO_APP.1.parse().unwrap();
        let elsewhere = told(&came[..1], &[sent(59.9, TO_APP, 1, 3)]);
        assert_eq!(elsewhere, (vec![1], ChainEnd::Elsewhere { peer }));
        assert_eq!(told(&[close_wait(60.0, CLIENT, 0, 1)], &[]), (vec![], ChainEnd::UnknownOwner));
    }

    #[test]
    fn what_fits_several_is_not_proven_unless_all_lead_to_one_program() {
        let other = ("10.0.0.1:5001", "10.0.0.2:8080");
        let at_other = ("10.0.0.2:8080", "10.0.0.1:5001");
        let passed = [sent(59.9, TO_APP, 1, 3), sent(59.8, other, 1, 4)];
        let came = |second, pid| {
            vec![
                close_wait(60.0, CLIENT, 1, 1),
                close_wait(second, ("10.0.0.1:9000", "10.0.0.9:4001"), 1, 5),
                close_wait(59.9, AT_APP, 2, 2),
                close_wait(59.8, at_other, pid, 6),
            ]
        };
        assert_eq!(told(&came(59.95, 2), &passed), (vec![1, 2], ChainEnd::NotClosed));
        assert_eq!(told(&came(59.95, 9), &passed), (vec![1], ChainEnd::NotProven { candidates: 2 }));
        // Two ends came, and one was passed on.
        assert_eq!(told(&came(59.95, 2), &passed[..1]), (vec![1], ChainEnd::NotProven { candidates: 1 }));
        assert_eq!(told(&came(10.0, 2), &passed[..1]), (vec![1, 2], ChainEnd::NotClosed));
    }

    #[test]
    fn a_circle_ends() {
        let there = ("10.0.0.2:5002", "10.0.0.1:9000");
        let came =
            [close_wait(60.0, ("10.0.0.1:9000", "10.0.0.2:5002"), 1, 1), close_wait(60.0, AT_APP, 2, 2)];
        let passed = [sent(60.0, TO_APP, 1, 3), sent(60.0, there, 2, 4)];
        assert_eq!(told(&came, &passed).0, [1, 2]);
    }
}
