//! The sockets that the agent serves on.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::process::umask;

use crate::cli::DEFAULT_SOCKET;
use crate::failure::Failure;

/// Listens for scrapes on `address`.
pub fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    let what = || format!("cannot listen on {address}");
    let listener = TcpListener::bind(address).map_err(|why| match why.kind() {
        ErrorKind::AddrInUse => Failure::new(
            what(),
            "the address is in use",
            "stop the program that has it (ss -ltnp shows which), or choose another with --listen",
        ),
        ErrorKind::PermissionDenied => {
            Failure::new(what(), why, "choose a port above 1023 with --listen, or grant CAP_NET_BIND_SERVICE")
        }
        _ => Failure::new(what(), why, "choose another address with --listen"),
    })?;
    listener.set_nonblocking(true).map_err(|why| Failure::new(what(), why, "report this"))?;
    Ok(listener)
}

/// The query socket, removed when the agent is done with it.
pub struct QuerySocket {
    pub listener: UnixListener,
    path: PathBuf,
}

impl Drop for QuerySocket {
    fn drop(&mut self) {
        if let Err(why) = fs::remove_file(&self.path) {
            log::warn!("{} stays behind: {why}", self.path.display());
        }
    }
}

/// Listens for queries at `path`, mode 0600. A socket that a dead agent left there is replaced; for a live one to
/// leave, waits up to `wait`.
pub fn listen_for_queries(path: &Path, wait: Duration) -> Result<QuerySocket, Failure> {
    let what = || format!("cannot listen at {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder
        && !folder.is_dir()
    {
        if path == Path::new(DEFAULT_SOCKET) {
            fs::create_dir_all(folder)
                .map_err(|why| Failure::new(what(), why, "choose another path with --socket"))?;
        } else {
            let why = format!("the directory {} does not exist", folder.display());
            return Err(Failure::new(what(), why, "make it, or choose another path with --socket"));
        }
    }
    let until = Instant::now() + wait;
    loop {
        match occupant(path).map_err(|why| Failure::new(what(), why, "choose another path with --socket"))? {
            Occupant::Nobody => break,
            Occupant::Dead => {
                fs::remove_file(path)
                    .map_err(|why| Failure::new(what(), why, "remove it, or choose another path"))?;
                break;
            }
            Occupant::Live if Instant::now() < until => sleep(Duration::from_millis(100)),
            Occupant::Live => {
                return Err(Failure::new(
                    what(),
                    "another agent is serving there",
                    "stop it, or give this one a path of its own with --socket",
                ));
            }
            Occupant::NoSocket => {
                return Err(Failure::new(
                    what(),
                    "there is a file that is no socket",
                    "remove it, or choose another path with --socket",
                ));
            }
        }
    }
    // The mode is that of the file's making, so that nobody can connect before it is changed.
    let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.map_err(|why| Failure::new(what(), why, "choose another path with --socket"))?;
    let socket = QuerySocket { listener, path: path.to_owned() };
    socket.listener.set_nonblocking(true).map_err(|why| Failure::new(what(), why, "report this"))?;
    Ok(socket)
}

/// Who has a path.
enum Occupant {
    Nobody,
    /// A socket that nobody listens at.
    Dead,
    Live,
    NoSocket,
}

fn occupant(path: &Path) -> std::io::Result<Occupant> {
    match fs::symlink_metadata(path) {
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(Occupant::Nobody),
        Err(why) => return Err(why),
        Ok(meta) if !meta.file_type().is_socket() => return Ok(Occupant::NoSocket),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Ok(Occupant::Live),
        Err(why) if why.kind() == ErrorKind::ConnectionRefused => Ok(Occupant::Dead),
        Err(why) if why.kind() == ErrorKind::NotFound => Ok(Occupant::Nobody),
        // A full backlog: it is alive, and busy.
        Err(why) if why.kind() == ErrorKind::WouldBlock => Ok(Occupant::Live),
        Err(why) => Err(why),
    }
}
