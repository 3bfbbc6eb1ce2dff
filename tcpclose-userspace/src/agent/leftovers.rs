//! What an agent that ends during its start would leave behind.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Clone, Default)]
pub struct Leftovers {
    held: Arc<Mutex<HeldFiles>>,
}

#[derive(Default)]
pub struct HeldFiles {
    /// The query socket's file.
    pub socket: Option<SocketFile>,
    /// The lock of the state directory.
    pub lock: Option<File>,
    /// The start is over.
    pub started: bool,
}

impl Leftovers {
    /// Locked while something is made and recorded here, so that no signal comes between the two.
    pub fn hold(&self) -> MutexGuard<'_, HeldFiles> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file of a query socket.
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file that we made.
    made: Option<(u64, u64)>,
}

impl SocketFile {
    pub fn new(path: &Path, made: Option<(u64, u64)>) -> Self {
        Self { path: path.to_owned(), made }
    }

    pub fn remove(self) {
        // Another agent may have replaced our file with its own.
        if self.made.is_some() && identity(&self.path) != self.made {
            return;
        }
        if let Err(why) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {why} (the next agent replaces it)", self.path.display());
        }
    }
}

/// Device and inode of a file.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}
