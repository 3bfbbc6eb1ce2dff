//! Sockets grouped by owner, port, peer, unit or container: one leak is one line.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use clap::ValueEnum;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::commands::fd_exhaustion::FdRates;
use crate::commands::suggest;
use crate::commands::suggest::StackSource;
use crate::failure::printable;
use crate::linux::stacks::frames::Stack;
use crate::names::{Cause, Diagnosis, Side};
use crate::report::sockets::{AgeSeconds, Owner, StuckSocket};
use crate::report::stacks;
use crate::report::verdict::{child_of, forking_of, group_of};
use crate::report::verdict_group::VerdictGroup;
use crate::ui::{labels, table};

/// What sockets are grouped by, besides side, port and diagnosis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// The processes that hold the socket.
    Owner,
    /// The service port alone.
    Port,
    /// The peer's address.
    Peer,
    /// The systemd units of the processes that hold the socket.
    Unit,
    /// The containers of the processes that hold the socket.
    Container,
    /// The code that left the socket open.
    Stack,
}

/// A listed socket, and whether its age is proven to be past the bound.
#[derive(Clone, Copy, Debug)]
pub struct ListedSocket<'a> {
    pub socket: &'a StuckSocket,
    pub possibly: bool,
    /// It is in another network namespace than this process.
    pub elsewhere: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Who {
    /// In order of pid; one entry a process.
    Owners(Vec<u32>),
    /// The children of a process that holds a few sockets in each (a server that forks for each connection): their name, and the
    /// parent's pid.
    Children(String, u32),
    /// The same of those that only may have the sockets in their queues.
    Candidates(Vec<u32>),
    /// The program that closed it; `None` for processes that have ended.
    ClosedBy(Option<String>),
    /// The user that opened it, where the kernel still knows.
    Unknown(Option<u32>),
    Peer(IpAddr),
    /// The units or containers of the owners; empty where they have none.
    Places(BTreeSet<String>),
    /// In words; `None` for sockets without stacks.
    Code(Option<String>),
    Anyone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct GroupKey {
    possibly: bool,
    who: Who,
    side: Side,
    port: u16,
    diagnosis: Option<Diagnosis>,
    cause: Option<Cause>,
    /// The network namespace, where it is another than this process's.
    netns: Option<String>,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct SocketGroup<'a> {
    key: GroupKey,
    sockets: Vec<&'a StuckSocket>,
}

/// Groups `listed`: proven ones before possible ones, then the largest first. `stacks`: of their document.
pub fn group<'a>(listed: &[ListedSocket<'a>], by: By, stacks: &[Stack]) -> Vec<SocketGroup<'a>> {
    let mut groups: FxHashMap<GroupKey, Vec<&StuckSocket>> = FxHashMap::default();
    let forking = if by == By::Owner {
        forking_of(listed.iter().map(|listed| listed.socket))
    } else {
        FxHashSet::default()
    };
    for ListedSocket { socket, possibly, elsewhere } in listed {
        let who = match by {
            By::Port => Who::Anyone,
            By::Peer => Who::Peer(socket.peer.ip()),
            By::Stack => {
                let first = stacks::of_socket(socket, stacks).next();
                Who::Code(first.map(|(moment, stack)| stacks::in_one_phrase(moment, stack)))
            }
            By::Owner if socket.owners.is_empty() && socket.closed_by.is_some() => {
                Who::ClosedBy(socket.closed_by.as_ref().and_then(|closer| closer.comm.clone()))
            }
            _ if socket.owners.is_empty() => Who::Unknown((socket.inode != 0).then_some(socket.uid)),
            By::Owner if child_of(socket).is_some_and(|child| forking.contains(&child)) => {
                let (comm, parent) = child_of(socket).unwrap_or_default();
                Who::Children(comm.to_owned(), parent)
            }
            By::Owner => {
                let mut pids: Vec<u32> = socket.owners.iter().map(|owner| owner.pid).collect();
                pids.sort_unstable();
                pids.dedup();
                if socket.has_candidates() { Who::Candidates(pids) } else { Who::Owners(pids) }
            }
            By::Unit => places(socket, |owner| owner.place.unit.as_ref()),
            By::Container => places(socket, |owner| owner.place.container_id.as_ref()),
        };
        let key = GroupKey {
            possibly: *possibly,
            who,
            side: socket.side,
            port: socket.port,
            diagnosis: socket.diagnosis,
            cause: socket.cause,
            netns: elsewhere.then(|| labels::netns(socket)),
        };
        groups.entry(key).or_default().push(socket);
    }
    let mut groups: Vec<_> = groups.into_iter().map(|(key, sockets)| SocketGroup { key, sockets }).collect();
    groups.sort_by(|a, b| {
        let size = |group: &SocketGroup<'_>| std::cmp::Reverse(group.sockets.len());
        (a.key.possibly, size(a)).cmp(&(b.key.possibly, size(b))).then_with(|| a.key.cmp(&b.key))
    });
    groups
}

