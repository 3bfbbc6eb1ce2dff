//! Links whose programs the kernel detaches on its own, after the process has ended.
//!
//! Detaching a trampoline's program waits for RCU: two grace periods a function in 6.1 (`ftrace_shutdown()`,
//! kernel/trace/ftrace.c), one in 5.8 to 5.11 (`bpf_trampoline_update()`, kernel/bpf/trampoline.c). A process that
//! closes the last reference to such a link waits, whatever signal has come: with all hooks 9 s in an emulated 6.1. So
//! each link is pinned in a bpf filesystem that is mounted nowhere. The filesystem and its files go with its last
//! descriptor, after RCU (`bpf_free_inode()`, kernel/bpf/inode.c), where a worker drops the link's last reference
//! (`bpf_link_put()`, kernel/bpf/syscall.c, 5.8 to 6.18).

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Result;
use aya::programs::links::FdLink;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Keeps links for as long as it lives.
#[derive(Debug)]
pub struct PinnedLinks {
    mount: OwnedFd,
    kept: usize,
}

impl PinnedLinks {
    /// # Errors
    /// Where this process is not allowed to mount (CAP_SYS_ADMIN).
    pub fn new() -> Result<Self> {
        let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
        Ok(Self { mount, kept: 0 })
    }

    /// Pins `link`.
    ///
    /// # Errors
    /// Where it cannot be pinned: then the link is closed, and its program is detached.
    pub fn keep(&mut self, link: FdLink) -> Result<()> {
        self.kept += 1;
        // The descriptor closes with this; the file keeps the link.
        link.pin(format!("/proc/self/fd/{}/{}", self.mount.as_raw_fd(), self.kept))?;
        Ok(())
    }
}
