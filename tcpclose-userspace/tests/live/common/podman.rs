//! Containers by podman, which keeps all of it in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// podman, and the containers that it runs; they are removed when dropped.
pub struct Podman {
    runtime: Option<&'static str>,
    /// A container has been started.
    runs: bool,
    folder: TempDir,
}

impl Podman {
    /// An error says why there can be no containers here.
    pub fn new() -> Result<Self, String> {
        let podman = Self { runtime: None, runs: false, folder: tempfile::tempdir().unwrap() };
        let asked = podman.command().arg("--version").output().map_err(|why| format!("no podman: {why}"))?;
        asked.status.success().then_some(podman).ok_or_else(|| "podman does not work".to_owned())
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn command(&self) -> Command {
        let mut podman = Command::new("podman");
        podman.arg("--root").arg(self.folder().join("storage"));
        podman.arg("--runroot").arg(self.folder().join("run"));
        podman.args(["--cgroup-manager=cgroupfs", "--events-backend=file", "--storage-driver=vfs"]);
        podman.args(self.runtime.map(|runtime| format!("--runtime={runtime}")));
        podman
    }

    /// A root directory with nothing in it but busybox.
    pub fn busybox(&self) -> Result<PathBuf, String> {
        let root = self.folder().join("busybox");
        for name in ["bin", "proc", "dev", "sys", "etc", "run", "tmp"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).map_err(|why| format!("no busybox: {why}"))?;
        Ok(root)
    }

    /// Runs a container with these options, the last of which are what it is made of and what it executes, and returns its
    /// id. An error says why it does not run here.
    pub fn run(&mut self, options: &[&str]) -> Result<String, String> {
        let mut why = String::new();
        // crun, podman's first choice, does not run where cgroups are hybrid.
        for runtime in [self.runtime, Some("runc")] {
            self.runtime = runtime;
            let output = self
                .command()
                .args(["run", "--detach", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"])
                .args(options)
                .output()
                .map_err(|why| format!("no podman: {why}"))?;
            if output.status.success() {
                self.runs = true;
                return Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned());
            }
            why = String::from_utf8_lossy(&output.stderr).into_owned();
            // What did not start is there all the same.
            if !self.runs {
                self.remove_all();
            }
        }
        Err(why)
    }

    /// What podman says of a container, by a Go template.
    pub fn inspect(&self, id: &str, format: &str) -> String {
        let printed = self.command().args(["inspect", "--format", format, id]).output().unwrap();
        String::from_utf8(printed.stdout).unwrap().trim().to_owned()
    }

    /// Tells a container to end, and waits for it.
    pub fn stop(&self, id: &str) {
        assert!(self.command().args(["stop", "--time=30", id]).output().unwrap().status.success());
    }

    fn remove_all(&self) {
        let _ = self.command().args(["rm", "--force", "--time=0", "--all"]).output();
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.remove_all();
    }
}
