//! Every process's open files, by a walk over /proc/PID/fd.
//!
//! Threads share their process's files, so one directory per process is read. Files that only a thread with a file table of its
//! own (`unshare(CLONE_FILES)`) holds are not seen.
//!
//! Reading another user's files needs both CAP_DAC_READ_SEARCH (or CAP_DAC_OVERRIDE) and CAP_SYS_PTRACE: the directory has mode
//! 0500 (fs/proc/fd.c, `proc_fd_permission()`), and following an entry is a ptrace
//! access (fs/proc/base.c, `proc_pid_readlink()`, 5.8 to 6.18).
//!
//! Following the links is three quarters of the cost of `tcpclose stuck` where a process holds ten thousand sockets: a command
//! divides them among threads, the agent leaves the other CPUs to the host's work.
//!
//! A process may have any number of descriptors, also of one file, and any user many processes. So processes take turns, a part
//! of a directory each, and where a walk has a time limit, the largest are those that stay unread.

pub mod rings;
mod work_queue;

use std::collections::VecDeque;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;
use rustix::fs::{CWD, Mode, OFlags, RawDir, SeekFrom, openat, readlinkat_raw, seek};
use rustix::io::Errno;
use rustix::path::{Arg, DecInt};

use crate::linux::host::thread_cpu_ns;
use crate::linux::proc_fd::work_queue::WorkQueue;

/// What a descriptor of a ring of io_uring links to.
const RING: &[u8] = b"anon_inode:[io_uring]";

/// One file descriptor of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdHolder {
    pub pid: u32,
    pub fd: u32,
}

/// The files that processes hold, of those that a [`FileFilter`] lets through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenFiles {
    /// Sockets by inode, in no order.
    pub sockets: Vec<(u32, FdHolder)>,
    /// The inodes of sockets by their cookies, if the iterator over files was read.
    pub cookies: Option<Vec<(u64, u32)>>,
    /// Network namespaces by inode, in no order.
    pub namespaces: Vec<(u32, FdHolder)>,
    /// Files that may be mounts of a namespace.
    pub mounts: Vec<FdHolder>,
    /// Rings of io_uring, which hold the files that are registered with them.
    pub rings: Vec<FdHolder>,
    /// Processes whose files the caller is not allowed to read.
    pub denied: u32,
    /// Processes whose files were not all read in time.
    pub unanswered: FxHashSet<u32>,
    /// CPU time of all threads of the walk, nanoseconds.
    pub cpu_ns: u64,
    /// The duration of the walk.
    pub took: Duration,
}

/// The files that a walk collects.
#[derive(Clone, Copy, Debug)]
pub enum FileFilter<'a> {
    Namespaces,
    NamespacesAndSockets,
    Sockets,
    /// Sockets with these inodes.
    Those(&'a FxHashSet<u32>),
    Rings,
}

impl FileFilter<'_> {
    /// Whether it collects the socket with this inode.
    pub fn has(self, inode: u32) -> bool {
        match self {
            Self::Namespaces | Self::Rings => false,
            Self::NamespacesAndSockets | Self::Sockets => true,
            Self::Those(inodes) => inodes.contains(&inode),
        }
    }

    fn has_namespaces(self) -> bool {
        matches!(self, Self::Namespaces | Self::NamespacesAndSockets)
    }
}

/// How many threads a walk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// The calling thread.
    Leisurely,
    /// One thread per CPU, four at the most.
    Hurried,
}

impl Urgency {
    fn threads(self) -> usize {
        const MOST: usize = 4;
        match self {
            Self::Leisurely => 1,
            Self::Hurried => thread::available_parallelism().map_or(1, NonZero::get).min(MOST),
        }
    }
}

/// Reads every process's list of files, however long that takes.
///
/// # Errors
/// As [`read_within`].
pub fn read(haste: Urgency, wanted: FileFilter<'_>) -> io::Result<OpenFiles> {
    walk(haste, wanted, None)
}

/// Reads every process's list of files, as far as possible in this time.
///
/// # Errors
/// When /proc cannot be read. A process that ends meanwhile is left out.
pub fn read_within(haste: Urgency, wanted: FileFilter<'_>, time: Duration) -> io::Result<OpenFiles> {
    walk(haste, wanted, Some(time))
}

