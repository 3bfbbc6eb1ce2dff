//! The owners backend of the iterator over all tasks' files.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use aya::programs::Iter;
use aya::{Btf, Ebpf};

use crate::linux::owners::OwnersLookup;
use crate::linux::proc_fd::Urgency;
use crate::probe::backend::OwnersHook;
use crate::probe::errors::refusal;

/// `PROC_PID_INIT_INO` (include/linux/proc_ns.h, 5.8 to 6.18), the inode of the first PID namespace.
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Starts a search for owners by the backend `hook`.
pub fn lookup(ebpf: &mut Ebpf, hook: OwnersHook) -> OwnersLookup {
    if hook == OwnersHook::Proc {
        return OwnersLookup::Proc(Urgency::Leisurely);
    }
    open(ebpf).map(OwnersLookup::TaskFile).unwrap_or_else(|why| {
        log::warn!("the iterator over files cannot be opened: {why:#} (reading /proc instead)");
        OwnersLookup::Proc(Urgency::Leisurely)
    })
}

/// Loads the iterator. It runs only when a file of [`lookup`] is read.
///
/// # Errors
/// When the kernel lacks or refuses it, or when this process is in a PID namespace of its own: the iterator numbers
/// processes as the first one does.
pub fn load(ebpf: &mut Ebpf, btf: Option<&Btf>) -> Result<()> {
    let btf = btf.context("this kernel has no BTF")?;
    require_first_pid_namespace()?;
    program(ebpf)?.load("task_file", btf).map_err(refusal)
}

/// Programs number processes as the first PID namespace does.
///
/// # Errors
/// When this process is in another one.
pub fn require_first_pid_namespace() -> Result<()> {
    let namespace = fs::metadata("/proc/self/ns/pid").context("/proc/self/ns/pid cannot be read")?.ino();
    ensure!(namespace == FIRST_PID_NAMESPACE, "this process runs in a PID namespace of its own");
    Ok(())
}

/// Opens a pass over all files, which reading the file runs.
fn open(ebpf: &mut Ebpf) -> Result<File> {
    let program = program(ebpf)?;
    let link = program.attach()?;
    Ok(program.take_link(link)?.into_file()?)
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Iter> {
    Ok(ebpf.program_mut("task_file").context("no such program")?.try_into()?)
}
