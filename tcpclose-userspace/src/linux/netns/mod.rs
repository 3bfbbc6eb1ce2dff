//! Finds network namespaces, and goes into them.
//!
//! A namespace stays while a process, a mount, a descriptor or a socket holds it; a descriptor of ours would keep a dead
//! container's interfaces alive. So nothing here is kept open: what is remembered is where a namespace was found, and
//! whoever goes there looks again whether it is still that one (inodes are used again).

mod mounts;
mod search;
mod user;

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, makedev, openat, openat2, statx};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, gettid, move_into_link_name_space};

pub use crate::linux::netns::mounts::UnreadMounts;
pub use crate::linux::netns::search::{Descriptors, FoundNetns, Scope, find, held};
use crate::linux::proc_net;

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
pub struct NetnsPath {
    pub inum: u32,
    pub name: Option<String>,
    /// The user of the host to whom work for it is charged; 0 is root and everything that root's container runtimes make.
    pub user: u32,
    /// One after the other is tried: a process may have ended.
    ways: Vec<Way>,
}

impl NetnsPath {
    /// Whether descriptors lead there, and a search has to look through all of them to find it.
    pub fn is_held_open(&self) -> bool {
        self.ways.iter().any(|way| matches!(way, Way::Descriptor { .. }))
    }

    /// Finds out whose it is: who made the user namespace that it belongs to. A file of another mount namespace is not
    /// opened for that, and counts as root's.
    fn find_user(&mut self) {
        let ways = self.ways.iter().filter(|way| !way.is_file());
        let mut users = ways.filter_map(|way| user::user_of(way.open(self.inum).ok()?.as_fd()).ok());
        self.user = users.next().unwrap_or(0);
    }

