//! Short names for people: a process, a state, the ends of a socket.

use crate::failure::printable;
use crate::names::{Diagnosis, Phase};
use crate::report::sockets::{Listener, Owner, StuckSocket};

/// A state by its protocol name: `FIN-WAIT-2`.
pub fn state(name: &str) -> String {
    name.to_uppercase().replace('_', "-")
}

/// A phase by its protocol name.
pub fn phase(phase: Phase) -> String {
    state(phase.name())
}

/// `api[4242]`.
pub fn process(owner: &Owner) -> String {
    format!("{}[{}]", printable(&owner.comm), owner.pid)
}

/// A diagnosis as tables show it.
pub fn diagnosis(diagnosis: Option<Diagnosis>, possibly: bool) -> String {
    let name = diagnosis.map_or("-", Diagnosis::name);
    if possibly { format!("possibly {name}") } else { name.to_owned() }
}

/// A socket's network namespace: its name, else its inode.
pub fn netns(socket: &StuckSocket) -> String {
    socket.netns_name.clone().unwrap_or_else(|| socket.netns.to_string())
}

/// A socket's local end, with its network namespace where that is another than ours: `10.0.0.5:8080 in blue`.
pub fn local(socket: &StuckSocket, elsewhere: bool) -> String {
    match elsewhere {
        true => format!("{} in {}", socket.local, printable(&netns(socket))),
        false => socket.local.to_string(),
    }
}

/// The peer's address, and the processes on this host that hold that end.
pub fn peer(socket: &StuckSocket) -> String {
    let mut holders: Vec<String> = socket.peer_owners.iter().map(process).collect();
    holders.dedup();
    [vec![socket.peer.to_string()], holders].concat().join(" ")
}

/// The processes that hold a socket, with their descriptors; or the one that closed it.
pub fn owners(socket: &StuckSocket) -> String {
    if let Some(closer) = &socket.closed_by {
        let name = closer.comm.as_deref().map_or("ended".into(), printable);
        return format!("closed by {name}[{}]", closer.pid);
    }
    if socket.owners.is_empty() {
        return match socket.listeners.first() {
            Some(listener) => format!("unknown, listener {}", queue(listener)),
            None => "unknown".to_owned(),
        };
    }
    socket.owners.iter().map(|one| owner(socket, one)).collect::<Vec<_>>().join(", ")
}

/// One of a socket's owners, with its descriptor: `api[4242]:17`; where that is a listener which may have the socket in its
/// queue, with that: `api[4242]:3 (candidate 0.0.0.0:8080, 19 queued)`.
pub fn owner(socket: &StuckSocket, owner: &Owner) -> String {
    let holder = format!("{}:{}", process(owner), owner.fd);
    match socket.listener_of(owner) {
        Some(listener) if owner.candidate => format!("{holder} (candidate {})", queue(listener)),
        _ => holder,
    }
}

fn queue(listener: &Listener) -> String {
    format!("{}, {} queued", listener.local, listener.queued)
}
