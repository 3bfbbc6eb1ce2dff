//! `tcpclose exhaustion`: ephemeral-port usage.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueHint};

use crate::client::fetch::{AgentAddress, Fetched, fetch_document};
use crate::client::snapshot;
use crate::commands::arguments::{duration, number};
use crate::commands::filter::own_netns;
use crate::commands::output::{json, print};
use crate::failure::{Failure, printable};
use crate::linux::netns::Scope;
use crate::report::exhaustion::document::{ExhaustionDocument, LocalUse, ProcessShare, SCHEMA, TupleUse};
use crate::report::requests::{EXHAUSTION_PATH, MOST_TUPLES};
use crate::report::sockets::DocumentSource;
use crate::ui::footer::footer;
use crate::ui::{labels, table};

/// Show ephemeral-port usage per destination and when it runs out
///
/// Ports run out separately for each local address, remote address and remote port. Sockets of every state count if their
/// port is in ip_local_port_range and not in ip_local_reserved_ports of their network namespace. A port taken by bind(), as
/// by a listener, is in use for all destinations.
///
/// bind() to a local address, without a port and before connect(), takes a port that no destination uses. A second table shows
/// local addresses by the ports in use over all destinations. Where bind() took them, connect() cannot take them either.
///
/// REUSE counts the TIME-WAITs in USED whose ports connect() may reuse (tcp_tw_reuse, by default only on loopback, after a
/// second). TAKEN/S and LEFT cover the time since the agent's previous sample; without an agent, the time of --for.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose exhaustion\n  \
    tcpclose exhaustion --no-agent --for 10s --json | jq '.tuples[0].used_ratio'")]
pub struct Exhaustion {
    /// Maximum number of destinations, the fullest first; in JSON too
    #[arg(long, value_name = "N", default_value = "20", value_parser = number, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    limit: usize,
    /// Without an agent: time between two samples
    #[arg(long = "for", value_name = "DURATION", default_value = "2s", value_parser = duration, allow_hyphen_values = true, value_hint = ValueHint::Other)]
    period: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    address: AgentAddress,
}

impl Exhaustion {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let target = format!("{EXHAUSTION_PATH}?limit={}", self.limit.min(MOST_TUPLES));
        let snapshot = || snapshot::exhaustion(self.period, self.limit, Scope::All);
        let Fetched { mut document, source, remark } =
            fetch_document(&self.address, (&target, SCHEMA), snapshot)?;
        document.incomplete.extend(remark);
        document.incomplete.extend(cut(&document, self.limit));
        let text = match self.json {
            true => json(&document)?,
            false => text(&document, &source, own_netns(), table::width()),
        };
        print(&text).map(|()| ExitCode::SUCCESS)
    }
}

/// What is missing where more destinations were wanted than an agent describes.
fn cut(document: &ExhaustionDocument, limit: usize) -> Option<String> {
    let is_cut = document.source == DocumentSource::Agent && limit > MOST_TUPLES;
    (is_cut && document.tuples.len() < document.tuples_in_use.min(limit)).then(|| {
        format!("the agent describes the {MOST_TUPLES} fullest destinations only: --no-agent shows more")
    })
}

