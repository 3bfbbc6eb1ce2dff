//! Finds the processes that hold sockets, all in one pass: by the kernel's iterator over all tasks' files, or by a walk over
//! /proc/PID/fd.
//!
//! For 45,000 sockets of three processes the iterator takes 17 ms of CPU and the walk 151 (`cargo xtask bench --only owners`,
//! Linux 6.18), but loading it takes longer than most walks: the agent loads it, a command that runs once walks. It numbers
//! processes as the first PID namespace does, so that the agent must be in that one for its pids to be those of its /proc. It
//! alone finds sockets by their cookies.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};
use tcpclose_common::held::Held;

use crate::linux::cgroup::namespace::with_whole_paths;
use crate::linux::executables;
use crate::linux::executables::HelperHandle;
use crate::linux::host::thread_cpu_ns;
use crate::linux::proc_fd;
use crate::linux::proc_fd::{FdHolder, FileFilter, OpenFiles, Urgency, rings};
use crate::linux::process::Process;

/// The time limit for reading descriptors. Executables come after ([`executables::WITHIN`]); a client waits 10 s for
/// everything.
pub const WITHIN: Duration = Duration::from_secs(4);

/// The result of one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// By inode, then in order of pid and fd.
    held: Vec<(u32, FdHolder)>,
    /// The range in `held` of each inode.
    by_inode: FxHashMap<u32, (u32, u32)>,
    /// The inodes of the sockets that were asked for by cookie; `None` if no cookies were read.
    by_cookie: Option<FxHashMap<u64, u32>>,
    /// The processes of `held`, by pid.
    pub processes: FxHashMap<u32, Arc<Process>>,
    /// Processes whose files the caller is not allowed to read.
    pub denied: u32,
    /// Processes whose files were not all read within [`WITHIN`], in order.
    pub unanswered: Vec<u32>,
    /// Processes of `processes` whose executables were not read within [`executables::WITHIN`], in order.
    pub unread: Vec<u32>,
}

