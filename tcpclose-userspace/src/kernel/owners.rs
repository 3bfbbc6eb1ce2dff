//! Which processes hold which socket, in one pass for all: by the kernel's iterator over all tasks' files, or by a walk
//! over /proc/PID/fd.
//!
//! For 45,000 sockets of three processes the iterator takes 39 ms of CPU and the walk 215 (`cargo xtask bench --only owners`,
//! Linux 6.18), but loading it takes longer than most walks: the agent has it, a command that runs once walks. It sees every process of every PID namespace
//! below the first, and the agent must be in that one for numbers to be those of its /proc.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};

use tcpclose_common::held::Held;

use super::cgroup::namespace::with_whole_paths;
use super::files;
use super::process::Process;

/// One file descriptor on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub pid: u32,
    pub fd: u32,
}

/// The answer of one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Every holder of each socket asked for, by inode, in order of pid and fd.
    pub by_inode: HashMap<u32, Vec<Holder>>,
    /// The processes named in [`Self::by_inode`], by pid.
    pub processes: HashMap<u32, Process>,
    /// Processes whose files the caller may not see.
    pub denied: u32,
}

impl Owners {
    /// The holders of the socket with this inode; empty when none was seen.
    pub fn of(&self, inode: u32) -> &[Holder] {
        self.by_inode.get(&inode).map_or(&[], Vec::as_slice)
    }
}

/// How to look for owners.
#[derive(Debug)]
pub enum Look {
    /// By the iterator: what it writes is read from here.
    TaskFile(File),
    /// By a walk over /proc.
    Proc,
}

/// Who holds the sockets with these `inodes`. A process that ends meanwhile is left out.
pub fn find(inodes: &HashSet<u32>, look: Look) -> io::Result<Owners> {
    if inodes.is_empty() {
        return Ok(Owners::default());
    }
    let mut owners = match look {
        Look::TaskFile(file) => match read(file, inodes) {
            Ok(owners) => owners,
            Err(why) => {
                log::warn!("the iterator over files failed, /proc is read instead: {why}");
                walk(inodes)?
            }
        },
        Look::Proc => walk(inodes)?,
    };
    let pids: HashSet<u32> = owners.by_inode.values().flatten().map(|holder| holder.pid).collect();
    owners.processes =
        with_whole_paths(|| pids.iter().filter_map(|&pid| Some((pid, Process::read(pid)?))).collect());
    let Owners { by_inode, processes, .. } = &mut owners;
    for holders in by_inode.values_mut() {
        holders.retain(|holder| processes.contains_key(&holder.pid));
        holders.sort_unstable();
        holders.dedup();
    }
    Ok(owners)
}

/// What the iterator writes.
fn read(mut file: File, inodes: &HashSet<u32>) -> io::Result<Owners> {
    let mut owners = Owners::default();
    let mut buffer = vec![0; Held::SIZE << 12];
    let mut filled = 0;
    loop {
        let free = buffer.get_mut(filled..).unwrap_or_default();
        match file.read(free) {
            Ok(0) => return Ok(owners),
            Ok(n) => filled += n,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
            Err(why) => return Err(why),
        }
        let (records, rest) = buffer.get(..filled).unwrap_or_default().as_chunks::<{ Held::SIZE }>();
        for held in records.iter().map(Held::decode) {
            // The kernel numbers sockets with get_next_ino(), an unsigned int (net/socket.c, sock_alloc()).
            if let Some(inode) = u32::try_from(held.inode).ok().filter(|inode| inodes.contains(inode)) {
                owners.by_inode.entry(inode).or_default().push(Holder { pid: held.pid, fd: held.fd });
            }
        }
        // A read may end in the middle of a record.
        let (used, left) = (filled - rest.len(), rest.len());
        buffer.copy_within(used..filled, 0);
        filled = left;
    }
}

/// Reads every process's list of files.
fn walk(inodes: &HashSet<u32>) -> io::Result<Owners> {
    let mut owners = Owners::default();
    owners.denied = files::each(|pid, fd, target| {
        if let Some(inode) = files::inode_of("socket", target).filter(|inode| inodes.contains(inode)) {
            owners.by_inode.entry(inode).or_default().push(Holder { pid, fd });
        }
    })?;
    Ok(owners)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    fn inode(fd: &impl AsRawFd) -> u32 {
        fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().ino() as u32
    }

    #[test]
    fn finds_every_descriptor_on_the_sockets_asked_for_and_no_other() {
        let (one, other) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let twice = one.try_clone().unwrap();
        let owners = find(&HashSet::from([inode(&one)]), Look::Proc).unwrap();
        let mut expected: Vec<Holder> =
            [&one, &twice].map(|fd| Holder { pid: std::process::id(), fd: fd.as_raw_fd() as u32 }).into();
        expected.sort_unstable();
        assert_eq!(owners.of(inode(&one)), expected);
        assert_eq!(owners.of(inode(&other)), []);
        assert_eq!(owners.processes.len(), 1);
        assert_eq!(find(&HashSet::new(), Look::Proc).unwrap(), Owners::default());
    }
}
