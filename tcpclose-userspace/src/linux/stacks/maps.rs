//! `/proc/PID/maps`: which file is mapped where.

use std::fs::File;
use std::io::{self, Read};

/// A mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// The offset in the file.
    pub offset: u64,
    pub is_executable: bool,
    pub inode: u64,
    /// As the kernel writes it: a path below the process's root, `[vdso]`, or empty.
    pub path: String,
}

impl Mapping {
    /// Whether a file is mapped, rather than memory.
    pub fn is_file(&self) -> bool {
        self.inode != 0 && self.path.starts_with('/')
    }

    /// Whether the file has no name any more. The kernel adds this to the path (fs/d_path.c, path_with_deleted()), and a path
    /// may end like this itself: such a file is taken for deleted.
    pub fn is_deleted(&self) -> bool {
        self.path.ends_with(" (deleted)")
    }

    /// The offset in the file of an address in this mapping.
    pub fn offset_of(&self, address: u64) -> u64 {
        (address - self.start).wrapping_add(self.offset)
    }
}

/// The mappings of a process, in order of their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps(Vec<Mapping>);

impl Maps {
    /// Reads the list of a process.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than 16 MiB.
    pub fn read(pid: u32) -> io::Result<Self> {
        const MOST: u64 = 16 << 20;
        let mut text = Vec::new();
        let length = File::open(format!("/proc/{pid}/maps"))?.take(MOST).read_to_end(&mut text)?;
        if length as u64 == MOST {
            return Err(io::Error::other("too many mappings"));
        }
        Ok(Self::parse(&text))
    }

    /// Parses the list; lines of another form are left out.
    pub fn parse(text: &[u8]) -> Self {
        Self(text.split(|&byte| byte == b'\n').filter_map(mapping).collect())
    }

    pub fn at(&self, address: u64) -> Option<&Mapping> {
        let at = self.0.partition_point(|mapping| mapping.end <= address);
        self.0.get(at).filter(|mapping| mapping.start <= address)
    }

    /// The mapping at `address`, if that is code.
    pub fn code_at(&self, address: u64) -> Option<&Mapping> {
        self.at(address).filter(|mapping| mapping.is_executable)
    }

    /// The first mapping of the file that `other` maps: where its headers are.
    pub fn start_of(&self, other: &Mapping) -> Option<&Mapping> {
        let is_same = |mapping: &&Mapping| {
            mapping.offset == 0 && mapping.inode == other.inode && mapping.path == other.path
        };
        // A file can be mapped twice; the nearest one below is its own.
        self.0.iter().filter(is_same).rfind(|mapping| mapping.start <= other.start)
    }
}

/// `start-end perms offset major:minor inode   path` (fs/proc/task_mmu.c, show_map_vma(), 5.8 to 6.18). A newline in a path is
/// written as `\012`.
fn mapping(line: &[u8]) -> Option<Mapping> {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = fields.next()?;
    let _device = fields.next()?;
    let inode = fields.next()?;
    let path = fields.next().unwrap_or_default().trim_start();
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = (hexadecimal(start)?, hexadecimal(end)?);
    (start < end).then_some(())?;
    Some(Mapping {
        start,
        end,
        offset: hexadecimal(offset)?,
        is_executable: permissions.as_bytes().get(2) == Some(&b'x'),
        inode: inode.parse().ok()?,
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = b"\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 1234                       /usr/bin/with blank\n\
55d0c0001000-55d0c0003000 r-xp 00001000 fe:00 1234                       /usr/bin/with blank\n\
7f0000000000-7f0000001000 rwxp 00000000 00:00 0 \n\
7f0000002000-7f0000003000 r-xp 00000000 fe:00 99                         /tmp/a\\012b (deleted)\n\
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]\n\
nonsense\n\
5-4 r-xp 00000000 00:00 0 \n";

    #[test]
    fn addresses_are_found_in_their_mappings() {
        let maps = Maps::parse(TEXT);
        assert_eq!(maps.0.len(), 5);
        let code = maps.code_at(0x55d0_c000_1234).unwrap();
        assert_eq!((code.path.as_str(), code.offset_of(0x55d0_c000_1234)), ("/usr/bin/with blank", 0x1234));
        assert_eq!(maps.start_of(code).unwrap().start, 0x55d0_c000_0000);
        assert!(maps.code_at(0x55d0_c000_0010).is_none());
        assert!(maps.at(0x55d0_c000_3000).is_none());
        assert!(maps.at(0).is_none() && maps.at(u64::MAX).is_none());
        let made = maps.code_at(0x7f00_0000_0fff).unwrap();
        assert!(!made.is_file() && !made.is_deleted());
        let deleted = maps.code_at(0x7f00_0000_2000).unwrap();
        assert!(deleted.is_file() && deleted.is_deleted());
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in vec(any::<u8>(), 0..512), address: u64) {
            let maps = Maps::parse(&[TEXT, &text].concat());
            if let Some(mapping) = maps.at(address) {
                mapping.offset_of(address);
                maps.start_of(mapping);
            }
        }
    }

    #[test]
    fn this_process_has_its_own_code_mapped() {
        let here = addresses_are_found_in_their_mappings as fn() as usize as u64;
        let maps = Maps::read(std::process::id()).unwrap();
        assert!(maps.code_at(here).unwrap().is_file());
    }
}
