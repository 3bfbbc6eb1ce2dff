//! The sockets that `stuck` lists and `kill` destroys.

use std::cmp::Reverse;
use std::time::Duration;

use clap::{Args, ValueHint};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::client;
use crate::client::SocketsAnswer;
use crate::client::fetch::{AgentAddress, Fetched, fetch};
use crate::client::reply::Alone;
use crate::client::snapshot;
use crate::commands::arguments::{NetnsChoice, cookie, duration, pid, port, state};
use crate::commands::groups::ListedSocket;
use crate::commands::suggest::StackSource;
use crate::failure::Failure;
use crate::linux::netns;
use crate::names::{Diagnosis, Phase};
use crate::report::requests::DEFAULT_STUCK_AFTER;
use crate::report::sockets::Depth;
use crate::report::sockets::{Cookie, DocumentSource, SocketsDocument, StuckSocket};
use crate::ui::{labels, table};

// No doc comment: clap would make it the help of the command that this is a part of.
#[derive(Debug, Args)]
pub struct SocketFilter {
    /// Only sockets that have been in the state for at least this long [default: the agent's first --stuck-after, or 60s
    /// without an agent]
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true, value_hint = ValueHint::Other)]
    pub older_than: Option<Duration>,
    /// Only sockets of this service port (local on a server, remote on a client); may be repeated
    #[arg(long = "port", value_name = "PORT", value_parser = port, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    pub ports: Vec<u16>,
    /// Only sockets held by this process
    #[arg(long, value_name = "PID", value_parser = pid, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    pub pid: Option<u32>,
    /// Only sockets held by processes of this systemd unit
    #[arg(long, value_name = "UNIT", value_hint = ValueHint::Other)]
    pub unit: Option<String>,
    /// Only the socket with this cookie (as stuck --json shows it, and ss -e as sk:); may be repeated
    #[arg(long = "cookie", value_name = "COOKIE", value_parser = cookie, value_hint = ValueHint::Other)]
    pub cookies: Vec<Cookie>,
    /// TCP state
    #[arg(long, value_name = "STATE", default_value = "close_wait", value_parser = state())]
    pub state: Phase,
    /// Network namespaces
    #[arg(long, value_name = "WHICH", value_enum, default_value = "all")]
    pub netns: NetnsChoice,
}

/// The sockets, their source, and the bound.
pub struct Findings {
    pub document: SocketsDocument,
    pub bound: Duration,
    /// The source, in words.
    pub source: String,
    /// Who records code, for suggestions.
    pub stack_source: StackSource,
}

impl SocketFilter {
    /// The sockets in the state of the filter, by [`Self::ask`].
    pub fn find(&self, address: &AgentAddress, alone: Alone, depth: Depth) -> Result<Findings, Failure> {
        let Fetched { document: answer, source, remark } = self.ask(address, alone, self.state, depth)?;
        let SocketsAnswer { mut document, stuck_after } = answer;
        // One that this user may not ask, or that was not to be asked, may run.
        let is_missing = document.source == DocumentSource::Snapshot && !address.no_agent && remark.is_none();
        let stack_source = StackSource::of(address, is_missing);
        document.incomplete.extend(remark);
        if let Some(pid) = self.pid
            && !document.sockets.iter().any(|socket| is_held_by(socket, pid))
        {
            require_process(pid)?;
        }
        Ok(Findings { document, bound: self.older_than.unwrap_or(stuck_after), source, stack_source })
    }

    /// Every socket in FIN-WAIT-1 and FIN-WAIT-2, for the chains through proxies; and how many seconds after `at` the kernel was read.
    pub fn find_sent(&self, address: &AgentAddress, at: &str) -> Result<(Vec<StuckSocket>, f64), Failure> {
        let mut sent = Vec::new();
        let mut later = 0.0;
        for state in [Phase::FinWait1, Phase::FinWait2] {
            let document = self.ask(address, Alone::Snapshot, state, Depth::WithPeers)?.document.document;
            later = seconds_between(at, &document.at);
            sent.extend(document.sockets);
        }
        Ok((sent, later))
    }

    /// Asks the agent at `address` for the sockets in `state`; where none answers, takes a snapshot. `alone`: what the command does
    /// without an agent.
    fn ask(
        &self,
        address: &AgentAddress,
        alone: Alone,
        state: Phase,
        depth: Depth,
    ) -> Result<Fetched<SocketsAnswer>, Failure> {
        let ask = |socket: &std::path::Path| client::sockets(socket, alone, state, self.older_than, depth);
        let stuck_after = self.older_than.unwrap_or(DEFAULT_STUCK_AFTER);
        let snapshot = || {
            let bound_ns = u64::try_from(stuck_after.as_nanos()).unwrap_or(u64::MAX);
            let document = snapshot::sockets(state.state().bit(), bound_ns, self.netns.scope(), depth)?;
            Ok(SocketsAnswer { document, stuck_after })
        };
        fetch(address, alone, ask, snapshot)
    }

    /// Whether it names sockets by more than their state and age.
    pub fn has_target(&self) -> bool {
        !self.ports.is_empty() || self.names_owner() || self.names_cookies()
    }

    pub fn names_cookies(&self) -> bool {
        !self.cookies.is_empty()
    }

    /// Whether it names sockets by their owner.
    pub fn names_owner(&self) -> bool {
        self.pid.is_some() || self.unit.is_some()
    }

