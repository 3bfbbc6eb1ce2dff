//! The files that a process executes, opened through its own root, and each proven to be the one that it has mapped.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

use crate::linux::stacks::debug_file;
use crate::linux::stacks::frames::{Cut, Frame, RawStack, Stack};
use crate::linux::stacks::maps::{Mapping, Maps};
use crate::linux::stacks::module::{Module, Tables, hexadecimal};
use crate::linux::stacks::root::{open_below, open_held, root_of};
use crate::linux::stacks::system_call;
use crate::linux::stacks::unwind::{self, Code};

/// A file of a process.
enum Opened {
    Module(Box<Module>),
    /// Its build id, if memory shows one; the file itself is not to be had.
    Missing(Option<String>),
}

/// The mappings of a process, and its files as far as they were asked for.
pub struct ProcessFiles {
    pid: u32,
    maps: Maps,
    root: OwnedFd,
    memory: Option<File>,
    files: HashMap<(u64, String), Opened>,
    /// Bytes of tables that may still be read.
    left: u64,
}

/// The most files that are opened of one process.
const MOST_FILES: usize = 256;
/// The most bytes of their tables: the helper has 64 MiB in all, and needs a file's twice while it reads them.
const MOST_TABLES: u64 = 24 << 20;

impl ProcessFiles {
    /// # Errors
    /// When the process has ended, or may not be read.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            maps: Maps::read(pid)?,
            root: root_of(pid)?,
            memory: File::open(format!("/proc/{pid}/mem")).ok(),
            files: HashMap::new(),
            left: MOST_TABLES,
        })
    }

    /// Opens the files at the addresses that `stack` may lead to.
    pub fn open_for(&mut self, stack: &RawStack) {
        let addresses = [stack.ip, stack.lr].into_iter().chain(stack.found.iter().copied());
        for address in addresses.chain(stack.words.iter().copied()) {
            let Some(mapping) = self.maps.code_at(address).filter(|mapping| mapping.is_file()) else {
                continue;
            };
            let key = (mapping.inode, mapping.path.clone());
            if !self.files.contains_key(&key) && self.files.len() < MOST_FILES {
                let opened = self.open(&mapping.clone());
                if let Opened::Module(module) = &opened {
                    self.left = self.left.saturating_sub(module.tables().map_or(0, |tables| tables.size));
                }
                self.files.insert(key, opened);
            }
        }
    }

    /// The frames of a stack, with modules and offsets, but without names.
    pub fn frames(&self, stack: &RawStack) -> Stack {
        if !system_call::uses_sockets(stack.call) {
            return Stack { frames: Vec::new(), cut: Some(Cut::NoUserStack) };
        }
        self.walked(stack)
    }

    fn walked(&self, stack: &RawStack) -> Stack {
        let (addresses, cut) = unwind::frames(stack, self);
        let frames = addresses.iter().enumerate().map(|(nth, &address)| {
            // A return address may be behind the end of the function; the call is before it.
            let at = if nth == 0 { address } else { address - 1 };
            let Some(mapping) = self.maps.at(at) else { return Frame { offset: at, ..Frame::default() } };
            if mapping.is_file() {
                let build_id = match self.file_of(mapping) {
                    Some(Opened::Module(module)) => module.build_id.clone(),
                    Some(Opened::Missing(build_id)) => build_id.clone(),
                    None => None,
                };
                let (module, offset) = (Some(mapping.path.clone()), mapping.offset_of(at));
                return Frame { module, offset, build_id, ..Frame::default() };
            }
            let module = Some(mapping.path.clone()).filter(|path| path.starts_with("[v"));
            Frame { offset: at, module, ..Frame::default() }
        });
        Stack { frames: frames.collect(), cut }
    }

    /// The file of a frame, if it is to be had.
    pub fn module(&self, frame: &Frame) -> Option<&Module> {
        let path = frame.module.as_ref()?;
        self.files.iter().find_map(|((_, of), opened)| match opened {
            Opened::Module(module) if of == path && module.build_id == frame.build_id => Some(&**module),
            _ => None,
        })
    }

    fn file_of(&self, mapping: &Mapping) -> Option<&Opened> {
        self.files.get(&(mapping.inode, mapping.path.clone()))
    }

    fn open(&self, mapping: &Mapping) -> Opened {
        let in_memory = self.build_id_in_memory(mapping);
        let checked = |file: File| {
            let module = Module::read(file, self.left)?;
            let is_it = match (&in_memory, &module.build_id) {
                (Some(mapped), on_disk) => on_disk.as_ref() == Some(mapped),
                (None, _) => self.begins_as(mapping, module.file()),
            };
            if is_it { Ok(module) } else { Err(io::Error::other("another file")) }
        };
        // By its path an executable may be another one by now: an upgrade.
        let found = self.open_executable(mapping).and_then(checked);
        let by_path = || {
            let file = self.open_path(&mapping.path)?;
            // Device numbers of mappings and of stat() differ on overlayfs and btrfs; the build id tells.
            if in_memory.is_none() && fstat(&file)?.st_ino & INODE != mapping.inode & INODE {
                return Err(io::Error::other("another file"));
            }
            checked(file)
        };
        let found = found
            .or_else(|_| if mapping.is_deleted() { Err(io::ErrorKind::NotFound.into()) } else { by_path() });
        let Ok(mut module) = found else { return Opened::Missing(in_memory) };
        module.debug = debug_file::find(&module, &mapping.path, &self.root);
        Opened::Module(Box::new(module))
    }

    /// Opens a path below the process's root, without following links out of it, and without waiting.
    pub fn open_path(&self, path: &str) -> io::Result<File> {
        open_below(&self.root, path)
    }

    /// Opens a mapped file whatever became of its name, if it is the process's executable. Others are in `/proc/PID/map_files`, which
    /// takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
    fn open_executable(&self, mapping: &Mapping) -> io::Result<File> {
        let executable = format!("/proc/{}/exe", self.pid);
        let held = openat(CWD, &executable, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        // Both are written by d_path(); a mapping's has newlines escaped.
        let leads_to = std::fs::read_link(&executable)?;
        let is_it = leads_to.to_string_lossy().replace('\n', "\\012") == mapping.path;
        if is_it { open_held(&held) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Whether the memory of a mapped file begins as `file` does: for files without a build id. Go's have another id there.
    fn begins_as(&self, mapping: &Mapping, file: &File) -> bool {
        const BEGINNING: usize = 4096;
        let read = |file: &File, at: u64| {
            let mut bytes = vec![0; BEGINNING];
            let length = file.read_at(&mut bytes, at).ok()?;
            bytes.truncate(length);
            Some(bytes)
        };
        let begins = |start: &Mapping| {
            let in_memory = read(self.memory.as_ref()?, start.start)?;
            // Memory is read by whole pages; behind the end of a file it is zero.
            let on_disk = read(file, 0)?;
            let rest = in_memory.get(on_disk.len()..)?;
            Some(in_memory.starts_with(&on_disk) && rest.iter().all(|&byte| byte == 0))
        };
        self.maps.start_of(mapping).and_then(begins).unwrap_or(false)
    }

    /// The build id of what is mapped.
    fn build_id_in_memory(&self, mapping: &Mapping) -> Option<String> {
        let start = self.maps.start_of(mapping)?.start;
        build_id(self.memory.as_ref()?, start)
    }
}

/// The bits of an inode number that are its own: overlayfs marks layers in the upper ones.
const INODE: u64 = (1 << 48) - 1;

impl Code for ProcessFiles {
    fn is_code(&self, address: u64) -> bool {
        self.maps.code_at(address).is_some()
    }

    fn tables(&self, address: u64) -> Option<(&Tables, u64)> {
        let mapping = self.maps.code_at(address)?;
        let Some(Opened::Module(module)) = self.file_of(mapping) else { return None };
        Some((module.tables()?, module.address(mapping.offset_of(address))?))
    }
}

/// Reads the build id of the 64-bit ELF image at `start` of a process's memory.
fn build_id(memory: &File, start: u64) -> Option<String> {
    /// include/uapi/linux/elf.h.
    const PT_NOTE: u32 = 4;
    const NT_GNU_BUILD_ID: u32 = 3;
    const MOST_HEADERS: usize = 64;
    const MOST_NOTES: u64 = 4096;
    let read = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        memory.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let number = |bytes: &[u8], at: usize, width: usize| -> Option<u64> {
        let bytes = bytes.get(at..at + width)?;
        Some(bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    };
    // struct elf64_hdr: e_phoff, e_phentsize, e_phnum.
    let header = read(start, 64)?;
    if !header.starts_with(b"\x7fELF\x02\x01") || number(&header, 54, 2)? != 56 {
        return None;
    }
    let count = usize::try_from(number(&header, 56, 2)?).ok()?.min(MOST_HEADERS);
    let programs = read(start.checked_add(number(&header, 32, 8)?)?, 56 * count)?;
    for program in programs.chunks_exact(56) {
        // struct elf64_phdr: p_type, p_offset, p_filesz. Notes are in the first segment, which begins with the file.
        if number(program, 0, 4)? != u64::from(PT_NOTE) {
            continue;
        }
        let (offset, size) = (number(program, 8, 8)?, number(program, 32, 8)?.min(MOST_NOTES));
        let Some(notes) = read(start.checked_add(offset)?, usize::try_from(size).ok()?) else { continue };
        let mut notes = notes.as_slice();
        while let (Some(name), Some(length), Some(kind)) =
            (number(notes, 0, 4), number(notes, 4, 4), number(notes, 8, 4))
        {
            let (name, length) = (usize::try_from(name).ok()?, usize::try_from(length).ok()?);
            let at = 12 + name.next_multiple_of(4);
            let Some(content) = notes.get(at..at.checked_add(length)?) else { break };
            if kind == u64::from(NT_GNU_BUILD_ID) && notes.get(12..16) == Some(b"GNU\0") {
                return Some(hexadecimal(content));
            }
            notes = notes.get(at + length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tcpclose_common::stack::{FRAMES, WORDS};

    use super::*;

    /// An address in this process's code, or any number.
    fn address() -> impl Strategy<Value = u64> {
        let here = address as fn() -> _ as usize as u64;
        prop_oneof![
            Just(0),
            any::<u64>(),
            (0..1_u64 << 20).prop_map(move |off| here.wrapping_sub(1 << 19) + off)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_stack_is_too_strange(
            (ip, sp, fp, lr) in (address(), any::<u64>(), any::<u64>(), address()),
            found in vec(address(), 0..FRAMES),
            words in vec(address(), 0..WORDS),
        ) {
            let mut files = ProcessFiles::of(std::process::id()).unwrap();
            for sp in [sp, fp, fp.wrapping_sub(64)] {
                let stack =
                    RawStack { ip, sp, fp, lr, call: 0, found: found.clone(), found_all: true, words: words.clone() };
                files.open_for(&stack);
                prop_assert!(files.walked(&stack).frames.len() <= FRAMES);
                files.frames(&stack);
            }
        }
    }

    #[test]
    fn this_program_is_the_file_that_it_has_mapped() {
        let here = this_program_is_the_file_that_it_has_mapped as fn() as usize as u64;
        let mut files = ProcessFiles::of(std::process::id()).unwrap();
        files.open_for(&RawStack { ip: here, ..RawStack::default() });
        let stack = files.walked(&RawStack { ip: here, ..RawStack::default() });
        let frame = stack.frames.first().unwrap();
        let module = files.module(frame).expect("it can be opened");
        let mapping = files.maps.code_at(here).unwrap();
        assert_eq!(module.build_id, files.build_id_in_memory(mapping));
        assert!(files.tables(here).is_some());
    }
}
