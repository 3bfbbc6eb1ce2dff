//! The file in the state directory, by which ages outlive the agent.
//!
//! Changes are appended twice a second, so that nothing older than a second is missing there, however the
//! agent ends. There is no fsync(): the file is of use in this boot only, and the page cache outlives a
//! process.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use crate::linux::host;
use crate::tracker::saved::SavedState;
use crate::tracker::state_format;
use crate::tracker::state_format::{Batch, StateLog, UnusableState};

use crate::agent::instance_lock;
use crate::agent::instance_lock::StateDir;
use crate::agent::tracking::Tracking;

/// Between saves: one a second is promised, and a save on a busy machine may take as long as the pause.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest pause between attempts while saving fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Several times the size on a host full of sockets.
const LARGEST: u64 = 1 << 30;

/// The state that a former agent has kept in `dir`; `None`, with a log line, if the file cannot be used.
pub fn former(dir: &StateDir, boot_id: &str) -> Option<SavedState> {
    let path = path_in(&dir.path);
    let read = read(&path).map(|bytes| state_format::read(&bytes, boot_id, host::monotonic_ns()));
    let (why, todo) = match read {
        Ok(Ok(former)) => return Some(former),
        Err(why) if why.kind() == ErrorKind::NotFound => return None,
        Ok(Err(why @ UnusableState::TooNew(_))) => (why.to_string(), "start that version again to keep them"),
        Ok(Err(why)) => (why.to_string(), "no action is needed, a new file replaces it"),
        Err(why) => (why.to_string(), "repair or remove it"),
    };
    log::warn!(
        "cannot use the state file {}: {why} (the ages of older sockets are intervals; {todo})",
        path.display()
    );
    None
}

fn path_in(folder: &Path) -> PathBuf {
    folder.join("state")
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // No link is followed, and no pipe waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    let unfit = |why: &str| Err(io::Error::other(why));
    if !meta.is_file() {
        return unfit("it is not a regular file");
    }
    if !instance_lock::is_ours(&meta) || meta.mode() & 0o022 != 0 {
        return unfit("other users may write to it");
    }
    if meta.len() > LARGEST {
        return unfit("it is larger than any agent makes");
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The file as it is written.
struct StateFile {
    folder: PathBuf,
    file: Option<File>,
    /// Its length, without the torn end of a failed write.
    length: u64,
}

impl StateFile {
    fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), file: None, length: 0 }
    }

    /// Writes `batch`; may block.
    fn write(&mut self, batch: &Batch) -> io::Result<()> {
        match batch {
            Batch::Nothing => Ok(()),
            Batch::Append(bytes) => self.append(bytes),
            Batch::Whole(bytes) => self.replace(bytes),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &self.file else { return Err(ErrorKind::NotFound.into()) };
        if file.metadata()?.nlink() == 0 {
            return Err(io::Error::new(ErrorKind::NotFound, "it was removed"));
        }
        if let Err(why) = file.write_all_at(bytes, self.length) {
            // A torn end is harmless as long as nothing follows it: the next batch is whole.
            let _ = file.set_len(self.length);
            return Err(why);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let new = self.folder.join("state.new");
        let written = || {
            // It may be a dead agent's, or a link.
            match fs::remove_file(&new) {
                Err(why) if why.kind() != ErrorKind::NotFound => return Err(why),
                _ => {}
            }
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all_at(bytes, 0)?;
            fs::rename(&new, path_in(&self.folder))?;
            Ok(file)
        };
        let file = written().inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })?;
        (self.file, self.length) = (Some(file), bytes.len() as u64);
        Ok(())
    }
}

/// The task that writes the file.
pub struct StateSaver {
    stop: Rc<Notify>,
    task: JoinHandle<()>,
}

impl StateSaver {
    /// Starts to save the state of `tracking` in `folder`. Replaces the former file, which must have been
    /// read by now.
    pub fn begin(tracking: Rc<RefCell<Tracking>>, folder: &Path, boot_id: &str) -> Self {
        tracking.borrow_mut().tracker.note_changes();
        let saver = Saver {
            tracking,
            log: StateLog::new(boot_id),
            file: StateFile::new(folder),
            pause: PAUSE,
            spent: SaveCost::default(),
        };
        let stop = Rc::new(Notify::new());
        Self { task: spawn_local(saver.run(Rc::clone(&stop))), stop }
    }

