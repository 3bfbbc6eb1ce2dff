//! Names, clocks and limits of this host, and capabilities of this thread.

use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::sync::LazyLock;
use std::time::SystemTime;

use rustix::time::{ClockId, clock_gettime};

use crate::linux::proc_net;

/// CLOCK_MONOTONIC of the host, nanoseconds: the clock of `bpf_ktime_get_ns`, whatever time namespace this process is in.
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic).saturating_add_signed(-AHEAD.monotonic_ns)
}

/// CLOCK_MONOTONIC as of the last tick, nanoseconds: how far the tick counter had come (kernel/time/tick-sched.c,
/// tick_do_update_jiffies64(), 5.8 to 6.18). On a virtual machine whose CPUs have to wait, ticks come late: 71 ms were seen.
pub fn tick_ns() -> u64 {
    nanoseconds(ClockId::MonotonicCoarse).saturating_add_signed(-AHEAD.monotonic_ns)
}

/// Two of the longest ticks that a kernel is built with (CONFIG_HZ=100), nanoseconds; the rounding up to milliseconds
/// at CONFIG_HZ=300 fits in as well. With one, an upper bound was 8 µs too low on a busy virtual machine with two
/// processors (6.18).
pub const TICKS_NS: u64 = 20_000_000;

/// CPU time of the calling thread, nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(ClockId::ThreadCPUTime)
}

/// Time since boot, suspends included, nanoseconds. Never less than what the kernel's tick counter has counted.
pub fn uptime_ns() -> u64 {
    nanoseconds(ClockId::Boottime).saturating_add_signed(-AHEAD.boottime_ns)
}

/// How far the clocks of this process are ahead of the host's (time_namespaces(7), since 5.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ahead {
    monotonic_ns: i64,
    boottime_ns: i64,
}

/// A process stays in the time namespace that it was started in.
static AHEAD: LazyLock<Ahead> = LazyLock::new(|| {
    fs::read_to_string("/proc/self/timens_offsets").map(|text| Ahead::parse(&text)).unwrap_or_default()
});

impl Ahead {
    /// Reads lines like `monotonic  1000  0`: seconds and nanoseconds.
    fn parse(text: &str) -> Self {
        let of = |clock: &str| {
            let mut words = text.lines().find_map(|line| line.strip_prefix(clock))?.split_ascii_whitespace();
            let mut number = || words.next()?.parse::<i64>().ok();
            number()?.checked_mul(1_000_000_000)?.checked_add(number()?)
        };
        Self { monotonic_ns: of("monotonic").unwrap_or(0), boottime_ns: of("boottime").unwrap_or(0) }
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // None of these clocks is ever negative.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The wall clock as RFC 3339 in UTC with nanoseconds.
pub fn wall_clock() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}

/// The host's name as `uname -n` prints it.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Major and minor number of this kernel; `None` where its release does not begin with them.
pub fn kernel_version() -> Option<(u32, u32)> {
    version_in(&rustix::system::uname().release().to_string_lossy())
}

/// The same, of a release as `uname -r` prints it.
pub fn version_in(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The random id of this boot; empty where /proc lacks it.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// The mode of the kernel's lockdown: `none`, `integrity` or `confidentiality`; `None` where the kernel has none, or securityfs is
/// not mounted.
pub fn lockdown() -> Option<String> {
    chosen(&fs::read_to_string("/sys/kernel/security/lockdown").ok()?)
}

/// The word in [brackets].
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

/// The ports that the kernel gives to connecting sockets, in the caller's network namespace.
pub fn ip_local_port_range() -> RangeInclusive<u16> {
    // The kernel's own default (net/ipv4/af_inet.c, inet_init_net(), 5.8 to 6.18).
    const DEFAULT: RangeInclusive<u16> = 32768..=60999;
    let Ok(text) = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range") else { return DEFAULT };
    let mut ports = text.split_ascii_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => DEFAULT,
    }
}

/// TIME-WAITs that the kernel has skipped in the caller's network namespace since its creation (TCPTimeWaitOverflow).
pub fn time_wait_overflows() -> Option<u64> {
    proc_net::counter(&fs::read_to_string("/proc/net/netstat").ok()?, "TcpExt:", "TCPTimeWaitOverflow")
}

/// Minisockets of the calling thread's network namespace (of the host before 6.1) divided by its `tcp_max_tw_buckets`.
/// FIN-WAIT-2 minisockets count, as they do in the kernel's own comparison with the limit (inet_twsk_alloc).
pub fn time_wait_limit_used() -> Option<f64> {
    let most: f64 = fs::read_to_string("/proc/sys/net/ipv4/tcp_max_tw_buckets").ok()?.trim().parse().ok()?;
    let sockets = fs::read_to_string("/proc/thread-self/net/sockstat").ok()?;
    let used = proc_net::stat(&sockets, "TCP:", "tw")?;
    (most > 0.0).then(|| used as f64 / most)
}

/// A capability, by its number in include/uapi/linux/capability.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    DacReadSearch = 2,
    NetAdmin = 12,
    SysPtrace = 19,
    SysAdmin = 21,
    Perfmon = 38,
    Bpf = 39,
}

