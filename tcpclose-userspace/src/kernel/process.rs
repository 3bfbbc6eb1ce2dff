//! What /proc tells of a process that holds a socket.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::cgroup::{self, Place};

/// A process that holds at least one of the sockets asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// `/proc/PID/comm`, at most 15 bytes, as lossy UTF-8. A program may put any byte in: escape it for a terminal.
    pub comm: String,
    /// Where its executable lies, seen from its own root; `None` where that may not be read, as lossy UTF-8 otherwise.
    pub exe: Option<String>,
    /// What executes its program; `None` where the executable may not be read.
    pub runs: Option<Runs>,
    pub place: Place,
    /// File descriptors in use; `None` where that may not be read.
    pub fds_used: Option<u64>,
    /// The soft limit of open files; `None` when unlimited or unreadable.
    pub fds_limit: Option<u64>,
}

/// What executes a process's program, and so which tool shows its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    Jvm,
    Python,
    Go,
    /// Machine code, or what is none of the above.
    Native,
}

impl Runs {
    pub const ALL: [Self; 4] = [Self::Jvm, Self::Python, Self::Go, Self::Native];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Jvm => "jvm",
            Self::Python => "python",
            Self::Go => "go",
            Self::Native => "native",
        }
    }
}

impl Process {
    /// Whether nothing is known of it.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Reads what is known of the process `pid`; `None` when it has ended.
    pub fn read(pid: u32) -> Option<Self> {
        let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        let exe =
            fs::read_link(format!("/proc/{pid}/exe")).ok().map(|exe| exe.to_string_lossy().into_owned());
        Some(Self {
            comm: String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned(),
            runs: exe.as_deref().map(|exe| runs(exe, pid)),
            exe,
            place: cgroup::of(pid),
            fds_used: open_files(pid),
            fds_limit: soft_limit(&limits),
        })
    }
}

/// When the process `pid` started, nanoseconds since boot (suspends included), and its comm; `None` when it has ended.
pub fn started(pid: u32) -> Option<(u64, String)> {
    /// USER_HZ, in which /proc counts (include/asm-generic/param.h).
    const TICK_NS: u64 = 10_000_000;
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The comm stands in parentheses and may have some itself.
    let (before, after) = stat.rsplit_once(')')?;
    let (_, comm) = before.split_once('(')?;
    // Field 22, starttime: the 20th after the comm.
    let ticks: u64 = after.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some((ticks.saturating_mul(TICK_NS), comm.to_owned()))
}

/// How many files `pid` has open. Since 6.2 the directory's size says it (fs/proc/fd.c, `proc_fd_getattr()`); before,
/// it is counted. A process whose first thread has ended shows the files of another one.
fn open_files(pid: u32) -> Option<u64> {
    let open = |task: &Path| {
        let files = task.join("fd");
        match fs::metadata(&files).ok()?.size() {
            0 => Some(fs::read_dir(&files).ok()?.count() as u64),
            size => Some(size),
        }
    };
    let process = format!("/proc/{pid}");
    match open(Path::new(&process))? {
        0 => {
            let threads = fs::read_dir(format!("{process}/task")).ok()?.flatten();
            threads.filter_map(|thread| open(&thread.path())).max()
        }
        files => Some(files),
    }
}

/// The soft limit in the `Max open files` line of a `/proc/PID/limits`; `None` for `unlimited`.
fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// What the executable at `exe` of the process `pid` runs: told by its name, and for Go by a section that its linker
/// writes into every executable since 1.13.
fn runs(exe: &str, pid: u32) -> Runs {
    let exe = exe.strip_suffix(" (deleted)").unwrap_or(exe);
    let name = exe.rsplit('/').next().unwrap_or(exe);
    match name {
        "java" | "jsvc" => Runs::Jvm,
        _ if name.starts_with("python") || name.starts_with("pypy") => Runs::Python,
        _ if File::open(format!("/proc/{pid}/exe")).is_ok_and(is_go) => Runs::Go,
        _ => Runs::Native,
    }
}

