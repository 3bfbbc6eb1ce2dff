//! tracefs, for the classic tracepoint: read where it is mounted, or for a moment in a mount namespace of our own.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::fs::statfs;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

const MOUNTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const EVENT: &str = "events/sock/inet_sock_set_state";
pub const FORMAT: &str = "events/sock/inet_sock_set_state/format";

/// include/uapi/linux/magic.h
const SYSFS_MAGIC: i64 = 0x6265_6572;
const TRACEFS_MAGIC: i64 = 0x7472_6163;

/// Whether the tracepoint exists, seen from a thread that [`visible`] runs.
pub fn has_tracepoint() -> bool {
    MOUNTS.iter().any(|mount| Path::new(mount).join(EVENT).is_dir())
}

/// The tracepoint's format, seen from a thread that [`visible`] runs.
///
/// # Errors
/// When it cannot be read.
pub fn format() -> io::Result<String> {
    /// Some 2 KiB are usual.
    const LARGEST: u64 = 64 << 10;
    let [tracing, debug] = MOUNTS.map(|mount| Path::new(mount).join(FORMAT));
    // Without the second one the error of the first is the one that tells something.
    let file = File::open(tracing).or_else(|why| File::open(debug).map_err(|_| why))?;
    io::read_to_string(file.take(LARGEST))
}

/// Runs `f` where tracefs can be seen.
///
/// Where tracefs is not mounted, `f` runs on a thread in a mount namespace of its own, where we mount it: attaching needs
/// tracefs only to read an id, and an agent must not change the host's mount table. A directory on which something else is
/// mounted was masked on purpose, and stays masked.
///
/// # Errors
/// When that namespace or mount is refused (CAP_SYS_ADMIN), or tracefs is masked.
pub fn visible<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T> {
    if has_tracepoint() {
        return Ok(f());
    }
    let [tracing, _] = MOUNTS;
    let mounted = statfs(tracing).with_context(|| format!("{tracing} does not exist"))?;
    #[allow(clippy::unnecessary_cast, reason = "f_type is not an i64 on every architecture")]
    let magic = mounted.f_type as i64;
    if magic == TRACEFS_MAGIC {
        // Mounted with mode 0700 by default.
        fs::read_dir(tracing).with_context(|| format!("{tracing} cannot be read"))?;
    }
    if magic != SYSFS_MAGIC {
        bail!("{tracing} shows no events");
    }
    thread::scope(|scope| {
        scope
            .spawn(|| {
                mount_here(tracing)
                    .map_err(io::Error::from)
                    .with_context(|| format!("tracefs is not mounted at {tracing}, and cannot be"))?;
                Ok(f())
            })
            .join()
            .unwrap_or_else(|_| bail!("the thread that reads tracefs panicked"))
    })
}

fn mount_here(tracing: &str) -> rustix::io::Result<()> {
    // SAFETY: unsharing the mount namespace concerns this thread alone (and unshares its fs_struct, which a thread
    // that only reads absolute paths does not notice).
    unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("tracefs", tracing, "tracefs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
}
