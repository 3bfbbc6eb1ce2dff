//! `tcpclose stuck`: stuck sockets with their age, owner and cause.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueHint};

use crate::client;
use crate::client::fetch::AgentAddress;
use crate::client::reply::Alone;
use crate::commands::arguments::{duration, number};
use crate::commands::fd_exhaustion::FdRates;
use crate::commands::filter::{Findings, SocketFilter, Sorted};
use crate::commands::groups;
use crate::commands::groups::{By, ListedSocket};
use crate::commands::output::{json, print};
use crate::failure::Failure;
use crate::names::Phase;
use crate::report::chain::ChainSockets;
use crate::report::requests::{STACKS_FOR, STACKS_FOR_ACCEPT};
use crate::report::sockets::{Depth, DocumentSource};
use crate::ui::footer::footer;
use crate::ui::{labels, table};

mod chain;
mod flame;
mod stacks;
pub mod verdicts;

/// Stacks of a group and moment that are shown.
const STACKS: usize = 5;
/// Groups that are shown by default.
const GROUPS: usize = 20;

/// List sockets stuck in CLOSE-WAIT, with age, owner and cause
///
/// Asks the agent. Without one it takes a snapshot, in which ages are proven intervals. Without privileges it still lists
/// the sockets, but not other users' processes.
///
/// WHY: not_accepted: the socket waits in the listener's queue; its owner is the listening process, or one of the candidates
/// if several listeners match. not_read: the program has not read the end of the stream, or data before it. not_closed: the program
/// has read everything and has not closed.
/// still_sending: the program still writes to a peer that has closed its side; counted, not listed.
///
/// In other states: peer_not_closing: the other end, on this host, is in CLOSE-WAIT; its owner is named below the table. held_open: a
/// process holds the socket after shutdown(). orphaned: no process holds it; a timer ends it. peer_not_reading: the peer's window is
/// closed. sent_again, peer_gone: sent again once or twice, or more often, without an acknowledgment.
///
/// A verdict classifies a program's stuck sockets by how they developed: leak, stale pool, slow reader, hung, proxy half close, one
/// off, or undecided; with its evidence. It needs an agent.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose stuck --older-than 10m --port 8080\n  \
    tcpclose stuck --sockets --pid 4242\n  tcpclose stuck --check --max 100 && echo fine")]
pub struct Stuck {
    #[command(flatten)]
    pub filter: SocketFilter,
    /// Group sockets by this, besides side, port and diagnosis
    #[arg(long, value_enum, default_value = "owner", conflicts_with = "sockets")]
    by: By,
    /// List every socket instead of groups, the oldest first
    #[arg(long)]
    sockets: bool,
    /// Print the stacks of the code that left the sockets open, with counts. The agent records a process's stacks
    /// while the number of its stuck sockets grows, or for the time of --for.
    #[arg(long, conflicts_with_all = ["sockets", "json"])]
    stacks: bool,
    /// First record the stacks of the process --pid for this long, at most 10m
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true, requires = "stacks", requires = "pid", value_hint = ValueHint::Other)]
    time: Option<Duration>,
    /// Also take the stacks of accept(), for up to 60s. This slows every system call of the host for that time. Only root and
    /// the agent's --kill-group may use it.
    #[arg(long, requires = "time")]
    accept: bool,
    /// Follow each socket in CLOSE-WAIT through proxies on this host to the program that has not closed. A link is shown only if
    /// nothing else fits.
    #[arg(long, conflicts_with_all = ["sockets", "stacks"])]
    chain: bool,
    /// Write the stacks to this file as a flame graph (SVG), or folded (a line each, for other tools) if its name does not end in
    /// .svg
    #[arg(long, value_name = "FILE", conflicts_with = "sockets", value_hint = ValueHint::FilePath)]
    flame: Option<PathBuf>,
    /// Maximum number of lines [default: 20 groups, all sockets]
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    limit: Option<usize>,
    /// Print JSON, with every matching socket regardless of --limit
    #[arg(long)]
    json: bool,
    /// Exit with 1 if more than --max sockets are proven to be stuck
    #[arg(long)]
    check: bool,
    /// Number of stuck sockets that --check allows
    #[arg(long, value_name = "N", default_value = "0", value_parser = number, allow_negative_numbers = true, requires = "check", value_hint = ValueHint::Other)]
    max: usize,
    #[command(flatten)]
    pub address: AgentAddress,
}

