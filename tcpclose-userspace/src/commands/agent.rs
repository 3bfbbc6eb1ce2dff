//! `tcpclose agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use log::LevelFilter;

use crate::agent;
use crate::agent::config::{Config, SocketAccess};
use crate::commands::NetnsChoice;
use crate::failure::Failure;
use crate::linux::users;
use crate::linux::users::UnixGroup;
use crate::metrics::gauges::StuckAfter;
use crate::probe::backend::task_file::OwnersHook;
use crate::probe::{StateHook, TimeWaitHook};

use crate::commands::DEFAULT_SOCKET;

/// Watch how connections end, and serve it to Prometheus and to the command line.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tcpclose agent\n  tcpclose agent --listen 0.0.0.0:9923 --stuck-after 30s,10m --name-port 8080\n  tcpclose agent --config ./tcpclose.toml --check-config"
)]
pub struct Agent {
    /// Serve metrics at this address and port; may be repeated. [::]:9923 is every address, IPv6 and IPv4, unless an IPv4
    /// address is given with the same port; :9923 is the same. TCP sockets that systemd passes take its place.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9923", value_parser = address, alias = "web.listen-address")]
    listen: Vec<SocketAddr>,

    /// Serve them as this file says, in the format of Prometheus' exporter toolkit: over TLS, to whom has a certificate or a
    /// password. Read again when it, or what it names, has changed.
    #[arg(long, value_name = "PATH", alias = "web.config.file")]
    web_config: Option<PathBuf>,

    /// Answer the command line at this unix socket. A unix socket that systemd passes takes its place.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, value_parser = crate::commands::socket_path())]
    socket: PathBuf,

