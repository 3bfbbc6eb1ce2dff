//! `tcpclose stuck`: which sockets are stuck, since when, whose they are, and why.

use std::process::ExitCode;

use clap::Args;

use crate::client::fetch::AgentAddress;
use crate::commands::arguments::number;
use crate::commands::fd_exhaustion::FdRates;
use crate::commands::filter::{Findings, SocketFilter, Sorted};
use crate::commands::groups;
use crate::commands::groups::{By, Listed};
use crate::commands::output::{json, print};
use crate::failure::Failure;
use crate::report::Depth;
use crate::ui::footer::footer;
use crate::ui::{labels, table};

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
    #[command(flatten)]
    pub filter: SocketFilter,
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
    #[command(flatten)]
    pub address: AgentAddress,
}

impl Stuck {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        // Groups are not told apart by who holds the other ends.
        let depth = if self.json || self.sockets { Depth::WithPeers } else { Depth::Owners };
        let mut findings = self.filter.find(&self.address, depth)?;
        let sockets = std::mem::take(&mut findings.document.sockets);
        // Before the filters: a process loses its descriptors to all of them.
        let rates = FdRates::of(&sockets, findings.bound.as_secs_f64());
        let mut sorted = Sorted::new(self.filter.select(sockets), findings.bound.as_secs_f64());
        let code = match self.check && sorted.stuck().count() > self.max {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        };
        let text = if self.json {
            findings.document.sockets = std::mem::take(&mut sorted.matching);
            json(&findings.document)?
        } else {
            self.text(&findings, &sorted, &rates, table::width())
        };
        let printed = print(&text);
        // The process ends here, and the kernel takes thousands of sockets back at once, not one by one.
        std::mem::forget((findings, sorted));
        printed.map(|()| code)
    }

    fn text(&self, findings: &Findings, sorted: &Sorted, rates: &FdRates, width: Option<u16>) -> String {
        let state = self.filter.state_in_words();
        let mut text = table::wrap(&sorted.summary(&state, findings.bound), width);
        text.push('\n');
        let listed: Vec<Listed<'_>> = sorted.listed().collect();
        if !listed.is_empty() {
            text.push('\n');
            text.push_str(&match self.sockets {
                true => list(&listed, self.limit.unwrap_or(usize::MAX), width),
                false => {
                    let groups = groups::group(&listed, self.by);
                    groups::text(&groups, self.by, rates, self.limit.unwrap_or(GROUPS), width)
                }
            });
            text.push('\n');
        }
        text + &footer(&findings.source, &findings.document.incomplete, width)
    }
}

/// The table of sockets: one line each where they fit, else the ends and the owners in words below.
pub fn list(listed: &[Listed<'_>], limit: usize, width: Option<u16>) -> String {
    const HEADER: [&str; 7] = [">AGE", "WHY", ">UNREAD", ">UNSENT", "LOCAL", "PEER", "OWNER[PID]:FD"];
    const NARROW: usize = 4;
    let shown = &listed[..limit.min(listed.len())];
    let rows: Vec<Vec<String>> = shown
        .iter()
        .map(|Listed { socket, possibly, elsewhere }| {
            vec![
                table::age(&socket.age),
                labels::diagnosis(socket.diagnosis, *possibly),
                socket.unread_bytes.to_string(),
                socket.unsent_bytes.to_string(),
                labels::local(socket, *elsewhere),
                labels::peer(socket),
                labels::owners(socket),
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

#[cfg(test)]
mod tests;
