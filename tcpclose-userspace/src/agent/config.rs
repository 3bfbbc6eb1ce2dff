//! What the agent is told to do, checked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use crate::linux::netns::Scope;
use crate::linux::users::UnixGroup;
use crate::metrics::gauges::StuckAfter;
use crate::probe::{OwnersHook, StateHook, TimeWaitHook};

use crate::agent::server::listener::SocketAccess;

/// Made from the command line, variables and a file; nothing reads those after that, but for a reload.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where metrics are served.
    pub listen: Vec<SocketAddr>,
    /// By what file, in the format of Prometheus' exporter toolkit; `None`: to everybody.
    pub web_config: Option<PathBuf>,
    /// Where the command line asks.
    pub socket: PathBuf,
    /// Whose that is.
    pub access: SocketAccess,
    /// Where ages are kept for the next agent; `None` for the default directory, where it is to be had.
    pub state_dir: Option<PathBuf>,
    /// How long to wait for another agent to leave the socket and the directory.
    pub wait: Duration,
    /// From when a CLOSE-WAIT is stuck.
    pub stuck_after: StuckAfter,
    /// Pairs of side and port with a series of their own.
    pub max_ports: usize,
    /// Ports that always have one.
    pub name_ports: Vec<u16>,
    /// The one backend of the state hook to try; `None` for the best that loads.
    pub state_hook: Option<StateHook>,
    /// The same for TIME-WAIT.
    pub time_wait: Option<TimeWaitHook>,
    /// The same for owners.
    pub owners: Option<OwnersHook>,
    /// The network namespaces that dumps look at.
    pub netns: Scope,
    /// Between dumps of all close-phase sockets.
    pub reconcile_interval: Duration,
    /// Between dumps of one namespace at the most, whatever they cost.
    pub reconcile_max: Duration,
    /// Between dumps of minisockets, at the least.
    pub dump_interval: Duration,
    /// Between looks for the owners of stuck sockets, for metrics; `None` for never.
    pub owner_interval: Option<Duration>,
    /// Bytes, a power of two.
    pub ring_size: u32,
    /// Whether `tcpclose kill` may destroy through this agent.
    pub allow_kill: bool,
    /// Whose members may have it destroy, besides root.
    pub kill_group: Option<UnixGroup>,
    pub log_level: LevelFilter,
}

impl Config {
    /// For who watches without an agent: the best backends, the defaults of `tcpclose agent`, and nothing served or kept.
    pub fn alone() -> Self {
        Self {
            listen: Vec::new(),
            web_config: None,
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
            ring_size: 8 << 20,
            allow_kill: false,
            kill_group: None,
            log_level: LevelFilter::Off,
        }
    }
}
