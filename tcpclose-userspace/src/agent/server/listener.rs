//! The sockets that the agent serves on.

use rustix::fs::{AtFlags, Gid, Mode, Uid, chownat};
use rustix::process::umask;
use socket2::{Domain, SockRef, Socket, Type};
use std::fmt::{self, Display};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

use crate::failure::Failure;
use crate::report::requests::DEFAULT_SOCKET;

use crate::agent::instance_lock;
use crate::agent::instance_lock::LockWait;
use crate::agent::signals::Leftovers;

/// Connections that may wait to be accepted; the kernel takes net.core.somaxconn where that is less.
const BACKLOG: i32 = 1024;

/// Listens for scrapes on all of `addresses`.
pub fn listen(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
    let listen = |address: &SocketAddr| {
        let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(!takes_both(address, addresses))?;
        }
        socket.bind(&(*address).into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(TcpListener::from(socket))
    };
    addresses
        .iter()
        .map(|address| listen(address).map_err(|why| ListenError { address: *address, why }))
        .collect()
}

/// Whether a listener at `address` takes IPv4 as well, whatever net.ipv6.bindv6only says: `[::]` does, where none of
/// `addresses` is an IPv4 one with this port.
fn takes_both(address: &SocketAddr, addresses: &[SocketAddr]) -> bool {
    let taken = |other: &SocketAddr| other.is_ipv4() && other.port() == address.port() && other.port() != 0;
    address.is_ipv6() && address.ip().is_unspecified() && !addresses.iter().any(taken)
}

/// What a browser or Prometheus is given for `listener`, and a remark where that takes one.
pub fn url(listener: &TcpListener, tls: bool) -> Option<(String, &'static str)> {
    let address = listener.local_addr().ok()?;
    let both = address.is_ipv6()
        && address.ip().is_unspecified()
        && !SockRef::from(listener).only_v6().unwrap_or(true);
    let scheme = if tls { "https" } else { "http" };
    Some((format!("{scheme}://{address}"), if both { "at all addresses, IPv6 and IPv4" } else { "" }))
}

/// An address on which we cannot listen.
#[derive(Debug)]
pub struct ListenError {
    address: SocketAddr,
    why: io::Error,
}

impl ListenError {
    pub fn in_use(&self) -> bool {
        self.why.kind() == ErrorKind::AddrInUse
    }
}

impl From<ListenError> for Failure {
    fn from(ListenError { address, why }: ListenError) -> Self {
        let what = format!("cannot listen on {address}");
        match why.kind() {
            ErrorKind::AddrInUse => Self::new(
                what,
                "the address is in use",
                "stop the program that has it (ss -ltnp shows which), or choose another with --listen",
            ),
            ErrorKind::AddrNotAvailable => Self::new(
                what,
                "this host has no such address",
                "choose one that it has (ip address shows them) with --listen",
            ),
            ErrorKind::PermissionDenied => {
                Self::new(what, why, "choose a port above 1023 with --listen, or grant CAP_NET_BIND_SERVICE")
            }
            _ if why.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                Self::new(what, "this kernel has no IPv6", "choose an IPv4 address with --listen")
            }
            _ => Self::new(what, why, "choose another address with --listen"),
        }
    }
}

/// The query socket. Its file is removed when the agent is done with it.
pub struct QuerySocket {
    pub listener: UnixListener,
    /// Has the file, if that is ours to remove.
    leftovers: Leftovers,
}

impl QuerySocket {
    /// One that systemd has made, and removes.
    pub fn passed(listener: UnixListener) -> Self {
        Self { listener, leftovers: Leftovers::default() }
    }
}

impl fmt::Display for QuerySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.listener.local_addr().as_ref().map(|address| address.as_pathname()) {
            Ok(Some(path)) => path.display().fmt(f),
            _ => f.write_str("a socket of systemd's without a path"),
        }
    }
}

impl Drop for QuerySocket {
    fn drop(&mut self) {
        if let Some(file) = self.leftovers.hold().socket.take() {
            file.remove();
        }
    }
}

/// The file of a query socket.
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file that we made.
    made: Option<(u64, u64)>,
}

