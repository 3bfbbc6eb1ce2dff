//! The guest that boots Debian with systemd and the agent's unit, as a server does. systemd/check.sh is what it tests.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::guest::Guest;
use super::initramfs::Initramfs;
use super::kit::{self, Kernel};
use super::programs::{self, Job};
use super::read;
use crate::archive::Architecture;
use crate::{debian, sh};

/// What its root has besides the smallest Debian.
const INCLUDED: &str = "systemd-sysv";
/// Its root is unpacked into memory, and for a moment there twice.
const MEMORY: u32 = 2048;
/// Its name in the summary, which check.sh says too.
const NAME: &str = "systemd";

/// What `cargo xtask vm --systemd` does.
pub fn boot(kernels: &[Kernel], patience: Duration) -> Result<()> {
    let programs = programs::build(Architecture::Amd64)?.programs();
    let archive = debian::archive(&kit::folder()?, INCLUDED)?;
    let job = Job::new(NAME, Vec::new());
    let mut summary = super::Summary::default();
    for kernel in kernels {
        let guest = prepare(*kernel, &programs, &archive, patience)?;
        summary.run(*kernel, &job, &guest)?;
    }
    summary.end()
}

fn prepare(
    kernel: Kernel,
    programs: &[programs::Program],
    archive: &Path,
    patience: Duration,
) -> Result<Guest> {
    let busybox = kit::busybox(Architecture::Amd64)?;
    let mut root = Initramfs::new();
    root.file("/init", include_bytes!("systemd/init.sh"));
    root.file("/check.sh", include_bytes!("systemd/check.sh"));
    root.file("/check.service", include_bytes!("systemd/check.service"));
    root.file("/bin/busybox", &read(&busybox)?);
    root.link("/bin/sh", "busybox");
    super::put_modules(&mut root, kernel)?;
    for program in programs {
        root.file(&format!("/programs/{}", program.name), &read(&program.file)?);
    }
    let units = sh::workspace().join("deploy/systemd");
    for unit in ["tcpclose.service", "netns-current.conf", "allow-kill.conf"] {
        root.file(&format!("/unit/{unit}"), &read(&units.join(unit))?);
    }
    root.file("/debian.tar", &read(archive)?);
    super::guest(kernel, NAME, root, MEMORY, patience)
}
