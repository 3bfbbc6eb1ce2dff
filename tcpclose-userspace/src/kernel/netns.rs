//! Finds network namespaces, and goes into them.
//!
//! A namespace stays while a process, a mount, a descriptor or a socket holds it; a descriptor of ours would keep a dead
//! container's interfaces alive. So nothing here is kept open: what is remembered is where a namespace was found, and
//! whoever goes there looks again whether it is still that one (inodes are used again).

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, gettid, move_into_link_name_space};

use super::mib;

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Netns {
    /// What records and dumps know it by: the low half of its cookie, or its inode where the kernel gives out no cookies
    /// (before 5.14).
    pub id: u32,
    /// The inode, as in `net:[4026531840]`. A later namespace may have it again.
    pub inum: u32,
    /// As `ip netns` calls it, where it has a name.
    pub name: Option<String>,
}

/// Where a network namespace can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub inum: u32,
    pub name: Option<String>,
    /// One after the other is tried: a process may have ended.
    ways: Vec<Way>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// A thread that is in it.
    Task { pid: u32, tid: u32 },
    /// A file that it is mounted on.
    File(PathBuf),
}

impl Way {
    fn path(&self) -> PathBuf {
        match self {
            Self::Task { pid, tid } => format!("/proc/{pid}/task/{tid}/ns/net").into(),
            Self::File(path) => path.clone(),
        }
    }
}

/// Which network namespaces are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Every one.
    #[default]
    All,
    /// The caller's own.
    Current,
}

/// Ways to one namespace that are remembered.
const WAYS: usize = 3;
/// Other mount namespaces whose mounts are looked through: container runtimes have few, containers have none.
const MOUNT_NAMESPACES: usize = 16;

/// What a search has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The caller's own first.
    pub places: Vec<Place>,
    /// Other namespaces than the caller's whose processes it may not look at.
    pub denied: u32,
}

/// The caller's own network namespace.
pub fn own() -> io::Result<Netns> {
    let (_, inum) = identity("/proc/thread-self/ns/net")?;
    Ok(Netns { id: cookie().map_or(inum, |cookie| cookie as u32), inum, name: None })
}

/// Where the caller's own network namespace is.
pub fn own_place() -> io::Result<Place> {
    Ok(Place { inum: identity("/proc/thread-self/ns/net")?.1, name: None, ways: vec![here()] })
}

/// A thread that is in the caller's: this process's first one, where that is, for the calling one may end.
fn here() -> Way {
    let pid = std::process::id();
    let first = Way::Task { pid, tid: pid };
    let same = |first: (u64, u32)| identity("/proc/thread-self/ns/net").is_ok_and(|own| own == first);
    match identity(first.path()) {
        Ok(identity) if same(identity) => first,
        _ => Way::Task { pid, tid: gettid().as_raw_nonzero().get() as u32 },
    }
}

/// Whether the kernel gives out cookies of namespaces.
pub fn has_cookies() -> bool {
    cookie().is_some()
}

/// The cookie of the caller's network namespace (SO_NETNS_COOKIE, 5.14); no namespace of the same boot has it again.
fn cookie() -> Option<u64> {
    let socket = UnixDatagram::unbound().ok()?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option's value is a u64, which `cookie` has room for, as `length` says (net/core/sock.c, sk_getsockopt).
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (done == 0 && cookie != 0).then_some(cookie)
}

/// Device and inode of what `path` leads to.
fn identity(path: impl AsRef<Path>) -> io::Result<(u64, u32)> {
    // ns.inum is an unsigned int (include/linux/ns_common.h, 5.8 to 6.18).
    fs::metadata(path).map(|meta| (meta.dev(), meta.ino() as u32))
}

impl Scope {
    /// Finds the namespaces.
    pub fn find(self) -> io::Result<Found> {
        match self {
            Self::All => find(),
            Self::Current => Ok(Found { places: vec![own_place()?], denied: 0 }),
        }
    }
}

