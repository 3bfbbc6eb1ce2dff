//! Every process's open files, by a walk over /proc/PID/fd.
//!
//! Threads share their process's files, so one directory a process is read. A thread that has taken a file table of
//! its own (`unshare(CLONE_FILES)`) is not looked into: what it alone holds is not seen.
//!
//! To see another user's files both CAP_DAC_READ_SEARCH (or CAP_DAC_OVERRIDE) and CAP_SYS_PTRACE are needed: the
//! directory is 0500 and its owner's (fs/proc/fd.c, `proc_fd_permission()`), and following an entry is a ptrace
//! access (fs/proc/base.c, `proc_pid_readlink()`, 5.8 to 6.18).
//!
//! Following the links is three quarters of what `tcpclose stuck` costs where a process holds ten thousand sockets: a
//! command shares them out among threads, the agent leaves the other CPUs to those that it watches.

use std::collections::VecDeque;
use std::io;
use std::mem::{self, MaybeUninit};
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustc_hash::FxHashSet;
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw};
use rustix::io::Errno;
use rustix::path::{Arg, DecInt};

use super::host::thread_cpu_ns;
use super::owners::Holder;

/// What processes hold of what is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// By inode, in no order.
    pub sockets: Vec<(u32, Holder)>,
    /// Network namespaces, likewise.
    pub namespaces: Vec<(u32, Holder)>,
    /// What may be the mount of a namespace.
    pub mounts: Vec<Holder>,
    /// Processes whose files the caller may not see.
    pub denied: u32,
    /// CPU time that the walk took, nanoseconds, all its threads together.
    pub cpu_ns: u64,
}

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    Namespaces,
    NamespacesAndSockets,
    Sockets,
    /// Sockets with these inodes.
    Those(&'a FxHashSet<u32>),
}

impl Wanted<'_> {
    /// Whether the socket with this inode is.
    pub fn has(self, inode: u32) -> bool {
        match self {
            Self::Namespaces => false,
            Self::NamespacesAndSockets | Self::Sockets => true,
            Self::Those(inodes) => inodes.contains(&inode),
        }
    }

    fn has_namespaces(self) -> bool {
        matches!(self, Self::Namespaces | Self::NamespacesAndSockets)
    }
}

/// How many threads share the walk out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// The calling one.
    Leisurely,
    /// One a CPU, four at the most.
    Hurried,
}

impl Haste {
    fn threads(self) -> usize {
        const MOST: usize = 4;
        match self {
            Self::Leisurely => 1,
            Self::Hurried => thread::available_parallelism().map_or(1, NonZero::get).min(MOST),
        }
    }
}

/// Reads every process's list of files.
///
/// # Errors
/// When /proc cannot be read. A process that ends meanwhile is left out.
pub fn read(haste: Haste, wanted: Wanted<'_>) -> io::Result<Files> {
    let proc = open_directory(CWD, c"/proc")?;
    let mut processes = VecDeque::new();
    for_each_number(&proc, |pid| processes.push_back(Work::Process(pid)))?;
    let shared = Shared { proc, threads: haste.threads(), wanted, queue: Queue::of(processes) };
    Ok(thread::scope(|scope| {
        let helpers: Vec<_> = (1..shared.threads)
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, || shared.walk()).ok())
            .collect();
        let mut files = shared.walk();
        for helper in helpers {
            // A helper that died has taken its work with it.
            match helper.join() {
                Ok(more) => files.add(more),
                Err(_) => files.denied += 1,
            }
        }
        files
    }))
}

impl Files {
    fn take(&mut self, target: &[u8], holder: Holder, wanted: Wanted<'_>) {
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
        }
    }

    fn add(&mut self, mut more: Self) {
        self.sockets.append(&mut more.sockets);
        self.namespaces.append(&mut more.namespaces);
        self.mounts.append(&mut more.mounts);
        self.denied += more.denied;
        self.cpu_ns += more.cpu_ns;
    }
}

/// What is to be done.
enum Work {
    Process(u32),
    /// A part of what a process has open.
    Part(Arc<Open>, Vec<u32>),
}

/// A directory of open files.
struct Open {
    directory: OwnedFd,
    pid: u32,
    /// Not all of them may be looked at.
    denied: AtomicBool,
}

/// What threads have in common.
struct Shared<'a> {
    proc: OwnedFd,
    threads: usize,
    wanted: Wanted<'a>,
    queue: Queue,
}