impl Owners {
    /// `held`: inodes and their holders.
    pub fn new(mut held: Vec<(u32, FdHolder)>, processes: FxHashMap<u32, Arc<Process>>, denied: u32) -> Self {
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

    /// The known holders of the socket with this inode.
    pub fn of(&self, inode: u32) -> impl Iterator<Item = &FdHolder> {
        let (begin, end) = self.by_inode.get(&inode).copied().unwrap_or_default();
        self.held.get(begin as usize..end as usize).unwrap_or_default().iter().map(|(_, holder)| holder)
    }

    /// The inode of the socket with this cookie, if a descriptor leads to it.
    pub fn inode_of(&self, cookie: u64) -> Option<u32> {
        self.by_cookie.as_ref()?.get(&cookie).copied()
    }

    /// Whether sockets could be found by cookie.
    pub fn knows_cookies(&self) -> bool {
        self.by_cookie.is_some()
    }

    /// Whether the socket with this inode has a known holder.
    pub fn has(&self, inode: u32) -> bool {
        self.by_inode.contains_key(&inode)
    }

    /// How many sockets have a known holder.
    pub fn sockets(&self) -> usize {
        self.by_inode.len()
    }
}

/// How to search for owners.
#[derive(Debug)]
pub enum OwnersLookup {
    /// By the iterator, whose records this file yields.
    TaskFile(File),
    /// By a walk over /proc.
    Proc(Urgency),
}

/// The holders of the sockets with these `inodes`, as far as they are found within [`WITHIN`]. A process that ends meanwhile is
/// left out.
pub fn find(inodes: &FxHashSet<u32>, look: OwnersLookup) -> io::Result<Owners> {
    find_in(inodes, &FxHashSet::default(), OpenFiles::default(), look)
}

/// The same from files `seen` before or during the dump of the sockets; where those lack a holder, a second search fills the
/// time that is left, and then one through the rings of io_uring. Sockets with one of these `cookies` are found by the iterator
/// alone.
pub fn find_in(
    inodes: &FxHashSet<u32>,
    cookies: &FxHashSet<u64>,
    mut seen: OpenFiles,
    again: OwnersLookup,
) -> io::Result<Owners> {
    if inodes.is_empty() && cookies.is_empty() {
        return Ok(Owners::default());
    }
    let reads_cookies = matches!(again, OwnersLookup::TaskFile(_));
    let begun = Instant::now();
    let until = begun + WITHIN.saturating_sub(seen.took);
    let left = || until.saturating_duration_since(Instant::now());
    let by_cookie = keep(&mut seen, inodes, cookies);
    let all = by_cookie.len() == cookies.len() || !reads_cookies;
    if all && missing(inodes, &seen).is_empty() || left().is_zero() {
        return Ok(Owners { by_cookie: seen.cookies.is_some().then_some(by_cookie), ..known(seen, left()) });
    }
    let mut files = look_within(again, Some((inodes, cookies)), left())?;
    let mut by_cookie = keep(&mut files, inodes, cookies);
    if !files.unanswered.is_empty() {
        // The second search was cut short too, so both count.
        by_cookie.extend(keep(&mut seen, inodes, cookies));
        files.sockets.append(&mut seen.sockets);
    }
    let missing = missing(inodes, &files);
    if rings::are_listed() && !missing.is_empty() && !left().is_zero() {
        let walk = proc_fd::read_within(Urgency::Leisurely, FileFilter::Rings, left())?;
        let (held, late) = rings::registered(&walk.rings, &missing, until);
        files.sockets.extend(held);
        files.unanswered.extend(walk.unanswered.into_iter().chain(late));
    }
    Ok(Owners { by_cookie: files.cookies.is_some().then_some(by_cookie), ..known(files, left()) })
}

/// Drops sockets from `files` that have neither one of these `inodes` nor one of these `cookies`. Returns the inodes of the latter.
fn keep(files: &mut OpenFiles, inodes: &FxHashSet<u32>, cookies: &FxHashSet<u64>) -> FxHashMap<u64, u32> {
    let pairs = files.cookies.iter().flatten().filter(|(cookie, _)| cookies.contains(cookie));
    let by_cookie: FxHashMap<u64, u32> = pairs.copied().collect();
    // Of all processes' sockets few are asked for by cookie.
    if let Some(all) = &mut files.cookies {
        *all = by_cookie.iter().map(|(&cookie, &inode)| (cookie, inode)).collect();
    }
    let also: FxHashSet<u32> = by_cookie.values().copied().collect();
    files.sockets.retain(|(inode, _)| inodes.contains(inode) || also.contains(inode));
    by_cookie
}

/// Those of `inodes` that have no holder among `files`.
fn missing(inodes: &FxHashSet<u32>, files: &OpenFiles) -> FxHashSet<u32> {
    let mut missing = inodes.clone();
    for (inode, _) in &files.sockets {
        missing.remove(inode);
    }
    missing
}

/// The inodes and the cookies of the sockets that a search is for; `None`: all.
type Those<'a> = Option<(&'a FxHashSet<u32>, &'a FxHashSet<u64>)>;

/// Describes the processes in `files`, in the time `left`; without any, by their names only.
fn known(files: OpenFiles, left: Duration) -> Owners {
    /// Enough for a thousand processes, however late it is.
    const AT_LEAST: Duration = Duration::from_millis(200);
    let until = Instant::now() + left.max(AT_LEAST);
    let OpenFiles { sockets, denied, unanswered, .. } = files;
    let pids: FxHashSet<u32> = sockets.iter().map(|(_, holder)| holder.pid).collect();
    // The helper starts while the processes are described.
    let asker = (!pids.is_empty()).then(HelperHandle::begin);
    let read = |&pid: &u32| Some((pid, Process::read(pid, until)?));
    let mut processes: FxHashMap<u32, Process> = with_whole_paths(|| pids.iter().filter_map(read).collect());
    let mut unread = Vec::new();
    if let Some(asker) = asker {
        let asked = processes.iter().filter(|(_, process)| process.exe.is_some() && process.runs.is_none());
        let answers = asker.ask(asked.map(|(pid, _)| *pid).collect(), Instant::now() + executables::WITHIN);
        for (pid, runs) in answers.runs {
            if let Some(process) = processes.get_mut(&pid) {
                process.runs = Some(runs);
            }
        }
        unread = answers.unanswered;
    }
    let processes = processes.into_iter().map(|(pid, process)| (pid, Arc::new(process))).collect();
    let mut unanswered: Vec<u32> = unanswered.into_iter().collect();
    unanswered.sort_unstable();
    unread.sort_unstable();
    Owners { unanswered, unread, ..Owners::new(sockets, processes, denied) }
}

/// Reads all processes' files, as far as possible within [`WITHIN`], and returns the sockets among them.
///
/// # Errors
/// When /proc cannot be read.
pub fn look(look: OwnersLookup) -> io::Result<OpenFiles> {
    look_within(look, None, WITHIN)
}

fn look_within(look: OwnersLookup, only: Those<'_>, time: Duration) -> io::Result<OpenFiles> {
    let wanted = only.map_or(FileFilter::Sockets, |(inodes, _)| FileFilter::Those(inodes));
    match look {
        OwnersLookup::TaskFile(file) => {
            // The iterator goes from process to process and does not show its progress. Where half of the time is not
            // enough for it, the walk, in which processes take turns, gets the other half.
            let begun = Instant::now();
            let mut files = OpenFiles::default();
            let done = read(file, only, begun + time / 2, &mut files);
            if let Err(why) = done {
                if why.kind() == ErrorKind::TimedOut {
                    log::debug!(
                        "cannot read the iterator over files: it takes too long (reading /proc instead)"
                    );
                } else {
                    log::warn!("cannot read the iterator over files: {why} (reading /proc instead)");
                }
                let left = time.saturating_sub(begun.elapsed());
                files.add(proc_fd::read_within(Urgency::Leisurely, wanted, left)?);
            }
            files.took = begun.elapsed();
            Ok(files)
        }
        OwnersLookup::Proc(haste) => proc_fd::read_within(haste, wanted, time),
    }
}

/// Adds the iterator's records to `files`.
///
/// # Errors
/// [`ErrorKind::TimedOut`] when it has not ended by `until`.
fn read(file: File, only: Those<'_>, until: Instant, files: &mut OpenFiles) -> io::Result<()> {
    let cpu = thread_cpu_ns();
    let done = read_all(file, only, until, files);
    files.cpu_ns += thread_cpu_ns().saturating_sub(cpu);
    done
}

fn read_all(mut file: File, only: Those<'_>, until: Instant, files: &mut OpenFiles) -> io::Result<()> {
    let by_cookie = files.cookies.get_or_insert_default();
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
            // EAGAIN: it has passed a million files other than sockets, and continues from there (kernel/bpf/bpf_iter.c,
            // bpf_seq_read(), 5.8 to 6.18).
            Err(why) if matches!(why.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => continue,
            Err(why) => return Err(why),
        }
        let (records, rest) = buffer.get(..filled).unwrap_or_default().as_chunks::<{ Held::SIZE }>();
        for held in records.iter().map(Held::decode) {
            // The kernel numbers sockets with get_next_ino(), an unsigned int (net/socket.c, sock_alloc()).
            let Ok(inode) = u32::try_from(held.inode) else { continue };
            let by = held.cookie != 0 && only.is_none_or(|(_, cookies)| cookies.contains(&held.cookie));
            if by {
                by_cookie.push((held.cookie, inode));
            }
            if by || only.is_none_or(|(inodes, _)| inodes.contains(&inode)) {
                files.sockets.push((inode, FdHolder { pid: held.pid, fd: held.fd }));
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
        let owners = find(&wanted, OwnersLookup::Proc(Urgency::Leisurely)).unwrap();
        let mut expected: Vec<FdHolder> =
            [&one, &twice].map(|fd| FdHolder { pid: std::process::id(), fd: fd.as_raw_fd() as u32 }).into();
        expected.sort_unstable();
        assert!(owners.of(inode(&one)).eq(&expected));
        assert!(!owners.has(inode(&other)) && owners.of(inode(&other)).next().is_none());
        assert_eq!(owners.processes.len(), 1);
        assert_eq!(
            find(&FxHashSet::default(), OwnersLookup::Proc(Urgency::Leisurely)).unwrap(),
            Owners::default()
        );
        // What was seen before it was there is looked for again. (How many files this process has changes with other tests.)
        for seen in [OpenFiles::default(), proc_fd::read(Urgency::Leisurely, FileFilter::Sockets).unwrap()] {
            let again =
                find_in(&wanted, &FxHashSet::default(), seen, OwnersLookup::Proc(Urgency::Hurried)).unwrap();
            assert_eq!(again.held, owners.held);
            assert!(again.processes.keys().eq([&std::process::id()]) && again.unanswered.is_empty());
        }
        // Where the first look has taken all the time, there is no second one.
        let late = OpenFiles { took: WITHIN, unanswered: FxHashSet::from_iter([7]), ..OpenFiles::default() };
        let late =
            find_in(&wanted, &FxHashSet::default(), late, OwnersLookup::Proc(Urgency::Hurried)).unwrap();
        assert_eq!((late.sockets(), late.unanswered), (0, vec![7]));
    }
}
