//! Which processes hold which socket, by one walk over /proc/PID/fd.
//!
//! Threads share their process's files, so one directory a process is read. A thread that has taken a file table of
//! its own (`unshare(CLONE_FILES)`) is not looked into: what it alone holds has no owner here.
//!
//! To see another user's files both CAP_DAC_READ_SEARCH (or CAP_DAC_OVERRIDE) and CAP_SYS_PTRACE are needed: the
//! directory is 0500 and its owner's (fs/proc/fd.c, `proc_fd_permission()`), and following an entry is a ptrace
//! access (fs/proc/base.c, `proc_pid_readlink()`, 5.8 to 6.18).

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw};
use rustix::io::Errno;

/// One file descriptor on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub pid: u32,
    pub fd: u32,
}

/// A process that holds at least one of the sockets asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// `/proc/PID/comm`, at most 15 bytes, as lossy UTF-8. A program may put any byte in: escape it for a terminal.
    pub comm: String,
    /// File descriptors in use.
    pub fds_used: u64,
    /// The soft limit of open files; `None` when unlimited or unreadable.
    pub fds_limit: Option<u64>,
}

/// The answer of one walk.
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

/// Who holds the sockets with these `inodes`. A process that ends meanwhile is left out.
pub fn find(inodes: &HashSet<u32>) -> io::Result<Owners> {
    let mut owners = Owners::default();
    if inodes.is_empty() {
        return Ok(owners);
    }
    let proc = open_directory(CWD, c"/proc")?;
    for_each_number(&proc, |name, pid| {
        match files(&proc, name, pid, inodes, &mut owners.by_inode) {
            Ok(Files { sockets: 0, .. }) => {}
            Ok(Files { used, .. }) => {
                owners.processes.insert(pid, describe(pid, used));
            }
            Err(Errno::ACCESS | Errno::PERM) => owners.denied += 1,
            // It has ended.
            Err(_) => {}
        }
    })?;
    for holders in owners.by_inode.values_mut() {
        holders.sort_unstable();
        holders.dedup();
    }
    Ok(owners)
}

/// How many files a process has open, and how many of them are sockets asked for.
#[derive(Default)]
struct Files {
    used: u64,
    sockets: u64,
}

fn files(
    proc: &OwnedFd,
    name: &CStr,
    pid: u32,
    inodes: &HashSet<u32>,
    found: &mut HashMap<u32, Vec<Holder>>,
) -> Result<Files, Errno> {
    let process = open_directory(proc, name)?;
    let files = files_of_task(&process, pid, inodes, found)?;
    if files.used > 0 {
        return Ok(files);
    }
    // A process whose first thread has ended shows no files under its own number, though its other threads hold
    // them (fs/proc/fd.c, proc_readfd_common(): the task's own file table, which exit_files() took).
    let tasks = open_directory(&process, c"task")?;
    let mut files = Files::default();
    for_each_number(&tasks, |name, tid| {
        if tid != pid
            && files.used == 0
            && let Ok(task) = open_directory(&tasks, name)
            && let Ok(seen) = files_of_task(&task, pid, inodes, found)
        {
            files = seen;
        }
    })?;
    Ok(files)
}

fn files_of_task(
    task: &OwnedFd,
    pid: u32,
    inodes: &HashSet<u32>,
    found: &mut HashMap<u32, Vec<Holder>>,
) -> Result<Files, Errno> {
    let directory = open_directory(task, c"fd")?;
    let mut files = Files::default();
    let mut denied = false;
    for_each_number(&directory, |name, fd| {
        files.used += 1;
        let mut target = [MaybeUninit::uninit(); 64];
        match readlinkat_raw(&directory, name, &mut target) {
            Ok((target, _)) => {
                if let Some(inode) = socket_inode(target).filter(|inode| inodes.contains(inode)) {
                    files.sockets += 1;
                    found.entry(inode).or_default().push(Holder { pid, fd });
                }
            }
            Err(error) => denied |= matches!(error, Errno::ACCESS | Errno::PERM),
        }
    })?;
    if denied { Err(Errno::ACCESS) } else { Ok(files) }
}

/// N of `socket:[N]`.
fn socket_inode(target: &[u8]) -> Option<u32> {
    // The kernel numbers sockets with get_next_ino(), an unsigned int (net/socket.c, sock_alloc()).
    str::from_utf8(target).ok()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn describe(pid: u32, fds_used: u64) -> Process {
    let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    Process {
        comm: String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned(),
        fds_used,
        fds_limit: soft_limit(&limits),
    }
}

/// The soft limit in the `Max open files` line of a `/proc/PID/limits`; `None` for `unlimited`.
fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
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
        let owners = find(&HashSet::from([inode(&one)])).unwrap();
        let mut expected: Vec<Holder> =
            [&one, &twice].map(|fd| Holder { pid: std::process::id(), fd: fd.as_raw_fd() as u32 }).into();
        expected.sort_unstable();
        assert_eq!(owners.of(inode(&one)), expected);
        assert_eq!(owners.of(inode(&other)), []);
        let process = &owners.processes[&std::process::id()];
        assert!(process.fds_used >= 3 && process.fds_limit.is_none_or(|limit| limit >= process.fds_used));
        assert!(!process.comm.is_empty() && !process.comm.ends_with('\n'));
        assert_eq!(find(&HashSet::new()).unwrap(), Owners::default());
    }

    #[test]
    fn reads_the_kernels_texts() {
        assert_eq!(socket_inode(b"socket:[12345]"), Some(12345));
        for other in [&b"pipe:[12345]"[..], b"socket:[]", b"socket:[1", b"socket:[-1]", b"/x\xff", b""] {
            assert_eq!(socket_inode(other), None);
        }
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(soft_limit(limits), Some(1024));
        assert_eq!(soft_limit(&limits.replace("1024 ", "unlimited ")), None);
        assert_eq!(soft_limit(""), None);
    }
}