    /// Who may connect to the socket: the mode of its file.
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = mode)]
    socket_mode: u32,

    /// The user whose the socket is, by name or number [default: the agent's]
    #[arg(long, value_name = "USER", value_parser = users::user)]
    socket_owner: Option<u32>,

    /// The group whose the socket is, by name or number [default: the agent's]
    #[arg(long, value_name = "GROUP", value_parser = users::group)]
    socket_group: Option<UnixGroup>,

    /// Keep in this directory what lets ages outlive the agent. One agent a directory [default: /run/tcpclose, or
    /// nothing is kept where that cannot be]
    #[arg(long, value_name = "PATH")]
    state_dir: Option<PathBuf>,

    /// How long to wait for another agent to leave the socket and the state directory; 0s: not at all.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = crate::commands::duration)]
    wait: Duration,

    /// From when a socket in CLOSE-WAIT is stuck: ascending bounds, each a class of tcpclose_stuck_sockets.
    #[arg(long, value_name = "DURATIONS", default_value = "1m,10m,1h", value_parser = stuck_after)]
    stuck_after: StuckAfter,

    /// How many pairs of side and port have series of their own; the others share port="other".
    #[arg(long, value_name = "N", default_value = "32", value_parser = max_ports, allow_negative_numbers = true)]
    max_ports: u16,

    /// A port that always has series of its own; may be repeated.
    #[arg(long, value_name = "PORT", value_parser = crate::commands::port, allow_negative_numbers = true)]
    name_port: Vec<u16>,

    /// How to watch TCP states.
    #[arg(long, value_name = "BACKEND", value_enum, default_value = "auto")]
    state_hook: StateHookChoice,

    /// How to watch TIME-WAIT and orphaned FIN-WAIT-2.
    #[arg(long, value_name = "BACKEND", value_enum, default_value = "auto")]
    time_wait: TimeWaitChoice,

    /// How to find the processes that hold a socket.
    #[arg(long, value_name = "BACKEND", value_enum, default_value = "auto")]
    owners: OwnersChoice,

    /// How often what is tracked is compared with all of the kernel's sockets.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = interval)]
    reconcile_interval: Duration,

    /// How old numbers that come from dumps may get, whatever dumps cost: beyond it dumps take more than 1 % of a core.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = interval)]
    reconcile_max: Duration,

    /// How often minisockets are dumped; stretched up to --reconcile-max so that all dumps take 1 % of a core.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    dump_interval: Duration,

    /// How often to count whose the stuck sockets are (tcpclose_stuck_owner_sockets); off: never. While any is stuck, each
    /// count takes a dump of CLOSE-WAIT and a pass over all processes' files: 17 ms of CPU for 45,000 sockets with task_file,
    /// 151 ms with proc. Stretched up to --reconcile-max to take 1 % of a core.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = interval_or_off)]
    owner_interval: OwnerInterval,

    /// The network namespaces to dump: every one, or the agent's own. Hooks tell of every one.
    #[arg(long, value_name = "WHICH", value_enum, default_value = "all")]
    netns: NetnsChoice,

    /// The ring buffer between probe and agent: bytes, or with K or M; a power of two. 8M hold 150,000 steps, more than
    /// one core can make in a second.
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = ring_size)]
    ring_size: u32,

    /// Let `tcpclose kill` destroy sockets through this agent, for root and for the --kill-group. Each one is logged.
    #[arg(long)]
    allow_kill: bool,

    /// The group, by name or number, whose members may have sockets destroyed with --allow-kill, if they may connect to the
    /// --socket [default: none, root alone may]
    #[arg(long, value_name = "GROUP", value_parser = users::group)]
    kill_group: Option<UnixGroup>,

    /// What to say on standard error: off, error, warn, info, debug or trace. From debug on, the probe in the kernel
    /// speaks too.
    #[arg(long, value_name = "LEVEL", default_value = "warn", value_parser = log_level)]
    log_level: LevelFilter,

    /// Take from this TOML file what neither an argument nor its variable, in brackets here, says [default:
    /// /etc/tcpclose/tcpclose.toml, where there is one]
    #[arg(long, value_name = "PATH")]
    #[allow(dead_code, reason = "read by cli::config")]
    config: Option<PathBuf>,

    /// Print the settings in force and where each is from, as such a file, and end.
    #[arg(long)]
    #[allow(dead_code, reason = "read by cli::config")]
    check_config: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateHookChoice {
    /// The best that this kernel loads.
    Auto,
    /// tp_btf inet_sock_set_state (Linux 5.12 with BTF).
    Btf,
    /// The classic tracepoint sock:inet_sock_set_state (Linux 5.8).
    Tracepoint,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TimeWaitChoice {
    /// The best that this kernel loads.
    Auto,
    /// fentry and fexit on the minisocket's functions (Linux 5.17 with BTF, where the kernel allows them).
    Hooks,
    /// A dump by sock_diag at an interval.
    Diag,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OwnersChoice {
    /// The best that this kernel loads.
    Auto,
    /// An iterator over all processes' files (Linux 5.8 with BTF, in the first PID namespace).
    #[value(name = "task_file")]
    TaskFile,
    /// A walk over /proc.
    Proc,
}

impl Agent {
    /// Runs, and asks `again` for the settings as they are then, when it is told to reload them.
    pub fn run(self, again: &dyn Fn() -> Result<Config, Failure>) -> Result<(), Failure> {
        agent::run(&self.config(), again)
    }

    pub fn config(self) -> Config {
        Config {
            listen: self.listen,
            web_config: self.web_config,
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
    let all = text.strip_prefix(':').map(|port| format!("[::]:{port}"));
    all.as_deref()
        .unwrap_or(text)
        .parse()
        .map_err(|_| "not an address; write for example 127.0.0.1:9923 or [::]:9923")
}

fn stuck_after(text: &str) -> Result<StuckAfter, String> {
    let bounds = text.split(',').map(|part| {
        crate::commands::duration(part.trim())
            .map(|bound| u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX))
    });
    let bounds = bounds
        .collect::<Result<Vec<u64>, _>>()
        .map_err(|_| "not a list of durations; write for example 1m,10m,1h")?;
    StuckAfter::new(bounds).map_err(|why| format!("{why}; write for example 1m,10m,1h"))
}

/// An interval short enough to be useful and long enough not to spin.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = crate::commands::duration(text)?;
    let range = Duration::from_millis(10)..=Duration::from_secs(86_400);
    if range.contains(&interval) {
        Ok(interval)
    } else {
        Err("it must lie between 10ms and 1day; write for example 1s".to_owned())
    }
}

/// An interval, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OwnerInterval(Option<Duration>);

fn interval_or_off(text: &str) -> Result<OwnerInterval, String> {
    if text == "off" {
        return Ok(OwnerInterval(None));
    }
    let said = |why| format!("{why}, or off");
    interval(text).map(|interval| OwnerInterval(Some(interval))).map_err(said)
}

fn max_ports(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_| "not a number of ports; write one from 0 to 65535, for example 32")
}

/// The kernel takes whole pages only (kernel/bpf/ringbuf.c, ringbuf_map_alloc(), 5.8 to 6.18), and a page is its own
/// choice: 4 KiB on x86-64, 4, 16 or 64 KiB on arm64.
fn ring_size(text: &str) -> Result<u32, String> {
    ring_size_in_pages(text, u32::try_from(rustix::param::page_size()).unwrap_or(u32::MAX))
}

fn ring_size_in_pages(text: &str, page: u32) -> Result<u32, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'M']) {
        Some(digits) if text.ends_with('K') => (digits, 1 << 10),
        Some(digits) => (digits, 1 << 20),
        None => (text, 1),
    };
    let bytes = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit));
    bytes.filter(|bytes| bytes.is_power_of_two() && (page..=1 << 30).contains(bytes)).ok_or_else(|| {
        let page = page >> 10;
        format!("not a ring size; write a power of two from {page}K (a page of this kernel) to 1024M, for example 8M")
    })
}

/// A file's mode as chmod takes it. Without its 0 at the front it may be a decimal number: what a file's 0o660 is read as.
fn mode(text: &str) -> Result<u32, &'static str> {
    const WHY: &str =
        "not a mode; write one in octal with a 0 at the front, from 0000 to 0777, for example \"0660\"";
    let octal = text
        .strip_prefix('0')
        .filter(|rest| rest.len() <= 3 && rest.bytes().all(|b| matches!(b, b'0'..=b'7')));
    u32::from_str_radix(octal.map(|rest| if rest.is_empty() { "0" } else { rest }).ok_or(WHY)?, 8)
        .map_err(|_| WHY)
}

fn log_level(text: &str) -> Result<LevelFilter, &'static str> {
    text.parse().map_err(|_| "not a level; write off, error, warn, info, debug or trace")
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
        for bad in ["", "0", "3M", "2048", "8G", "8m", "-8M", "4096M", "banana", "M"] {
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
        for (text, expected) in
            [("0600", 0o600), ("0660", 0o660), ("0777", 0o777), ("0000", 0), ("066", 0o66), ("0", 0)]
        {
            assert_eq!(mode(text), Ok(expected), "{text}");
        }
        for bad in ["", "660", "432", "0o660", "0888", "01777", "-600", "0 60", "rw-rw----"] {
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
        assert_eq!(address("[::1]:9923").unwrap().to_string(), "[::1]:9923");
        for bad in ["", ":", "9923", ":x", "localhost:9923", "::1:9923", "[::1]", "vsock://:1", "1.2.3.4"] {
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
