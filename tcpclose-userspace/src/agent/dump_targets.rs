//! Where a dump is worth making, for which states, besides the reconcile.

use std::collections::HashSet;

use tcpclose_common::state::TcpState;

use crate::linux::netns::NetnsPath;
use crate::linux::netns_dump::DumpRequest;
use crate::names::{LastWrite, Phase};
use crate::tracker::socket::{SocketKind, TrackedSocket};

use crate::agent::namespaces::ids_of;
use crate::agent::tracking::{EVERYTHING, Tracking};

#[derive(Debug, Default)]
pub struct DumpTargets {
    /// In the host's network namespace.
    pub host: Option<(DumpRequest, Vec<NetnsPath>)>,
    pub others: Option<(DumpRequest, Vec<NetnsPath>)>,
    /// The ids of those others.
    pub needing: HashSet<u32>,
}

impl Tracking {
    /// The dumps that are worth making now, besides the reconcile: of minisockets whose ends no hook reports,
    /// and of CLOSE-WAITs that are about to be called stuck, since only a dump tells whether their programs
    /// still write.
    pub fn dump_targets(&self, now_ns: u64) -> DumpTargets {
        let first = self.stuck_after.first_ns();
        // Without BTF no record tells its namespace, and all are dumped at once.
        let host = self.namespaces.host().filter(|_| self.probe.reads_fields);
        let (mut of_host, mut of_others) = (0, 0);
        let (mut needing, mut anywhere, mut last) = (HashSet::new(), false, 0);
        for (socket, written) in self.sockets_and_writes() {
            let states = if self.needs_dumps(socket) {
                TcpState::FinWait2.bit() | TcpState::TimeWait.bit()
            } else if socket.phase == Phase::CloseWait && self.is_check_due(socket, written, now_ns, first) {
                TcpState::CloseWait.bit()
            } else {
                continue;
            };
            if Some(socket.netns) == host {
                of_host |= states;
                continue;
            }
            of_others |= states;
            anywhere |= socket.netns == 0;
            // Sockets come in runs of one namespace, so most need no hashing.
            if std::mem::replace(&mut last, socket.netns) != socket.netns {
                needing.insert(socket.netns);
            }
        }
        let request = |states| DumpRequest { states, info: states & TcpState::CloseWait.bit() != 0 };
        let host_request = match self.dumps.lost_host_ns {
            Some(_) if host.is_some() => Some(EVERYTHING),
            _ => (of_host != 0).then(|| request(of_host)),
        };
        let place = host.and_then(|host| self.namespaces.place(host)).cloned();
        let others = self.namespaces.places(if anywhere { None } else { Some(&needing) });
        let others: Vec<NetnsPath> = others.into_iter().map(|(_, place)| place).collect();
        DumpTargets {
            host: host_request.zip(place).map(|(request, place)| (request, vec![place])),
            others: (!others.is_empty()).then(|| (request(of_others), others)),
            needing,
        }
    }

    /// Whether only dumps tell when this socket ends.
    pub fn needs_dumps(&self, socket: &TrackedSocket) -> bool {
        socket.kind == SocketKind::Minisocket && !self.probe.coverage.ends
    }

    /// Whether a CLOSE-WAIT that may be stuck has not been dumped since it, or its program's last known
    /// write, passed the bound `first`, or not for half of that.
    pub fn is_check_due(
        &self,
        socket: &TrackedSocket,
        written: Option<&LastWrite>,
        now_ns: u64,
        first: u64,
    ) -> bool {
        let age = socket.since.age(now_ns);
        let due_ns = check_due_ns(socket, written, first);
        self.namespaces.reaches(socket.netns)
            && (age.is_past(first) || age.may_be_past(first))
            && (socket.seen_ns < due_ns && due_ns <= now_ns
                || now_ns.saturating_sub(socket.seen_ns) > first / 2)
    }

    /// When the check that [`Self::is_check_due`] asks for became due.
    pub fn check_due_since(&self, socket: &TrackedSocket, written: Option<&LastWrite>, first: u64) -> u64 {
        let due_ns = check_due_ns(socket, written, first);
        if socket.seen_ns < due_ns { due_ns } else { socket.seen_ns.saturating_add(first / 2) }
    }

    /// Whether a socket that dumps must follow is in a namespace that no search has found yet.
    pub fn has_new_namespace(&self) -> bool {
        let mut last = 0;
        self.tracker.sockets().any(|socket| {
            let followed = socket.phase == Phase::CloseWait || self.needs_dumps(socket);
            followed
                && std::mem::replace(&mut last, socket.netns) != socket.netns
                && self.namespaces.is_new(socket.netns)
        })
    }

    /// The known namespaces of tracked sockets.
    pub fn places_with_sockets(&self) -> Vec<NetnsPath> {
        let ids = ids_of(self.tracker.sockets());
        self.namespaces.places(Some(&ids)).into_iter().map(|(_, place)| place).collect()
    }

    /// The namespaces of sockets in `phase`, and our own; `None` before the first dump, and if one of them is
    /// not found yet.
    pub fn places_of(&self, phase: Phase) -> Option<Vec<NetnsPath>> {
        let sockets = self.sockets_and_writes().map(|(socket, _)| socket);
        // A minisocket that was in FIN-WAIT-2 at the last dump may be in TIME-WAIT by now, and only a dump tells.
        let may_be_next = |socket: &TrackedSocket| {
            phase == Phase::TimeWait
                && socket.phase == Phase::FinWait2
                && socket.kind == SocketKind::Minisocket
        };
        let mut ids = ids_of(sockets.filter(|socket| socket.phase == phase || may_be_next(socket)));
        ids.insert(self.namespaces.own().id);
        let all_found = !ids.iter().any(|id| self.namespaces.is_new(*id));
        let places = self.namespaces.places(Some(&ids));
        (self.ready && all_found).then(|| places.into_iter().map(|(_, place)| place).collect())
    }

    /// Whether so many sockets are in `phase` that a pass over all files is sure to be needed for their
    /// owners.
    pub fn has_many(&self, phase: Phase) -> bool {
        const MANY: usize = 256;
        self.tracker.sockets().filter(|socket| socket.phase == phase).take(MANY).count() == MANY
    }
}

/// When the bound `first` is over for a CLOSE-WAIT, counted from its entry or the latest that its program may have written.
fn check_due_ns(socket: &TrackedSocket, written: Option<&LastWrite>, first: u64) -> u64 {
    let written_ns = written.map_or(0, |write| write.latest_ns);
    socket.since.latest_ns.max(written_ns).saturating_add(first)
}
