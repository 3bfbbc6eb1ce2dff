//! The summary that the agent prints when it is ready.

use std::fmt::Write as _;
use std::path::Path;

use crate::agent::config::Config;
use crate::agent::stacks::arming::StacksMode;
use crate::agent::tracking::Tracking;
use crate::failure::printable;
use crate::linux::netns::Scope;
use crate::linux::{capabilities, host, users};
use crate::probe::{Hook, OwnersHook};
use crate::probe::{StateHook, TimeWaitHook};
use crate::report::requests::DEFAULT_SOCKET;

/// Where the agent serves.
pub struct Endpoints {
    /// URLs of metrics, each with a remark, which may be empty.
    pub addresses: Vec<(String, &'static str)>,
    /// The command to scrape them with.
    pub curl: String,
    /// The unix socket.
    pub queries: String,
}

/// `state_dir`: the state directory, if there is one.
pub fn summary(
    tracking: &Tracking,
    config: &Config,
    endpoints: &Endpoints,
    state_dir: Option<&Path>,
) -> String {
    let mut text = format!(
        "tcpclose {} watches how TCP connections end on {}\n",
        env!("CARGO_PKG_VERSION"),
        host::hostname()
    );
    let hook = match tracking.probe.hook {
        StateHook::Btf => "btf (tp_btf, keyed by socket cookie)",
        StateHook::Tracepoint if tracking.probe.reads_fields => "tracepoint (classic, fields by BTF offsets)",
        StateHook::Tracepoint => {
            "tracepoint (classic, no BTF: namespace, outcome and most sides are unknown)"
        }
    };
    let interval = humantime::format_duration(config.dump_interval);
    let length = match tracking.tracker.time_wait_ns() {
        Some(ns) => format!("TIME-WAIT lasts {:.1}s", ns as f64 / 1e9),
        None => "the length of TIME-WAIT is not known yet".to_owned(),
    };
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<11} {value}");
    };
    line("state hook", hook);
    let not_in_use = |line: &mut dyn FnMut(&str, &str), hook| {
        for declined in tracking.probe.declined.of(hook) {
            line("", &format!("not in use: {}", printable(&declined.reason)));
        }
    };
    not_in_use(&mut line, Hook::State);
    not_in_use(&mut line, Hook::Reset);
    not_in_use(&mut line, Hook::Retransmit);
    let seen = match tracking.probe.time_wait {
        TimeWaitHook::Hooks => format!("hooks (fentry and fexit on the minisocket; {length})"),
        TimeWaitHook::Diag => format!("diag (a sock_diag dump every {interval}; {length})"),
    };
    line("time wait", &seen);
    not_in_use(&mut line, Hook::TimeWait);
    for remark in namespaces(tracking) {
        line("namespaces", &remark);
    }
    let owners = match tracking.probe.owners {
        OwnersHook::TaskFile => "task_file (an iterator over all processes' files)",
        OwnersHook::Proc => "proc (a walk over /proc)",
    };
    line("owners", owners);
    not_in_use(&mut line, Hook::Owners);
    let stacks = match config.stacks {
        StacksMode::Off => None,
        _ if tracking.probe.stacks().is_none() => Some("none"),
        StacksMode::Auto => Some("auto (of processes whose stuck sockets grow in number)"),
        StacksMode::Ask => Some("ask (for tcpclose stuck --stacks --for)"),
    };
    if let Some(stacks) = stacks {
        line("stacks", stacks);
        not_in_use(&mut line, Hook::Stacks);
    }
    let mut privileges = capabilities::in_words().into_iter();
    let user = users::user_name(rustix::process::geteuid().as_raw());
    line("user", &format!("{user}; capabilities kept: {}", privileges.next().unwrap_or_default()));
    for lost in privileges {
        line("", &lost);
    }
    for (address, remark) in &endpoints.addresses {
        line("metrics", &format!("{address}/metrics"));
        line("page", &format!("{address}/"));
        if !remark.is_empty() {
            line("", remark);
        }
    }
    match state_dir {
        Some(folder) => line("state", &folder.display().to_string()),
        None => line("state", "none: ages will not survive a restart"),
    }
    line("queries", &endpoints.queries);
    if config.allow_kill {
        let group = config.kill_group.as_ref().map(|group| format!(" and members of {}", group.name));
        let who = format!("root{}", group.unwrap_or_default());
        line("", &format!("{who} may destroy sockets through it: tcpclose kill (--allow-kill)"));
    }
    let socket = match config.socket.to_str() {
        Some(DEFAULT_SOCKET) | None => String::new(),
        Some(path) => format!(" --socket {path}"),
    };
    line("try", &format!("tcpclose stuck{socket}"));
    if let Some((address, _)) = endpoints.addresses.first() {
        line("", &format!("{} {address}/metrics | grep tcpclose_sockets", endpoints.curl));
    }
    text
}

/// The network namespaces that dumps cover.
fn namespaces(tracking: &Tracking) -> Vec<String> {
    let namespaces = &tracking.namespaces;
    let others = namespaces.places(None).len().saturating_sub(1);
    let own = "this one only; of others, only what the probe reports";
    match namespaces.scope() {
        Scope::Current => vec![own.to_owned()],
        Scope::All => {
            let refused = namespaces.refusals();
            let all = if others == 0 && !refused.is_empty() {
                own.to_owned()
            } else {
                format!("all ({} now)", others + 1)
            };
            [vec![all], refused, Vec::from_iter(namespaces.unsearched())].concat()
        }
    }
}
