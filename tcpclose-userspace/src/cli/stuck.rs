//! `tcpclose stuck`: which sockets are stuck, since when, whose they are, and why.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::client::{self, Reply};
use super::groups::{self, By, Listed};
use super::{DEFAULT_SOCKET, NetnsChoice, duration, port, print, table};
use crate::failure::{Failure, printable};
use crate::kernel::netns;
use crate::query::document::{Document, StuckSocket};
use crate::query::snapshot;
use crate::terms::{Diagnosis, Phase};

/// The bound where neither the arguments nor an agent name one.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// How many groups are shown unless told otherwise.
const GROUPS: usize = 20;

/// Show which sockets are stuck in CLOSE-WAIT, since when, whose they are, and why
///
/// Asks the agent; where none runs it takes a snapshot of this network namespace, whose ages are proven intervals.
/// Without privileges the sockets are listed and other users' processes stay unknown.
///
/// Why (diagnosis): not_accepted: it waits in the listener's queue, the owner is the listener's. not_read: data and
/// the end of the stream, or that alone, wait for the program. not_closed: the program has taken everything and
/// never closed. still_sending: the program goes on writing to a half-closed peer: at work, counted and not listed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose stuck --older-than 10m --port 8080\n  \
    tcpclose stuck --sockets --pid 4242\n  tcpclose stuck --check --max 100 && echo fine")]
pub struct Stuck {
    /// Only sockets that are in the state for this long or longer [default: the agent's first --stuck-after; 60s
    /// without one]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    older_than: Option<Duration>,
    /// Only sockets of this service port (the local one on a server, the remote one on a client); may be repeated
    #[arg(long = "port", value_name = "PORT", value_parser = port, allow_negative_numbers = true)]
    ports: Vec<u16>,
    /// Only sockets that this process holds
    #[arg(long, value_name = "PID", value_parser = pid, allow_negative_numbers = true)]
    pid: Option<u32>,
    /// The state: close_wait, last_ack, fin_wait_1, fin_wait_2, closing or time_wait
    #[arg(long, value_name = "STATE", default_value = "close_wait", value_parser = state)]
    state: Phase,
    /// What the groups are by, besides side, port and diagnosis
    #[arg(long, value_enum, default_value = "owner")]
    by: By,
    /// List every socket, the oldest first, and no groups
    #[arg(long)]
    sockets: bool,
    /// At most this many lines [default: 20 groups, all sockets]
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    limit: Option<usize>,
    /// One JSON document, with every socket that matches, whatever the --limit
    #[arg(long)]
    json: bool,
    /// Exit with 1 when more than --max sockets are stuck by the proven minimum of their age
    #[arg(long)]
    check: bool,
    /// How many --check lets pass
    #[arg(long, value_name = "N", default_value = "0", value_parser = number, requires = "check")]
    max: usize,
    /// Sockets of every network namespace, or of this one
    #[arg(long, value_name = "WHICH", value_enum, default_value = "all")]
    netns: NetnsChoice,
    /// Take a snapshot even where an agent runs
    #[arg(long)]
    no_agent: bool,
    /// The agent's unix socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, value_parser = super::socket_path())]
    socket: PathBuf,
}

fn number(text: &str) -> Result<usize, &'static str> {
    text.parse().map_err(|_| "not a number; write for example 20")
}

fn pid(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "not a process id; write a number as ps shows it")
}

fn state(text: &str) -> Result<Phase, &'static str> {
    let name = text.to_ascii_lowercase().replace('-', "_");
    Phase::ALL
        .into_iter()
        .find(|phase| phase.name() == name)
        .ok_or("not a state; write close_wait, last_ack, fin_wait_1, fin_wait_2, closing or time_wait")
}

/// The sockets, where they come from, and the bound.
struct Findings {
    document: Document,
    bound: Duration,
    /// Source and remarks in words.
    source: String,
}

