//! The file in the state directory, by which ages outlive the agent.
//!
//! What has changed is appended twice a second, so that nothing older than a second is missing there, whatever ends the
//! agent. fsync is not called: the file is of use in this boot only, and what is in the page cache outlives a process.

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

/// Between saves: "at least each second", with as much time again for a save on a busy machine.
const PAUSE: Duration = Duration::from_millis(500);

/// Between attempts when saving fails, at the most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Several times what a host full of sockets makes.
const LARGEST: u64 = 1 << 30;

/// What an agent before this one has kept in `dir`. A file that is of no use is said, and done without.
pub fn former(dir: &StateDir, boot_id: &str) -> Option<SavedState> {
    let path = path_in(&dir.path);
    let read = read(&path).map(|bytes| state_format::read(&bytes, boot_id, host::monotonic_ns()));
    let (why, todo) = match read {
        Ok(Ok(former)) => return Some(former),
        Err(why) if why.kind() == ErrorKind::NotFound => return None,
        Ok(Err(why @ UnusableState::TooNew(_))) => (why.to_string(), "start that version again to keep them"),
        Ok(Err(why)) => (why.to_string(), "nothing is to be done, a new one takes its place"),
        Err(why) => (why.to_string(), "mend or remove it"),
    };
    log::warn!(
        "{} is not used: {why}; sockets older than this agent have intervals for ages, {todo}",
        path.display()
    );
    None
}

fn path_in(folder: &Path) -> PathBuf {
    folder.join("state")
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Neither a link nor a pipe is followed or waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    let unfit = |why: &str| Err(io::Error::other(why));
    if !meta.is_file() {
        return unfit("it is no file");
    }
    if !instance_lock::is_ours(&meta) || meta.mode() & 0o022 != 0 {
        return unfit("others may write it");
    }
    if meta.len() > LARGEST {
        return unfit("it is larger than any that an agent makes");
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The file as it is written.
struct StateFile {
    folder: PathBuf,
    file: Option<File>,
    /// Its length, without what a write that failed may have left.
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
            return Err(io::Error::new(ErrorKind::NotFound, "somebody has removed it"));
        }
        if let Err(why) = file.write_all_at(bytes, self.length) {
            // A torn end is no harm, but for what would be written behind it: the next batch is whole.
            let _ = file.set_len(self.length);
            return Err(why);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let new = self.folder.join("state.new");
        let written = || {
            // One that a dead agent left is of no use, nor is a link that somebody put there.
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

/// Keeps the file, until it is told to write it for the last time.
pub struct StateSaver {
    stop: Rc<Notify>,
    task: JoinHandle<()>,
}

impl StateSaver {
    /// Begins to keep what `engine` tracks in `folder`. The former file has been taken up by then: it is replaced.
    pub fn begin(engine: Rc<RefCell<Tracking>>, folder: &Path, boot_id: &str) -> Self {
        engine.borrow_mut().tracker.note_changes();
        let keeper = Keeper {
            engine,
            journal: StateLog::new(boot_id),
            file: StateFile::new(folder),
            pause: PAUSE,
            spent: SaveCost::default(),
        };
        let stop = Rc::new(Notify::new());
        Self { task: spawn_local(keeper.run(Rc::clone(&stop))), stop }
    }

    /// Saves for the last time; does not wait longer than `patience` for a disk.
    pub async fn end(self, patience: Duration) {
        self.stop.notify_one();
        if timeout(patience, self.task).await.is_err() {
            log::warn!("the last changes are not in the state file: its disk is too slow");
        }
    }
}

/// What saving has cost since that was last said.
#[derive(Default)]
struct SaveCost {
    saves: u32,
    bytes: usize,
    cpu_ns: u64,
    said: Option<Instant>,
}

struct Keeper {
    engine: Rc<RefCell<Tracking>>,
    journal: StateLog,
    file: StateFile,
    /// Until the next save: longer while saving fails.
    pause: Duration,
    spent: SaveCost,
}

impl Keeper {
    async fn run(mut self, stop: Rc<Notify>) {
        loop {
            let nothing = self.save().await;
            let stirred = Rc::clone(&self.engine.borrow().stirred);
            let due = async {
                if nothing {
                    stirred.notified().await;
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

    /// Returns whether there is nothing on file, and nothing to put there.
    async fn save(&mut self) -> bool {
        let until_ns = self.engine.borrow_mut().drain_for_save();
        // What draining costs is spent in any case.
        let before = host::thread_cpu_ns();
        let batch = self.journal.batch(&mut self.engine.borrow_mut().tracker, until_ns);
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
                    log::warn!("{} is kept again", path_in(&folder).display());
                }
                self.pause = PAUSE;
            }
            Err(why) => {
                self.journal.not_written();
                if self.pause == PAUSE {
                    let path = path_in(&folder);
                    log::warn!(
                        "{} cannot be written: {why}; make room or mend it, until then ages of newer sockets would not \
                         outlive this agent",
                        path.display()
                    );
                }
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
        false
    }

    /// Says now and then what saving costs.
    fn spend(&mut self, bytes: usize, cpu_ns: u64) {
        const EACH: Duration = Duration::from_secs(10);
        let spent = &mut self.spent;
        let said = *spent.said.get_or_insert_with(Instant::now);
        (spent.saves, spent.bytes, spent.cpu_ns) =
            (spent.saves + 1, spent.bytes + bytes, spent.cpu_ns + cpu_ns);
        let elapsed = said.elapsed();
        if elapsed >= EACH {
            let cpu = Duration::from_nanos(spent.cpu_ns);
            log::debug!(
                "{} saves in {elapsed:.1?} wrote {} bytes and took {cpu:.1?} of CPU, {:.3} % of a core",
                spent.saves,
                spent.bytes,
                100.0 * cpu.as_secs_f64() / elapsed.as_secs_f64()
            );
            *spent = SaveCost { said: Some(Instant::now()), ..SaveCost::default() };
        }
    }
}
