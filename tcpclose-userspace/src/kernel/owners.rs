//! Which processes hold which socket, in one pass for all: by the kernel's iterator over all tasks' files, or by a walk
//! over /proc/PID/fd.
//!
//! The iterator visits 45,000 descriptors in 28 to 37 ms and the walk in 223 (Linux 6.18), but loading it takes longer
//! than most walks: the agent has it, a command that runs once walks. It sees every process of every PID namespace
//! below the first, and the agent must be in that one for numbers to be those of its /proc.
//!
//! In the walk, threads share their process's files, so one directory a process is read. A thread that has taken a file table of
//! its own (`unshare(CLONE_FILES)`) is not looked into: what it alone holds has no owner here.
//!
//! To see another user's files both CAP_DAC_READ_SEARCH (or CAP_DAC_OVERRIDE) and CAP_SYS_PTRACE are needed: the
//! directory is 0500 and its owner's (fs/proc/fd.c, `proc_fd_permission()`), and following an entry is a ptrace
//! access (fs/proc/base.c, `proc_pid_readlink()`, 5.8 to 6.18).

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw};
use rustix::io::Errno;
use tcpclose_common::held::Held;

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
    owners.processes = pids.into_iter().filter_map(|pid| Some((pid, Process::read(pid)?))).collect();
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
    let proc = open_directory(CWD, c"/proc")?;
    for_each_number(&proc, |name, pid| {
        match files(&proc, name, pid, inodes, &mut owners.by_inode) {
            Ok(_) => {}
            Err(Errno::ACCESS | Errno::PERM) => owners.denied += 1,
            // It has ended.
            Err(_) => {}
        }
    })?;
    Ok(owners)
}

/// Takes what one process holds into `found`, and returns how many files it has open.
fn files(
    proc: &OwnedFd,
    name: &CStr,
    pid: u32,
    inodes: &HashSet<u32>,
    found: &mut HashMap<u32, Vec<Holder>>,
) -> Result<u64, Errno> {
    let process = open_directory(proc, name)?;
    let open = files_of_task(&process, pid, inodes, found)?;
    if open > 0 {
        return Ok(open);
    }
    // A process whose first thread has ended shows no files under its own number, though its other threads hold
    // them (fs/proc/fd.c, proc_readfd_common(): the task's own file table, which exit_files() took).
    let tasks = open_directory(&process, c"task")?;
    let mut open = 0;
    for_each_number(&tasks, |name, tid| {
        if tid != pid
            && open == 0
            && let Ok(task) = open_directory(&tasks, name)
            && let Ok(seen) = files_of_task(&task, pid, inodes, found)
        {
            open = seen;
        }
    })?;
    Ok(open)
}

fn files_of_task(
    task: &OwnedFd,
    pid: u32,
    inodes: &HashSet<u32>,
    found: &mut HashMap<u32, Vec<Holder>>,
) -> Result<u64, Errno> {
    let directory = open_directory(task, c"fd")?;
    let mut open = 0;
    let mut denied = false;
    for_each_number(&directory, |name, fd| {
        open += 1;
        let mut target = [MaybeUninit::uninit(); 64];
        match readlinkat_raw(&directory, name, &mut target) {
            Ok((target, _)) => {
                if let Some(inode) = socket_inode(target).filter(|inode| inodes.contains(inode)) {
                    found.entry(inode).or_default().push(Holder { pid, fd });
                }
            }
            Err(error) => denied |= matches!(error, Errno::ACCESS | Errno::PERM),
        }
    })?;
    if denied { Err(Errno::ACCESS) } else { Ok(open) }
}

/// N of `socket:[N]`.
fn socket_inode(target: &[u8]) -> Option<u32> {
    // The kernel numbers sockets with get_next_ino(), an unsigned int (net/socket.c, sock_alloc()).
    str::from_utf8(target).ok()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn open_directory(at: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Calls `visit` with each entry whose name is a number.
fn for_each_number(directory: &OwnedFd, mut visit: impl FnMut(&CStr, u32)) -> Result<(), Errno> {
    let mut buffer = [MaybeUninit::uninit(); 8 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(number) = name.to_str().ok().and_then(|name| name.parse().ok()) {
            visit(name, number);
        }
    }
    Ok(())
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

    #[test]
    fn reads_the_kernels_texts() {
        assert_eq!(socket_inode(b"socket:[12345]"), Some(12345));
        for other in [&b"pipe:[12345]"[..], b"socket:[]", b"socket:[1", b"socket:[-1]", b"/x\xff", b""] {
            assert_eq!(socket_inode(other), None);
        }
    }
}
