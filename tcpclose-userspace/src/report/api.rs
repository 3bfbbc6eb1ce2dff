//! What agent and client agree on: the default socket, the paths of requests, and what answers carry besides documents.

use std::time::Duration;

/// The unix socket where an agent serves and a command asks, unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/tcpclose/tcpclose.sock";

pub const METRICS: &str = "/metrics";
/// Whether the agent's thread answers at all.
pub const HEALTH: &str = "/healthz";
/// Whether its numbers are complete and recent.
pub const READINESS: &str = "/readyz";
/// The close phase by service port, as a [`PortsDocument`](crate::report::ports::PortsDocument). Served on TCP as well: it
/// names no single socket.
pub const PORTS: &str = "/ports";
/// The sockets in a state, as a [`SocketsDocument`](crate::report::sockets::SocketsDocument).
pub const SOCKETS: &str = "/v1/sockets";
/// The use of ephemeral ports.
pub const EXHAUSTION: &str = "/exhaustion";
/// The stream of transitions, one JSON document a line.
pub const WATCH: &str = "/v1/watch";
/// A [`KillOrder`](crate::kill::KillOrder) is sent here.
pub const KILL: &str = "/v1/kill";
/// Asks for a reconcile, and tells its progress.
pub const RECONCILE: &str = "/v1/reconcile";

/// The header of a [`SOCKETS`] answer with the age from which its diagnosis calls a socket stuck, a humantime duration.
pub const STUCK_AFTER: &str = "tcpclose-stuck-after";

/// The beginning of a [`READINESS`] answer when the numbers are too old.
pub const STALE: &str = "stale: ";

/// The answer to a [`KILL`] request of an agent without `--allow-kill`.
pub const KILL_NOT_ALLOWED: &str = "this agent was started without --allow-kill\n";

/// How long a reader of [`WATCH`] waits for lines before it checks whether its own output is still open.
pub const WATCH_IDLE: Duration = Duration::from_millis(500);