impl Shared<'_> {
    /// Works until there is nothing left to do.
    fn walk(&self) -> Files {
        let cpu = thread_cpu_ns();
        let mut files = Files::default();
        while let Some(work) = self.queue.take() {
            match work {
                Work::Process(pid) => {
                    // Any other error says that it has ended.
                    let denied = matches!(self.process(pid, &mut files), Err(Errno::ACCESS | Errno::PERM));
                    files.denied += u32::from(denied);
                }
                Work::Part(open, fds) => self.part(&open, &fds, &mut files),
            }
            self.queue.done();
        }
        files.cpu_ns = thread_cpu_ns().saturating_sub(cpu);
        files
    }

    fn process(&self, pid: u32, files: &mut Files) -> Result<(), Errno> {
        let process = open_directory(&self.proc, DecInt::new(pid))?;
        if self.task(&process, pid, files)? > 0 {
            return Ok(());
        }
        // A process whose first thread has ended shows no files under its own number, though its other threads hold
        // them (fs/proc/fd.c, proc_readfd_common(): the task's own file table, which exit_files() took).
        let tasks = open_directory(&process, c"task")?;
        let mut open = 0;
        for_each_number(&tasks, |tid| {
            if tid != pid
                && open == 0
                && let Ok(task) = open_directory(&tasks, DecInt::new(tid))
                && let Ok(seen) = self.task(&task, pid, files)
            {
                open = seen;
            }
        })
    }

    /// Looks at what one task of `pid` has open, or leaves a part of that to others, and returns how much it is.
    fn task(&self, task: &OwnedFd, pid: u32, files: &mut Files) -> Result<u64, Errno> {
        /// Some milliseconds' work: far more than a thread that takes it costs.
        const PART: usize = 1024;
        let directory = open_directory(task, c"fd")?;
        let open = Arc::new(Open { directory, pid, denied: AtomicBool::new(false) });
        let mut seen = 0;
        let mut fds = Vec::new();
        for_each_number(&open.directory, |fd| {
            seen += 1;
            fds.push(fd);
            if fds.len() == PART && self.threads > 1 {
                self.queue.put(Work::Part(open.clone(), mem::take(&mut fds)));
            }
        })?;
        self.part(&open, &fds, files);
        Ok(seen)
    }

    fn part(&self, open: &Open, fds: &[u32], files: &mut Files) {
        for &fd in fds {
            let mut target = [MaybeUninit::uninit(); 64];
            match readlinkat_raw(&open.directory, DecInt::new(fd), &mut target) {
                Ok((target, _)) => {
                    files.take(target, Holder { pid: open.pid, fd }, self.wanted);
                }
                Err(Errno::ACCESS | Errno::PERM) => {
                    if !open.denied.swap(true, Ordering::Relaxed) {
                        files.denied += 1;
                    }
                }
                // It was closed meanwhile.
                Err(_) => {}
            }
        }
    }
}

/// Work for several threads, each of which may make more of it.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    work: VecDeque<Work>,
    /// How much is being done.
    busy: usize,
}

impl Queue {
    fn of(work: VecDeque<Work>) -> Self {
        Self { state: Mutex::new(State { work, busy: 0 }), changed: Condvar::new() }
    }

    /// What is next; waits while there is none, but others may make some.
    fn take(&self) -> Option<Work> {
        let mut state = self.state();
        loop {
            if let Some(work) = state.work.pop_front() {
                state.busy += 1;
                return Some(work);
            }
            if state.busy == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Before everything else: what one thread has not done yet, for the last one not to be the largest.
    fn put(&self, work: Work) {
        self.state().work.push_front(work);
        self.changed.notify_one();
    }

    /// What was taken is done.
    fn done(&self) {
        let mut state = self.state();
        state.busy -= 1;
        if state.busy == 0 && state.work.is_empty() {
            self.changed.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// N of `kind:[N]`. The kernel numbers sockets and namespaces by unsigned ints (net/socket.c, sock_alloc();
/// include/linux/ns_common.h, 5.8 to 6.18).
fn inode_of(kind: &str, target: &[u8]) -> Option<u32> {
    let digits = target.strip_prefix(kind.as_bytes())?.strip_prefix(b":[")?.strip_suffix(b"]")?;
    str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether a descriptor's link can be that of a namespace which was opened where it was mounted: the link is then that
/// path, or what is left of it since (fs/d_path.c, d_path(), 5.8 to 6.18). Sockets, pipes and the like have names of their own.
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
        if let Some(number) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
            visit(number);
        }
    }
    Ok(())
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

    /// A part is a thousand: three are handed out.
    #[test]
    fn many_threads_see_what_one_sees() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let inode = fs::metadata(path).unwrap().ino() as u32;
        let copies: Vec<UdpSocket> = (0..3500).map_while(|_| socket.try_clone().ok()).collect();
        let namespace = File::open("/proc/self/ns/net").unwrap();
        let inum = namespace.metadata().unwrap().ino() as u32;
        for haste in [Haste::Leisurely, Haste::Hurried] {
            let files = read(haste, Wanted::NamespacesAndSockets).unwrap();
            let some = read(haste, Wanted::Those(&FxHashSet::from_iter([inode]))).unwrap();
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
            let ours = Holder { pid: std::process::id(), fd: namespace.as_raw_fd() as u32 };
            assert!(files.namespaces.contains(&(inum, ours)));
        }
    }
}