impl Stuck {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let mut findings = self.find()?;
        let sockets = std::mem::take(&mut findings.document.sockets);
        let sorted = Sorted::new(self.select(sockets), findings.bound.as_secs_f64());
        let code = match self.check && sorted.stuck().count() > self.max {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        };
        let text = if self.json {
            findings.document.sockets = sorted.matching;
            let mut json = serde_json::to_string(&findings.document)
                .map_err(|error| Failure::new("writing JSON", error, ""))?;
            json.push('\n');
            json
        } else {
            self.text(&findings, &sorted, table::width())
        };
        print(&text).map(|()| code)
    }

    fn find(&self) -> Result<Findings, Failure> {
        let why_snapshot = if self.no_agent {
            "snapshot".to_owned()
        } else {
            match client::sockets(&self.socket, self.state, self.older_than)? {
                Reply::Answer { document, stuck_after } => {
                    let bound = self.older_than.unwrap_or(stuck_after);
                    return Ok(Findings { document, bound, source: "agent".to_owned() });
                }
                Reply::NoAgent => format!("snapshot (no agent at {})", self.socket.display()),
                Reply::Denied => {
                    return self.snapshot(format!("snapshot (no access to {})", self.socket.display()), true);
                }
            }
        };
        self.snapshot(why_snapshot, false)
    }

    fn snapshot(&self, source: String, denied: bool) -> Result<Findings, Failure> {
        let bound = self.older_than.unwrap_or(STUCK_AFTER);
        let bound_ns = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        let mut document =
            snapshot(self.state.state().bit(), bound_ns, self.netns.scope()).map_err(|error| {
                Failure::new("snapshot of the TCP sockets", error, "load the modules inet_diag and tcp_diag")
            })?;
        if denied {
            document.incomplete.push(format!(
                "the agent at {} was not asked: this user may not connect to it",
                self.socket.display()
            ));
        }
        Ok(Findings { document, bound, source })
    }

    /// The sockets that the filters let through, the oldest first.
    fn select(&self, mut sockets: Vec<StuckSocket>) -> Vec<StuckSocket> {
        let own = own_netns();
        sockets.retain(|socket| {
            socket.state == self.state
                && (self.netns == NetnsChoice::All || socket.netns == own)
                && (self.ports.is_empty() || self.ports.contains(&socket.port))
                && self.pid.is_none_or(|pid| socket.owners.iter().any(|owner| owner.pid == pid))
        });
        sockets.sort_by(|a, b| {
            b.age.min_seconds.total_cmp(&a.age.min_seconds).then_with(|| a.cookie.cmp(&b.cookie))
        });
        sockets
    }

    fn text(&self, findings: &Findings, sorted: &Sorted, width: Option<u16>) -> String {
        let state = self.state.name().to_uppercase().replace('_', "-");
        let mut text = table::wrap(&sorted.summary(&state, findings.bound), width);
        text.push('\n');
        let listed: Vec<Listed<'_>> = sorted.listed().collect();
        if !listed.is_empty() {
            text.push('\n');
            text.push_str(&match self.sockets {
                true => list(&listed, self.limit.unwrap_or(usize::MAX), width),
                false => {
                    let groups = groups::group(&listed, self.by);
                    groups::text(&groups, self.by, self.limit.unwrap_or(GROUPS), width)
                }
            });
            text.push('\n');
        }
        let source = format!("source: {}", printable(&findings.source));
        text.push_str(&table::wrap(&source, width));
        text.push('\n');
        for remark in &findings.document.incomplete {
            text.push_str(&table::wrap(&format!("incomplete: {}", printable(remark)), width));
            text.push('\n');
        }
        text
    }
}

/// The sockets that match, sorted out by the bound.
struct Sorted {
    /// Past the bound, or possibly so.
    matching: Vec<StuckSocket>,
    /// How many are proven to be younger.
    younger: usize,
    /// Seconds.
    bound: f64,
    /// Our own network namespace's inode.
    own: u32,
}

impl Sorted {
    fn new(mut sockets: Vec<StuckSocket>, bound: f64) -> Self {
        let all = sockets.len();
        sockets.retain(|socket| socket.age.is_past(bound) || socket.age.may_be_past(bound));
        Self { younger: all - sockets.len(), matching: sockets, bound, own: own_netns() }
    }

    /// What the text lists: everything that matches and is not at work.
    fn listed(&self) -> impl Iterator<Item = Listed<'_>> {
        self.matching.iter().filter(|socket| socket.diagnosis != Some(Diagnosis::StillSending)).map(
            |socket| Listed {
                socket,
                possibly: !socket.age.is_past(self.bound),
                elsewhere: socket.netns != self.own,
            },
        )
    }

    fn stuck(&self) -> impl Iterator<Item = Listed<'_>> {
        self.listed().filter(|listed| !listed.possibly)
    }

    fn summary(&self, state: &str, bound: Duration) -> String {
        let bound = humantime::format_duration(bound);
        let (stuck, listed) = (self.stuck().count(), self.listed().count());
        let mut text = match stuck {
            0 => format!("No socket is proven to be in {state} for {bound} or longer"),
            n => format!("{} in {state} for {bound} or longer", table::count(n, "socket", "sockets")),
        };
        if listed == 0 {
            text = format!("No socket has been in {state} for {bound} or longer");
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

/// The inode of this process's network namespace; 0 where /proc does not tell.
fn own_netns() -> u32 {
    netns::own().map_or(0, |own| own.inum)
}

/// The table of sockets: one line each where they fit, else the ends and the owners in words below.
fn list(listed: &[Listed<'_>], limit: usize, width: Option<u16>) -> String {
    const HEADER: [&str; 7] = [">AGE", "WHY", ">UNREAD", ">UNSENT", "LOCAL", "PEER", "OWNER[PID]:FD"];
    const NARROW: usize = 4;
    let shown = &listed[..limit.min(listed.len())];
    let rows: Vec<Vec<String>> = shown
        .iter()
        .map(|Listed { socket, possibly, elsewhere }| {
            vec![
                table::age(&socket.age),
                groups::why(socket.diagnosis, *possibly),
                socket.unread_bytes.to_string(),
                socket.unsent_bytes.to_string(),
                groups::local(socket, *elsewhere),
                socket.peer.to_string(),
                owners(socket),
            ]
        })
        .collect();
    let mut text = table::render(&HEADER, &rows, None);
    if table::overflows(&text, width) {
        let narrow: Vec<Vec<String>> = rows.iter().map(|row| row[..NARROW].to_vec()).collect();
        let narrow = table::render(&HEADER[..NARROW], &narrow, None);
        let below = rows
            .iter()
            .map(|row| table::wrap(&format!("    local {} peer {} owner {}", row[4], row[5], row[6]), width));
        let mut lines = narrow.lines();
        text = lines.next().unwrap_or_default().to_owned();
        for (line, below) in lines.zip(below) {
            text.push_str(&format!("\n{line}\n{below}"));
        }
    }
    text.push('\n');
    if listed.len() > shown.len() {
        text.push_str(&format!("… {} more\n", listed.len() - shown.len()));
    }
    text
}

fn owners(socket: &StuckSocket) -> String {
    if socket.owners.is_empty() {
        return "unknown".to_owned();
    }
    let owners = socket.owners.iter().map(|owner| format!("{}:{}", groups::process(owner), owner.fd));
    owners.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "stuck_tests.rs"]
mod tests;