impl Stuck {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        if let (Some(time), Some(pid)) = (self.time, self.filter.pid) {
            if time > STACKS_FOR {
                let why = format!("{} at most", humantime::format_duration(STACKS_FOR));
                return Err(Failure::new("--for", why, "write --for 10m or less"));
            }
            if self.accept && time > STACKS_FOR_ACCEPT {
                let why = format!(
                    "--accept slows every system call of the host: {} at most",
                    table::span(STACKS_FOR_ACCEPT.as_secs_f64())
                );
                return Err(Failure::new("--for", why, "write --for 60s or less"));
            }
            client::stacks::take(&self.address, pid, time, self.accept)?;
        }
        if self.chain && self.filter.state != Phase::CloseWait {
            return Err(Failure::new("--chain", "only a CLOSE-WAIT has one", "leave out --state"));
        }
        let mut findings = self.filter.find(&self.address, Alone::Snapshot, Depth::WithPeers)?;
        let sockets = std::mem::take(&mut findings.document.sockets);
        let sent = match self.chain {
            true => Some(self.filter.find_sent(&self.address, &findings.document.at)?),
            false => None,
        };
        let every_close_wait = if self.chain { sockets.clone() } else { Vec::new() };
        // Before the filters: all of them take descriptors of the process.
        let rates = FdRates::of(&sockets, findings.bound.as_secs_f64());
        let unknown = if self.check && self.filter.names_owner() {
            self.filter.unowned(&sockets, findings.bound)
        } else {
            0
        };
        let mut sorted = Sorted::new(self.filter.select(sockets), findings.bound.as_secs_f64());
        let code = match self.check && sorted.stuck().count() > self.max {
            true => ExitCode::FAILURE,
            false if unknown > 0 => {
                let why = format!("the owners of {} are unknown", table::count(unknown, "socket", "sockets"));
                return Err(Failure::new(
                    "--check",
                    why,
                    "run it as root, or ask an agent (leave out --no-agent)",
                ));
            }
            false => ExitCode::SUCCESS,
        };
        if let Some(file) = &self.flame {
            flame::write(file, &sorted, &findings.document.stacks)?;
        }
        if let Some((sent, later)) = &sent {
            let of = ChainSockets::new(&every_close_wait, sent, *later);
            findings.document.chains = of.chains(sorted.listed().map(|listed| listed.socket));
        }
        let text = if self.json {
            findings.document.sockets = std::mem::take(&mut sorted.matching);
            json(&findings.document)?
        } else {
            self.text(&findings, &sorted, &rates, table::width())
        };
        let printed = print(&text);
        // The process ends here: the kernel frees the memory at once, not socket by socket.
        std::mem::forget((findings, sorted));
        printed.map(|()| code)
    }

    fn text(&self, findings: &Findings, sorted: &Sorted, rates: &FdRates, width: Option<u16>) -> String {
        let state = self.filter.state_in_words();
        let mut text =
            table::wrap(&sorted.summary(&state, findings.bound, self.filter.is_selective()), width);
        text.push('\n');
        let listed: Vec<ListedSocket<'_>> = sorted.listed().collect();
        if !listed.is_empty() {
            text.push('\n');
            text.push_str(&match (self.sockets, self.chain) {
                (true, _) => list(&listed, self.limit.unwrap_or(usize::MAX), width),
                (_, true) => chain::text(&findings.document.chains, self.limit.unwrap_or(GROUPS), width),
                _ => {
                    let groups = groups::group(&listed, self.by, &findings.document.stacks);
                    let limit = self.limit.unwrap_or(GROUPS);
                    let shown = groups.get(..limit).unwrap_or(&groups);
                    let code = match self.stacks {
                        true => stacks::whole(shown, &findings.document.stacks, STACKS),
                        false => stacks::places(shown, &findings.document.stacks, width),
                    };
                    let verdicts = verdicts::lines(shown, &findings.document.groups, width);
                    let Findings { document, stack_source, .. } = findings;
                    let next = groups::next_steps(shown, &document.groups, stack_source, width);
                    let code = match self.stacks && code.is_empty() {
                        true => self.no_stacks(document.source, width),
                        false => code,
                    };
                    let waiting = groups::local_peers(shown, width);
                    groups::text(&groups, self.by, rates, limit, width) + &waiting + &verdicts + &code + &next
                }
            });
            text.push('\n');
        }
        text + &footer(&findings.source, &findings.document.incomplete, width)
    }

    /// Why no stack is shown.
    fn no_stacks(&self, source: DocumentSource, width: Option<u16>) -> String {
        let why = match (source, self.time) {
            (DocumentSource::Snapshot, _) => "only an agent records them".to_owned(),
            (_, Some(time)) => format!(
                "in {} the process opened no socket, read no end of a stream, and wrote to none that its peer had closed",
                humantime::format_duration(time)
            ),
            _ => "the agent records them while the number of a process's stuck sockets grows, or with --for"
                .to_owned(),
        };
        table::wrap(&format!("no stacks: {why}"), width) + "\n"
    }
}

/// The table of sockets: one line each where that fits, else ends and owners below.
pub fn list(listed: &[ListedSocket<'_>], limit: usize, width: Option<u16>) -> String {
    const HEADER: [&str; 7] = [">AGE", "WHY", ">UNREAD", ">UNSENT", "LOCAL", "PEER", "OWNER[PID]:FD"];
    const NARROW: usize = 4;
    let shown = &listed[..limit.min(listed.len())];
    let rows: Vec<Vec<String>> = shown
        .iter()
        .map(|ListedSocket { socket, possibly, elsewhere }| {
            vec![
                table::age(&socket.age),
                labels::why(socket, *possibly),
                socket.unread_bytes.to_string(),
                socket.unsent_bytes.to_string(),
                labels::local(socket, *elsewhere),
                labels::peer(socket),
                labels::owners(socket),
            ]
        })
        .collect();
    let mut text = table::render(&HEADER, &rows, None);
    let narrow: Vec<Vec<String>> = rows.iter().map(|row| row[..NARROW].to_vec()).collect();
    let narrow = table::render(&HEADER[..NARROW], &narrow, None);
    if table::overflows(&narrow, width) {
        text = table::render(&HEADER, &rows, width);
    } else if table::overflows(&text, width) {
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
    if shown.is_empty() {
        text.clear();
    }
    if listed.len() > shown.len() {
        text.push_str(&format!("… {} more\n", listed.len() - shown.len()));
    }
    text
}

#[cfg(test)]
pub mod tests;