    /// How many sockets are there now, where that can be told without going there; 0 when nothing leads there any more.
    pub fn population(&self) -> Option<u64> {
        let mut gone = true;
        for way in &self.ways {
            // A path may lead through a file system that does not answer.
            let there = way.is_file() || glance(way.path()).is_ok_and(|is| is.1 == self.inum);
            gone &= !there;
            if let (true, Way::Task { pid, tid }) = (there, way)
                && let Some(population) = population_at(&format!("/proc/{pid}/task/{tid}/net"))
            {
                return Some(population.sockets + population.minisockets);
            }
        }
        gone.then_some(0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// A thread that is in it.
    Task { pid: u32, tid: u32 },
    /// A file that it is mounted on.
    File(PathBuf),
    /// The same, as a mount table has it: below the root directory of a process, which may be anybody's.
    Mount { root: PathBuf, point: PathBuf },
    /// A descriptor by which a process holds it.
    Descriptor { pid: u32, fd: u32 },
}

impl Way {
    /// Whether a file leads there, perhaps through somebody's file system.
    const fn is_file(&self) -> bool {
        matches!(self, Self::File(_) | Self::Mount { .. })
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Task { pid, tid } => format!("/proc/{pid}/task/{tid}/ns/net").into(),
            Self::File(path) => path.clone(),
            Self::Mount { root, point } => root.join(point),
            Self::Descriptor { pid, fd } => format!("/proc/{pid}/fd/{fd}").into(),
        }
    }

    /// Opens it, if the namespace with this inode is there.
    fn open(&self, inum: u32) -> io::Result<File> {
        // What is there by now may be another file, which to open is to wait for (a FIFO) or to start something (a
        // device): so it is taken hold of first, looked at, and opened then.
        let held = match self {
            Self::Mount { root, point } => mounted_at(root, point)?,
            _ => OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(self.path())?,
        };
        let path = format!("/proc/self/fd/{}", held.as_raw_fd());
        let nsfs = glance("/proc/thread-self/ns/net")?.0;
        if glance(&path)? != (nsfs, inum) {
            return Err(ErrorKind::NotFound.into());
        }
        File::open(path)
    }
}

/// Takes hold of what is mounted at `point`, a path without links below `root`. Whoever owns that mount namespace may have
/// mounted something else over a part of the path: a link to any file of ours, or a file system that does not answer. So no
/// link is followed, and no file system is asked: the directories on the way to a mount are in the kernel's memory for as long as
/// it is there. RESOLVE_CACHED is of 5.12 (fs/open.c, build_open_flags()); before, only links are kept out.
fn mounted_at(root: &Path, point: &Path) -> io::Result<File> {
    /// A mount or rename anywhere can disturb a look at what is in memory.
    const TRIES: usize = 16;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = openat(CWD, root, flags | OFlags::DIRECTORY, Mode::empty())?;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let look = |resolve| openat2(&root, point, flags, Mode::empty(), resolve);
    for _ in 0..TRIES {
        match look(within | ResolveFlags::CACHED) {
            Err(Errno::AGAIN) => {}
            Err(Errno::INVAL) => return Ok(look(within)?.into()),
            done => return Ok(done?.into()),
        }
    }
    Err(Errno::AGAIN.into())
}

/// The caller's own network namespace.
pub fn own() -> io::Result<Netns> {
    let (_, inum) = identity("/proc/thread-self/ns/net")?;
    Ok(Netns { id: cookie().map_or(inum, |cookie| cookie as u32), inum, name: None })
}

/// Where the caller's own network namespace is.
pub fn own_place() -> io::Result<NetnsPath> {
    Ok(NetnsPath { inum: identity("/proc/thread-self/ns/net")?.1, name: None, user: 0, ways: vec![here()] })
}

/// The same of a file that may be any: a file system that is away is not waited for.
fn glance(path: impl AsRef<Path>) -> io::Result<(u64, u32)> {
    let there = statx(CWD, path.as_ref(), AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?;
    Ok((makedev(there.stx_dev_major, there.stx_dev_minor), there.stx_ino as u32))
}

/// Where the network namespace of a process is.
pub fn place_of(pid: u32) -> io::Result<NetnsPath> {
    let way = Way::Task { pid, tid: pid };
    Ok(NetnsPath { inum: identity(way.path())?.1, name: None, user: 0, ways: vec![way] })
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

/// Runs `journey` on a thread that goes from namespace to namespace, and ends: whatever happens on the way, no thread is
/// left in a namespace that it was not born in.
///
/// # Errors
/// When the thread cannot be made, or dies.
pub fn travel<T: Send>(journey: impl FnOnce(&mut NetnsVisitor) -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned());
        let thread = thread.spawn_scoped(scope, || journey(&mut NetnsVisitor { moved: false }))?;
        thread.join().map_err(|_| io::Error::other("the thread that went into network namespaces died"))
    })
}

/// A thread that may change its network namespace.
pub struct NetnsVisitor {
    moved: bool,
}

impl NetnsVisitor {
    /// Goes into the namespace at `place`.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] without CAP_SYS_ADMIN there (and, for the namespace of a process, the right to
    /// trace that); [`ErrorKind::NotFound`] when nothing leads there any more.
    pub fn enter(&mut self, place: &NetnsPath) -> io::Result<Netns> {
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

    fn enter_by(&mut self, way: &Way, place: &NetnsPath) -> io::Result<()> {
        let file = way.open(place.inum)?;
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
    population_at("/proc/thread-self/net")
}

/// The same of the network namespace whose entries of /proc are in `net`.
fn population_at(net: &str) -> Option<Population> {
    let v4 = fs::read_to_string(format!("{net}/sockstat")).ok()?;
    // A kernel without IPv6 has none.
    let v6 = fs::read_to_string(format!("{net}/sockstat6")).unwrap_or_default();
    let sockets = proc_net::stat(&v4, "TCP:", "inuse")? + proc_net::stat(&v6, "TCP6:", "inuse").unwrap_or(0);
    Some(Population { sockets, minisockets: proc_net::stat(&v4, "TCP:", "tw")? })
}

#[cfg(test)]
mod tests;