impl SocketFile {
    pub fn remove(self) {
        // Somebody may have removed our file and put another agent's in its place.
        if self.made.is_some() && identity(&self.path) != self.made {
            return;
        }
        if let Err(why) = fs::remove_file(&self.path) {
            log::warn!("{} stays behind: {why}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

const ANOTHER: &str = "choose another path with --socket";

/// Who may connect to the query socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Of the file: to connect is to write.
    pub mode: u32,
    /// The agent's own where it is not given.
    pub owner: Option<u32>,
    pub group: Option<u32>,
}

impl Default for SocketAccess {
    fn default() -> Self {
        Self { mode: 0o600, owner: None, group: None }
    }
}

impl SocketAccess {
    /// The mode with which the file is made: of one that is to be somebody else's, its owner's alone.
    fn first_mode(self) -> u32 {
        if self.owner.is_none() && self.group.is_none() { self.mode } else { 0o600 }
    }

    /// Gives the file at `path` away, if it is the one of `made`. Nobody may connect at any moment who may not at the end.
    fn give(self, path: &Path, made: Option<(u64, u64)>) -> Result<(), Failure> {
        let Self { mode, owner, group } = self;
        if owner.is_none() && group.is_none() {
            return Ok(());
        }
        let failure = |what: String, why: io::Error, todo: &str| {
            let what = format!("cannot listen at {}: its {what}", path.display());
            Failure::new(what, why, todo)
        };
        let other = |why: io::Error| failure("file".to_owned(), why, ANOTHER);
        // What is there now is taken hold of, so that nothing else can be put in its place meanwhile.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path);
        let file = file.map_err(other)?;
        let there = file.metadata().map(|meta| (meta.dev(), meta.ino())).map_err(other)?;
        if made.is_some_and(|made| made != there) {
            return Err(other(io::Error::other("somebody has put another one there")));
        }
        let chown = |owner: Option<u32>, group: Option<u32>| {
            let (owner, group) = (owner.map(Uid::from_raw), group.map(Gid::from_raw));
            chownat(&file, "", owner, group, AtFlags::EMPTY_PATH).map_err(io::Error::from)
        };
        if let Some(gid) = group {
            let todo = "make the agent's user a member of it, or grant CAP_CHOWN";
            chown(None, group).map_err(|why| failure(format!("group cannot be {gid}"), why, todo))?;
        }
        let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::set_permissions(by_descriptor, Permissions::from_mode(mode))
            .map_err(|why| failure(format!("mode cannot be {mode:04o}"), why, "report this"))?;
        if let Some(uid) = owner {
            let todo = "leave --socket-owner out, or grant CAP_CHOWN";
            chown(owner, None).map_err(|why| failure(format!("owner cannot be {uid}"), why, todo))?;
        }
        Ok(())
    }
}

/// Listens for queries at `path`, which those of `access` may. A socket that a dead agent left there is replaced; for a live one to
/// leave, waits with `patience`. What an end during the start must remove is in `leftovers`.
pub async fn listen_for_queries(
    path: &Path,
    access: SocketAccess,
    patience: &mut LockWait,
    leftovers: &Leftovers,
) -> Result<QuerySocket, Failure> {
    let failure = |why: &dyn Display, todo: &str| {
        Failure::new(format!("cannot listen at {}", path.display()), why, todo)
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder
        && !folder.is_dir()
    {
        let name = folder.display();
        match fs::metadata(folder) {
            Ok(_) => return Err(failure(&format!("{name} is no directory"), ANOTHER)),
            Err(why) if why.kind() != ErrorKind::NotFound => return Err(failure(&why, ANOTHER)),
            Err(_) if path == Path::new(DEFAULT_SOCKET) => {
                fs::create_dir_all(folder)
                    .map_err(|why| failure(&format!("{name} cannot be made: {why}"), ANOTHER))?;
            }
            Err(_) => {
                let why = format!("the directory {name} does not exist");
                return Err(failure(&why, "make it, or choose another path with --socket"));
            }
        }
    }
    // Held from the look at who is there to the bind: two agents that find one dead agent's socket would both remove it,
    // and one of them the other's.
    let hold = || instance_lock::hold(path.parent().unwrap_or(Path::new("")));
    let mut held = hold().await;
    loop {
        match occupant(path).await.map_err(|why| failure(&why, ANOTHER))? {
            Occupant::Nobody => break,
            Occupant::Dead => {
                fs::remove_file(path).map_err(|why| {
                    failure(
                        &format!("a dead agent's socket cannot be removed: {why}"),
                        "remove it, or choose another path with --socket",
                    )
                })?;
                break;
            }
            Occupant::Live => {
                drop(held);
                let whom = format!("another agent, which serves at {},", path.display());
                if !patience.wait_for(&whom).await {
                    return Err(failure(
                        &"another agent is serving there",
                        "stop it, or give this one a path of its own with --socket",
                    ));
                }
                held = hold().await;
            }
            Occupant::Directory => {
                return Err(failure(&"it is a directory", "name a file in it with --socket"));
            }
            Occupant::NoSocket => {
                let todo = "choose another path with --socket, or remove the file if nobody needs it";
                return Err(failure(&"a file that is no socket is there", todo));
            }
        }
    }
    // The mode is that of the file's making, so that nobody can connect before it is changed.
    let mut left = leftovers.hold();
    let before = umask(Mode::from_raw_mode(0o777 & !access.first_mode()));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.map_err(|why| failure(&why, ANOTHER))?;
    let made = identity(path);
    left.socket = Some(SocketFile { path: path.to_owned(), made });
    drop(left);
    let socket = QuerySocket { listener, leftovers: leftovers.clone() };
    access.give(path, made)?;
    drop(held);
    socket.listener.set_nonblocking(true).map_err(|why| failure(&why, "report this"))?;
    Ok(socket)
}

/// Who has a path.
enum Occupant {
    Nobody,
    /// A socket that nobody listens at.
    Dead,
    Live,
    Directory,
    NoSocket,
}

async fn occupant(path: &Path) -> io::Result<Occupant> {
    match fs::symlink_metadata(path) {
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(Occupant::Nobody),
        Err(why) => return Err(why),
        Ok(meta) if meta.is_dir() => return Ok(Occupant::Directory),
        Ok(meta) if !meta.file_type().is_socket() => return Ok(Occupant::NoSocket),
        Ok(_) => {}
    }
    // Never waits: at a full backlog, a plain connect would wait for as long as its agent is stopped.
    match UnixStream::connect(path).await {
        Ok(_) => Ok(Occupant::Live),
        Err(why) if why.kind() == ErrorKind::ConnectionRefused => Ok(Occupant::Dead),
        Err(why) if why.kind() == ErrorKind::NotFound => Ok(Occupant::Nobody),
        // A full backlog: it is alive, and busy.
        Err(why) if why.kind() == ErrorKind::WouldBlock => Ok(Occupant::Live),
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_listener_takes_ipv4_where_no_other_does() {
        let dual = |all: &[&str]| {
            let all: Vec<SocketAddr> = all.iter().map(|address| address.parse().unwrap()).collect();
            takes_both(&all[0], &all)
        };
        assert!(dual(&["[::]:9923"]) && dual(&["[::]:9923", "127.0.0.1:9924"]));
        assert!(!dual(&["[::]:9923", "0.0.0.0:9923"]) && !dual(&["[::]:9923", "127.0.0.1:9923"]));
        assert!(dual(&["[::]:0", "127.0.0.1:0"]));
        assert!(!dual(&["[::1]:9923"]) && !dual(&["0.0.0.0:9923"]));
    }

    #[test]
    fn all_of_several_addresses_are_served() {
        let both = |family: &str| format!("{family}:0").parse::<SocketAddr>().unwrap();
        let listeners = listen(&[both("[::]"), both("127.0.0.1"), both("[::1]")]).unwrap();
        let port = |n: usize| listeners[n].local_addr().unwrap().port();
        std::net::TcpStream::connect(("127.0.0.1", port(1))).unwrap();
        std::net::TcpStream::connect(("::1", port(2))).unwrap();
        let in_use = listen(&[listeners[1].local_addr().unwrap()]).unwrap_err();
        assert!(in_use.in_use());
        assert!(Failure::from(in_use).to_string().contains("the address is in use; stop the program"));
        // An IPv4 address of the same port beside it leaves it IPv6 only.
        let port = port(1);
        drop(listeners);
        let address = |text: String| text.parse::<SocketAddr>().unwrap();
        let both = [address(format!("[::]:{port}")), address(format!("0.0.0.0:{port}"))];
        assert_eq!(listen(&both).unwrap().len(), 2);
        let listeners = listen(&both[..1]).unwrap();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        std::net::TcpStream::connect(("::1", port)).unwrap();
        drop(listeners);
    }
}
