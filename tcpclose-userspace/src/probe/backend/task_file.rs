//! The ladder of owners. Its first backend is the iterator over all tasks' files.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use aya::programs::Iter;
use aya::{Btf, Ebpf};

use crate::failure::Failure;
use crate::linux::owners::OwnersLookup;
use crate::linux::proc_fd::Urgency;
use crate::probe::{reason, refused};

/// `PROC_PID_INIT_INO` (include/linux/proc_ns.h, 5.8 to 6.18), the inode of the first PID namespace.
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// The backends of the `owners` ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnersHook {
    /// The iterator over all tasks' files.
    TaskFile,
    /// A walk over /proc.
    Proc,
}

impl OwnersHook {
    pub const fn name(self) -> &'static str {
        match self {
            Self::TaskFile => "task_file",
            Self::Proc => "proc",
        }
    }
}

/// Loads the backend `only`, or the best that loads. Returns it, and why it is not the better one.
///
/// # Errors
/// When the backend that is asked for does not load.
pub fn choose(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    only: Option<OwnersHook>,
) -> Result<(OwnersHook, Option<String>), Failure> {
    if only == Some(OwnersHook::Proc) {
        return Ok((OwnersHook::Proc, None));
    }
    match (load(ebpf, btf), only) {
        (Ok(()), _) => Ok((OwnersHook::TaskFile, None)),
        (Err(why), None) => Ok((OwnersHook::Proc, Some(format!("owners task_file: {}", reason(&why))))),
        (Err(why), Some(_)) => {
            let todo = "try --owners auto or proc";
            Err(Failure::new("no iterator over files can be loaded", reason(&why), todo))
        }
    }
}

/// How to look for owners now, by the backend `hook`.
pub fn look(ebpf: &mut Ebpf, hook: OwnersHook) -> OwnersLookup {
    if hook == OwnersHook::Proc {
        return OwnersLookup::Proc(Urgency::Leisurely);
    }
    open(ebpf).map(OwnersLookup::TaskFile).unwrap_or_else(|why| {
        log::warn!("the iterator over files cannot be opened, /proc is read instead: {why:#}");
        OwnersLookup::Proc(Urgency::Leisurely)
    })
}

/// Loads the iterator. It runs only when a file of [`open`] is read.
///
/// # Errors
/// When the kernel lacks or refuses it, or when this process is in a PID namespace of its own: the iterator numbers
/// processes as the first one does.
fn load(ebpf: &mut Ebpf, btf: Option<&Btf>) -> Result<()> {
    let btf = btf.context("this kernel has no BTF")?;
    let namespace = fs::metadata("/proc/self/ns/pid").context("/proc/self/ns/pid cannot be read")?.ino();
    ensure!(namespace == FIRST_PID_NAMESPACE, "this process runs in a PID namespace of its own");
    program(ebpf)?.load("task_file", btf).map_err(refused)
}

/// Begins a pass. Reading the file makes it.
fn open(ebpf: &mut Ebpf) -> Result<File> {
    let program = program(ebpf)?;
    let link = program.attach()?;
    Ok(program.take_link(link)?.into_file()?)
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Iter> {
    Ok(ebpf.program_mut("task_file").context("no such program")?.try_into()?)
}
