//! The search for network namespaces: those of processes, mounted ones, and those that descriptors hold.
//!
//! Other holders are not searched: a descriptor in flight over a unix socket, a socket that a process elsewhere opened in it,
//! an orphan.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::mem::discriminant;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use crate::linux::host::thread_cpu_ns;
use crate::linux::netns::mounts::{Budget, UnreadMounts, name_of};
use crate::linux::netns::place::{NetnsPath, Way, glance, here, identity, own_place};
use crate::linux::netns::user::user_of;
use crate::linux::proc_fd;
use crate::linux::proc_fd::{FdHolder, FileFilter, OpenFiles, Urgency};

/// Which network namespaces are covered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Every one.
    #[default]
    All,
    /// The caller's own.
    Current,
}

/// The most paths of one kind to one namespace that are remembered, each of another process. Of every kind, since those met
/// first may end first: threads of agents that are there for one dump.
const WAYS: usize = 3;

/// The result of a search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundNetns {
    /// The caller's own first.
    pub places: Vec<NetnsPath>,
    /// Namespaces other than the caller's whose processes it is not allowed to inspect.
    pub denied: u32,
    /// The CPU time spent on descriptors, nanoseconds.
    pub descriptors_ns: u64,
    /// Mount tables that were skipped or read in part.
    pub unread: UnreadMounts,
}

/// Which descriptors a search reads. Reading all costs as much as a search for owners.
#[derive(Clone, Debug)]
pub enum Descriptors {
    All,
    /// Only those by which an earlier search found these places.
    Those(Vec<NetnsPath>),
}

impl Descriptors {
    pub const NONE: Self = Self::Those(Vec::new());
}

impl Scope {
    /// Finds the namespaces.
    pub fn find(self, descriptors: &Descriptors) -> io::Result<FoundNetns> {
        match self {
            Self::All => find(descriptors),
            Self::Current => Ok(FoundNetns { places: vec![own_place()?], ..FoundNetns::default() }),
        }
    }
}

/// The path to the mount at `point`, below the root directory `root` of a process.
fn mount_below(root: &Path, point: &Path) -> Way {
    Way::Mount { root: root.to_owned(), point: point.strip_prefix("/").unwrap_or(point).to_owned() }
}

/// Finds every network namespace of a process or thread, every one with a file in /run/netns, every mounted one (here and in
/// the mount namespaces of other processes), and those that descriptors hold.
pub fn find(descriptors: &Descriptors) -> io::Result<FoundNetns> {
    let (mut search, own) = Search::begin()?;
    search.add(own, here(), None);
    for folder in ["/run/netns", "/var/run/netns"] {
        search.folder(Path::new(folder));
    }
    let host = identity("/proc/1/ns/mnt").ok().map(|(_, inum)| inum);
    let mut tables = MountTables { seen: HashSet::new(), host, budget: Budget::begin(Instant::now()) };
    tables.budget.read_own("/proc/self/mountinfo", |inum, point| {
        search.add(inum, mount_below(Path::new("/"), &point), name_of(&point));
    });
    if let Ok((_, own)) = identity("/proc/self/ns/mnt") {
        tables.seen.insert(own);
    }
    for process in fs::read_dir("/proc")?.flatten() {
        if let Some(pid) = number(&process.file_name()) {
            search.process(pid, &process.path(), &mut tables);
        }
    }
    let mut descriptors_ns = 0;
    match descriptors {
        // Processes that hide their files were counted above.
        Descriptors::All => {
            let before = thread_cpu_ns();
            search.files(&proc_fd::read(Urgency::Leisurely, FileFilter::Namespaces)?);
            descriptors_ns = thread_cpu_ns().saturating_sub(before);
        }
        Descriptors::Those(places) => places.iter().for_each(|place| search.again(place)),
    }
    let Search { found: FoundNetns { mut places, .. }, mut denied, .. } = search;
    places.iter_mut().for_each(NetnsPath::find_user);
    if !denied.is_empty() {
        // Another path may lead there.
        for way in places.iter().flat_map(|place| &place.ways) {
            if let Way::Task { pid, .. } = way
                && let Some(net) = net_of(format!("/proc/{pid}"))
            {
                denied.remove(&net);
            }
        }
    }
    Ok(FoundNetns { places, denied: denied.len() as u32, descriptors_ns, unread: tables.budget.unread() })
}

/// The namespaces that the descriptors in `files` hold and that are not in `known`.
pub fn held(files: &OpenFiles, known: &[NetnsPath]) -> io::Result<Vec<NetnsPath>> {
    let (mut search, _) = Search::begin()?;
    search.files(files);
    let mut places = search.found.places;
    places.retain(|place| known.iter().all(|known| known.inum != place.inum));
    Ok(places)
}

/// Distinguishes the network namespaces of processes that the caller is not allowed to inspect: /proc/PID/net needs no such
/// right, and each namespace has entries of its own there, with inodes of their own (fs/proc/proc_net.c,
/// get_proc_task_net(); fs/proc/inode.c, proc_get_inode(), 5.8 to 6.18).
fn net_of(process: impl AsRef<Path>) -> Option<u64> {
    fs::metadata(process.as_ref().join("net/sockstat")).ok().map(|meta| meta.ino())
}

