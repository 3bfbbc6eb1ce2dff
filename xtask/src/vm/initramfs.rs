//! The guest's root: a cpio archive ("newc", the one format that kernels unpack) made in memory.
//!
//! The same files make the same archive, byte for byte: no times, no owners, no inode numbers of this machine.

/// An archive being written.
pub struct Initramfs {
    archive: Vec<u8>,
    /// Where the kernel keeps apart what is one file with several names; here each has a number of its own.
    inode: u32,
    folders: Vec<String>,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

impl Initramfs {
    pub fn new() -> Self {
        Self { archive: Vec::new(), inode: 0, folders: Vec::new() }
    }

    /// A file that may be executed, as all may: at an absolute path whose folders are made.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.put(path, PROGRAM, content);
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.put(path, LINK, target.as_bytes());
    }

    fn put(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            let folder = &path[..end];
            if !self.folders.iter().any(|known| known == folder) {
                self.folders.push(folder.to_owned());
                self.entry(folder, FOLDER, &[]);
            }
        }
        self.entry(path, mode, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // Inode, mode, uid, gid, links, time, size, device, device of a device file, name's size, checksum.
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.archive.extend_from_slice(b"070701");
        for field in fields {
            self.archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.archive.extend_from_slice(name.as_bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }

    /// The archive, ended.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.archive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_cpio_reads() {
        let mut root = Initramfs::new();
        root.file("/init", b"#!/bin/sh\n");
        let archive = root.finish();
        let header = "070701\
            00000001000081ed0000000000000000000000010000000\
            00000000a00000000000000000000000000000000\
            0000000500000000";
        assert_eq!(std::str::from_utf8(&archive[..110]).unwrap(), header);
        // The name is padded with its header, the content by itself.
        assert_eq!(&archive[110..], [&b"init\0\0#!/bin/sh\n\0\0"[..], &archive[128..]].concat());
        assert!(archive[128..].starts_with(b"070701"));
    }

    #[test]
    fn folders_come_once_and_first() {
        let mut root = Initramfs::new();
        root.file("/a/b/one", b"1");
        root.link("/a/b/two", "one");
        let archive = root.finish();
        let text = String::from_utf8_lossy(&archive);
        let names: Vec<&str> =
            text.split("070701").skip(1).map(|entry| entry[104..].split('\0').next().unwrap()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two", "TRAILER!!!"]);
        assert_eq!(archive.len() % 4, 0);
    }
}