    /// The sockets that the filters let through, the oldest first.
    pub fn select(&self, mut sockets: Vec<StuckSocket>) -> Vec<StuckSocket> {
        let own = own_netns();
        sockets.retain(|socket| {
            socket.state == self.state
                && (self.netns == NetnsChoice::All || socket.netns == own)
                && (self.ports.is_empty() || self.ports.contains(&socket.port))
                && (self.cookies.is_empty() || self.cookies.contains(&socket.cookie))
                && self.pid.is_none_or(|pid| is_held_by(socket, pid))
                && self.unit.as_ref().is_none_or(|unit| {
                    socket.owners.iter().any(|owner| owner.place.unit.as_ref() == Some(unit))
                })
        });
        // By cached keys, since a socket is four hundred bytes to move. The bits of floats that are not negative sort as
        // the floats do.
        sockets.sort_by_cached_key(|socket| (Reverse(socket.age.min_seconds.to_bits()), socket.cookie));
        sockets
    }

    /// How many sockets that pass the other filters, and are stuck, have no known owner.
    pub fn unowned(&self, sockets: &[StuckSocket], bound: Duration) -> usize {
        let is_one = |socket: &&StuckSocket| {
            socket.owners.is_empty()
                && socket.state == self.state
                && (self.ports.is_empty() || self.ports.contains(&socket.port))
                && (self.cookies.is_empty() || self.cookies.contains(&socket.cookie))
                && socket.is_past(bound.as_secs_f64())
        };
        sockets.iter().filter(is_one).count()
    }

    /// Whether it lets only some sockets of its state through.
    pub fn is_selective(&self) -> bool {
        self.has_target() || self.netns != NetnsChoice::All
    }

    /// The state as people write it: `CLOSE-WAIT`.
    pub fn state_in_words(&self) -> String {
        labels::phase(self.state)
    }
}

/// From one wall-clock time of a document to another, seconds; 0 where one cannot be read.
fn seconds_between(from: &str, to: &str) -> f64 {
    let read = |text: &str| humantime::parse_rfc3339(text).ok();
    let Some((from, to)) = read(from).zip(read(to)) else { return 0.0 };
    match to.duration_since(from) {
        Ok(later) => later.as_secs_f64(),
        Err(earlier) => -earlier.duration().as_secs_f64(),
    }
}

fn is_held_by(socket: &StuckSocket, pid: u32) -> bool {
    socket.owners.iter().any(|owner| owner.pid == pid)
}

/// # Errors
/// When no process of this PID namespace has the id `pid`.
pub fn require_process(pid: u32) -> Result<(), Failure> {
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // EPERM: it exists, and belongs to another user.
    if id.is_some_and(|id| test_kill_process(id) != Err(Errno::SRCH)) {
        return Ok(());
    }
    let todo = "name a running process, as ps shows it";
    Err(Failure::new(format!("--pid {pid}"), "no such process", todo))
}

/// The sockets that match, sorted out by the bound.
pub struct Sorted {
    /// Past the bound, or possibly so.
    pub matching: Vec<StuckSocket>,
    /// Those proven to be younger.
    pub younger: usize,
    /// Seconds.
    bound: f64,
    /// Our own network namespace's inode.
    own: u32,
}

/// The inode of this process's network namespace; 0 where /proc does not have it.
pub fn own_netns() -> u32 {
    netns::own().map_or(0, |own| own.inum)
}

impl Sorted {
    pub fn new(mut sockets: Vec<StuckSocket>, bound: f64) -> Self {
        let all = sockets.len();
        sockets.retain(|socket| socket.is_past(bound) || socket.may_be_past(bound));
        Self { younger: all - sockets.len(), matching: sockets, bound, own: own_netns() }
    }

    /// The sockets that the text lists: all that match and are not still sending.
    pub fn listed(&self) -> impl Iterator<Item = ListedSocket<'_>> {
        self.matching.iter().filter(|socket| socket.diagnosis != Some(Diagnosis::StillSending)).map(
            |socket| ListedSocket {
                socket,
                possibly: !socket.is_past(self.bound),
                elsewhere: socket.netns != self.own,
            },
        )
    }

    pub fn stuck(&self) -> impl Iterator<Item = ListedSocket<'_>> {
        self.listed().filter(|listed| !listed.possibly)
    }

    /// `selective`: the sockets passed filters.
    pub fn summary(&self, state: &str, bound: Duration, selective: bool) -> String {
        let no = if selective { "No matching socket" } else { "No socket" };
        let bound = humantime::format_duration(bound);
        let (stuck, listed) = (self.stuck().count(), self.listed().count());
        let mut text = match stuck {
            0 => format!("{no} is proven to have been in {state} for {bound} or longer"),
            n => format!("{} in {state} for {bound} or longer", table::count(n, "socket", "sockets")),
        };
        if listed == 0 {
            text = format!("{no} has been in {state} for {bound} or longer");
        }
        if listed > stuck {
            text.push_str(&format!(", {} possibly", listed - stuck));
        }
        if self.matching.len() > listed {
            text.push_str(&format!("; {} still sending (not listed)", self.matching.len() - listed));
        }
        if self.younger > 0 {
            text.push_str(&format!("; {}", table::count(self.younger, "younger one", "younger ones")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_is_that_of_a_process() {
        assert_eq!(require_process(std::process::id()), Ok(()));
        assert_eq!(require_process(1), Ok(()));
        // One more than the kernel's highest (include/linux/threads.h, PID_MAX_LIMIT).
        for nobody in [4_194_305, 0, u32::MAX] {
            let line = require_process(nobody).unwrap_err().to_string();
            assert_eq!(
                line,
                format!("tcpclose: --pid {nobody}: no such process; name a running process, as ps shows it")
            );
        }
    }
}
