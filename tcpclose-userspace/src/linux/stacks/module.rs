//! A file whose code a process executes: its build id, its segments, and its tables for unwinding.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use gimli::{BaseAddresses, EhFrame, EhFrameHdr, EndianArcSlice, LittleEndian, ParsedEhFrameHdr};
use object::elf::FileHeader64;
use object::read::elf::ElfFile;
use object::{Endianness, Object, ObjectSection, ObjectSegment, ReadCache};

/// The bytes of a section.
type Bytes = EndianArcSlice<LittleEndian>;

/// An opened file, and what unwinding needs of it.
pub struct Module {
    file: File,
    pub build_id: Option<String>,
    /// Where its debugging information is, if that is another file.
    pub debug: Option<DebugFile>,
    /// It has debugging information.
    pub has_debug: bool,
    /// Its debugging information, or a part of it, is in another file, whose path it says.
    pub leads_elsewhere: bool,
    /// The name of the file with its debugging information, and the CRC of that.
    pub debug_link: Option<(String, u32)>,
    /// Offset in the file, size there, address.
    segments: Vec<(u64, u64, u64)>,
    tables: Option<Tables>,
}

/// A file with the debugging information of another one.
pub struct DebugFile {
    pub module: Box<Module>,
    /// It is root's, so that the paths in it may be followed.
    pub is_trusted: bool,
}

/// `.eh_frame` and its index.
pub struct Tables {
    /// The bytes of both.
    pub size: u64,
    pub frames: EhFrame<Bytes>,
    pub index: Option<ParsedEhFrameHdr<Bytes>>,
    pub bases: BaseAddresses,
}

impl Module {
    /// Reads the headers of an ELF file, and its tables if they have at most so many bytes.
    ///
    /// # Errors
    /// When it is no 64-bit ELF file, or cannot be read.
    pub fn read(file: File, most: u64) -> io::Result<Self> {
        let cache = ReadCache::new(file.try_clone()?);
        let is_there =
            |elf: &Elf<'_>, names: &[&str]| names.iter().any(|name| elf.section_by_name(name).is_some());
        let (build_id, segments, tables, has_debug, leads_elsewhere, debug_link) = {
            let elf = ElfFile::<FileHeader64<Endianness>, _>::parse(&cache).map_err(io::Error::other)?;
            let build_id = elf.build_id().ok().flatten().map(hexadecimal);
            let segments = elf.segments().map(|segment| {
                let (offset, size) = segment.file_range();
                (offset, size, segment.address())
            });
            let has_debug = is_there(&elf, &[".debug_info", ".zdebug_info"]);
            let leads_elsewhere = is_there(&elf, &[".gnu_debuglink", ".gnu_debugaltlink", ".debug_sup"]);
            let link = elf.gnu_debuglink().ok().flatten();
            let link = link.map(|(name, crc)| (String::from_utf8_lossy(name).into_owned(), crc));
            (build_id, segments.collect(), tables(&elf, most), has_debug, leads_elsewhere, link)
        };
        Ok(Self { file, build_id, debug: None, has_debug, leads_elsewhere, debug_link, segments, tables })
    }

    pub const fn file(&self) -> &File {
        &self.file
    }

    /// A path that leads to this very file, whatever became of its name.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// The address that the file says its byte at `offset` has.
    pub fn address(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|&(start, size, address)| {
            let into = offset.checked_sub(start).filter(|into| *into < size)?;
            address.checked_add(into)
        })
    }

    pub const fn tables(&self) -> Option<&Tables> {
        self.tables.as_ref()
    }
}

type Elf<'data> = ElfFile<'data, FileHeader64<Endianness>, &'data ReadCache<File>>;

fn tables(elf: &Elf<'_>, most: u64) -> Option<Tables> {
    let section = |name: &str| {
        let section = elf.section_by_name(name).filter(|section| section.size() <= most)?;
        let bytes = Bytes::new(section.data().ok()?.into(), LittleEndian);
        Some((bytes, section.address()))
    };
    let (bytes, at) = section(".eh_frame")?;
    let mut size = bytes.len() as u64;
    let mut bases = BaseAddresses::default().set_eh_frame(at);
    if let Some(text) = elf.section_by_name(".text") {
        bases = bases.set_text(text.address());
    }
    let mut frames = EhFrame::from(bytes);
    frames.set_address_size(8);
    let index = section(".eh_frame_hdr").and_then(|(bytes, at)| {
        size += bytes.len() as u64;
        bases = bases.clone().set_eh_frame_hdr(at);
        EhFrameHdr::from(bytes).parse(&bases, 8).ok()
    });
    Some(Tables { size, frames, index, bases })
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