fn places(socket: &StuckSocket, place: impl Fn(&Owner) -> Option<&String>) -> Who {
    Who::Places(socket.owners.iter().filter_map(place).cloned().collect())
}

/// The table of the first `limit` groups, and the number of the others.
pub fn text(groups: &[SocketGroup<'_>], by: By, rates: &FdRates, limit: usize, width: Option<u16>) -> String {
    let who: &[&str] = match by {
        By::Owner => &["~OWNER", "SIDE", ">PORT"],
        By::Port => &[">PORT", "SIDE"],
        By::Peer => &["PEER", "SIDE", ">PORT"],
        By::Unit => &["~UNIT", "SIDE", ">PORT"],
        By::Container => &["~CONTAINER", "SIDE", ">PORT"],
        By::Stack => &["~CODE", "SIDE", ">PORT"],
    };
    let mut header = [who, &["WHY", ">COUNT", ">OLDEST", ">UNREAD", ">FDS", ">FULL IN"]].concat();
    let shown = groups.get(..limit).unwrap_or(groups);
    let mut rows: Vec<Vec<String>> = shown.iter().map(|group| group.row(by, rates)).collect();
    if shown.iter().any(|group| group.key.netns.is_some()) {
        header.push("~NETNS");
        for (row, group) in rows.iter_mut().zip(shown) {
            row.push(
                group.key.netns.as_ref().map_or_else(|| "-".to_owned(), |netns| printable(netns).into()),
            );
        }
    }
    let mut text = match rows.is_empty() {
        true => String::new(),
        false => table::render(&header, &rows, width) + "\n",
    };
    if groups.len() > limit {
        text.push_str(&format!("… {} more groups\n", groups.len() - limit));
    }
    text
}

/// A line for each group whose local peers wait for an answer, and so may be at work, or have not closed.
pub fn local_peers(groups: &[SocketGroup<'_>], width: Option<u16>) -> String {
    let line = |group: &SocketGroup<'_>| {
        let is_late = group.key.cause == Some(Cause::PeerNotClosing);
        let tells = |socket: &&&StuckSocket| socket.peer_waits || is_late;
        let waiting: Vec<&&StuckSocket> = group.sockets.iter().filter(tells).collect();
        let peers: BTreeSet<String> =
            waiting.iter().filter_map(|socket| socket.peer_owners.first()).map(labels::process).collect();
        let peer = match peers.first() {
            Some(peer) if peers.len() == 1 => peer.clone(),
            Some(peer) => format!("{peer} +{}", peers.len() - 1),
            None => "a process on this host".to_owned(),
        };
        let count = table::count(waiting.len(), "socket", "sockets");
        let title = group.title();
        let line = match is_late {
            true => format!(
                "peer: {title}: {peer} holds the other end of {count} in CLOSE-WAIT, and has not closed"
            ),
            false => format!(
                "half-closed: {title}: {peer} holds the other end of {count}, has sent its FIN, and may wait for an answer"
            ),
        };
        (!waiting.is_empty()).then(|| table::wrap(&line, width) + "\n")
    };
    groups.iter().filter_map(line).collect()
}

/// Commands to run next, one per process, for the first processes of `groups`. `stacks`: who records code.
pub fn next_steps(
    groups: &[SocketGroup<'_>],
    verdicts: &[VerdictGroup],
    stacks: &StackSource,
    width: Option<u16>,
) -> String {
    const MOST: usize = 3;
    let (mut seen, mut commands) = (HashSet::new(), HashSet::new());
    // In other states it is the peer's turn.
    let in_close_wait = groups.iter().filter(|group| group.key.diagnosis.is_some());
    let steps = in_close_wait.filter_map(|group| {
        let socket = group.sockets.first()?;
        let owner = socket.first_owner().filter(|owner| seen.insert(owner.pid))?;
        let is_shown = group.sockets.iter().any(|socket| socket.stacks.is_some());
        let stacks = if is_shown { &StackSource::Shown } else { stacks };
        let verdict = group_of(socket, verdicts).map(|of| of.verdict);
        suggest::step(owner, group.key.diagnosis, verdict, stacks)
    });
    // The command has its own unbroken line, to be copied.
    let lines = steps
        .filter(|(_, command)| commands.insert(command.clone()))
        .take(MOST)
        .map(|(why, command)| format!("{}\n  {command}\n", table::wrap(&format!("next: {why}"), width)));
    lines.collect()
}

impl SocketGroup<'_> {
    pub fn sockets(&self) -> &[&StuckSocket] {
        &self.sockets
    }

    /// `api[4242], server port 8080`.
    pub fn title(&self) -> String {
        format!("{}, {} port {}", self.who(), self.key.side.name(), self.key.port)
    }

    fn row(&self, by: By, rates: &FdRates) -> Vec<String> {
        let (side, port) = (self.key.side.name().to_owned(), self.key.port.to_string());
        let mut row = match by {
            By::Port => vec![port, side],
            _ => vec![self.who(), side, port],
        };
        let unread: u64 = self.sockets.iter().map(|socket| u64::from(socket.unread_bytes)).sum();
        row.extend([
            self.sockets.first().map(|socket| labels::why(socket, self.key.possibly)).unwrap_or_default(),
            self.sockets.len().to_string(),
            self.oldest().map(table::at_least).unwrap_or_default(),
            unread.to_string(),
            self.fds(),
            self.full_in(rates),
        ]);
        row
    }

    fn who(&self) -> String {
        match &self.key.who {
            Who::Owners(pids) => self.first_of(pids.len()),
            Who::Children(comm, parent) => {
                let pids: BTreeSet<u32> = self.owners().map(|owner| owner.pid).collect();
                format!("{} ×{} of [{parent}]", printable(comm), pids.len())
            }
            Who::Candidates(pids) => format!("candidate {}", self.first_of(pids.len())),
            Who::ClosedBy(Some(comm)) => format!("closed by {}{}", printable(comm), self.closers()),
            Who::ClosedBy(None) => "closed by ended processes".to_owned(),
            Who::Unknown(Some(uid)) => format!("unknown, uid {uid}"),
            Who::Unknown(None) => "unknown".to_owned(),
            Who::Peer(address) => address.to_string(),
            Who::Places(places) if places.is_empty() => "-".to_owned(),
            Who::Places(places) => {
                places.iter().map(|place| short(&printable(place))).collect::<Vec<_>>().join(", ")
            }
            Who::Code(Some(words)) => printable(words).into_owned(),
            Who::Code(None) => "no stack".to_owned(),
            Who::Anyone => String::new(),
        }
    }

    /// The process that closed the sockets, if it is one: `[4242]`.
    fn closers(&self) -> String {
        let pids: BTreeSet<u32> = self
            .sockets
            .iter()
            .filter_map(|socket| socket.closed_by.as_ref())
            .map(|closer| closer.pid)
            .collect();
        match pids.first() {
            Some(pid) if pids.len() == 1 => format!("[{pid}]"),
            _ => format!(", {} processes", pids.len()),
        }
    }

    /// The owner to look at first, of so many processes: `api[4242] +2`.
    fn first_of(&self, processes: usize) -> String {
        let first = self.sockets.first().and_then(|socket| socket.first_owner());
        let name = first.map(labels::process).unwrap_or_default();
        match processes {
            0 | 1 => name,
            n => format!("{name} +{}", n - 1),
        }
    }

    fn oldest(&self) -> Option<&AgeSeconds> {
        self.sockets.iter().map(|socket| &socket.age).max_by(|a, b| a.min_seconds.total_cmp(&b.min_seconds))
    }

    fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.sockets.iter().flat_map(|socket| &socket.owners)
    }

    /// The open files of the owner nearest to its limit.
    fn fds(&self) -> String {
        let room = |owner: &Owner| Some(owner.fds_limit?.saturating_sub(owner.fds_used?));
        let tightest = self.owners().min_by_key(|owner| room(owner).unwrap_or(u64::MAX));
        match tightest.map(|owner| (owner.fds_used, owner.fds_limit)) {
            Some((Some(used), Some(limit))) => format!("{used}/{limit}"),
            Some((Some(used), None)) => used.to_string(),
            _ => "-".to_owned(),
        }
    }

    /// The time until the first owner has no file descriptor left, at the rate so far.
    fn full_in(&self, rates: &FdRates) -> String {
        // A socket in the accept queue has no file descriptor yet, and ages that are not proven give no rate.
        if self.key.possibly || self.key.diagnosis == Some(Diagnosis::NotAccepted) {
            return "-".to_owned();
        }
        match self.owners().filter_map(|owner| rates.full_in(owner)).min_by(f64::total_cmp) {
            Some(0.0) => "now".to_owned(),
            Some(seconds) => table::span(seconds),
            None => "-".to_owned(),
        }
    }
}

/// A container's id as people use it: the first 12 of its 64 digits. Other names are unchanged.
fn short(name: &str) -> String {
    let (runtime, id) = name.split_at(name.rfind("://").map_or(0, |at| at + 3));
    match id.get(..12) {
        Some(start) if id.len() == 64 => format!("{runtime}{start}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
