//! The kernel's run statistics of eBPF programs: runs, run time, and skipped runs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

/// The run statistics of one program, or of several together (kernel/bpf/syscall.c, bpf_prog_show_fdinfo).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramStats {
    /// `run_cnt`: counted only while run statistics are on (`kernel.bpf_stats_enabled`).
    pub count: u64,
    /// `run_time_ns`, likewise.
    pub ns: u64,
    /// `recursion_misses`, since 5.12: runs that were skipped because it was already running on that CPU.
    pub missed: u64,
}

impl ProgramStats {
    /// The sums over `programs`.
    pub fn of(programs: &[OwnedFd]) -> Self {
        let mut sum = Self::default();
        for program in programs {
            let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
            let one = Self::parse(&fs::read_to_string(path).unwrap_or_default());
            sum.count += one.count;
            sum.ns += one.ns;
            sum.missed += one.missed;
        }
        sum
    }

    /// The fdinfo files of every program that a process holds, by program id.
    ///
    /// # Errors
    /// When the process is gone, or belongs to another user.
    pub fn files(pid: u32) -> io::Result<BTreeMap<u32, PathBuf>> {
        let mut files = BTreeMap::new();
        for file in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            let path = file?.path();
            // The descriptor may be closed by now.
            let text = fs::read_to_string(&path).unwrap_or_default();
            let id = text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
            // A link's fdinfo names its program too, but has no run count.
            if let Some(id) = id.filter(|_| text.contains("run_cnt:")) {
                files.insert(id, path);
            }
        }
        Ok(files)
    }

    /// Fields that the fdinfo lacks are 0.
    pub fn parse(fdinfo: &str) -> Self {
        let field = |name| {
            let value = fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        Self { count: field("run_cnt"), ns: field("run_time_ns"), missed: field("recursion_misses") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fdinfo_of_any_age_is_read() {
        let new = "pos:\t0\nprog_type:\t26\nrun_time_ns:\t1500\nrun_cnt:\t20\nrecursion_misses:\t3\n";
        assert_eq!(ProgramStats::parse(new), ProgramStats { count: 20, ns: 1500, missed: 3 });
        let old = "prog_type:\t5\nrun_time_ns:\t1500\nrun_cnt:\t20\n";
        assert_eq!(ProgramStats::parse(old), ProgramStats { count: 20, ns: 1500, missed: 0 });
        assert_eq!(ProgramStats::parse("run_cnt:\tmany\n"), ProgramStats::default());
    }
}
