//! A real container: podman, from a root directory with nothing in it but busybox.

use std::fs;
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::PATIENCE;
use super::common::free_port;
use super::stage::{Askers, only};

/// A running container; removed when dropped.
struct Container {
    id: String,
    runtime: Option<&'static str>,
    folder: TempDir,
}

impl Container {
    /// Runs `command` of busybox in the host's network namespace and in others of its own. An error says why that cannot
    /// be here.
    fn run(command: &[&str]) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        for name in ["bin", "proc", "dev", "sys", "etc", "run", "tmp"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).map_err(|why| format!("no busybox: {why}"))?;
        let mut container = Self { id: String::new(), runtime: None, folder };
        // crun, podman's first choice, does not run where cgroups are hybrid.
        let mut why = String::new();
        for runtime in [None, Some("runc")] {
            container.runtime = runtime;
            let output = container
                .podman()
                .args(["run", "--detach", "--network=host"])
                .args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--rootfs"])
                .arg(&root)
                .args([&["/bin/busybox"], command].concat())
                .output()
                .map_err(|why| format!("no podman: {why}"))?;
            if output.status.success() {
                container.id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
                return Ok(container);
            }
            why = String::from_utf8_lossy(&output.stderr).into_owned();
            container.remove();
        }
        Err(why)
    }

    /// podman with all that it keeps in our folder.
    fn podman(&self) -> Command {
        let mut podman = Command::new("podman");
        podman.arg("--root").arg(self.folder.path().join("storage"));
        podman.arg("--runroot").arg(self.folder.path().join("run"));
        podman.args(["--cgroup-manager=cgroupfs", "--events-backend=file", "--storage-driver=vfs"]);
        podman.args(self.runtime.map(|runtime| format!("--runtime={runtime}")));
        podman
    }

    fn remove(&self) -> Option<Output> {
        self.podman().args(["rm", "--force", "--time=0", "--all"]).output().ok()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.remove();
    }
}

#[test]
fn a_real_containers_process_is_named_with_its_container() {
    let Some(askers) = Askers::start() else { return };
    if !Path::new("/usr/bin/podman").exists() {
        eprintln!("SKIPPED: podman is not installed");
        return;
    }
    let port = free_port();
    // Its child gets the connection as its standard input, and never reads.
    let container =
        match Container::run(&["nc", "-l", "-p", &port.to_string(), "-e", "/bin/busybox", "sleep", "1000"]) {
            Ok(container) => container,
            Err(why) => {
                eprintln!("SKIPPED: no container runs here: {why}");
                return;
            }
        };
    let until = Instant::now() + PATIENCE;
    let client = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(client) => break client,
            Err(why) => assert!(Instant::now() < until, "the container does not listen: {why}"),
        }
        sleep(Duration::from_millis(50));
    };
    client.shutdown(Shutdown::Write).unwrap();
    let has_owner = |answers: &[(&str, tcpclose_userspace::query::document::Document)]| {
        answers.iter().all(|(_, document)| document.sockets.iter().any(|socket| socket.inode != 0))
    };
    while !has_owner(&askers.ask(port)) {
        assert!(Instant::now() < until, "no socket in CLOSE-WAIT");
    }
    for (asker, document) in askers.ask(port) {
        let owners = &only(&document).owners;
        assert!(!owners.is_empty(), "{asker}");
        for owner in owners {
            println!("{asker}: {owner:?}");
            assert_eq!(owner.place.container_id, Some(format!("podman://{}", container.id)), "{asker}");
            assert_eq!(owner.exe.as_deref(), Some("/bin/busybox"), "{asker}");
            assert_eq!((&owner.place.unit, &owner.place.pod_uid), (&None, &None), "{asker}");
        }
    }
}
