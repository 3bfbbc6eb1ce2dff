//! Tells Go programs by a section of their ELF file.
//!
//! The file may be hostile: reads are few and of fixed size, and nothing is allocated. So only the layout of the headers is
//! taken from `object`; its parser allocates as much as the file says it needs.

use std::fs::File;
use std::os::unix::fs::FileExt;

use object::LittleEndian;
use object::elf::{ELFCLASS64, ELFDATA2LSB, ELFMAG, FileHeader64, SectionHeader64};
use object::pod::{Pod, bytes_of_mut, from_bytes};

const LE: LittleEndian = LittleEndian;

/// Whether `exe` is an ELF file with the section `.go.buildinfo`, which Go's linker writes into every executable since 1.13.
pub fn is_go(exe: &File) -> bool {
    has_section(exe, b".go.buildinfo\0").unwrap_or(false)
}

/// Whether a section has this `name`, which ends with a zero; `None` for a file that is not ELF of 64 bits, little-endian, with
/// sections.
fn has_section<const N: usize>(exe: &File, name: &[u8; N]) -> Option<bool> {
    const MOST_SECTIONS: u16 = 4096;
    let header: FileHeader64<LittleEndian> = read(exe, 0)?;
    let (ident, count, names) = (header.e_ident, header.e_shnum.get(LE), header.e_shstrndx.get(LE));
    if (ident.magic, ident.class, ident.data) != (ELFMAG, ELFCLASS64, ELFDATA2LSB)
        || count > MOST_SECTIONS
        || names >= count
    {
        return None;
    }
    let section = |index: u16| -> Option<SectionHeader64<LittleEndian>> {
        let offset = u64::from(index) * size_of::<SectionHeader64<LittleEndian>>() as u64;
        read(exe, header.e_shoff.get(LE).checked_add(offset)?)
    };
    let names = section(names)?;
    let has_name = |index| {
        let at = u64::from(section(index)?.sh_name.get(LE));
        let fits = at.checked_add(N as u64)? <= names.sh_size.get(LE);
        Some(fits && read::<[u8; N]>(exe, names.sh_offset.get(LE).checked_add(at)?)? == *name)
    };
    Some((0..count).any(|index| has_name(index).unwrap_or(false)))
}

/// Reads a value of at most 64 bytes.
fn read<T: Pod>(exe: &File, at: u64) -> Option<T> {
    let mut words = [0_u64; 8];
    let bytes = bytes_of_mut(&mut words).get_mut(..size_of::<T>())?;
    exe.read_exact_at(bytes, at).ok()?;
    from_bytes(bytes).ok().map(|(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The size of the file header, and of a section header.
    const HEADER: usize = 64;

    #[test]
    fn a_go_program_is_known_by_its_section_and_no_file_is_trusted() {
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