/// Finds every network namespace that a process or thread is in, that has a file in /run/netns, or that is mounted
/// somewhere: here, and in the mount namespaces of other processes.
pub fn find() -> io::Result<Found> {
    let (nsfs, own) = identity("/proc/thread-self/ns/net")?;
    let mut search = Search {
        nsfs,
        net: net_of("/proc/thread-self").unwrap_or(0),
        denied: HashSet::new(),
        found: Found::default(),
        at: HashMap::new(),
    };
    search.add(own, here(), None);
    for folder in ["/run/netns", "/var/run/netns"] {
        search.folder(Path::new(folder));
    }
    let mut mounts = Vec::new();
    search.mounts("/proc/self/mountinfo", Path::new("/"));
    if let Ok((_, own)) = identity("/proc/self/ns/mnt") {
        mounts.push(own);
    }
    for process in fs::read_dir("/proc")?.flatten() {
        if let Some(pid) = number(&process.file_name()) {
            search.process(pid, &process.path(), &mut mounts);
        }
    }
    let Search { found: Found { places, .. }, mut denied, .. } = search;
    if !denied.is_empty() {
        // Another way may lead there.
        for way in places.iter().flat_map(|place| &place.ways) {
            if let Way::Task { pid, .. } = way
                && let Some(net) = net_of(format!("/proc/{pid}"))
            {
                denied.remove(&net);
            }
        }
    }
    Ok(Found { places, denied: denied.len() as u32 })
}

/// What tells the network namespaces of processes apart that the caller may not look at: /proc/PID/net needs no such
/// right, and each namespace has entries of its own there, with inodes of their own (fs/proc/proc_net.c,
/// get_proc_task_net(); fs/proc/inode.c, proc_get_inode(), 5.8 to 6.18).
fn net_of(process: impl AsRef<Path>) -> Option<u64> {
    fs::metadata(process.as_ref().join("net/sockstat")).ok().map(|meta| meta.ino())
}

fn number(name: &std::ffi::OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

struct Search {
    /// The device of the kernel's namespace files.
    nsfs: u64,
    /// What [`net_of`] tells of the caller's own.
    net: u64,
    /// The same of those that may not be looked at.
    denied: HashSet<u64>,
    found: Found,
    /// Where in `found` a namespace is, by inode.
    at: HashMap<u32, usize>,
}

impl Search {
    fn add(&mut self, inum: u32, way: Way, name: Option<String>) {
        let places = &mut self.found.places;
        let at = *self.at.entry(inum).or_insert_with(|| {
            places.push(Place { inum, name: None, ways: Vec::new() });
            places.len() - 1
        });
        let Some(place) = places.get_mut(at) else { return };
        place.name = place.name.take().or(name);
        if place.ways.len() < WAYS {
            place.ways.push(way);
        }
    }

    /// The files of `ip netns`. One that is no namespace, or no longer, is on another device.
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

    /// The mounts of another process, seen through its root directory.
    fn mounts(&mut self, table: &str, root: &Path) {
        // Mount points are any bytes.
        let table = fs::read(table).unwrap_or_default();
        for line in table.split(|byte| *byte == b'\n') {
            if let Some((inum, point)) = mounted(line) {
                let inside = point.strip_prefix("/").unwrap_or(&point);
                self.add(inum, Way::File(root.join(inside)), name_of(&point));
            }
        }
    }

    /// `mounts`: mount namespaces that were looked through.
    fn process(&mut self, pid: u32, proc: &Path, mounts: &mut Vec<u32>) {
        match identity(proc.join("ns/net")) {
            Ok((_, inum)) => self.add(inum, Way::Task { pid, tid: pid }, None),
            Err(why) if why.kind() == ErrorKind::PermissionDenied => {
                // Where not even that can be told, each process counts.
                let net = net_of(proc).unwrap_or(u64::from(pid) << 32);
                if net != self.net {
                    self.denied.insert(net);
                }
                return;
            }
            // It has ended, perhaps not all of its threads.
            Err(_) => {}
        }
        // The directory's links are the threads and two more (fs/proc/base.c, proc_task_getattr(), 5.8 to 6.18).
        if fs::metadata(proc.join("task")).is_ok_and(|meta| meta.nlink() != 3) {
            self.threads(pid, proc);
        }
        if mounts.len() <= MOUNT_NAMESPACES
            && let Ok((_, namespace)) = identity(proc.join("ns/mnt"))
            && !mounts.contains(&namespace)
        {
            mounts.push(namespace);
            self.mounts(&format!("/proc/{pid}/mountinfo"), &proc.join("root"));
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

/// Which network namespace a line of a mountinfo mounts, and where.
fn mounted(line: &[u8]) -> Option<(u32, PathBuf)> {
    // 36 25 0:4 net:[4026532008] /run/netns/blue rw shared:7 - nsfs nsfs rw (Documentation/filesystems/proc.rst, 3.5)
    let mut fields = line.split(|byte| *byte == b' ');
    let root = str::from_utf8(fields.nth(3)?).ok()?;
    let inum = root.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
    let point = unescaped(fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    (rest.next()? == b"nsfs").then(|| (inum, OsString::from_vec(point).into()))
}

/// Takes the escapes out that the kernel writes for space, tab, newline and backslash: `\040` (fs/seq_file.c,
/// mangle_path()).
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        let octal = match rest {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = rest.get(3..).unwrap_or_default();
            }
            None => out.push(*first),
        }
    }
    out
}

/// The name that a mount point of `ip netns` gives.
fn name_of(point: &Path) -> Option<String> {
    let folder = point.parent()?;
    let named = [Path::new("/run/netns"), Path::new("/var/run/netns")].contains(&folder);
    named.then(|| point.file_name().map(|name| name.to_string_lossy().into_owned())).flatten()
}

/// Runs `journey` on a thread that goes from namespace to namespace, and ends: whatever happens on the way, no thread is
/// left in a namespace that it was not born in.
///
/// # Errors
/// When the thread cannot be made, or dies.
pub fn travel<T: Send>(journey: impl FnOnce(&mut Traveller) -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned());
        let thread = thread.spawn_scoped(scope, || journey(&mut Traveller { moved: false }))?;
        thread.join().map_err(|_| io::Error::other("the thread that went into network namespaces died"))
    })
}

