//! `tcpclose agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum, ValueHint};
use log::LevelFilter;

use crate::agent;
use crate::agent::config::Config;
use crate::agent::config::SocketAccess;
use crate::agent::server::allowed_hosts::AllowedHost;
use crate::agent::stacks::arming::StacksMode;
use crate::commands::arguments::{NetnsChoice, bare_duration, duration, port, socket_path};
use crate::failure::Failure;
use crate::linux::users;
use crate::linux::users::UnixGroup;
use crate::metrics::gauges::StuckAfter;
use crate::probe::OwnersHook;
use crate::probe::{StateHook, TimeWaitHook};
use crate::report::requests::DEFAULT_SOCKET;

/// Groups of the help.
const LISTEN: &str = "Listen";
const SOCKET: &str = "Socket";
const STATE: &str = "State";
const METRICS: &str = "Metrics";
const BACKENDS: &str = "Backends";
const STACKS: &str = "Stacks";
const TUNING: &str = "Tuning";

/// Run the agent: track how connections end, for Prometheus and the other commands
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tcpclose agent\n  tcpclose agent --listen 0.0.0.0:9923 --stuck-after 30s,10m --name-port 8080\n  tcpclose agent --config ./tcpclose.toml --check-config"
)]
pub struct Agent {
    /// Serve metrics at this address and port; may be repeated. [::]:9923 and :9923 mean every IPv6 and IPv4 address, but
    /// only IPv6 if another --listen has an IPv4 address with this port. TCP sockets passed by systemd replace this setting.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9923", value_parser = address, alias = "web.listen-address", help_heading = LISTEN)]
    listen: Vec<SocketAddr>,

    /// File that protects the metrics (TLS, client certificates, passwords), in the format of Prometheus' exporter toolkit.
    /// The agent reloads it when it changes.
    #[arg(long, value_name = "PATH", alias = "web.config.file", value_hint = ValueHint::FilePath, help_heading = LISTEN)]
    web_config: Option<PathBuf>,

    /// Additional host name under which browsers may open the page; may be repeated. IP addresses, localhost and the host's own
    /// name are always allowed; * allows any. Scrapes are not restricted.
    #[arg(long, value_name = "NAME", value_parser = AllowedHost::parse, value_hint = ValueHint::Hostname, help_heading = LISTEN)]
    allowed_host: Vec<AllowedHost>,

    /// Unix socket for the other commands. A Unix socket passed by systemd replaces it.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, value_parser = socket_path(), value_hint = ValueHint::FilePath, help_heading = SOCKET)]
    socket: PathBuf,