/// `own`: the inode of this process's network namespace.
fn text(document: &ExhaustionDocument, source: &str, own: u32, width: Option<u16>) -> String {
    let mut header =
        vec!["LOCAL", "REMOTE", ">USED", ">OF", ">%", ">TIME-WAIT", ">REUSE", ">TAKEN/S", ">LEFT"];
    let elsewhere = document.tuples.iter().any(|tuple| tuple.netns != own);
    if elsewhere {
        header.push("~NETNS");
    }
    let cells = |tuple: &TupleUse| {
        let mut row = cells(tuple);
        if elsewhere {
            row.push(labels::netns_cell(tuple.netns, tuple.netns_name.as_deref(), own));
        }
        row
    };
    let rows: Vec<Vec<String>> = document.tuples.iter().map(cells).collect();
    let mut text = match rows.is_empty() {
        true if document.tuples_in_use == 0 => "No ephemeral port is in use\n".to_owned(),
        true => String::new(),
        false => {
            // The owners have their own line below each row, since names are long.
            let (first, lines) = table::lines(&header, &rows, width);
            let mut text = first.map_or_else(String::new, |first| first + "\n");
            for (line, tuple) in lines.iter().zip(&document.tuples) {
                text.push_str(&format!("{line}\n"));
                if let Some(line) = users(tuple) {
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
    text.push_str(&locals(document, own, width));
    text.push('\n');
    text.push_str(&footer(source, &document.incomplete, width));
    text
}

/// The local addresses whose ports are in use towards several destinations; of one, its tuple tells as much.
fn locals(document: &ExhaustionDocument, own: u32, width: Option<u16>) -> String {
    const MOST: usize = 5;
    const MEANING: &str = "bind() without a port picks one that is in use for no destination, and blocks it for all of them: at 100 % \
                           bind() fails with EADDRINUSE, and connect() to any destination with EADDRNOTAVAIL, to the extent that \
                           bind() took the ports. Programs that bind should set IP_BIND_ADDRESS_NO_PORT before bind(): connect() \
                           then chooses the port per destination.";
    let several: Vec<&LocalUse> = document.locals.iter().filter(|local| local.destinations > 1).collect();
    let shown = several.get(..MOST).unwrap_or(&several);
    if shown.is_empty() {
        return String::new();
    }
    let mut header = vec!["BIND TO", ">USED", ">OF", ">%", ">DESTINATIONS"];
    let elsewhere = shown.iter().any(|local| local.netns != own);
    if elsewhere {
        header.push("~NETNS");
    }
    let cells = |local: &&LocalUse| {
        let mut row = vec![
            local.local.to_string(),
            local.used.to_string(),
            local.ports.to_string(),
            format!("{}", (local.used_ratio * 100.0).floor()),
            local.destinations.to_string(),
        ];
        if elsewhere {
            row.push(labels::netns_cell(local.netns, local.netns_name.as_deref(), own));
        }
        row
    };
    let rows: Vec<Vec<String>> = shown.iter().map(cells).collect();
    let (first, lines) = table::lines(&header, &rows, width);
    let mut text = first.map_or_else(|| "\n".to_owned(), |first| format!("\n{first}\n"));
    lines.iter().for_each(|line| text.push_str(&format!("{line}\n")));
    if several.len() > shown.len() {
        text.push_str(&format!("… {} more\n", several.len() - shown.len()));
    }
    text + &table::wrap(MEANING, width) + "\n"
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
        // Rounded down, so that 100 means all.
        format!("{}", (tuple.used_ratio * 100.0).floor()),
        tuple.time_wait.to_string(),
        tuple.reusable.to_string(),
        tuple.taken_per_second.map_or_else(|| "-".to_owned(), table::rate),
        left,
    ]
}

/// `held by api[42] 7; closed by curl[43] 12`.
fn users(tuple: &TupleUse) -> Option<String> {
    let list = |shares: &[ProcessShare]| {
        let mut named: Vec<String> = Vec::new();
        let (mut ended, mut sockets) = (0, 0);
        for share in shares {
            match &share.comm {
                Some(comm) => named.push(format!("{}[{}] {}", printable(comm), share.pid, share.sockets)),
                None => {
                    ended += 1;
                    sockets += share.sockets;
                }
            }
        }
        match ended {
            0 => {}
            1 => named.push(format!("1 exited process: {sockets}")),
            _ => named.push(format!("{ended} exited processes: {sockets}")),
        }
        named.join(", ")
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

    #[test]
    fn the_text_has_usage_time_left_and_processes() {
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
            netns_owner: None,
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
        let of_all = |local: &str, destinations| LocalUse {
            netns: 7,
            netns_name: None,
            netns_owner: None,
            local: local.parse().unwrap(),
            ports: 100,
            used: 99,
            used_ratio: 0.99,
            destinations,
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
            locals: vec![of_all("10.0.0.1", 3), of_all("10.0.0.7", 1)],
        };
        crate::ui::golden::check("exhaustion.txt", &text(&document, "agent", 7, Some(100)));
        assert!(text(&document, "agent", 8, None).contains("  net:[7]\n"));
        let narrow = text(&document, "agent", 7, Some(40));
        assert!(
            narrow.starts_with("LOCAL 10.0.0.1  REMOTE 10.0.0.2:443\n  USED 100  OF 100  % 100"),
            "{narrow}"
        );
        assert!(!table::overflows(&narrow, Some(40)), "{narrow}");
        assert_eq!(cut(&document, MOST_TUPLES), None);
        assert!(cut(&document, MOST_TUPLES + 1).is_some_and(|why| why.contains("1000 fullest")));
        let all = ExhaustionDocument { tuples_in_use: 2, ..document.clone() };
        assert_eq!(cut(&all, MOST_TUPLES + 1), None);
        let none = ExhaustionDocument { tuples: Vec::new(), locals: Vec::new(), ..document };
        assert_eq!(text(&none, "agent", 7, None), "… 5 more\n\nsource: agent\n");
    }
}
