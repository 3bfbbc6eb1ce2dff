//! A network namespace, and the paths by which it can be opened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, makedev, openat, openat2, statx};
use rustix::io::Errno;
use rustix::thread::gettid;

use crate::linux::netns::population::population_at;
use crate::linux::netns::user;

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Netns {
    /// Identifies it in records and dumps: the low half of its cookie, or its inode where the kernel has no cookies (before
    /// 5.14).
    pub id: u32,
    /// The inode, as in `net:[4026531840]`. A later namespace may reuse it.
    pub inum: u32,
    /// The name that `ip netns` shows, if any.
    pub name: Option<String>,
}

/// Where a network namespace can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetnsPath {
    pub inum: u32,
    pub name: Option<String>,
    /// The user of the host to whom work for it is charged; 0 for root and for everything that root's container runtimes make.
    pub user: u32,
    /// Tried one after the other: a process may have ended.
    pub(super) ways: Vec<Way>,
}

impl NetnsPath {
    /// Whether descriptors lead there, so that a search has to read all of them to find it.
    pub fn is_held_open(&self) -> bool {
        self.ways.iter().any(|way| matches!(way, Way::Descriptor { .. }))
    }

    /// Finds its user: the creator of the user namespace that it belongs to. A file of another mount namespace is not
    /// opened for that, and counts as root's.
    pub(super) fn find_user(&mut self) {
        let ways = self.ways.iter().filter(|way| !way.is_file());
        let mut users = ways.filter_map(|way| user::user_of(way.open(self.inum).ok()?.as_fd()).ok());
        self.user = users.next().unwrap_or(0);
    }

    /// The number of its sockets, where that can be read without entering it; 0 when nothing leads there any more.
    pub fn population(&self) -> Option<u64> {
        let mut gone = true;
        for way in &self.ways {
            // The path of a file may lead through a file system that does not answer.
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
pub(super) enum Way {
    /// A thread that is in it.
    Task { pid: u32, tid: u32 },
    /// A file on which it is mounted.
    File(PathBuf),
    /// The same from a mount table: below the root directory of a process, which may belong to any user.
    Mount { root: PathBuf, point: PathBuf },
    /// A descriptor by which a process holds it.
    Descriptor { pid: u32, fd: u32 },
}

impl Way {
    /// Whether a file leads there, perhaps through a user's file system.
    const fn is_file(&self) -> bool {
        matches!(self, Self::File(_) | Self::Mount { .. })
    }

    /// The process that leads there, if one does.
    pub(super) const fn pid(&self) -> Option<u32> {
        match self {
            Self::Task { pid, .. } | Self::Descriptor { pid, .. } => Some(*pid),
            Self::File(_) | Self::Mount { .. } => None,
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Task { pid, tid } => format!("/proc/{pid}/task/{tid}/ns/net").into(),
            Self::File(path) => path.clone(),
            Self::Mount { root, point } => root.join(point),
            Self::Descriptor { pid, fd } => format!("/proc/{pid}/fd/{fd}").into(),
        }
    }

    /// Opens the namespace, if it still has this inode.
    pub(super) fn open(&self, inum: u32) -> io::Result<File> {
        // By now the path may lead to another file, whose opening waits (a FIFO) or starts something (a device): so it is
        // held by O_PATH first, checked, and opened then.
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

/// Holds (O_PATH) the mount at `point`, a path without links below `root`. The owner of that mount namespace may have mounted
/// something else over a part of the path: a link to any file of ours, or a file system that does not answer. So no link is
/// followed, and no file system is asked: the directories on the way to a mount stay in the kernel's memory as long as the
/// mount. RESOLVE_CACHED is of 5.12 (fs/open.c, build_open_flags()); before, only links are refused.
pub(super) fn mounted_at(root: &Path, point: &Path) -> io::Result<File> {
    /// A mount or rename anywhere can disturb a lookup in memory.
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

/// The path of the caller's own network namespace.
pub fn own_place() -> io::Result<NetnsPath> {
    Ok(NetnsPath { inum: identity("/proc/thread-self/ns/net")?.1, name: None, user: 0, ways: vec![here()] })
}

/// As [`identity`], for any file: a file system that does not answer is not asked.
pub(super) fn glance(path: impl AsRef<Path>) -> io::Result<(u64, u32)> {
    let there = statx(CWD, path.as_ref(), AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?;
    Ok((makedev(there.stx_dev_major, there.stx_dev_minor), there.stx_ino as u32))
}

/// The path of the network namespace of a process.
pub fn place_of(pid: u32) -> io::Result<NetnsPath> {
    let way = Way::Task { pid, tid: pid };
    Ok(NetnsPath { inum: identity(way.path())?.1, name: None, user: 0, ways: vec![way] })
}

/// A thread that is in the caller's namespace: this process's first one where possible, for the calling one may end.
pub(super) fn here() -> Way {
    let pid = std::process::id();
    let first = Way::Task { pid, tid: pid };
    let same = |first: (u64, u32)| identity("/proc/thread-self/ns/net").is_ok_and(|own| own == first);
    match identity(first.path()) {
        Ok(identity) if same(identity) => first,
        _ => Way::Task { pid, tid: gettid().as_raw_nonzero().get() as u32 },
    }
}

/// Whether the kernel has cookies of namespaces.
pub fn has_cookies() -> bool {
    cookie().is_some()
}

/// The cookie of the caller's network namespace (SO_NETNS_COOKIE, 5.14); no other namespace of the same boot gets it.
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

/// Device and inode of the file at `path`.
pub(super) fn identity(path: impl AsRef<Path>) -> io::Result<(u64, u32)> {
    // ns.inum is an unsigned int (include/linux/ns_common.h, 5.8 to 6.18).
    fs::metadata(path).map(|meta| (meta.dev(), meta.ino() as u32))
}