    /// Mode of the Unix socket, in octal
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = mode, allow_hyphen_values = true, value_hint = ValueHint::Other, help_heading = SOCKET)]
    socket_mode: u32,

    /// Owner of the Unix socket (user name or uid) [default: the agent's user]
    #[arg(long, value_name = "USER", value_parser = users::user, value_hint = ValueHint::Username, help_heading = SOCKET)]
    socket_owner: Option<u32>,

    /// Group of the Unix socket (group name or gid) [default: the agent's group]
    #[arg(long, value_name = "GROUP", value_parser = users::group, value_hint = ValueHint::Other, help_heading = SOCKET)]
    socket_group: Option<UnixGroup>,

    /// Let root and members of the --kill-group destroy sockets with `tcpclose kill`. Each destroyed socket is logged.
    #[arg(long, help_heading = SOCKET)]
    allow_kill: bool,

    /// Group whose members may destroy sockets, with --allow-kill (group name or gid) [default: none, only root]
    #[arg(long, value_name = "GROUP", value_parser = users::group, value_hint = ValueHint::Other, help_heading = SOCKET)]
    kill_group: Option<UnixGroup>,

    /// Directory for socket ages that survive a restart; one agent per directory [default: /run/tcpclose; if that cannot be
    /// used, ages do not survive]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath, help_heading = STATE)]
    state_dir: Option<PathBuf>,

    /// How long to wait for another agent to release the socket and the state directory; 0s: do not wait
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration, allow_hyphen_values = true, value_hint = ValueHint::Other, help_heading = STATE)]
    wait: Duration,

    /// Ages from which a socket in CLOSE-WAIT counts as stuck, in ascending order. Each is a value of the label age of
    /// tcpclose_stuck_sockets, which counts a socket once: at the highest age that it has passed.
    #[arg(long, value_name = "DURATIONS", default_value = "1m,10m,1h", value_parser = stuck_after, allow_hyphen_values = true, value_hint = ValueHint::Other, help_heading = METRICS)]
    stuck_after: StuckAfter,

    /// Number of pairs of side and port with their own series; the others share port="other"
    #[arg(long, value_name = "N", default_value = "32", value_parser = max_ports, allow_negative_numbers = true, value_hint = ValueHint::Other, help_heading = METRICS)]
    max_ports: u16,

    /// A port that always has its own series; may be repeated
    #[arg(long, value_name = "PORT", value_parser = port, allow_negative_numbers = true, value_hint = ValueHint::Other, help_heading = METRICS)]
    name_port: Vec<u16>,

    /// Backend for TCP state changes
    #[arg(long, value_name = "BACKEND", value_enum, default_value = "auto", help_heading = BACKENDS)]
    state_hook: StateHookChoice,

    /// Backend for TIME-WAIT and orphaned FIN-WAIT-2
    #[arg(long, value_name = "BACKEND", value_enum, default_value = "auto", help_heading = BACKENDS)]
    time_wait: TimeWaitChoice,

    /// Backend for the processes that hold a socket
    #[arg(long, value_name = "BACKEND", value_enum, default_value = "auto", help_heading = BACKENDS)]
    owners: OwnersChoice,

    /// Network namespaces to dump: all, or the agent's own. The probe covers all of them.
    #[arg(long, value_name = "WHICH", value_enum, default_value = "all", help_heading = BACKENDS)]
    netns: NetnsChoice,

    /// Interval between reconciles (comparisons of the tracked sockets with the kernel's)
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = interval, allow_hyphen_values = true, value_hint = ValueHint::Other, help_heading = TUNING)]
    reconcile_interval: Duration,

    /// Maximum age of metrics that come from dumps. Dumps use more than 1 % of a core if that is needed to keep it.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = interval, allow_hyphen_values = true, value_hint = ValueHint::Other, help_heading = TUNING)]
    reconcile_max: Duration,

    /// Interval between dumps of minisockets. It grows up to --reconcile-max to keep all dumps within 1 % of a core.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval, allow_hyphen_values = true, value_hint = ValueHint::Other, help_heading = TUNING)]
    dump_interval: Duration,

    /// Interval between counts of stuck sockets per owner and diagnosis (tcpclose_stuck_owner_sockets,
    /// tcpclose_stuck_diagnosis_sockets), or off. While any socket is stuck,
    /// each count dumps CLOSE-WAIT and reads all processes' files: 17 ms of CPU for 45,000 sockets with task_file, 153 ms
    /// with proc. It grows up to --reconcile-max to stay within 1 % of a core.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = interval_or_off, allow_hyphen_values = true, value_hint = ValueHint::Other, help_heading = TUNING)]
    owner_interval: OwnerInterval,

    /// When to take the stacks of programs that leave sockets open: auto attaches further programs while the number of a
    /// process's stuck sockets grows; ask only for tcpclose stuck --stacks --for; off loads none
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", help_heading = STACKS)]
    stacks: StacksChoice,

    /// Number of a process's stuck sockets from which --stacks auto takes its stacks, while it grows
    #[arg(long, value_name = "N", default_value = "10", value_parser = at_least_one, allow_negative_numbers = true, value_hint = ValueHint::Other, help_heading = STACKS)]
    stacks_after: u64,

    /// Maximum time per hour that --stacks auto takes stacks, per process and per user
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = stacks_for, allow_hyphen_values = true, value_hint = ValueHint::Other, help_heading = STACKS)]
    stacks_for: Duration,

    /// Size of the ring buffer between probe and agent: a power of two in bytes, K or M. 8M holds 150,000 records, more
    /// than one core produces per second.
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = ring_size, allow_hyphen_values = true, value_hint = ValueHint::Other, help_heading = TUNING)]
    ring_size: u32,

    /// Log level. From debug on, the eBPF programs log too.
    #[arg(long, value_name = "LEVEL", default_value = "warn", value_parser = log_level(), ignore_case = true)]
    log_level: LevelFilter,

    /// TOML file with settings. An argument overrides the variable in [brackets], which overrides the file [default:
    /// /etc/tcpclose/tcpclose.toml, if it exists]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    #[allow(dead_code, reason = "read by commands::config")]
    config: Option<PathBuf>,

    /// Print the settings in force with their sources, as a configuration file, and exit
    #[arg(long)]
    #[allow(dead_code, reason = "read by commands::config")]
    check_config: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateHookChoice {
    /// The best one that this kernel loads.
    Auto,
    /// tp_btf inet_sock_set_state (Linux 5.12 with BTF).
    Btf,
    /// The classic tracepoint sock:inet_sock_set_state (Linux 5.8).
    Tracepoint,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TimeWaitChoice {
    /// The best one that this kernel loads.
    Auto,
    /// fentry and fexit on the minisocket's functions (Linux 5.17 with BTF, where the kernel allows them).
    Hooks,
    /// Periodic sock_diag dumps (--dump-interval).
    Diag,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OwnersChoice {
    /// The best one that this kernel loads.
    Auto,
    /// An iterator over all processes' files (Linux 5.8 with BTF, in the first PID namespace).
    #[value(name = "task_file")]
    TaskFile,
    /// A walk over /proc.
    Proc,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StacksChoice {
    /// Never; no program for it is loaded.
    Off,
    /// While the number of a process's stuck sockets grows, and for tcpclose stuck --stacks --for.
    Auto,
    /// For tcpclose stuck --stacks --for only.
    Ask,
}

impl Agent {
    /// Runs; `again` reads the settings anew on a reload.
    pub fn run(self, again: &dyn Fn() -> Result<Config, Failure>) -> Result<(), Failure> {
        agent::run(&self.config(), again)
    }

    pub fn config(self) -> Config {
        Config {
            listen: self.listen,
            web_config: self.web_config,
            allowed_hosts: self.allowed_host,
            socket: self.socket,
            access: SocketAccess {
                mode: self.socket_mode,
                owner: self.socket_owner,
                group: self.socket_group.map(|group| group.gid),
            },
            state_dir: self.state_dir,
            wait: self.wait,
            stuck_after: self.stuck_after,
            max_ports: self.max_ports.into(),
            name_ports: self.name_port,
            state_hook: match self.state_hook {
                StateHookChoice::Auto => None,
                StateHookChoice::Btf => Some(StateHook::Btf),
                StateHookChoice::Tracepoint => Some(StateHook::Tracepoint),
            },
            time_wait: match self.time_wait {
                TimeWaitChoice::Auto => None,
                TimeWaitChoice::Hooks => Some(TimeWaitHook::Hooks),
                TimeWaitChoice::Diag => Some(TimeWaitHook::Diag),
            },
            owners: match self.owners {
                OwnersChoice::Auto => None,
                OwnersChoice::TaskFile => Some(OwnersHook::TaskFile),
                OwnersChoice::Proc => Some(OwnersHook::Proc),
            },
            stacks: match self.stacks {
                StacksChoice::Off => StacksMode::Off,
                StacksChoice::Auto => StacksMode::Auto,
                StacksChoice::Ask => StacksMode::Ask,
            },
            stacks_after: self.stacks_after,
            stacks_for: self.stacks_for,
            netns: self.netns.scope(),
            reconcile_interval: self.reconcile_interval,
            reconcile_max: self.reconcile_max,
            dump_interval: self.dump_interval,
            owner_interval: self.owner_interval.0,
            ring_size: self.ring_size,
            allow_kill: self.allow_kill,
            kill_group: self.kill_group,
            log_level: self.log_level,
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    // As Go's programs take it.
    let every = text.strip_prefix(':').map(|port| format!("[::]:{port}"));
    let local = || text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    every
        .or_else(local)
        .as_deref()
        .unwrap_or(text)
        .parse()
        .map_err(|_| "not an address; for example 127.0.0.1:9923 or [::]:9923")
}

fn stuck_after(text: &str) -> Result<StuckAfter, String> {
    let bound = |part: &str| {
        let bound = bare_duration(part).map_err(|why| format!("not a list of durations: {part:?}: {why}"))?;
        Ok::<u64, String>(u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX))
    };
    let bounds = text.split(',').map(bound).collect::<Result<Vec<u64>, _>>();
    let bounds = bounds.map_err(|why| format!("{why}; for example 1m,10m,1h"))?;
    StuckAfter::new(bounds).map_err(|why| format!("{why}; for example 1m,10m,1h"))
}

/// An interval neither too short nor too long.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    let range = Duration::from_millis(10)..=Duration::from_secs(86_400);
    if range.contains(&interval) {
        Ok(interval)
    } else {
        Err("it must be between 10ms and 1day; for example 1s".to_owned())
    }
}

fn at_least_one(text: &str) -> Result<u64, &'static str> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or("not a number of sockets; write one from 1 on, for example 10")
}

fn stacks_for(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_secs(3600);
    if range.contains(&time) {
        Ok(time)
    } else {
        Err("it must be between 1s and 1h; for example 10m".to_owned())
    }
}

/// An interval, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OwnerInterval(Option<Duration>);

fn interval_or_off(text: &str) -> Result<OwnerInterval, String> {
    if text == "off" {
        return Ok(OwnerInterval(None));
    }
    interval(text).map(|interval| OwnerInterval(Some(interval))).map_err(|why| format!("{why}, or off"))
}

fn max_ports(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_| "not a number of ports; write one from 0 to 65535, for example 32")
}

/// The kernel accepts whole pages only (kernel/bpf/ringbuf.c, ringbuf_map_alloc(), 5.8 to 6.18), and the size of a page is its
/// own: 4 KiB on x86-64, 4, 16 or 64 KiB on arm64.
fn ring_size(text: &str) -> Result<u32, String> {
    ring_size_in_pages(text, u32::try_from(rustix::param::page_size()).unwrap_or(u32::MAX))
}

fn ring_size_in_pages(text: &str, page: u32) -> Result<u32, String> {
    let short = text.strip_suffix("iB").filter(|short| short.ends_with(['K', 'M'])).unwrap_or(text);
    let (digits, unit) = match short.strip_suffix(['K', 'M']) {
        Some(digits) if short.ends_with('K') => (digits, 1 << 10),
        Some(digits) => (digits, 1 << 20),
        None => (short, 1),
    };
    let bytes = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit));
    bytes.filter(|bytes| bytes.is_power_of_two() && (page..=1 << 30).contains(bytes)).ok_or_else(|| {
        let page = page >> 10;
        format!("not a ring size; write a power of two from {page}K (a page of this kernel) to 1024M, for example 8M")
    })
}

