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

/// Why a socket is still in its state, as tables show it.
pub fn why(socket: &StuckSocket, possibly: bool) -> String {
    match socket.cause {
        Some(cause) if possibly => format!("possibly {}", cause.name()),
        Some(cause) => cause.name().to_owned(),
        None => diagnosis(socket.diagnosis, possibly),
    }
}

/// A network namespace: its name, else its inode as `ls -l /proc/PID/ns/net` shows it: `net:[4026532001]`; `unknown` for 0.
pub fn netns_named(inum: u32, name: Option<&str>) -> String {
    match (name, inum) {
        (Some(name), _) => printable(name).into_owned(),
        (None, 0) => "unknown".to_owned(),
        (None, inum) => format!("net:[{inum}]"),
    }
}

/// The same in a table: `-` for `own`, the reader's.
pub fn netns_cell(inum: u32, name: Option<&str>, own: u32) -> String {
    if inum == own && inum != 0 { "-".to_owned() } else { netns_named(inum, name) }
}

/// A socket's network namespace.
pub fn netns(socket: &StuckSocket) -> String {
    netns_named(socket.netns, socket.netns_name.as_deref())
}

/// A socket's local end, with its network namespace where that is another than ours: `10.0.0.5:8080 in blue`.
pub fn local(socket: &StuckSocket, elsewhere: bool) -> String {
    match elsewhere {
        true => format!("{} in {}", socket.local, netns(socket)),
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
            // Without an inode no program has it, and the uid is nobody's.
            None if socket.inode != 0 => format!("unknown, uid {}", socket.uid),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixtures::socket;

    #[test]
    fn a_namespace_is_named_in_one_way() {
        assert_eq!(netns_named(7, Some("bl\u{1b}ue")), r"bl\u{1b}ue");
        assert_eq!((netns_named(7, None), netns_named(0, None)), ("net:[7]".into(), "unknown".into()));
        assert_eq!((netns_cell(7, None, 7), netns_cell(7, Some("x"), 7)), ("-".into(), "-".into()));
        assert_eq!((netns_cell(7, None, 8), netns_cell(0, None, 0)), ("net:[7]".into(), "unknown".into()));
    }

    #[test]
    fn a_socket_without_known_owners_has_a_uid_where_a_program_has_it() {
        let unknown = StuckSocket { uid: 4_000_000_000, inode: 5, ..socket(60, &[]) };
        assert_eq!(owners(&unknown), "unknown, uid 4000000000");
        assert_eq!(owners(&StuckSocket { inode: 0, ..unknown }), "unknown");
    }
}
