//! What processes take: CPU time, wakeups, memory, time of the programs they have in the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::UnshareFlags;
use tcpclose::probe::prog_stats::ProgramStats;

/// Puts tracefs where libbpf-tools look for it, in a mount namespace of this process and its children. The agent needs
/// no such help.
pub fn show_tracefs() -> io::Result<()> {
    const PLACE: &str = "/sys/kernel/tracing";
    if fs::exists(format!("{PLACE}/events"))? {
        return Ok(());
    }
    // SAFETY: called before any other thread is started: it moves the mount namespace only.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(mount("tracefs", PLACE, "tracefs", MountFlags::empty(), None)?)
}

/// CPU time that all threads of a process have taken, living and dead.
pub fn cpu(pid: u32) -> io::Result<Duration> {
    let mut clock = 0;
    // SAFETY: fills the one clockid_t.
    match unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock) } {
        0 => read_clock(clock),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn read_clock(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the one timespec.
    match unsafe { libc::clock_gettime(clock, &raw mut time) } {
        0 => Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How often threads of a process have gone to sleep: each time something wakes them again.
pub fn sleeps(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        sum += field(&task?.path().join("status"), "voluntary_ctxt_switches:")?;
    }
    Ok(sum)
}

/// Resident memory, bytes: all of it, and of it what is no file's and not shared.
pub fn resident(pid: u32) -> Result<(u64, u64)> {
    let status = format!("/proc/{pid}/status");
    let field = |name| field(status.as_ref(), name).map(|kib| kib * 1024);
    Ok((field("VmRSS:")?, field("RssAnon:")?))
}

fn field(file: &std::path::Path, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {name}"))?;
    Ok(word.parse()?)
}

/// What the kernel has counted of every program that a process holds, by the program's id.
pub fn programs(pid: u32) -> Result<BTreeMap<u32, ProgramStats>> {
    let read = |(id, file)| Ok((id, ProgramStats::parse(&fs::read_to_string(file)?)));
    ProgramStats::files(pid)?.into_iter().map(read).collect()
}

/// Waits until a process of somebody else's has attached what it loaded: it has a link, or a perf event, to a program.
pub fn wait_until_attached(child: &mut Child) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(10);
    let fds = format!("/proc/{}/fd", child.id());
    loop {
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("it ended: {status}");
        }
        let names = fs::read_dir(&fds)?.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        let links = names.filter(|name| {
            let name = name.to_string_lossy();
            name.contains("bpf_link") || name.contains("bpf-link") || name.contains("perf_event")
        });
        // Its perf buffer is one more perf event a CPU; what is attached comes before that.
        if links.count() > 0 {
            std::thread::sleep(Duration::from_millis(200));
            return Ok(());
        }
        ensure!(Instant::now() < until, "it has attached nothing in 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a command took.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Took {
    pub wall: f64,
    pub cpu: f64,
}

/// Runs a command with its output thrown away, and says what it took, in seconds.
pub fn time(command: &mut Command) -> Result<Took> {
    let begun = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let child = child.with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    let (status, cpu) = reap(&child)?;
    let wall = begun.elapsed().as_secs_f64();
    ensure!(status.success(), "{} failed: {status}", command.get_program().display());
    Ok(Took { wall, cpu })
}

/// Waits for a child's end; its status, and the CPU time that it took, seconds.
fn reap(child: &Child) -> Result<(ExitStatus, f64)> {
    // SAFETY: rusage is integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let mut status = 0;
    // SAFETY: fills the two; the child is ours and nobody else waits for it.
    let pid = unsafe { libc::wait4(child.id() as libc::pid_t, &raw mut status, 0, &raw mut usage) };
    if pid < 0 {
        return Err(io::Error::last_os_error().into());
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok((ExitStatus::from_raw(status), seconds(usage.ru_utime) + seconds(usage.ru_stime)))
}