    /// Saves for the last time; waits `most` for the disk.
    pub async fn end(self, most: Duration) {
        self.stop.notify_one();
        if timeout(most, self.task).await.is_err() {
            log::warn!("cannot save the last changes of sockets: the disk of the state file is too slow");
        }
    }
}

/// The cost of saving since it was last logged.
#[derive(Default)]
struct SaveCost {
    saves: u32,
    bytes: usize,
    cpu_ns: u64,
    logged: Option<Instant>,
}

struct Saver {
    tracking: Rc<RefCell<Tracking>>,
    log: StateLog,
    file: StateFile,
    /// Until the next save: longer while saving fails.
    pause: Duration,
    spent: SaveCost,
}

impl Saver {
    async fn run(mut self, stop: Rc<Notify>) {
        loop {
            let nothing = self.save().await;
            let activity = Rc::clone(&self.tracking.borrow().activity);
            let due = async {
                if nothing {
                    activity.notified().await;
                }
                sleep(self.pause).await;
            };
            tokio::select! {
                biased;
                () = stop.notified() => break,
                () = due => {}
            }
        }
        self.save().await;
    }

    /// Returns whether the file is empty and there is nothing to save.
    async fn save(&mut self) -> bool {
        let until_ns = self.tracking.borrow_mut().drain_for_save();
        // Draining is no cost of saving.
        let before = host::thread_cpu_ns();
        let batch = self.log.batch(&mut self.tracking.borrow_mut().tracker, until_ns);
        let made_ns = host::thread_cpu_ns().saturating_sub(before);
        let bytes = match &batch {
            Batch::Nothing => 0,
            Batch::Append(bytes) | Batch::Whole(bytes) => bytes.len(),
        };
        self.spend(bytes, made_ns);
        if batch == Batch::Nothing {
            return true;
        }
        let mut file = std::mem::replace(&mut self.file, StateFile::new(Path::new("")));
        let folder = file.folder.clone();
        let written = spawn_blocking(move || {
            let before = host::thread_cpu_ns();
            let done = file.write(&batch);
            (file, done, host::thread_cpu_ns().saturating_sub(before))
        });
        let done = match written.await {
            Ok((file, done, cpu_ns)) => {
                self.file = file;
                self.spent.cpu_ns += cpu_ns;
                done
            }
            Err(died) => {
                self.file = StateFile::new(&folder);
                Err(died.into())
            }
        };
        match done {
            Ok(()) => {
                if self.pause > PAUSE {
                    log::warn!("{} can be written again", path_in(&folder).display());
                }
                self.pause = PAUSE;
            }
            Err(why) => {
                self.log.not_written();
                if self.pause == PAUSE {
                    let path = path_in(&folder);
                    log::warn!(
                        "cannot write {}: {why} (free disk space, or repair the file system; until this works again, the next agent \
                         will not know the ages of new sockets)",
                        path.display()
                    );
                }
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
        false
    }

    /// Logs the cost of saving each ten seconds.
    fn spend(&mut self, bytes: usize, cpu_ns: u64) {
        const EACH: Duration = Duration::from_secs(10);
        let spent = &mut self.spent;
        let since = *spent.logged.get_or_insert_with(Instant::now);
        (spent.saves, spent.bytes, spent.cpu_ns) =
            (spent.saves + 1, spent.bytes + bytes, spent.cpu_ns + cpu_ns);
        let elapsed = since.elapsed();
        if elapsed >= EACH {
            let cpu = Duration::from_nanos(spent.cpu_ns);
            log::debug!(
                "{} saves in {elapsed:.1?} wrote {} bytes in {cpu:.1?} of CPU time, {:.3} % of a core",
                spent.saves,
                spent.bytes,
                100.0 * cpu.as_secs_f64() / elapsed.as_secs_f64()
            );
            *spent = SaveCost { logged: Some(Instant::now()), ..SaveCost::default() };
        }
    }
}