fn walk(haste: Urgency, wanted: FileFilter<'_>, time: Option<Duration>) -> io::Result<OpenFiles> {
    let begun = Instant::now();
    let proc = open_directory(CWD, c"/proc")?;
    let mut processes = VecDeque::new();
    for_each_number(&proc, |pid| processes.push_back(Work { pid, tid: None, from: 0 }))?;
    let until = time.and_then(|time| begun.checked_add(time));
    let shared = Shared { proc, wanted, until, queue: WorkQueue::of(processes) };
    Ok(thread::scope(|scope| {
        let helpers: Vec<_> = (1..haste.threads())
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, || shared.walk()).ok())
            .collect();
        let mut files = shared.walk();
        for helper in helpers {
            // A thread that panicked has lost its work.
            match helper.join() {
                Ok(more) => files.add(more),
                Err(_) => files.denied += 1,
            }
        }
        files.took = begun.elapsed();
        files
    }))
}

impl OpenFiles {
    fn take(&mut self, target: &[u8], holder: FdHolder, wanted: FileFilter<'_>) {
        if let Some(inode) = inode_of("socket", target) {
            if wanted.has(inode) {
                self.sockets.push((inode, holder));
            }
        } else if wanted.has_namespaces() {
            if let Some(inum) = inode_of("net", target) {
                self.namespaces.push((inum, holder));
            } else if may_be_a_mount(target) {
                self.mounts.push(holder);
            }
        } else if matches!(wanted, FileFilter::Rings) && target == RING {
            self.rings.push(holder);
        }
    }

    /// Adds `more`.
    pub fn add(&mut self, mut more: Self) {
        self.sockets.append(&mut more.sockets);
        if let Some(more) = more.cookies {
            self.cookies.get_or_insert_default().extend(more);
        }
        self.namespaces.append(&mut more.namespaces);
        self.mounts.append(&mut more.mounts);
        self.rings.append(&mut more.rings);
        self.denied += more.denied;
        self.unanswered.extend(more.unanswered);
        self.cpu_ns += more.cpu_ns;
    }
}

/// One unit of work: the files of a process, or the rest of them.
#[derive(Clone, Copy)]
struct Work {
    pid: u32,
    /// The thread whose directory is read, where the first thread has ended.
    tid: Option<u32>,
    /// The first descriptor to read.
    from: u32,
}

/// The state that the threads share.
struct Shared<'a> {
    proc: OwnedFd,
    wanted: FileFilter<'a>,
    until: Option<Instant>,
    queue: WorkQueue<Work>,
}

impl Shared<'_> {
    /// Works until the queue is empty.
    fn walk(&self) -> OpenFiles {
        let cpu = thread_cpu_ns();
        let mut files = OpenFiles::default();
        while let Some(work) = self.queue.take() {
            if self.is_late() {
                files.unanswered.insert(work.pid);
            } else {
                // Any other error means that the process has ended.
                let denied = matches!(self.process(work, &mut files), Err(Errno::ACCESS | Errno::PERM));
                files.denied += u32::from(denied);
            }
            self.queue.done();
        }
        files.cpu_ns = thread_cpu_ns().saturating_sub(cpu);
        files
    }

    fn is_late(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    fn process(&self, work: Work, files: &mut OpenFiles) -> Result<(), Errno> {
        let Work { pid, tid, from } = work;
        let process = open_directory(&self.proc, DecInt::new(pid))?;
        if let Some(tid) = tid {
            let task =
                open_directory(&process, c"task").and_then(|all| open_directory(all, DecInt::new(tid)))?;
            return self.task(&task, work, files).map(drop);
        }
        if self.task(&process, work, files)? > 0 || from > 0 {
            return Ok(());
        }
        // A process whose first thread has ended shows no files under its own number, though its other threads hold
        // them (fs/proc/fd.c, proc_readfd_common(): the task's own file table, which exit_files() took).
        let tasks = open_directory(&process, c"task")?;
        let (mut open, mut late) = (0, false);
        for_each_number(&tasks, |tid| {
            late |= self.is_late();
            if tid != pid
                && open == 0
                && !late
                && let Ok(task) = open_directory(&tasks, DecInt::new(tid))
                && let Ok(seen) = self.task(&task, Work { pid, tid: Some(tid), from: 0 }, files)
            {
                open = seen;
            }
        })?;
        if late && open == 0 {
            files.unanswered.insert(pid);
        }
        Ok(())
    }

    /// Reads a part of the files of one task, puts the rest into the queue, and returns the number of files in the part.
    fn task(&self, task: &OwnedFd, work: Work, files: &mut OpenFiles) -> Result<usize, Errno> {
        /// Some milliseconds of work: far more than the overhead of passing it to a thread.
        const PART: usize = 1024;
        let directory = open_directory(task, c"fd")?;
        if work.from > 0 {
            // The position is two more than the descriptor (fs/proc/fd.c, proc_readfd_common(), 5.8 to 6.18).
            seek(&directory, SeekFrom::Start(u64::from(work.from) + 2))?;
        }
        let mut fds = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(&directory, &mut buffer);
        while let Some(entry) = entries.next() {
            fds.extend(number(entry?.file_name()));
            if fds.len() == PART {
                break;
            }
        }
        // Queued before the links are followed, so that another thread can list the rest meanwhile.
        if let (PART, Some(last)) = (fds.len(), fds.last()) {
            self.queue.put(Work { from: last + 1, ..work });
        }
        self.part(&directory, work.pid, &fds, files);
        Ok(fds.len())
    }

    fn part(&self, directory: &OwnedFd, pid: u32, fds: &[u32], files: &mut OpenFiles) {
        let mut denied = false;
        for &fd in fds {
            let mut target = [MaybeUninit::uninit(); 64];
            match readlinkat_raw(directory, DecInt::new(fd), &mut target) {
                Ok((target, _)) => files.take(target, FdHolder { pid, fd }, self.wanted),
                Err(Errno::ACCESS | Errno::PERM) => denied = true,
                // The descriptor was closed meanwhile.
                Err(_) => {}
            }
        }
        files.denied += u32::from(denied);
    }
}

