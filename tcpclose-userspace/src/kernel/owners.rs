//! Which processes hold which socket, in one pass for all: by the kernel's iterator over all tasks' files, or by a walk
//! over /proc/PID/fd.
//!
//! For 45,000 sockets of three processes the iterator takes 17 ms of CPU and the walk 151 (`cargo xtask bench --only owners`,
//! Linux 6.18), but loading it takes longer than most walks: the agent has it, a command that runs once walks. It sees every process of every PID namespace
//! below the first, and the agent must be in that one for numbers to be those of its /proc.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};
use tcpclose_common::held::Held;

use super::cgroup::namespace::with_whole_paths;
use super::files::{self, Files, Haste, Wanted};
use super::host::thread_cpu_ns;
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
    /// By inode, then in order of pid and fd.
    held: Vec<(u32, Holder)>,
    /// Where in `held` an inode begins and ends.
    by_inode: FxHashMap<u32, (u32, u32)>,
    /// The processes of `held`, by pid.
    pub processes: FxHashMap<u32, Arc<Process>>,
    /// Processes whose files the caller may not see.
    pub denied: u32,
}

impl Owners {
    /// `held`: inodes and who holds them.
    pub fn new(mut held: Vec<(u32, Holder)>, processes: FxHashMap<u32, Arc<Process>>, denied: u32) -> Self {
        held.retain(|(_, holder)| processes.contains_key(&holder.pid));
        held.sort_unstable();
        held.dedup();
        let mut by_inode = FxHashMap::with_capacity_and_hasher(held.len(), FxBuildHasher);
        let mut begin = 0;
        for of_one in held.chunk_by(|(a, _), (b, _)| a == b) {
            let end = begin + of_one.len() as u32;
            by_inode.extend(of_one.first().map(|(inode, _)| (*inode, (begin, end))));
            begin = end;
        }
        Self { held, by_inode, processes, denied }
    }

    /// The holders of the socket with this inode; none when none was seen.
    pub fn of(&self, inode: u32) -> impl Iterator<Item = &Holder> {
        let (begin, end) = self.by_inode.get(&inode).copied().unwrap_or_default();
        self.held.get(begin as usize..end as usize).unwrap_or_default().iter().map(|(_, holder)| holder)
    }

    /// Whether the socket with this inode has one.
    pub fn has(&self, inode: u32) -> bool {
        self.by_inode.contains_key(&inode)
    }

    /// How many sockets have one.
    pub fn sockets(&self) -> usize {
        self.by_inode.len()
    }
}

/// How to look for owners.
#[derive(Debug)]
pub enum Look {
    /// By the iterator: what it writes is read from here.
    TaskFile(File),
    /// By a walk over /proc.
    Proc(Haste),
}

/// Who holds the sockets with these `inodes`. A process that ends meanwhile is left out.
pub fn find(inodes: &FxHashSet<u32>, look: Look) -> io::Result<Owners> {
    if inodes.is_empty() {
        return Ok(Owners::default());
    }
    let Files { sockets, denied, .. } = self::look(look, Some(inodes))?;
    Ok(known(sockets, denied))
}

/// The same of what was `seen` before the sockets were looked at, or while; when it lacks one, it looks `again`.
pub fn find_in(inodes: &FxHashSet<u32>, seen: Files, again: Look) -> io::Result<Owners> {
    let Files { mut sockets, denied, .. } = seen;
    sockets.retain(|(inode, _)| inodes.contains(inode));
    let owners = known(sockets, denied);
    if owners.sockets() == inodes.len() { Ok(owners) } else { find(inodes, again) }
}

fn known(held: Vec<(u32, Holder)>, denied: u32) -> Owners {
    let pids: FxHashSet<u32> = held.iter().map(|(_, holder)| holder.pid).collect();
    let read = |&pid: &u32| Some((pid, Arc::new(Process::read(pid)?)));
    let processes = with_whole_paths(|| pids.iter().filter_map(read).collect());
    Owners::new(held, processes, denied)
}

/// Looks at all processes' files for sockets, for those with these inodes `only` if there are any.
///
/// # Errors
/// When /proc cannot be read.
pub fn look(look: Look, only: Option<&FxHashSet<u32>>) -> io::Result<Files> {
    let wanted = only.map_or(Wanted::Sockets, Wanted::Those);
    match look {
        Look::TaskFile(file) => read(file, wanted).or_else(|why| {
            log::warn!("the iterator over files failed, /proc is read instead: {why}");
            files::read(Haste::Leisurely, wanted)
        }),
        Look::Proc(haste) => files::read(haste, wanted),
    }
}

/// What the iterator writes.
fn read(mut file: File, wanted: Wanted<'_>) -> io::Result<Files> {
    let cpu = thread_cpu_ns();
    let mut files = Files::default();
    let mut buffer = vec![0; Held::SIZE << 12];
    let mut filled = 0;
    loop {
        let free = buffer.get_mut(filled..).unwrap_or_default();
        match file.read(free) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
            Err(why) => return Err(why),
        }
        let (records, rest) = buffer.get(..filled).unwrap_or_default().as_chunks::<{ Held::SIZE }>();
        for held in records.iter().map(Held::decode) {
            // The kernel numbers sockets with get_next_ino(), an unsigned int (net/socket.c, sock_alloc()).
            if let Some(inode) = u32::try_from(held.inode).ok().filter(|&inode| wanted.has(inode)) {
                files.sockets.push((inode, Holder { pid: held.pid, fd: held.fd }));
            }
        }
        // A read may end in the middle of a record.
        let (used, left) = (filled - rest.len(), rest.len());
        buffer.copy_within(used..filled, 0);
        filled = left;
    }
    files.cpu_ns = thread_cpu_ns().saturating_sub(cpu);
    Ok(files)
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
        let wanted = FxHashSet::from_iter([inode(&one)]);
        let owners = find(&wanted, Look::Proc(Haste::Leisurely)).unwrap();
        let mut expected: Vec<Holder> =
            [&one, &twice].map(|fd| Holder { pid: std::process::id(), fd: fd.as_raw_fd() as u32 }).into();
        expected.sort_unstable();
        assert!(owners.of(inode(&one)).eq(&expected));
        assert!(!owners.has(inode(&other)) && owners.of(inode(&other)).next().is_none());
        assert_eq!(owners.processes.len(), 1);
        assert_eq!(find(&FxHashSet::default(), Look::Proc(Haste::Leisurely)).unwrap(), Owners::default());
        // What was seen before it was there is looked for again.
        for seen in [Files::default(), files::read(Haste::Leisurely, Wanted::Sockets).unwrap()] {
            assert_eq!(find_in(&wanted, seen, Look::Proc(Haste::Hurried)).unwrap(), owners);
        }
    }
}
