//! Which processes hold which socket, in one pass for all: by the kernel's iterator over all tasks' files, or by a walk
//! over /proc/PID/fd.
//!
//! For 45,000 sockets of three processes the iterator takes 17 ms of CPU and the walk 151 (`cargo xtask bench --only owners`,
//! Linux 6.18), but loading it takes longer than most walks: the agent has it, a command that runs once walks. It sees every process of every PID namespace
//! below the first, and the agent must be in that one for numbers to be those of its /proc.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};
use tcpclose_common::held::Held;

use super::cgroup::namespace::with_whole_paths;
use super::executables::{self, Asker};
use super::files::{self, Files, Haste, Wanted};
use super::host::thread_cpu_ns;
use super::process::Process;

/// For how long one question looks at descriptors. Executables come after ([`executables::WITHIN`]), and who asked waits 10 s for
/// everything.
pub const WITHIN: Duration = Duration::from_secs(4);

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
    /// Processes not all of whose files were looked at within [`WITHIN`], in order.
    pub unanswered: Vec<u32>,
    /// Processes of `processes` whose executables were not read within [`executables::WITHIN`], in order.
    pub unread: Vec<u32>,
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
        Self { held, by_inode, processes, denied, ..Self::default() }
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

/// Who holds the sockets with these `inodes`, as far as it is found within [`WITHIN`]. A process that ends meanwhile is left out.
pub fn find(inodes: &FxHashSet<u32>, look: Look) -> io::Result<Owners> {
    find_in(inodes, Files::default(), look)
}

/// The same of what was `seen` before the sockets were looked at, or while; when it lacks one, it looks `again` for as long as
/// is left.
pub fn find_in(inodes: &FxHashSet<u32>, mut seen: Files, again: Look) -> io::Result<Owners> {
    if inodes.is_empty() {
        return Ok(Owners::default());
    }
    seen.sockets.retain(|(inode, _)| inodes.contains(inode));
    let found: FxHashSet<u32> = seen.sockets.iter().map(|(inode, _)| *inode).collect();
    let left = WITHIN.saturating_sub(seen.took);
    if found.len() == inodes.len() || left.is_zero() {
        return Ok(known(seen, left));
    }
    let mut files = look_within(again, Some(inodes), left)?;
    if !files.unanswered.is_empty() {
        // It saw less than all, as the earlier one may have.
        files.sockets.append(&mut seen.sockets);
    }
    let left = left.saturating_sub(files.took);
    Ok(known(files, left))
}

/// Describes the processes that `files` has; when there is no time `left`, by little.
fn known(files: Files, left: Duration) -> Owners {
    /// What a thousand processes take, however late it is.
    const AT_LEAST: Duration = Duration::from_millis(200);
    let until = Instant::now() + left.max(AT_LEAST);
    let Files { sockets, denied, unanswered, .. } = files;
    let pids: FxHashSet<u32> = sockets.iter().map(|(_, holder)| holder.pid).collect();
    // It starts while the processes are described.
    let asker = (!pids.is_empty()).then(Asker::begin);
    let read = |&pid: &u32| Some((pid, Process::read(pid, until)?));
    let mut processes: FxHashMap<u32, Process> = with_whole_paths(|| pids.iter().filter_map(read).collect());
    let mut unread = Vec::new();
    if let Some(asker) = asker {
        let asked = processes.iter().filter(|(_, process)| process.exe.is_some() && process.runs.is_none());
        let told = asker.ask(asked.map(|(pid, _)| *pid).collect(), Instant::now() + executables::WITHIN);
        for (pid, runs) in told.runs {
            if let Some(process) = processes.get_mut(&pid) {
                process.runs = Some(runs);
            }
        }
        unread = told.unanswered;
    }
    let processes = processes.into_iter().map(|(pid, process)| (pid, Arc::new(process))).collect();
    let mut unanswered: Vec<u32> = unanswered.into_iter().collect();
    unanswered.sort_unstable();
    unread.sort_unstable();
    Owners { unanswered, unread, ..Owners::new(sockets, processes, denied) }
}

/// Looks at all processes' files for sockets, for those with these inodes `only` if there are any, as far as it comes
/// within [`WITHIN`].
///
/// # Errors
/// When /proc cannot be read.
pub fn look(look: Look, only: Option<&FxHashSet<u32>>) -> io::Result<Files> {
    look_within(look, only, WITHIN)
}

fn look_within(look: Look, only: Option<&FxHashSet<u32>>, time: Duration) -> io::Result<Files> {
    let wanted = only.map_or(Wanted::Sockets, Wanted::Those);
    match look {
        Look::TaskFile(file) => {
            // It goes from process to process and does not say how far it has come. Where one has so many files that half
            // of the time is not enough, the walk, in which they take turns, has the other half.
            let begun = Instant::now();
            let mut files = Files::default();
            let done = read(file, wanted, begun + time / 2, &mut files);
            if let Err(why) = done {
                if why.kind() == ErrorKind::TimedOut {
                    log::debug!("the iterator over files took too long, /proc is read instead");
                } else {
                    log::warn!("the iterator over files failed, /proc is read instead: {why}");
                }
                let left = time.saturating_sub(begun.elapsed());
                files.add(files::read_within(Haste::Leisurely, wanted, left)?);
            }
            files.took = begun.elapsed();
            Ok(files)
        }
        Look::Proc(haste) => files::read_within(haste, wanted, time),
    }
}

/// What the iterator writes, into `files`.
///
/// # Errors
/// [`ErrorKind::TimedOut`] when it is not at its end by `until`.
fn read(file: File, wanted: Wanted<'_>, until: Instant, files: &mut Files) -> io::Result<()> {
    let cpu = thread_cpu_ns();
    let done = read_all(file, wanted, until, files);
    files.cpu_ns += thread_cpu_ns().saturating_sub(cpu);
    done
}

fn read_all(mut file: File, wanted: Wanted<'_>, until: Instant, files: &mut Files) -> io::Result<()> {
    let mut buffer = vec![0; Held::SIZE << 12];
    let mut filled = 0;
    loop {
        if Instant::now() >= until {
            return Err(ErrorKind::TimedOut.into());
        }
        let free = buffer.get_mut(filled..).unwrap_or_default();
        match file.read(free) {
            Ok(0) => return Ok(()),
            Ok(n) => filled += n,
            // EAGAIN: it has been over a million files that are no sockets, and goes on from there (kernel/bpf/bpf_iter.c,
            // bpf_seq_read(), 5.8 to 6.18).
            Err(why) if matches!(why.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => continue,
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
        // What was seen before it was there is looked for again. (How many files this process has changes with other tests.)
        for seen in [Files::default(), files::read(Haste::Leisurely, Wanted::Sockets).unwrap()] {
            let again = find_in(&wanted, seen, Look::Proc(Haste::Hurried)).unwrap();
            assert_eq!(again.held, owners.held);
            assert!(again.processes.keys().eq([&std::process::id()]) && again.unanswered.is_empty());
        }
        // Where the first look has taken all the time, there is no second one.
        let late = Files { took: WITHIN, unanswered: FxHashSet::from_iter([7]), ..Files::default() };
        let late = find_in(&wanted, late, Look::Proc(Haste::Hurried)).unwrap();
        assert_eq!((late.sockets(), late.unanswered), (0, vec![7]));
    }
}