/// A file's mode as chmod takes it. Without a 0 at the front only where its owner may read and write: 432 is 0660 that a tool
/// has written in decimal, and would let every user in.
fn mode(text: &str) -> Result<u32, &'static str> {
    const WHY: &str = "not a mode; write it in octal, from 0000 to 0777, for example 0660";
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let is_octal = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
    let mode = is_octal.then(|| u32::from_str_radix(digits, 8).ok()).flatten();
    let is_meant = |mode: &u32| *mode <= 0o777 && (text.starts_with('0') || mode & 0o600 == 0o600);
    mode.filter(is_meant).ok_or(WHY)
}

fn log_level() -> impl TypedValueParser<Value = LevelFilter> {
    PossibleValuesParser::new(["off", "error", "warn", "info", "debug", "trace"])
        .try_map(|text| text.parse::<LevelFilter>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_sizes_are_powers_of_two_of_pages() {
        let size = |text| ring_size_in_pages(text, 4 << 10);
        assert_eq!(size("8M"), Ok(8 << 20));
        assert_eq!(size("64K"), Ok(64 << 10));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!((size("8MiB"), size("64KiB")), (Ok(8 << 20), Ok(64 << 10)));
        for bad in ["", "0", "3M", "2048", "8G", "8m", "-8M", "4096M", "banana", "M", "8iB", "8MB", "4096iB"]
        {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ring_has_a_page_of_the_running_kernel_or_more() {
        assert_eq!(ring_size_in_pages("64K", 64 << 10), Ok(64 << 10));
        let why = ring_size_in_pages("4K", 64 << 10).unwrap_err();
        assert!(why.contains("from 64K (a page of this kernel)"), "{why}");
        assert!(ring_size_in_pages("8K", 16 << 10).is_err());
        assert!(ring_size(&rustix::param::page_size().to_string()).is_ok());
    }

    #[test]
    fn modes_are_octal_and_say_so() {
        for (text, expected) in [
            ("0600", 0o600),
            ("660", 0o660),
            ("0o660", 0o660),
            ("0777", 0o777),
            ("0000", 0),
            ("066", 0o66),
            ("0", 0),
        ] {
            assert_eq!(mode(text), Ok(expected), "{text}");
        }
        // 0640, 0660, 0644, 0770 and 0777 in decimal.
        for bad in [
            "416",
            "432",
            "420",
            "504",
            "511",
            "384",
            "",
            "888",
            "0888",
            "1777",
            "01777",
            "00660",
            "0o",
            "-600",
            "+660",
            "0 60",
            "rw-rw----",
        ] {
            assert!(mode(bad).is_err_and(|why| why.contains("0660")), "{bad}");
        }
    }

    #[test]
    fn stuck_bounds_ascend() {
        assert_eq!(stuck_after("1m, 10m").unwrap().bounds_ns(), [60_000_000_000, 600_000_000_000]);
        for bad in ["", "banana", "10m,1m", "1m,1m", "0s", "1m,,2m"] {
            assert!(stuck_after(bad).unwrap_err().contains("1m,10m,1h"), "{bad}");
        }
    }

    #[test]
    fn a_port_alone_is_every_address() {
        assert_eq!(address(":9923"), address("[::]:9923"));
        assert_eq!(address("localhost:9955"), address("127.0.0.1:9955"));
        assert_eq!(address("[::1]:9923").unwrap().to_string(), "[::1]:9923");
        for bad in [
            "",
            ":",
            "9923",
            ":x",
            "localhost:",
            "localhost:x",
            "example.org:9923",
            "::1:9923",
            "[::1]",
            "vsock://:1",
            "1.2.3.4",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn intervals_neither_spin_nor_sleep_for_ever() {
        assert!(interval("1s").is_ok());
        assert_eq!(interval_or_off("off"), Ok(OwnerInterval(None)));
        assert_eq!(interval_or_off("1s"), Ok(OwnerInterval(Some(Duration::from_secs(1)))));
        assert!(interval_or_off("never").is_err_and(|why| why.ends_with(", or off")));
        assert!(interval("1ms").is_err() && interval("2days").is_err() && interval("banana").is_err());
    }
}
