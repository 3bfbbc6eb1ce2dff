//! What the command line and the agent agree on: the socket's path, request paths, a header, fixed answers.

use std::time::Duration;

/// The agent's Unix socket, by default.
pub const DEFAULT_SOCKET: &str = "/run/tcpclose/tcpclose.sock";

/// The agent's state directory, by default.
pub const DEFAULT_STATE_DIR: &str = "/run/tcpclose";

pub const SOCKETS_PATH: &str = "/v1/sockets";
/// Takes the stacks of a process: `POST /v1/stacks?pid=4242&for=60s`.
pub const STACKS_PATH: &str = "/v1/stacks";
/// The longest time for which stacks may be asked.
pub const STACKS_FOR: Duration = Duration::from_secs(600);
/// The same of accept(), which slows every system call of the host.
pub const STACKS_FOR_ACCEPT: Duration = Duration::from_secs(60);
/// What the command line asks for beyond that: stacks that were taken last are named within this.
pub const STACKS_NAMED: Duration = Duration::from_secs(3);
pub const IDLE_PATH: &str = "/v1/idle";
pub const EXHAUSTION_PATH: &str = "/exhaustion";
/// The most tuples that one answer at [`EXHAUSTION_PATH`] describes.
pub const MOST_TUPLES: usize = 1000;
pub const KILL_PATH: &str = "/v1/kill";
pub const WATCH_PATH: &str = "/v1/watch";
pub const PORTS_PATH: &str = "/ports";
pub const RECONCILE_PATH: &str = "/v1/reconcile";
pub const METRICS_PATH: &str = "/metrics";
pub const READY_PATH: &str = "/readyz";
/// Whether the agent's thread answers at all.
pub const HEALTH_PATH: &str = "/healthz";

/// The header with the bound that the agent's diagnosis used, as a humantime duration.
pub const STUCK_AFTER_HEADER: &str = "tcpclose-stuck-after";

/// The first stuck bound where neither an argument nor an agent sets one.
pub const DEFAULT_STUCK_AFTER: Duration = Duration::from_secs(60);

/// The body of the answer to a kill request where the agent destroys nothing.
pub const KILL_NOT_ALLOWED: &str = "this agent was started without --allow-kill\n";

/// The prefix of the readiness answer of an agent whose numbers are too old.
pub const STALE_PREFIX: &str = "stale: ";
/// The prefix of the readiness answer of an agent whose counters and durations lack what closes.
pub const INCOMPLETE_PREFIX: &str = "incomplete: ";

/// How long a reader of the watch stream waits for lines before it checks whether its own output is still open.
pub const WATCH_IDLE: Duration = Duration::from_millis(500);
