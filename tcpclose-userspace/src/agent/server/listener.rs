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
use std::path::Path;
use tokio::net::UnixStream;

use crate::failure::Failure;
use crate::report::requests::DEFAULT_SOCKET;

use crate::agent::config::SocketAccess;
use crate::agent::instance_lock;
use crate::agent::instance_lock::LockWait;
use crate::agent::leftovers::{Leftovers, SocketFile, identity};

/// Connections that may wait to be accepted; the kernel takes net.core.somaxconn if that is less.
const BACKLOG: i32 = 1024;

/// Listens for scrapes on all `addresses`.
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

/// Whether a listener at `address` takes IPv4 as well, whatever net.ipv6.bindv6only is: `[::]` does, unless
/// one of `addresses` is an IPv4 address with this port.
fn takes_both(address: &SocketAddr, addresses: &[SocketAddr]) -> bool {
    let taken = |other: &SocketAddr| other.is_ipv4() && other.port() == address.port() && other.port() != 0;
    address.is_ipv6() && address.ip().is_unspecified() && !addresses.iter().any(taken)
}

/// The URL of `listener`, and a remark, which may be empty.
pub fn url(listener: &TcpListener, tls: bool) -> Option<(String, &'static str)> {
    let address = listener.local_addr().ok()?;
    let both = address.is_ipv6()
        && address.ip().is_unspecified()
        && !SockRef::from(listener).only_v6().unwrap_or(true);
    let scheme = if tls { "https" } else { "http" };
    Some((format!("{scheme}://{address}"), if both { "at all addresses, IPv6 and IPv4" } else { "" }))
}

