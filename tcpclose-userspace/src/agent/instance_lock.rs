//! Locks for what one agent at a time may have: a state directory and, during its start, the folder of its
//! socket.
//!
//! By flock(), which ends with the process, however that ends.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::time::sleep;

use crate::failure::Failure;
use crate::report::requests::DEFAULT_STATE_DIR;

use crate::agent::leftovers::Leftovers;

/// Between two checks whether another agent has ended.
const CHECK_AGAIN: Duration = Duration::from_millis(100);

/// How long this agent waits for another one to end, at the socket and at the state directory together.
pub struct LockWait {
    wait: Duration,
    until: Instant,
    logged: bool,
}

impl LockWait {
    pub fn new(wait: Duration) -> Self {
        let now = Instant::now();
        // Longer than any agent runs, if the clock cannot represent it.
        let until = now.checked_add(wait).unwrap_or(now + Duration::from_secs(1 << 31));
        Self { wait, until, logged: false }
    }

    /// Waits a little for `holder` to end, and logs that the first time. Returns `false` when the time is up.
    pub async fn wait_for(&mut self, holder: &str) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        if !std::mem::replace(&mut self.logged, true) {
            log::warn!("waiting up to {}: {holder}", humantime::format_duration(self.wait));
        }
        sleep(CHECK_AGAIN).await;
        true
    }
}

/// A state directory, locked until this is dropped.
pub struct StateDir {
    pub path: PathBuf,
    _lock: File,
}

/// Why a directory cannot be used, and what to do.
struct Unfit {
    why: String,
    todo: &'static str,
}

impl Unfit {
    fn new(why: impl ToString, todo: &'static str) -> Self {
        Self { why: why.to_string(), todo }
    }
}

const ANOTHER: &str = "choose another directory with --state-dir";

/// Locks the directory `given`, or the default one; waits for an agent that holds it. Without a usable
/// default directory the agent keeps no state.
///
/// # Errors
/// When `given` cannot be used, or another agent does not end.
pub async fn state_dir(
    given: Option<&Path>,
    lock_wait: &mut LockWait,
    leftovers: &Leftovers,
) -> Result<Option<StateDir>, Failure> {
    let path = given.unwrap_or(Path::new(DEFAULT_STATE_DIR));
    let name = path.display();
    loop {
        let locked = prepare(path, given.is_none())
            .and_then(|()| lock(path).map_err(|why| Unfit::new(format!("cannot lock it: {why}"), ANOTHER)));
        match locked {
            Ok(Some(lock)) => {
                leftovers.hold().lock = lock.try_clone().ok();
                return Ok(Some(StateDir { path: path.to_owned(), _lock: lock }));
            }
            Ok(None) => {
                let holder = holder(path);
                if !lock_wait.wait_for(&format!("{holder} uses the state directory {name}")).await {
                    let todo = "stop it, or give this one a directory of its own with --state-dir";
                    return Err(Failure::new(
                        format!("cannot keep state in {name}"),
                        format!("{holder} has it"),
                        todo,
                    ));
                }
            }
            Err(Unfit { why, todo }) if given.is_none() => {
                log::warn!("cannot keep state for the next agent in {name}: {why} ({todo})");
                return Ok(None);
            }
            Err(Unfit { why, todo }) => {
                return Err(Failure::new(format!("cannot keep state in {name}"), why, todo));
            }
        }
    }
}

/// Makes the directory if need be, and checks that only root and this user can write there: its contents are
/// trusted.
fn prepare(path: &Path, and_parents: bool) -> Result<(), Unfit> {
    const MAKE_IT: &str = "make it, or choose another directory with --state-dir";
    match DirBuilder::new().recursive(and_parents).mode(0o700).create(path) {
        Ok(()) => {}
        // Checked below.
        Err(why) if why.kind() == ErrorKind::AlreadyExists => {}
        Err(why) => {
            return Err(match path.parent() {
                Some(parent) if why.kind() == ErrorKind::NotFound => {
                    Unfit::new(format!("the directory {} does not exist", parent.display()), MAKE_IT)
                }
                _ => Unfit::new(format!("cannot make it: {why}"), ANOTHER),
            });
        }
    }
    match fs::metadata(path) {
        Err(why) => Err(Unfit::new(why, ANOTHER)),
        Ok(meta) if !meta.is_dir() => Err(Unfit::new("it is not a directory", ANOTHER)),
        Ok(meta) if !is_ours(&meta) => Err(Unfit::new(
            format!("it belongs to user {}", meta.uid()),
            "chown it, or choose another with --state-dir",
        )),
        Ok(meta) if meta.mode() & 0o022 != 0 => Err(Unfit::new(
            "other users may write there",
            "chmod go-w it, or choose another with --state-dir",
        )),
        Ok(_) => Ok(()),
    }
}

/// Whether this user or root owns the file.
pub fn is_ours(meta: &fs::Metadata) -> bool {
    [0, rustix::process::geteuid().as_raw()].contains(&meta.uid())
}

fn lock_of(folder: &Path) -> PathBuf {
    folder.join("lock")
}

/// Takes the lock of a state directory; `None` while another agent has it.
fn lock(folder: &Path) -> io::Result<Option<File>> {
    let path = lock_of(folder);
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)?;
    let same = |lock: &File| Ok::<_, io::Error>(lock.metadata()?.ino() == fs::symlink_metadata(&path)?.ino());
    // If somebody removed the file and another agent made a new one, our lock is on the former and worth
    // nothing.
    if !try_lock(&lock)? || !same(&lock)? {
        return Ok(None);
    }
    lock.set_len(0)?;
    lock.write_all(format!("{}\n", std::process::id()).as_bytes())?;
    Ok(Some(lock))
}

/// The agent that has the lock of a state directory.
fn holder(folder: &Path) -> String {
    let pid = fs::read_to_string(lock_of(folder)).ok().and_then(|text| text.trim().parse::<u32>().ok());
    pid.map_or_else(|| "another agent".to_owned(), |pid| format!("another agent (pid {pid})"))
}

/// Locks a file or directory unless another process has locked it.
fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(why) => Err(why.into()),
    }
}

/// Keeps other agents out of `folder` until this is dropped, so that no other agent acts between a check of
/// what is there and the action that follows. Waits two seconds at most: a process that holds the folder
/// longer is no agent, and must not keep one from starting.
pub async fn hold(folder: &Path) -> Option<File> {
    const LONGEST: Duration = Duration::from_secs(2);
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let file = File::open(folder).ok()?;
    let start = Instant::now();
    while start.elapsed() < LONGEST {
        match try_lock(&file) {
            Ok(true) => return Some(file),
            Ok(false) => sleep(Duration::from_millis(5)).await,
            Err(_) => return None,
        }
    }
    None
}
