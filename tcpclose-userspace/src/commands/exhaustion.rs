//! `tcpclose exhaustion`: how near connect() is to running out of ports.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::client::fetch;
use crate::client::fetch::Fetched;
use crate::commands::filter::{AgentAddress, own_netns};
use crate::commands::stuck::number;
use crate::commands::{duration, json, print};
use crate::failure::{Failure, printable};
use crate::linux::netns::Scope;
use crate::report::api::EXHAUSTION as PATH;
use crate::report::exhaustion::document::{ExhaustionDocument, ProcessShare, SCHEMA, TupleUse, snapshot};
use crate::ui::table;

/// Show how many of the ports that connect() may take are in use, for which pairs of ends, and for how long they last
///
/// Ports run out for each local address, remote address and remote port on their own. Counted are sockets of every state
/// that have a port of ip_local_port_range and not of ip_local_reserved_ports, read in each network namespace; a port that
/// bind() has taken, as for a listener, is in use for all.
///
/// REUSE: TIME-WAITs whose ports connect() may take again (tcp_tw_reuse, by default on loopback only, after a second): they
/// are in USED too. TAKEN/S and LEFT are over the time since an earlier look of the agent's; without one, over --for.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose exhaustion\n  \
    tcpclose exhaustion --no-agent --for 10s --json | jq '.tuples[0].used_ratio'")]
pub struct Exhaustion {
    /// At most this many, the fullest first; in JSON too
    #[arg(long, value_name = "N", default_value = "20", value_parser = number, allow_negative_numbers = true)]
    limit: usize,
    /// Without an agent: look twice, this far apart
    #[arg(long = "for", value_name = "DURATION", default_value = "2s", value_parser = duration)]
    period: Duration,
    /// One JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: AgentAddress,
}

impl Exhaustion {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let target = format!("{PATH}?limit={}", self.limit);
        let look = || snapshot(self.period, self.limit, Scope::All);
        let Fetched { mut document, source, remark } =
            fetch::ask_or_look(&self.place, (&target, SCHEMA), look)?;
        document.incomplete.extend(remark);
        let text = match self.json {
            true => json(&document)?,
            false => text(&document, &source, own_netns(), table::width()),
        };
        print(&text).map(|()| ExitCode::SUCCESS)
    }
}

/// `own`: the inode of our own network namespace.
fn text(document: &ExhaustionDocument, source: &str, own: u32, width: Option<u16>) -> String {
    let mut header =
        vec!["LOCAL", "REMOTE", ">USED", ">OF", ">%", ">TIME-WAIT", ">REUSE", ">TAKEN/S", ">LEFT"];
    let elsewhere = document.tuples.iter().any(|tuple| tuple.netns != own);
    if elsewhere {
        header.push("NETNS");
    }
    let cells = |tuple: &TupleUse| {
        let mut row = cells(tuple);
        if elsewhere {
            let number = || format!("net:[{}]", tuple.netns);
            row.push(tuple.netns_name.as_deref().map_or_else(number, |name| printable(name).into_owned()));
        }
        row
    };
    let rows: Vec<Vec<String>> = document.tuples.iter().map(cells).collect();
    let mut text = match rows.is_empty() {
        true => "No port that connect() may take is in use\n".to_owned(),
        false => {
            // Who has them is a line of its own below each: names are long.
            let table = table::render(&header, &rows, None);
            let mut lines = table.lines();
            let mut text = lines.next().unwrap_or_default().to_owned() + "\n";
            for (line, tuple) in lines.zip(&document.tuples) {
                text.push_str(&format!("{line}\n"));
                if let Some(line) = whose(tuple) {
                    text.push_str(&(table::wrap(&format!("  {line}"), width) + "\n"));
                }
            }
            text
        }
    };
    let more = document.tuples_in_use.saturating_sub(document.tuples.len());
    if more > 0 {
        text.push_str(&format!("… {more} more\n"));
    }
    text.push('\n');
    text.push_str(&fetch::ending(source, &document.incomplete, width));
    text
}

