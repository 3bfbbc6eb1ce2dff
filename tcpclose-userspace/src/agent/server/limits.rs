//! The limit of connections, by the file descriptors that this process may have.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::failure::Failure;

/// The highest limit: of all TCP addresses together, and of the unix socket.
const MOST_CONNECTIONS: usize = 64;

/// The lowest limit with which the agent starts.
const FEWEST_CONNECTIONS: usize = 4;

/// Descriptors of the agent itself: the runtime, the probe with its maps, the socket, dumps and walks over
/// /proc.
const OWN: usize = 32;
/// And those for stacks: four programs and, while a process is armed, their links and the helper's socket.
const STACKS: usize = 14;

/// The limit of connections on the TCP `addresses` together, and on the unix socket: strangers who connect
/// and send nothing cannot take the descriptors that dumps and queries need. `stacks`: whether the agent takes stacks.
///
/// # Errors
/// When this process is not allowed enough descriptors. The runtime would panic if it found none left.
pub fn connections(addresses: usize, stacks: bool) -> Result<usize, Failure> {
    // Without /proc, the three standard ones and the listing's own.
    let used = fs::read_dir("/proc/self/fd").map_or(4, |fds| fds.count());
    let own = used + OWN + addresses + if stacks { STACKS } else { 0 };
    let limit = raise(own + 2 * MOST_CONNECTIONS);
    let needed = own + 2 * FEWEST_CONNECTIONS;
    if limit < needed {
        return Err(Failure::new(
            "cannot start",
            format!("this process may open {limit} files, and the agent needs {needed}"),
            "raise the limit (ulimit -n 1024, or LimitNOFILE=1024 in its unit)",
        ));
    }
    Ok(((limit - own) / 2).min(MOST_CONNECTIONS))
}

/// Raises the soft limit of open files to `wanted`, as far as the hard limit allows. Returns the limit in
/// use.
fn raise(wanted: usize) -> usize {
    // `None` stands for no limit.
    let number = |limit: Option<u64>| limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let now = getrlimit(Resource::Nofile);
    let (current, most) = (number(now.current), number(now.maximum));
    if current >= wanted || most <= current {
        return current;
    }
    let raised = wanted.min(most);
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised as u64), maximum: now.maximum }) {
        Ok(()) => raised,
        Err(_) => current,
    }
}