impl Capability {
    /// In the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::DacReadSearch, Self::NetAdmin, Self::SysPtrace, Self::SysAdmin, Self::Perfmon, Self::Bpf];

    pub const fn name(self) -> &'static str {
        match self {
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// Whether `capability` is in this thread's effective set; `false` where /proc cannot be read.
pub fn has_cap(capability: Capability) -> bool {
    fs::read_to_string("/proc/thread-self/status")
        .ok()
        .and_then(|status| effective(&status))
        .is_some_and(|set| set >> capability as u8 & 1 != 0)
}

/// The set in the `CapEff:` line of a `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

/// Whether this process is in a user namespace other than the first, whose map is the identity (kernel/user.c,
/// init_user_ns); `false` where /proc cannot be read.
pub fn in_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !maps_everyone(&map))
}

/// Whether this process numbers processes as eBPF programs do: in the first PID namespace.
pub fn in_first_pid_namespace() -> bool {
    /// `PROC_PID_INIT_INO` (include/linux/proc_ns.h, 5.8 to 6.18).
    const FIRST: u64 = 0xefff_fffc;
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST)
}

fn maps_everyone(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run_and_ids_are_there() {
        let before = monotonic_ns();
        assert!(monotonic_ns() >= before && uptime_ns() >= before);
        assert_eq!(boot_id().len(), 36);
        assert!(!hostname().is_empty());
        assert!(time_wait_overflows().is_some() && time_wait_limit_used().is_some());
        assert!(wall_clock().ends_with('Z') && wall_clock().len() == "2026-11-22T11:00:00.123456789Z".len());
        assert!(ip_local_port_range().start() < ip_local_port_range().end());
    }

    #[test]
    fn a_time_namespace_is_read_from_its_lines() {
        let text = "monotonic           1000         5\nboottime             -20         0\n";
        let ahead = Ahead { monotonic_ns: 1_000_000_000_005, boottime_ns: -20_000_000_000 };
        assert_eq!(Ahead::parse(text), ahead);
        assert_eq!(Ahead::parse(""), Ahead::default());
    }

    #[test]
    fn the_mode_of_lockdown_is_the_word_in_brackets() {
        assert_eq!(chosen("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(chosen(""), None);
    }

    #[test]
    fn the_first_user_namespace_maps_everyone_onto_themselves() {
        assert!(maps_everyone("         0          0 4294967295\n"));
        assert!(!maps_everyone("         0       1000          1\n") && !maps_everyone(""));
    }

    #[test]
    fn the_effective_set_is_read_from_its_line() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000080004\n";
        assert_eq!(effective(status), Some(1 << 19 | 1 << 2));
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
