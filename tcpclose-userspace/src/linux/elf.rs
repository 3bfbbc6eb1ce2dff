//! What an executable file says of the program in it. Anybody may write one: what is read of it is bounded, and nothing of
//! its size is allocated.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Whether `exe` is an ELF file with the section `.go.buildinfo`, which Go's linker writes into every executable since 1.13.
pub fn is_go(exe: &File) -> bool {
    section_names(exe).is_some_and(|names| names.find(exe, b".go.buildinfo\0"))
}

/// Where the names of an ELF file's sections stand.
struct SectionNames {
    /// Where the section headers begin, and how many there are.
    headers: u64,
    count: u16,
    /// Where the names begin, and how long all of them are.
    names: u64,
    length: u64,
}

/// `Elf64_Ehdr` and `Elf64_Shdr` are both of this size (include/uapi/linux/elf.h).
const HEADER: usize = 64;

/// Reads the file's header; `None` for what is no ELF file of 64 bits, little-endian, with sections.
fn section_names(exe: &File) -> Option<SectionNames> {
    const MOST_SECTIONS: u16 = 4096;
    let header = read::<HEADER>(exe, 0)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let headers = u64::from_le_bytes(field(&header, 0x28)?);
    let count = u16::from_le_bytes(field(&header, 0x3c)?);
    let index = u16::from_le_bytes(field(&header, 0x3e)?);
    if count > MOST_SECTIONS || index >= count {
        return None;
    }
    let names = read::<HEADER>(exe, headers.checked_add(u64::from(index) * HEADER as u64)?)?;
    let (offset, length) = (field(&names, 0x18)?, field(&names, 0x20)?);
    Some(SectionNames {
        headers,
        count,
        names: u64::from_le_bytes(offset),
        length: u64::from_le_bytes(length),
    })
}

impl SectionNames {
    /// Whether a section has this `name`, which ends with a zero.
    fn find<const N: usize>(&self, exe: &File, name: &[u8; N]) -> bool {
        (0..u64::from(self.count)).any(|section| self.is_called(exe, section, name).unwrap_or(false))
    }

    fn is_called<const N: usize>(&self, exe: &File, section: u64, name: &[u8; N]) -> Option<bool> {
        let header = read::<4>(exe, self.headers.checked_add(section * HEADER as u64)?)?;
        let at = u64::from(u32::from_le_bytes(header));
        if at.checked_add(N as u64)? > self.length {
            return None;
        }
        Some(read::<N>(exe, self.names.checked_add(at)?)? == *name)
    }
}

fn read<const N: usize>(exe: &File, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    exe.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_go_program_is_told_by_its_section_and_no_file_is_trusted() {
        let go = std::process::Command::new("sh").args(["-c", "command -v prometheus"]).output().unwrap();
        let go = String::from_utf8(go.stdout).unwrap();
        match go.trim() {
            "" => eprintln!("SKIPPED: no program in Go is here"),
            path => assert!(is_go(&File::open(path).unwrap())),
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hostile");
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        // e_shoff, e_shnum and e_shstrndx, and a file that is cut short.
        for (field, length) in
            [(0x28..0x30, own.len()), (0x3c..0x3e, own.len()), (0x3e..0x40, own.len()), (0..0, 100)]
        {
            let mut hostile = own.clone();
            hostile[field].fill(0xff);
            hostile.truncate(length);
            fs::write(&path, hostile).unwrap();
            assert!(!is_go(&File::open(&path).unwrap()));
        }
    }

    /// The smallest file that has the section: a header, two section headers, the names.
    #[test]
    fn a_section_is_found_by_its_name_alone() {
        let elf = |name: &[u8]| {
            let mut bytes = vec![0; 3 * HEADER];
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            bytes[0x28] = HEADER as u8;
            (bytes[0x3c], bytes[0x3e]) = (2, 1);
            bytes[2 * HEADER + 0x18] = 3 * HEADER as u8;
            bytes[2 * HEADER + 0x20] = name.len() as u8;
            bytes.extend_from_slice(name);
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("elf");
            fs::write(&path, bytes).unwrap();
            File::open(&path).unwrap()
        };
        assert!(is_go(&elf(b".go.buildinfo\0")));
        assert!(!is_go(&elf(b".go.buildinfos\0")) && !is_go(&elf(b".go.buildinfo")) && !is_go(&elf(b"")));
    }
}
