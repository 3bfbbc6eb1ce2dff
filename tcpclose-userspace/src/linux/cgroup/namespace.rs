//! The cgroup namespace from which cgroup paths are read.
//!
//! `/proc/PID/cgroup` is written as the *reader's* cgroup namespace sees it (kernel/cgroup/cgroup.c,
//! proc_cgroup_show(), 5.8 to 6.18): relative to that namespace's root, and so without the part that the process has in
//! common with it. A container of an unprivileged pod has its own such namespace wherever cgroups are v2 (containerd:
//! internal/cri/server/container_create.go), and no field of a pod changes that. From there the uid of the own pod, and
//! Docker's name above its containers, cannot be seen.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// `PROC_CGROUP_INIT_INO` (include/linux/proc_ns.h, 5.8 to 6.18), the inode of the first cgroup namespace.
const FIRST: u64 = 0xefff_fffb;

/// Runs `f` where `/proc/PID/cgroup` shows whole paths: in the host's first cgroup namespace, or where /proc does not lead
/// there (a node that is a container itself), in that of process 1. That takes CAP_SYS_PTRACE and CAP_SYS_ADMIN; without them,
/// and in the first namespace, `f` runs in the caller's.
pub fn with_whole_paths<T: Send>(f: impl Fn() -> T + Sync) -> T {
    let Some(namespace) = wider() else { return f() };
    let there = || {
        if let Err(why) = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ControlGroup))
        {
            log::debug!("cannot enter the host's cgroup namespace: {why} (paths may be cut)");
        }
        f()
    };
    // On a thread that ends, so that none has to return to its namespace.
    let done = thread::scope(|scope| {
        let thread = thread::Builder::new().name("cgroupns".to_owned()).spawn_scoped(scope, there).ok()?;
        thread.join().ok()
    });
    done.unwrap_or_else(f)
}

/// Whether the caller's cgroup namespace hides a part of the paths.
pub fn is_narrow() -> bool {
    wider().is_some()
}

/// A cgroup namespace that shows more than the caller's.
fn wider() -> Option<File> {
    let inode = |path: &str| fs::metadata(path).ok().map(|meta| meta.ino());
    let ours = inode("/proc/thread-self/ns/cgroup")?;
    if ours == FIRST {
        return None;
    }
    // The host's init, whose namespace may be unreadable, and kthreadd, whose is not.
    let [init, kthreadd] = ["/proc/1/ns/cgroup", "/proc/2/ns/cgroup"];
    let first = [init, kthreadd].into_iter().find(|path| inode(path) == Some(FIRST));
    let another = || Some(init).filter(|init| inode(init).is_some_and(|inode| inode != ours));
    File::open(first.or_else(another)?).ok()
}
