//! A process that holds a socket, from /proc.
//!
//! No read here waits for that process or for a file system: the kernel makes the link `exe` from memory (fs/d_path.c),
//! and `comm`, `limits`, `stat`, `cgroup` and the directory `fd` take no lock that a process can keep. `cmdline`,
//! `environ` and `maps` take its mmap_lock and fault its pages in (fs/proc/base.c, get_mm_cmdline();
//! fs/proc/task_mmu.c, 5.8 to 6.18), so they are not read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use crate::linux::cgroup;
use crate::linux::cgroup::Workload;
use crate::names::{ProcessState, Runtime};

/// A process that holds at least one of the sockets asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// `/proc/PID/comm`, at most 15 bytes, as lossy UTF-8. It may hold any byte: escape it for a terminal.
    pub comm: String,
    /// The process that started it, or that it was left to; `None` where that is outside this PID namespace.
    pub parent: Option<u32>,
    /// The path of its executable below its own root, as lossy UTF-8; `None` where reading it is not allowed.
    pub exe: Option<String>,
    /// What executes its program; `None` where only its executable tells ([`crate::linux::executables`]) and that was not read.
    pub runs: Option<Runtime>,
    /// Why it did not act when it was looked at; `None` where it ran or waited as programs do.
    pub state: Option<ProcessState>,
    pub place: Workload,
    /// File descriptors in use; `None` where reading them is not allowed.
    pub fds_used: Option<u64>,
    /// The soft limit of open files; `None` when unlimited or unreadable.
    pub fds_limit: Option<u64>,
}

impl Process {
    /// Whether nothing is known of it.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the process `pid` without its executable; `None` when it has ended. From `until` on, only its name is read.
    pub fn read(pid: u32, until: Instant) -> Option<Self> {
        let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
        let comm = String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned();
        if Instant::now() >= until {
            return Some(Self { comm, ..Self::default() });
        }
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        let exe =
            fs::read_link(format!("/proc/{pid}/exe")).ok().map(|exe| exe.to_string_lossy().into_owned());
        let (parent, state) = stat(pid).map_or((None, None), |stat| (stat.parent, stat.state));
        Some(Self {
            comm,
            parent,
            state,
            runs: exe.as_deref().and_then(runs),
            exe,
            place: cgroup::of(pid),
            fds_used: open_files(pid, until),
            fds_limit: soft_limit(&limits),
        })
    }
}

/// The start of the process `pid`, nanoseconds since boot (suspends included), and its comm; `None` when it has ended.
pub fn started(pid: u32) -> Option<(u64, String)> {
    stat(pid).map(|Stat { comm, began_ns, .. }| (began_ns, comm))
}

/// The user whom the process `pid` runs as; `None` when it has ended.
pub fn uid(pid: u32) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}")).ok().map(|process| process.uid())
}

/// What is used of `/proc/PID/stat`.
struct Stat {
    comm: String,
    state: Option<ProcessState>,
    parent: Option<u32>,
    began_ns: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    /// USER_HZ, in which /proc counts (include/asm-generic/param.h).
    const TICK_NS: u64 = 10_000_000;
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The comm is in parentheses and may contain some itself.
    let (before, after) = stat.rsplit_once(')')?;
    let (_, comm) = before.split_once('(')?;
    let mut fields = after.split_ascii_whitespace();
    // Fields 3, state, 4, ppid, and 22, starttime: the first after the comm is the third.
    let state = fields.next()?.bytes().next().and_then(ProcessState::of_letter);
    let parent: u32 = fields.next()?.parse().ok()?;
    let ticks: u64 = fields.nth(17)?.parse().ok()?;
    let parent = (parent != 0).then_some(parent);
    Some(Stat { comm: comm.to_owned(), state, parent, began_ns: ticks.saturating_mul(TICK_NS) })
}

/// How many files `pid` has open. Since 6.2 the directory's size is their number (fs/proc/fd.c, `proc_fd_getattr()`); before,
/// they are counted. Of a process whose first thread has ended, another thread's files are taken. `None` when they are not
/// counted by `until`.
fn open_files(pid: u32, until: Instant) -> Option<u64> {
    let open = |task: &Path| {
        let files = task.join("fd");
        match fs::metadata(&files).ok()?.size() {
            0 => {
                let mut listed = fs::read_dir(&files).ok()?;
                let counted = listed.by_ref().take_while(|_| Instant::now() < until).count() as u64;
                (Instant::now() < until).then_some(counted)
            }
            size => Some(size),
        }
    };
    let process = format!("/proc/{pid}");
    match open(Path::new(&process))? {
        0 => {
            let threads = fs::read_dir(format!("{process}/task")).ok()?.flatten();
            let in_time = threads.take_while(|_| Instant::now() < until);
            in_time.filter_map(|thread| open(&thread.path())).max()
        }
        files => Some(files),
    }
}

/// The soft limit in the `Max open files` line of a `/proc/PID/limits`; `None` for `unlimited`.
fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The runtime that an executable of this name is; `None` where the name does not tell.
fn runs(exe: &str) -> Option<Runtime> {
    let exe = exe.strip_suffix(" (deleted)").unwrap_or(exe);
    let name = exe.rsplit('/').next().unwrap_or(exe);
    match name {
        "java" | "jsvc" => Some(Runtime::Jvm),
        "node" | "nodejs" => Some(Runtime::Node),
        _ if name.starts_with("python") || name.starts_with("pypy") => Some(Runtime::Python),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[test]
    fn this_process_is_described() {
        let own = Process::read(std::process::id(), later()).unwrap();
        assert!(!own.comm.is_empty() && !own.comm.ends_with('\n'));
        assert_eq!(own.exe, std::env::current_exe().unwrap().to_str().map(str::to_owned));
        assert_eq!(own.runs, None, "its name does not tell");
        assert_eq!(own.parent, Some(std::os::unix::process::parent_id()));
        assert!(
            own.fds_used.is_some_and(|used| used >= 3 && own.fds_limit.is_none_or(|limit| limit >= used))
        );
        assert_eq!(Process::read(u32::MAX, later()), None);
        let late = Process::read(std::process::id(), Instant::now()).unwrap();
        assert_eq!(late, Process { comm: own.comm, ..Process::default() });
    }

    #[test]
    fn a_process_started_before_now() {
        let (began_ns, comm) = started(std::process::id()).unwrap();
        let now_ns = crate::linux::host::uptime_ns();
        assert!(began_ns <= now_ns && began_ns > now_ns.saturating_sub(3_600_000_000_000));
        // The first thread's, as in comm.
        assert_eq!(comm, Process::read(std::process::id(), later()).unwrap().comm);
        assert_eq!(started(u32::MAX), None);
    }

    #[test]
    fn an_executables_name_tells_what_it_runs() {
        for (exe, expected) in [
            ("/usr/lib/jvm/java-17-openjdk-amd64/bin/java", Some(Runtime::Jvm)),
            ("/usr/bin/python3.11 (deleted)", Some(Runtime::Python)),
            ("/opt/pypy3", Some(Runtime::Python)),
            ("/usr/bin/node", Some(Runtime::Node)),
            ("/usr/bin/javac-like-name", None),
            ("", None),
        ] {
            assert_eq!(runs(exe), expected, "{exe}");
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
}
