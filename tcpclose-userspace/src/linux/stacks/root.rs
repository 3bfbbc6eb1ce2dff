//! Opens files of other processes, which may lead anywhere: only regular ones, without waiting.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};

/// The root of a process, which its paths begin at.
pub fn root_of(pid: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, format!("/proc/{pid}/root"), flags, Mode::empty())?)
}

/// Opens a path below `root`, without following links out of it, and without waiting.
pub fn open_below(root: &OwnedFd, path: &str) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    open_held(&openat2(root, path, flags, Mode::empty(), resolve)?)
}

/// Opens for reading what is held by its path. The kind is checked before, since opening would start a device and wait for a pipe.
pub fn open_held(held: &OwnedFd) -> io::Result<File> {
    if FileType::from_raw_mode(fstat(held)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(openat(CWD, format!("/proc/self/fd/{}", held.as_raw_fd()), flags, Mode::empty())?.into())
}
