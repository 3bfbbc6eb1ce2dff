//! How many connections the agent may serve at a time, by the descriptors that this process may have.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::failure::Failure;

/// Connections that are served at a time, on the addresses together and on the socket; one more sends another
/// away.
const MOST_CONNECTIONS: usize = 64;

/// Served at a time, or the agent does not start.
const FEWEST_CONNECTIONS: usize = 4;

/// What the agent itself holds: the runtime, the probe with its maps, the socket, dumps and walks over /proc.
const OWN: usize = 32;

/// How many connections to serve on each face (the `addresses` together, the socket), so that strangers who connect
/// and say nothing cannot take the descriptors that dumps and queries need.
///
/// # Errors
/// When this process may not have enough of them to start. The runtime would panic where it found none left.
pub fn connections(addresses: usize) -> Result<usize, Failure> {
    // Where /proc does not tell, at least the three standard ones and the listing's own.
    let used = fs::read_dir("/proc/self/fd").map_or(4, |fds| fds.count());
    let own = used + OWN + addresses;
    let limit = raise(own + 2 * MOST_CONNECTIONS);
    let needed = own + 2 * FEWEST_CONNECTIONS;
    if limit < needed {
        return Err(Failure::new(
            "cannot start",
            format!("this process may have {limit} files open, and the agent needs {needed}"),
            "raise the limit (ulimit -n 1024, or LimitNOFILE=1024 in its unit)",
        ));
    }
    Ok(((limit - own) / 2).min(MOST_CONNECTIONS))
}

/// Raises the limit of open files to `wanted` if it is lower, as far as it may be, and returns what it is.
fn raise(wanted: usize) -> usize {
    // No limit reads as none.
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
