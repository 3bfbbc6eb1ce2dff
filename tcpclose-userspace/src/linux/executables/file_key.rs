//! The identity of a file, read without opening it.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, StatxFlags, statx};

/// Device and inode of a file, whatever its names.
pub(super) type FileKey = (u32, u32, u64);

/// Identifies a regular file by what the kernel has cached: a file system that does not answer is not asked.
pub(super) fn file_key(at: impl AsFd, path: &str) -> Option<FileKey> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let there = statx(at, path, flags, StatxFlags::TYPE | StatxFlags::INO).ok()?;
    let is_file = FileType::from_raw_mode(there.stx_mode.into()) == FileType::RegularFile;
    is_file.then_some((there.stx_dev_major, there.stx_dev_minor, there.stx_ino))
}
