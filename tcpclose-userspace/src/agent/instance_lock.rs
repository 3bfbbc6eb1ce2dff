//! What only one agent may have: a state directory, and for a moment the folder of its socket.
//!
//! Both are claimed by flock, which goes with the process, however it ends.

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

use crate::agent::signals::Leftovers;

/// Between two looks at whether another agent has gone.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long this agent waits for another one to go, at the socket and at the state directory together.
pub struct LockWait {
    wait: Duration,
    until: Instant,
    said: bool,
}

impl LockWait {
    pub fn new(wait: Duration) -> Self {
        let now = Instant::now();
        // Longer than an agent lives, where that is more than a clock can say.
        let until = now.checked_add(wait).unwrap_or(now + Duration::from_secs(1 << 31));
        Self { wait, until, said: false }
    }

    /// Waits a little for `whom` to go, and says so the first time; `false` when the time is up.
    pub async fn wait_for(&mut self, whom: &str) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        if !std::mem::replace(&mut self.said, true) {
            log::warn!("waiting up to {} for {whom} to go", humantime::format_duration(self.wait));
        }
        sleep(LOOK_AGAIN).await;
        true
    }
}

/// A state directory that is ours for as long as this lives.
pub struct StateDir {
    pub path: PathBuf,
    _lock: File,
}

/// Why a directory cannot be ours, and what to do.
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

/// Claims the directory `given`, or the default one; waits for an agent that has it. The default one is done without
/// where it is not to be had.
///
/// # Errors
/// When the one that was asked for is not to be had, or another agent does not go.
pub async fn state_dir(
    given: Option<&Path>,
    patience: &mut LockWait,
    leftovers: &Leftovers,
) -> Result<Option<StateDir>, Failure> {
    let path = given.unwrap_or(Path::new(DEFAULT_STATE_DIR));
    let name = path.display();
    loop {
        let claimed = prepare(path, given.is_none())
            .and_then(|()| claim(path).map_err(|why| Unfit::new(format!("its lock: {why}"), ANOTHER)));
        match claimed {
            Ok(Some(lock)) => {
                leftovers.hold().lock = lock.try_clone().ok();
                return Ok(Some(StateDir { path: path.to_owned(), _lock: lock }));
            }
            Ok(None) => {
                let holder = holder(path);
                if !patience.wait_for(&format!("{holder}, which has the state directory {name},")).await {
                    let todo = "stop it, or give this one a directory of its own with --state-dir";
                    return Err(Failure::new(
                        format!("cannot keep state in {name}"),
                        format!("{holder} has it"),
                        todo,
                    ));
                }
            }
            Err(Unfit { why, todo }) if given.is_none() => {
                log::warn!("ages will not outlive this agent: no state in {name}: {why}; {todo}");
                return Ok(None);
            }
            Err(Unfit { why, todo }) => {
                return Err(Failure::new(format!("cannot keep state in {name}"), why, todo));
            }
        }
    }
}

/// Makes the directory, if need be, and looks whether it is safe: what is read there is believed.
fn prepare(path: &Path, and_parents: bool) -> Result<(), Unfit> {
    const MAKE_IT: &str = "make it, or choose another directory with --state-dir";
    match DirBuilder::new().recursive(and_parents).mode(0o700).create(path) {
        Ok(()) => {}
        // Looked at below.
        Err(why) if why.kind() == ErrorKind::AlreadyExists => {}
        Err(why) => {
            return Err(match path.parent() {
                Some(parent) if why.kind() == ErrorKind::NotFound => {
                    Unfit::new(format!("the directory {} does not exist", parent.display()), MAKE_IT)
                }
                _ => Unfit::new(format!("it cannot be made: {why}"), ANOTHER),
            });
        }
    }
    match fs::metadata(path) {
        Err(why) => Err(Unfit::new(why, ANOTHER)),
        Ok(meta) if !meta.is_dir() => Err(Unfit::new("it is no directory", ANOTHER)),
        Ok(meta) if !is_ours(&meta) => Err(Unfit::new(
            format!("it belongs to user {}", meta.uid()),
            "chown it, or choose another with --state-dir",
        )),
        Ok(meta) if meta.mode() & 0o022 != 0 => {
            Err(Unfit::new("others may write there", "chmod go-w it, or choose another with --state-dir"))
        }
        Ok(_) => Ok(()),
    }
}

/// Whether this user or root has the file.
pub fn is_ours(meta: &fs::Metadata) -> bool {
    [0, rustix::process::geteuid().as_raw()].contains(&meta.uid())
}

fn lock_of(folder: &Path) -> PathBuf {
    folder.join("lock")
}

/// Takes the lock of a state directory; `None` while another agent has it.
fn claim(folder: &Path) -> io::Result<Option<File>> {
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
    // Whoever removes the file, and an agent that made it anew, must not leave two with one directory.
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

/// Locks a file, or a directory, unless somebody has.
fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(why) => Err(why.into()),
    }
}

/// Keeps other agents, whatever their state directories, from looking at what lies in `folder` until this is dropped:
/// between the look and what follows from it nobody else acts. Only a moment's wait; whoever holds the folder longer is
/// no agent, and does not keep one from starting.
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
