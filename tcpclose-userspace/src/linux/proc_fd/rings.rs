//! Sockets that a process holds through io_uring alone: registered with a ring (IORING_REGISTER_FILES, or accepted as a direct
//! descriptor), so that no descriptor leads to them.
//!
//! The ring's entry in /proc/PID/fdinfo lists its registered files by path, a socket as `socket:[INODE]` (io_uring/fdinfo.c,
//! io_uring_show_fdinfo(), 6.18); older kernels print a name without the inode. It lists none while a call changes the ring, since it does
//! not wait for the ring's lock.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::time::Instant;

use rustc_hash::FxHashSet;

use crate::linux::proc_fd::{FdHolder, inode_of};

/// The most that is read of one ring: some hundred thousand files. A ring may have a million (IORING_MAX_FIXED_FILES).
const MOST: u64 = 8 << 20;

/// The holders of the sockets with inodes in `missing` among the files that are registered with `rings`: a holder's descriptor is
/// the ring's. A ring that is not reached by `until` is left out.
pub fn registered(rings: &[FdHolder], missing: &FxHashSet<u32>, until: Instant) -> Vec<(u32, FdHolder)> {
    let mut held = Vec::new();
    for ring in rings {
        if Instant::now() >= until {
            break;
        }
        // A process may have ended meanwhile.
        let Ok(file) = File::open(format!("/proc/{}/fdinfo/{}", ring.pid, ring.fd)) else { continue };
        let lines = BufReader::new(file.take(MOST)).split(b'\n').map_while(Result::ok);
        let listed = lines.filter_map(|line| listed(&line));
        held.extend(listed.filter(|inode| missing.contains(inode)).map(|inode| (inode, *ring)));
    }
    held
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