/// Whether an ELF file has the section `.go.buildinfo`. Anybody may write an executable: what is read of it is bounded.
fn is_go(exe: File) -> bool {
    /// `Elf64_Ehdr` and `Elf64_Shdr` are both of this size (include/uapi/linux/elf.h).
    const HEADER: usize = 64;
    const MOST_SECTIONS: u16 = 4096;
    const LONGEST_NAMES: u64 = 1 << 20;
    fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
        bytes.get(at..at + N)?.try_into().ok()
    }
    let u16_at = |bytes: &[u8], at| field(bytes, at).map(u16::from_le_bytes);
    let u64_at = |bytes: &[u8], at| field(bytes, at).map(u64::from_le_bytes);
    let read = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        exe.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let has_section = || {
        let header = read(0, HEADER)?;
        // 64 bits, little-endian.
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let sections = u16_at(&header, 0x3c).filter(|n| *n <= MOST_SECTIONS)?;
        let table = read(u64_at(&header, 0x28)?, usize::from(sections) * HEADER)?;
        let (table, _) = table.as_chunks::<HEADER>();
        let names = table.get(usize::from(u16_at(&header, 0x3e)?))?;
        let length = u64_at(names, 0x20).filter(|length| *length <= LONGEST_NAMES)?;
        let names = read(u64_at(names, 0x18)?, length as usize)?;
        Some(table.iter().any(|section| {
            let name = field(section, 0).map(u32::from_le_bytes).and_then(|at| names.get(at as usize..));
            name.is_some_and(|name| name.starts_with(b".go.buildinfo\0"))
        }))
    };
    has_section().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described() {
        let own = Process::read(std::process::id()).unwrap();
        assert!(!own.comm.is_empty() && !own.comm.ends_with('\n'));
        assert_eq!(own.exe, std::env::current_exe().unwrap().to_str().map(str::to_owned));
        assert_eq!(own.runs, Some(Runs::Native));
        assert!(
            own.fds_used.is_some_and(|used| used >= 3 && own.fds_limit.is_none_or(|limit| limit >= used))
        );
        assert_eq!(Process::read(u32::MAX), None);
    }

    #[test]
    fn a_process_started_before_now() {
        let (began_ns, comm) = started(std::process::id()).unwrap();
        let now_ns = crate::kernel::host::uptime_ns();
        assert!(began_ns <= now_ns && began_ns > now_ns.saturating_sub(3_600_000_000_000));
        // The first thread's, as in comm.
        assert_eq!(comm, Process::read(std::process::id()).unwrap().comm);
        assert_eq!(started(u32::MAX), None);
    }

    #[test]
    fn an_executables_name_tells_what_it_runs() {
        let own = std::process::id();
        for (exe, expected) in [
            ("/usr/lib/jvm/java-17-openjdk-amd64/bin/java", Runs::Jvm),
            ("/usr/bin/python3.11 (deleted)", Runs::Python),
            ("/opt/pypy3", Runs::Python),
            ("/usr/bin/javac-like-name", Runs::Native),
            ("", Runs::Native),
        ] {
            assert_eq!(runs(exe, own), expected, "{exe}");
        }
    }

    #[test]
    fn the_soft_limit_is_read_from_its_line() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(soft_limit(limits), Some(1024));
        assert_eq!(soft_limit(&limits.replace("1024 ", "unlimited ")), None);
        assert_eq!(soft_limit(""), None);
    }

    #[test]
    fn a_go_program_is_told_by_its_section_and_no_file_is_trusted() {
        let go = std::process::Command::new("sh").args(["-c", "command -v prometheus"]).output().unwrap();
        let go = String::from_utf8(go.stdout).unwrap();
        match go.trim() {
            "" => eprintln!("SKIPPED: no program in Go is here"),
            path => assert!(is_go(File::open(path).unwrap())),
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
            assert!(!is_go(File::open(&path).unwrap()));
        }
    }
}
