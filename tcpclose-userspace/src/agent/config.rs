//! The agent's settings, checked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use crate::agent::server::allowed_hosts::AllowedHost;
use crate::agent::stacks::arming::{ArmingRule, StacksMode};
use crate::linux::netns::Scope;
use crate::linux::users::UnixGroup;
use crate::metrics::gauges::StuckAfter;
use crate::probe::{OwnersHook, StateHook, TimeWaitHook};

/// Made from the command line, variables and a file, which only a reload reads again.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses of `/metrics`.
    pub listen: Vec<SocketAddr>,
    /// Access to them, in the format of Prometheus' exporter toolkit; `None`: open to everybody.
    pub web_config: Option<PathBuf>,
    /// Names by which browsers may reach them, besides those that every host has.
    pub allowed_hosts: Vec<AllowedHost>,
    /// The unix socket for the command line.
    pub socket: PathBuf,
    pub access: SocketAccess,
    /// Where ages are kept for the next agent; `None` for the default directory, if that can be used.
    pub state_dir: Option<PathBuf>,
    /// How long to wait for another agent to release the socket and the directory.
    pub wait: Duration,
    /// The ages from which a CLOSE-WAIT is stuck.
    pub stuck_after: StuckAfter,
    /// Pairs of side and port with series of their own.
    pub max_ports: usize,
    /// Ports that always have them.
    pub name_ports: Vec<u16>,
    /// The only backend of the state hook to try; `None` for the best that loads.
    pub state_hook: Option<StateHook>,
    /// The same for TIME-WAIT.
    pub time_wait: Option<TimeWaitHook>,
    /// The same for owners.
    pub owners: Option<OwnersHook>,
    /// The network namespaces that dumps cover.
    pub netns: Scope,
    /// Between dumps of all close-phase sockets.
    pub reconcile_interval: Duration,
    /// The longest pause between dumps of one namespace, whatever they cost.
    pub reconcile_max: Duration,
    /// The shortest pause between dumps of minisockets.
    pub dump_interval: Duration,
    /// Between counts of the owners of stuck sockets, for metrics; `None` for never.
    pub owner_interval: Option<Duration>,
    /// When stacks of leaking processes are taken.
    pub stacks: StacksMode,
    /// From so many stuck sockets of a process on.
    pub stacks_after: u64,
    /// For so long.
    pub stacks_for: Duration,
    /// Bytes, a power of two.
    pub ring_size: u32,
    /// Whether `tcpclose kill` may destroy sockets through this agent.
    pub allow_kill: bool,
    /// The group whose members may do so, besides root.
    pub kill_group: Option<UnixGroup>,
    pub log_level: LevelFilter,
}

/// Access to the query socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Mode of the file. To connect is to write.
    pub mode: u32,
    /// Owner and group of the file; the agent's own if not given.
    pub owner: Option<u32>,
    pub group: Option<u32>,
}

impl Default for SocketAccess {
    fn default() -> Self {
        Self { mode: 0o600, owner: None, group: None }
    }
}

impl Config {
    /// When a process is armed by itself; `None` for never.
    pub fn arming_rule(&self) -> Option<ArmingRule> {
        let rule = ArmingRule { after: self.stacks_after, time: self.stacks_for };
        (self.stacks == StacksMode::Auto).then_some(rule)
    }

    /// For watching without an agent: the best backends, the defaults of `tcpclose agent`, and nothing served
    /// or kept.
    pub fn alone() -> Self {
        Self {
            listen: Vec::new(),
            web_config: None,
            allowed_hosts: Vec::new(),
            socket: PathBuf::new(),
            access: SocketAccess::default(),
            state_dir: None,
            wait: Duration::ZERO,
            stuck_after: StuckAfter::default(),
            max_ports: 0,
            name_ports: Vec::new(),
            state_hook: None,
            time_wait: None,
            owners: None,
            netns: Scope::All,
            reconcile_interval: Duration::from_secs(30),
            reconcile_max: Duration::from_secs(60),
            dump_interval: Duration::from_secs(1),
            owner_interval: None,
            stacks: StacksMode::Off,
            stacks_after: 10,
            stacks_for: Duration::from_secs(600),
            ring_size: 8 << 20,
            allow_kill: false,
            kill_group: None,
            log_level: LevelFilter::Off,
        }
    }
}