fn number(name: &std::ffi::OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

/// The mount namespaces whose tables were read, and how much may still be read.
struct MountTables {
    seen: HashSet<u32>,
    /// That of PID 1, as this /proc shows it. Names come from there and from our own: whoever makes a mount namespace can
    /// mount any namespace that he sees at any path in it.
    host: Option<u32>,
    budget: Budget,
}

struct Search {
    /// The device of the kernel's namespace files.
    nsfs: u64,
    /// [`net_of`] the caller.
    net: u64,
    /// [`net_of`] the processes that the caller is not allowed to inspect.
    denied: HashSet<u64>,
    found: FoundNetns,
    /// The index in `found` of each namespace, by inode.
    at: HashMap<u32, usize>,
}

impl Search {
    /// An empty search, and the inode of the caller's own namespace.
    fn begin() -> io::Result<(Self, u32)> {
        let (nsfs, own) = identity("/proc/thread-self/ns/net")?;
        let net = net_of("/proc/thread-self").unwrap_or(0);
        let search =
            Self { nsfs, net, denied: HashSet::new(), found: FoundNetns::default(), at: HashMap::new() };
        Ok((search, own))
    }

    fn files(&mut self, files: &OpenFiles) {
        files.namespaces.iter().for_each(|(inum, holder)| self.add(*inum, way(*holder), None));
        files.mounts.iter().for_each(|holder| self.mount(*holder));
    }

    fn add(&mut self, inum: u32, way: Way, name: Option<String>) {
        let places = &mut self.found.places;
        let at = *self.at.entry(inum).or_insert_with(|| {
            places.push(NetnsPath { inum, name: None, user: 0, ways: Vec::new() });
            places.len() - 1
        });
        let Some(place) = places.get_mut(at) else { return };
        place.name = place.name.take().or(name);
        let mut alike = place.ways.iter().filter(|known| discriminant(*known) == discriminant(&way));
        let same_process = |known: &Way| known.pid().is_some() && known.pid() == way.pid();
        if alike.clone().count() < WAYS && !alike.any(same_process) {
            place.ways.push(way);
        }
    }

    /// The files of `ip netns`. A file that is not a namespace (any more) is on another device.
    fn folder(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Ok((device, inum)) = identity(&path)
                && device == self.nsfs
            {
                let name = entry.file_name().to_string_lossy().into_owned();
                self.add(inum, Way::File(path), Some(name));
            }
        }
    }

    fn process(&mut self, pid: u32, proc: &Path, tables: &mut MountTables) {
        match identity(proc.join("ns/net")) {
            Ok((_, inum)) => self.add(inum, Way::Task { pid, tid: pid }, None),
            Err(why) if why.kind() == ErrorKind::PermissionDenied => {
                // Where not even that is known, each process counts.
                let net = net_of(proc).unwrap_or(u64::from(pid) << 32);
                if net != self.net {
                    self.denied.insert(net);
                }
                return;
            }
            // The process has ended, but perhaps not all of its threads.
            Err(_) => {}
        }
        // The directory's links are the threads and two more (fs/proc/base.c, proc_task_getattr(), 5.8 to 6.18).
        if fs::metadata(proc.join("task")).is_ok_and(|meta| meta.nlink() != 3) {
            self.threads(pid, proc);
        }
        if let Ok((_, namespace)) = identity(proc.join("ns/mnt"))
            && tables.seen.insert(namespace)
            && let Ok(user) = File::open(proc.join("ns/mnt")).and_then(|file| user_of(file.as_fd()))
        {
            // The mount points are relative to the process's root directory.
            let root = proc.join("root");
            let is_host = tables.host == Some(namespace);
            tables.budget.read(&format!("/proc/{pid}/mountinfo"), user, |inum, point| {
                let name = is_host.then(|| name_of(&point)).flatten();
                self.add(inum, mount_below(&root, &point), name);
            });
        }
    }

    /// Adds the namespace that a descriptor of a mounted file holds.
    fn mount(&mut self, holder: FdHolder) {
        let way = way(holder);
        if let Ok((device, inum)) = glance(way.path())
            && device == self.nsfs
            && is_net(&way, inum)
        {
            self.add(inum, way, None);
        }
    }

    /// Adds `place` if the descriptors that held it still do.
    fn again(&mut self, place: &NetnsPath) {
        for way in place.ways.iter().filter(|way| matches!(way, Way::Descriptor { .. })) {
            if glance(way.path()).is_ok_and(|there| there == (self.nsfs, place.inum)) {
                self.add(place.inum, way.clone(), None);
            }
        }
    }

    fn threads(&mut self, pid: u32, proc: &Path) {
        for thread in fs::read_dir(proc.join("task")).into_iter().flatten().flatten() {
            if let Some(tid) = number(&thread.file_name()).filter(|tid| *tid != pid)
                && let Ok((_, inum)) = identity(thread.path().join("ns/net"))
            {
                self.add(inum, Way::Task { pid, tid }, None);
            }
        }
    }
}

fn way(FdHolder { pid, fd }: FdHolder) -> Way {
    Way::Descriptor { pid, fd }
}

/// Whether a descriptor leads to a network namespace.
fn is_net(way: &Way, inum: u32) -> bool {
    // NS_GET_NSTYPE (include/uapi/linux/nsfs.h).
    const TYPE: libc::Ioctl = 0xb703;
    way.open(inum).is_ok_and(|file| {
        // SAFETY: the request takes no argument.
        unsafe { libc::ioctl(file.as_raw_fd(), TYPE) == libc::CLONE_NEWNET }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_lasts_is_found_behind_those_that_do_not() {
        let (mut search, _) = Search::begin().unwrap();
        let task = |pid, tid| Way::Task { pid, tid };
        let descriptor = |fd| Way::Descriptor { pid: 9, fd };
        let visitors = [task(1, 11), task(1, 12), task(2, 21), task(3, 31), task(4, 41)];
        for way in visitors.into_iter().chain([descriptor(5), descriptor(6)]) {
            search.add(7, way, None);
        }
        let [place] = search.found.places.as_slice() else { panic!("{:?}", search.found.places) };
        assert_eq!(place.ways, [task(1, 11), task(2, 21), task(3, 31), descriptor(5)]);
    }
}
