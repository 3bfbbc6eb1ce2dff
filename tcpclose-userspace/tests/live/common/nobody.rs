//! The program as a user runs it who owns nothing and may do nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The user and group of nobody.
const NOBODY: u32 = 65534;

/// The binary where every user may run it: that of the build may be in a folder that only its owner enters.
pub struct Nobody {
    folder: TempDir,
    binary: PathBuf,
}

impl Nobody {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let binary = folder.path().join("tcpclose");
        // By another process: a child that another test of this one starts meanwhile would have the copy open for writing
        // until it executes, and nobody can run it until then (ETXTBSY).
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_tcpclose")).arg(&binary).status();
        assert!(copied.unwrap().success());
        Self { folder, binary }
    }

    /// A folder that nobody may read and not write, with the program in it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The program, about to be run by nobody.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.uid(NOBODY).gid(NOBODY);
        command
    }
}