/// A thread that may change its network namespace.
pub struct Traveller {
    moved: bool,
}

impl Traveller {
    /// Goes into the namespace at `place`.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] without CAP_SYS_ADMIN there (and, for the namespace of a process, the right to
    /// trace that); [`ErrorKind::NotFound`] when nothing leads there any more.
    pub fn enter(&mut self, place: &Place) -> io::Result<Netns> {
        if !self.moved && own()?.inum == place.inum {
            return Ok(Netns { name: place.name.clone(), ..own()? });
        }
        let mut failed = io::Error::from(ErrorKind::NotFound);
        for way in &place.ways {
            match self.enter_by(way, place) {
                Ok(()) => return Ok(Netns { name: place.name.clone(), ..own()? }),
                Err(why) => failed = why,
            }
        }
        Err(failed)
    }

    fn enter_by(&mut self, way: &Way, place: &Place) -> io::Result<()> {
        let file = File::open(way.path())?;
        if file.metadata()?.ino() as u32 != place.inum {
            return Err(ErrorKind::NotFound.into());
        }
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        self.moved = true;
        Ok(())
    }
}

/// The TCP sockets of a network namespace, as its sockstat counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Population {
    /// Full sockets that are listening, connecting, connected or closing, of both families.
    pub sockets: u64,
    /// Minisockets, of both families.
    pub minisockets: u64,
}

/// Counts the TCP sockets of the calling thread's network namespace; `None` where /proc does not tell.
pub fn population() -> Option<Population> {
    let v4 = fs::read_to_string("/proc/thread-self/net/sockstat").ok()?;
    // A kernel without IPv6 has none.
    let v6 = fs::read_to_string("/proc/thread-self/net/sockstat6").unwrap_or_default();
    let sockets = mib::stat(&v4, "TCP:", "inuse")? + mib::stat(&v6, "TCP6:", "inuse").unwrap_or(0);
    Some(Population { sockets, minisockets: mib::stat(&v4, "TCP:", "tw")? })
}

#[cfg(test)]
#[path = "netns_tests.rs"]
mod tests;
