//! Every process's open files, by a walk over /proc/PID/fd.
//!
//! Threads share their process's files, so one directory a process is read. A thread that has taken a file table of
//! its own (`unshare(CLONE_FILES)`) is not looked into: what it alone holds is not seen.
//!
//! To see another user's files both CAP_DAC_READ_SEARCH (or CAP_DAC_OVERRIDE) and CAP_SYS_PTRACE are needed: the
//! directory is 0500 and its owner's (fs/proc/fd.c, `proc_fd_permission()`), and following an entry is a ptrace
//! access (fs/proc/base.c, `proc_pid_readlink()`, 5.8 to 6.18).

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw};
use rustix::io::Errno;

/// Calls `visit` with pid, descriptor and link of each open file of each process. Returns how many processes there are whose
/// files the caller may not see.
///
/// # Errors
/// When /proc cannot be read. A process that ends meanwhile is left out.
pub fn each(mut visit: impl FnMut(u32, u32, &[u8])) -> io::Result<u32> {
    let mut denied = 0;
    let proc = open_directory(CWD, c"/proc")?;
    for_each_number(&proc, |name, pid| {
        match of_process(&proc, name, pid, &mut |fd, target| visit(pid, fd, target)) {
            Ok(_) => {}
            Err(Errno::ACCESS | Errno::PERM) => denied += 1,
            // It has ended.
            Err(_) => {}
        }
    })?;
    Ok(denied)
}

/// Visits what one process holds, and returns how many files it has open.
fn of_process(
    proc: &OwnedFd,
    name: &CStr,
    pid: u32,
    visit: &mut impl FnMut(u32, &[u8]),
) -> Result<u64, Errno> {
    let process = open_directory(proc, name)?;
    let open = of_task(&process, visit)?;
    if open > 0 {
        return Ok(open);
    }
    // A process whose first thread has ended shows no files under its own number, though its other threads hold
    // them (fs/proc/fd.c, proc_readfd_common(): the task's own file table, which exit_files() took).
    let tasks = open_directory(&process, c"task")?;
    let mut open = 0;
    for_each_number(&tasks, |name, tid| {
        if tid != pid
            && open == 0
            && let Ok(task) = open_directory(&tasks, name)
            && let Ok(seen) = of_task(&task, visit)
        {
            open = seen;
        }
    })?;
    Ok(open)
}

fn of_task(task: &OwnedFd, visit: &mut impl FnMut(u32, &[u8])) -> Result<u64, Errno> {
    let directory = open_directory(task, c"fd")?;
    let mut open = 0;
    let mut denied = false;
    for_each_number(&directory, |name, fd| {
        open += 1;
        let mut target = [MaybeUninit::uninit(); 64];
        match readlinkat_raw(&directory, name, &mut target) {
            Ok((target, _)) => visit(fd, target),
            Err(error) => denied |= matches!(error, Errno::ACCESS | Errno::PERM),
        }
    })?;
    if denied { Err(Errno::ACCESS) } else { Ok(open) }
}

/// N of `kind:[N]`. The kernel numbers sockets and namespaces by unsigned ints (net/socket.c, sock_alloc();
/// include/linux/ns_common.h, 5.8 to 6.18).
pub fn inode_of(kind: &str, target: &[u8]) -> Option<u32> {
    let rest = str::from_utf8(target).ok()?.strip_prefix(kind)?;
    rest.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

fn open_directory(at: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Calls `visit` with each entry whose name is a number.
fn for_each_number(directory: &OwnedFd, mut visit: impl FnMut(&CStr, u32)) -> Result<(), Errno> {
    let mut buffer = [MaybeUninit::uninit(); 8 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(number) = name.to_str().ok().and_then(|name| name.parse().ok()) {
            visit(name, number);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_texts() {
        assert_eq!(inode_of("socket", b"socket:[12345]"), Some(12345));
        assert_eq!(inode_of("net", b"net:[4026531840]"), Some(4_026_531_840));
        for other in
            [&b"pipe:[12345]"[..], b"socket:[]", b"socket:[1", b"socket:[-1]", b"socket", b"/x\xff", b""]
        {
            assert_eq!(inode_of("socket", other), None);
        }
    }
}
