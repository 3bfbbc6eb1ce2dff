//! Sockets that a process holds through io_uring alone: registered with a ring (IORING_REGISTER_FILES, or accepted as a direct
//! descriptor), so that no descriptor leads to them.
//!
//! The ring's entry in /proc/PID/fdinfo lists its registered files by path, a socket as `socket:[INODE]` (io_uring/fdinfo.c,
//! io_uring_show_fdinfo(), 6.18). It lists none while a call changes the ring, since it does not wait for the ring's lock.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::time::Instant;

use rustc_hash::FxHashSet;

use crate::linux::host;
use crate::linux::proc_fd::{FdHolder, inode_of};

/// From here on (6.18 was read, 6.14 and older were not all) a file is listed by its path, with escapes: no user can choose a
/// path that looks like a socket's. Older kernels print a name that a user chooses (`d_iname`), a socket's without an inode, and
/// wait for the ring's lock (5.8).
const SINCE: (u32, u32) = (6, 15);

/// The most that is taken of one ring's list, bytes: some hundred thousand files. A ring may have a million
/// (IORING_MAX_FIXED_FILES).
const MOST: u64 = 8 << 20;

/// Whether this kernel's lists of registered files can be believed.
pub fn are_listed() -> bool {
    host::kernel_version().is_some_and(|version| version >= SINCE)
}

/// The holders of the sockets with inodes in `missing` among the files that are registered with `rings`: a holder's descriptor is
/// the ring's. Also returns the processes with rings that were not reached by `until`.
pub fn registered(
    rings: &[FdHolder],
    missing: &FxHashSet<u32>,
    until: Instant,
) -> (Vec<(u32, FdHolder)>, FxHashSet<u32>) {
    let (mut held, mut late) = (Vec::new(), FxHashSet::default());
    for ring in rings {
        if Instant::now() >= until {
            late.insert(ring.pid);
            continue;
        }
        // A process may have ended meanwhile.
        let Ok(file) = File::open(format!("/proc/{}/fdinfo/{}", ring.pid, ring.fd)) else { continue };
        let lines = BufReader::new(file.take(MOST)).split(b'\n').map_while(Result::ok);
        // One file may be registered many times.
        let inodes: FxHashSet<u32> =
            lines.filter_map(|line| listed(&line)).filter(|inode| missing.contains(inode)).collect();
        held.extend(inodes.into_iter().map(|inode| (inode, *ring)));
    }
    (held, late)
}

/// The inode in a line about a registered socket, `    0: socket:[12345]`.
fn listed(line: &[u8]) -> Option<u32> {
    let at = line.iter().position(|byte| *byte == b':')?;
    let (index, file) = line.split_at_checked(at)?;
    if !index.trim_ascii().iter().all(u8::is_ascii_digit) {
        return None;
    }
    inode_of("socket", file.strip_prefix(b":")?.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rings_entry_lists_its_sockets() {
        let entry = "pos:\t0\nSqThread:\t-1\nUserFiles:\t3\n    0: socket:[116348144]\n    1: <none>\n    2: TCP\n\
            UserBufs:\t0\nPollList:\n  op=6, task_works=0\nNAPI:\tdisabled\n";
        let found: Vec<u32> = entry.as_bytes().split(|byte| *byte == b'\n').filter_map(listed).collect();
        assert_eq!(found, [116_348_144]);
    }
}
