//! MPTCP sockets in CLOSE-WAIT. No record tells of them, so that the tracker has none: they are known from dumps alone, and by
//! their cookies.

use rustc_hash::FxHashMap;

use crate::linux::age::{proven_age, write_look};
use crate::linux::sock_diag::Socket;
use crate::names::{LastWrite, Phase, Role, Side};
use crate::tracker::Tracker;
use crate::tracker::socket::{AddressOrExpiry, EnteredAt, MinisocketState, SocketKind, TrackedSocket};
use crate::tracker::vanished::DumpCoverage;

/// A walk over so few is one batch of the dump, and skips none.
const ONE_BATCH: usize = 64;

/// What dumps have seen.
#[derive(Debug, Default)]
pub struct MptcpSockets {
    by_cookie: FxHashMap<u64, (TrackedSocket, Option<LastWrite>)>,
}

impl MptcpSockets {
    /// Takes what a dump of the namespace `netns` saw of `socket`.
    pub fn see(&mut self, socket: &Socket, netns: u32, uptime_ns: u64, tracker: &Tracker) {
        let look = write_look(socket, uptime_ns);
        let proven = EnteredAt::of_age(proven_age(socket, uptime_ns), socket.seen_ns);
        let seen = || {
            let (local, remote) = (socket.flow.local_port, socket.flow.remote_port);
            // It has no counters that prove one, and a listener on the port proves none.
            let side = Side::Unknown;
            let tracked = TrackedSocket {
                cookie: socket.cookie,
                address_or_expiry: AddressOrExpiry::NONE,
                flow: socket.flow,
                netns,
                port: tracker.service_port(netns, side, local, remote),
                side,
                role: Role::Passive,
                phase: Phase::CloseWait,
                kind: SocketKind::Socket,
                minisocket: MinisocketState::Unknown,
                counted: true,
                since: proven,
                event_ns: 0,
                seen_ns: 0,
                missed: false,
                between_dumps: false,
                closed_ns: 0,
                closer_pid: None,
            };
            (tracked, None)
        };
        let (tracked, write) = self.by_cookie.entry(socket.cookie).or_insert_with(seen);
        (tracked.seen_ns, tracked.missed) = (socket.seen_ns, false);
        if let Some(look) = look {
            *write = Some(LastWrite::seen(*write, look));
        }
    }

    /// A dump that `covers` these namespaces, and began at `started_ns`, is in: what it did not see is over.
    pub fn dumped(&mut self, covers: &DumpCoverage, started_ns: u64) {
        let few = self.by_cookie.len() <= ONE_BATCH;
        self.by_cookie.retain(|_, (socket, _)| {
            let is_absent = covers.netns.contains_key(&socket.netns) && socket.seen_ns < started_ns;
            !is_absent || !few && !std::mem::replace(&mut socket.missed, true)
        });
    }

    /// Forgets those of namespaces that are gone.
    pub fn retain_netns(&mut self, is_there: impl Fn(u32) -> bool) {
        self.by_cookie.retain(|_, (socket, _)| is_there(socket.netns));
    }

    pub fn get(&self, cookie: u64) -> Option<(&TrackedSocket, Option<&LastWrite>)> {
        self.by_cookie.get(&cookie).map(|(socket, write)| (socket, write.as_ref()))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&TrackedSocket, Option<&LastWrite>)> {
        self.by_cookie.values().map(|(socket, write)| (socket, write.as_ref()))
    }
}