/// An address that cannot be listened on.
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
                "stop the program that has it (ss -ltnp shows it), or choose another address with --listen",
            ),
            ErrorKind::AddrNotAvailable => Self::new(
                what,
                "this host has no such address",
                "choose one of its addresses (ip address shows them) with --listen",
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

/// The query socket. Its file is removed when this is dropped.
pub struct QuerySocket {
    pub listener: UnixListener,
    /// Holds the file if it is ours to remove.
    leftovers: Leftovers,
}

impl QuerySocket {
    /// One that systemd made, and removes.
    pub fn passed(listener: UnixListener) -> Self {
        Self { listener, leftovers: Leftovers::default() }
    }
}

impl fmt::Display for QuerySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.listener.local_addr().as_ref().map(|address| address.as_pathname()) {
            Ok(Some(path)) => path.display().fmt(f),
            _ => f.write_str("a systemd socket without a path"),
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

const ANOTHER: &str = "choose another path with --socket";

/// The mode with which the file is made: if it will get another owner or group, nobody else may connect
/// before that.
fn first_mode(access: SocketAccess) -> u32 {
    if access.owner.is_none() && access.group.is_none() { access.mode } else { 0o600 }
}

/// Sets mode, owner and group of the file at `path`, if it is the one of `made`. At no moment can a process
/// connect that is not allowed to in the end.
fn set_access(access: SocketAccess, path: &Path, made: Option<(u64, u64)>) -> Result<(), Failure> {
    let SocketAccess { mode, owner, group } = access;
    if owner.is_none() && group.is_none() {
        return Ok(());
    }
    let failure = |what: String, why: io::Error, todo: &str| {
        let what = format!("cannot listen at {}: its {what}", path.display());
        Failure::new(what, why, todo)
    };
    let other = |why: io::Error| failure("file".to_owned(), why, ANOTHER);
    // By a descriptor, so that nothing else can be put in its place meanwhile.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path);
    let file = file.map_err(other)?;
    let there = file.metadata().map(|meta| (meta.dev(), meta.ino())).map_err(other)?;
    if made.is_some_and(|made| made != there) {
        return Err(other(io::Error::other("another process replaced it")));
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
        let todo = "remove --socket-owner, or grant CAP_CHOWN";
        chown(owner, None).map_err(|why| failure(format!("owner cannot be {uid}"), why, todo))?;
    }
    Ok(())
}

/// Listens for queries at `path`. Replaces a socket that a dead agent left there; waits for a live one to
/// end. Records in `leftovers` what must be removed if the agent ends during its start.
pub async fn listen_for_queries(
    path: &Path,
    access: SocketAccess,
    lock_wait: &mut LockWait,
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
            Ok(_) => return Err(failure(&format!("{name} is not a directory"), ANOTHER)),
            Err(why) if why.kind() != ErrorKind::NotFound => return Err(failure(&why, ANOTHER)),
            Err(_) if path == Path::new(DEFAULT_SOCKET) => {
                fs::create_dir_all(folder)
                    .map_err(|why| failure(&format!("cannot make the directory {name}: {why}"), ANOTHER))?;
            }
            Err(_) => {
                let why = format!("the directory {name} does not exist");
                return Err(failure(&why, "make it, or choose another path with --socket"));
            }
        }
    }
    // Locked from the check of the path to the bind: two agents that find a dead agent's socket would both
    // remove it, and one of them the other's.
    let lock_folder = || instance_lock::hold(path.parent().unwrap_or(Path::new("")));
    let mut folder_lock = lock_folder().await;
    loop {
        match occupant(path).await.map_err(|why| failure(&why, ANOTHER))? {
            Occupant::Nobody => break,
            Occupant::Dead => {
                fs::remove_file(path).map_err(|why| {
                    failure(
                        &format!("cannot remove a dead agent's socket: {why}"),
                        "remove it, or choose another path with --socket",
                    )
                })?;
                break;
            }
            Occupant::Live => {
                drop(folder_lock);
                let holder = format!("another agent listens at {}", path.display());
                if !lock_wait.wait_for(&holder).await {
                    return Err(failure(
                        &"another agent is serving there",
                        "stop it, or give this one a path of its own with --socket",
                    ));
                }
                folder_lock = lock_folder().await;
            }
            Occupant::Directory => {
                return Err(failure(&"it is a directory", "name a file in it with --socket"));
            }
            Occupant::NoSocket => {
                let todo = "choose another path with --socket, or remove the file if nobody needs it";
                return Err(failure(&"a file that is not a socket is there", todo));
            }
        }
    }
    // By umask, so that nobody can connect between the bind and a chmod.
    let mut left = leftovers.hold();
    let before = umask(Mode::from_raw_mode(0o777 & !first_mode(access)));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.map_err(|why| failure(&why, ANOTHER))?;
    let made = identity(path);
    left.socket = Some(SocketFile::new(path, made));
    drop(left);
    let socket = QuerySocket { listener, leftovers: leftovers.clone() };
    set_access(access, path, made)?;
    drop(folder_lock);
    socket.listener.set_nonblocking(true).map_err(|why| failure(&why, "report this"))?;
    Ok(socket)
}

/// What is at a path.
enum Occupant {
    Nobody,
    /// A socket without a listener.
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
    // Does not block: with a full backlog, a blocking connect would wait for as long as that agent is
    // stopped.
    match UnixStream::connect(path).await {
        Ok(_) => Ok(Occupant::Live),
        Err(why) if why.kind() == ErrorKind::ConnectionRefused => Ok(Occupant::Dead),
        Err(why) if why.kind() == ErrorKind::NotFound => Ok(Occupant::Nobody),
        // The backlog is full: the agent is alive and busy.
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
        drop(listeners);
        // An IPv4 address of the same port beside it leaves it IPv6 only. Somebody else may take a port that was free.
        let served = (0..20).find_map(|_| {
            let port = listen(&[both("127.0.0.1")]).ok()?.first()?.local_addr().ok()?.port();
            let address = |text: String| text.parse::<SocketAddr>().unwrap();
            let both = [address(format!("[::]:{port}")), address(format!("0.0.0.0:{port}"))];
            let listeners = listen(&both).ok()?.len();
            Some((listeners, port, listen(&both[..1]).ok()?))
        });
        let (listeners, port, _ipv6) = served.expect("no port is free in both families");
        assert_eq!(listeners, 2);
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        std::net::TcpStream::connect(("::1", port)).unwrap();
    }
}