/// The N of `kind:[N]`. The kernel numbers sockets and namespaces by unsigned ints (net/socket.c, sock_alloc();
/// include/linux/ns_common.h, 5.8 to 6.18).
fn inode_of(kind: &str, target: &[u8]) -> Option<u32> {
    let digits = target.strip_prefix(kind.as_bytes())?.strip_prefix(b":[")?.strip_suffix(b"]")?;
    str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether a descriptor's link can be that of a namespace which was opened at its mount point: the link is then that path, or
/// what is left of it (fs/d_path.c, d_path(), 5.8 to 6.18). Sockets, pipes and the like have other names.
fn may_be_a_mount(target: &[u8]) -> bool {
    target.starts_with(b"/") && !target.starts_with(b"/dev/") && !target.starts_with(b"/memfd:")
}

fn open_directory(at: impl AsFd, name: impl Arg) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Calls `visit` with each entry whose name is a number.
fn for_each_number(directory: &OwnedFd, mut visit: impl FnMut(u32)) -> Result<(), Errno> {
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if let Some(number) = number(entry.file_name()) {
            visit(number);
        }
    }
    Ok(())
}

fn number(name: &CStr) -> Option<u32> {
    name.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn reads_the_kernels_texts() {
        assert_eq!(inode_of("socket", b"socket:[12345]"), Some(12345));
        assert_eq!(inode_of("net", b"net:[4026531840]"), Some(4_026_531_840));
        for other in
            [&b"pipe:[12345]"[..], b"socket:[]", b"socket:[1", b"socket:[-1]", b"socket", b"/x\xff", b""]
        {
            assert_eq!(inode_of("socket", other), None);
        }
    }

    #[test]
    fn who_is_not_answered_for_is_named() {
        let own = std::process::id();
        let none = read_within(Urgency::Leisurely, FileFilter::Sockets, Duration::ZERO).unwrap();
        assert!(none.unanswered.contains(&own) && none.unanswered.contains(&1) && none.sockets.is_empty());
        let all = read_within(Urgency::Hurried, FileFilter::Sockets, Duration::from_secs(3600)).unwrap();
        assert!(all.unanswered.is_empty());
    }

    /// A part is a thousand: three more are handed out.
    #[test]
    fn many_threads_see_what_one_sees() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let inode = fs::metadata(path).unwrap().ino() as u32;
        let copies: Vec<UdpSocket> = (0..3500).map_while(|_| socket.try_clone().ok()).collect();
        let namespace = File::open("/proc/self/ns/net").unwrap();
        let inum = namespace.metadata().unwrap().ino() as u32;
        for haste in [Urgency::Leisurely, Urgency::Hurried] {
            let files = read(haste, FileFilter::NamespacesAndSockets).unwrap();
            let some = read(haste, FileFilter::Those(&FxHashSet::from_iter([inode]))).unwrap();
            assert!(some.sockets.iter().all(|(seen, _)| *seen == inode) && some.namespaces.is_empty());
            assert_eq!(some.sockets.len(), copies.len() + 1);
            let mut seen: Vec<u32> = files
                .sockets
                .iter()
                .filter(|(seen, _)| *seen == inode)
                .map(|(_, holder)| holder.fd)
                .collect();
            seen.sort_unstable();
            let mut expected: Vec<u32> =
                copies.iter().chain([&socket]).map(|socket| socket.as_raw_fd() as u32).collect();
            expected.sort_unstable();
            assert_eq!(seen, expected);
            let ours = FdHolder { pid: std::process::id(), fd: namespace.as_raw_fd() as u32 };
            assert!(files.namespaces.contains(&(inum, ours)));
        }
    }
}