fn cells(tuple: &TupleUse) -> Vec<String> {
    let left = match (tuple.left(), tuple.seconds_left) {
        (0, _) => "none".to_owned(),
        (_, Some(seconds)) => table::span(seconds),
        (_, None) => "-".to_owned(),
    };
    vec![
        tuple.local.to_string(),
        tuple.remote.to_string(),
        tuple.used.to_string(),
        tuple.ports.to_string(),
        // Rounded down: 100 is all of them.
        format!("{}", (tuple.used_ratio * 100.0).floor()),
        tuple.time_wait.to_string(),
        tuple.reusable.to_string(),
        tuple.taken_per_second.map_or_else(|| "-".to_owned(), table::rate),
        left,
    ]
}

/// `held by api[42] 7; closed by curl[43] 12`.
fn whose(tuple: &TupleUse) -> Option<String> {
    let list = |shares: &[ProcessShare]| {
        let name = |share: &ProcessShare| {
            share.comm.as_deref().map_or("ended".into(), |comm| printable(comm).into_owned())
        };
        let one = |share: &ProcessShare| format!("{}[{}] {}", name(share), share.pid, share.sockets);
        shares.iter().map(one).collect::<Vec<String>>().join(", ")
    };
    let mut parts = Vec::new();
    if !tuple.owners.is_empty() {
        parts.push(format!("held by {}", list(&tuple.owners)));
    }
    if !tuple.closed_by.is_empty() {
        parts.push(format!("closed by {}", list(&tuple.closed_by)));
    }
    if tuple.bound > 0 {
        parts.push(format!("taken by bind() {}", tuple.bound));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sockets::DocumentSource;

    #[test]
    fn the_text_says_how_full_how_long_and_whose() {
        let share = |pid, comm: Option<&str>, sockets| ProcessShare {
            pid,
            comm: comm.map(str::to_owned),
            unit: None,
            container_id: None,
            sockets,
        };
        let nearly = TupleUse {
            netns: 7,
            netns_name: None,
            local: "10.0.0.1".parse().unwrap(),
            remote: "10.0.0.2:443".parse().unwrap(),
            interface: 0,
            range: [1000, 1099],
            reserved: 0,
            ports: 100,
            used: 99,
            used_ratio: 0.999,
            bound: 1,
            time_wait: 30,
            reusable: 0,
            taken_per_second: Some(0.5),
            growth_per_second: Some(0.1),
            seconds_left: Some(10.0),
            owners: vec![share(5, Some("a\u{1b}pi"), 68)],
            closed_by: vec![share(6, None, 30)],
        };
        let full = TupleUse {
            used: 100,
            used_ratio: 1.0,
            taken_per_second: None,
            seconds_left: Some(0.0),
            owners: Vec::new(),
            closed_by: Vec::new(),
            bound: 0,
            ..nearly.clone()
        };
        let document = ExhaustionDocument {
            schema: SCHEMA,
            host: "h".to_owned(),
            boot_id: String::new(),
            at: String::new(),
            source: DocumentSource::Agent,
            incomplete: Vec::new(),
            tuples_in_use: 5,
            tuples: vec![full, nearly],
        };
        let expected = "\
LOCAL     REMOTE        USED   OF    %  TIME-WAIT  REUSE  TAKEN/S  LEFT
10.0.0.1  10.0.0.2:443   100  100  100         30      0        -  none
10.0.0.1  10.0.0.2:443    99  100   99         30      0      0.5   10s
  held by a\\u{1b}pi[5] 68; closed by ended[6] 30; taken by bind() 1
… 3 more

source: agent
";
        assert_eq!(text(&document, "agent", 7, Some(100)), expected);
        assert!(text(&document, "agent", 8, None).contains("  net:[7]\n"));
    }
}
