//! Real cgroups, of whatever names, for as long as a test needs them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// How many this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A folder of cgroups of our own, at the root of a hierarchy; removed when dropped.
pub struct Cgroups {
    pub root: PathBuf,
    made: Vec<PathBuf>,
}

impl Cgroups {
    /// One in each hierarchy in which systemd would place units, where they can be made.
    pub fn of_each_hierarchy() -> Vec<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let hierarchies = mounts.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let systemds =
                fields[2] == "cgroup2" || fields[2] == "cgroup" && fields[3].contains("name=systemd");
            systemds.then(|| PathBuf::from(fields[1]))
        });
        // Tests of one process run at the same time.
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        hierarchies
            .filter_map(|mount| {
                let root = mount.join(format!("tcpclose_{}_{number}.slice", std::process::id()));
                match fs::create_dir(&root) {
                    Ok(()) => Some(Self { made: vec![root.clone()], root }),
                    Err(why) => {
                        eprintln!("SKIPPED: no cgroup in {}: {why}", mount.display());
                        None
                    }
                }
            })
            .collect()
    }

    /// Moves the process `pid` into the cgroup `path` below our own, made where it is not there.
    pub fn take(&mut self, pid: u32, path: &OsStr) {
        let folder = self.make(path);
        fs::write(folder.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// The cgroup `path` below our own.
    pub fn make(&mut self, path: &OsStr) -> PathBuf {
        let mut folder = self.root.clone();
        for part in Path::new(path) {
            folder.push(part);
            if !folder.exists() {
                fs::create_dir(&folder).unwrap();
                self.made.push(folder.clone());
            }
        }
        folder
    }

    /// Moves this process out of them, to the root of the hierarchy.
    pub fn leave(&self) {
        let procs = self.root.with_file_name("cgroup.procs");
        fs::write(procs, std::process::id().to_string()).unwrap();
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for folder in self.made.iter().rev() {
            // Processes in it may take a moment to be gone.
            for _ in 0..100 {
                if fs::remove_dir(folder).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}
