//! `tcpclose idle`: connections whose death nobody would notice.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueHint};

use crate::client::fetch::{AgentAddress, Fetched, fetch_document};
use crate::client::snapshot;
use crate::commands::arguments::{NetnsChoice, duration, number, pid, port};
use crate::commands::filter::{own_netns, require_process};
use crate::commands::output::{json, print};
use crate::commands::suggest;
use crate::failure::Failure;
use crate::report::idle::{IdleDocument, IdleGroup, IdleQuery, IdleSocket, MOST_SOCKETS, SCHEMA};
use crate::report::sockets::Owner;
use crate::ui::footer::footer;
use crate::ui::{labels, table};

/// Groups that are shown by default.
const GROUPS: usize = 20;
/// Owners of a group that are named; one on a terminal that is narrower than this.
const OWNERS: usize = 3;
const NARROW: u16 = 80;
/// Groups for which a setting is shown.
const HINTS: usize = 3;

/// List connections that are silent and have no keepalive, by owner
///
/// If the peer of such a connection vanishes without a word (a crash, a firewall or NAT gateway that forgets), nothing ends it on this
/// side: it keeps its descriptor for ever and never reaches CLOSE-WAIT. SO_KEEPALIVE is what ends it.
///
/// IDLE counts ESTABLISHED connections on which no timer runs, and for which nothing has come or gone for --silent-for. LOCAL counts
/// those among them whose peer is in the same network namespace: the kernel reports its end. NOT READ counts connections, idle or not, with
/// data that the program has not read for --silent-for. PEER GONE counts those whose peer has not acknowledged what was sent three times
/// or more; they end when the retries run out.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose idle\n  tcpclose idle --silent-for 1h --port 5432 --sockets")]
pub struct Idle {
    /// Only connections that have been silent for at least this long
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration, allow_hyphen_values = true, value_hint = ValueHint::Other)]
    silent_for: Duration,
    /// Only connections of this service port (local on a server, remote on a client); may be repeated
    #[arg(long = "port", value_name = "PORT", value_parser = port, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    ports: Vec<u16>,
    /// Only connections held by this process
    #[arg(long, value_name = "PID", value_parser = pid, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    pid: Option<u32>,
    /// Network namespaces
    #[arg(long, value_name = "WHICH", value_enum, default_value = "all")]
    netns: NetnsChoice,
    /// List every connection instead of groups, the longest silent first
    #[arg(long)]
    sockets: bool,
    /// Maximum number of lines [default: 20 groups, all connections]
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    limit: Option<usize>,
    /// Print JSON, with every matching connection regardless of --limit
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    address: AgentAddress,
}

impl Idle {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let own = own_netns();
        let wanted = IdleQuery {
            silent_for: self.silent_for,
            ports: self.ports.clone(),
            pid: self.pid,
            netns: (self.netns == NetnsChoice::Current).then_some(own),
            sockets: match (self.json, self.sockets) {
                (true, _) => MOST_SOCKETS,
                (false, true) => self.limit.unwrap_or(MOST_SOCKETS).min(MOST_SOCKETS),
                (false, false) => 0,
            },
        };
        let snapshot = || snapshot::idle(&wanted, self.netns.scope());
        let Fetched { mut document, source, remark } =
            fetch_document(&self.address, (&wanted.target(), SCHEMA), snapshot)?;
        document.incomplete.extend(remark);
        if let Some(pid) = self.pid.filter(|_| document.groups.is_empty()) {
            require_process(pid)?;
        }
        let text = match self.json {
            true => json(&document)?,
            false => self.text(&document, &source, own, table::width()),
        };
        print(&text).map(|()| ExitCode::SUCCESS)
    }

    /// `own`: the inode of this process's network namespace.
    fn text(&self, document: &IdleDocument, source: &str, own: u32, width: Option<u16>) -> String {
        let mut text = table::wrap(&summary(document), width) + "\n";
        if !document.groups.is_empty() {
            text.push('\n');
            text.push_str(&match self.sockets {
                true => sockets(document, own, width),
                false => groups(document, self.limit.unwrap_or(GROUPS), own, width),
            });
        }
        text.push('\n');
        text + &footer(source, &document.incomplete, width)
    }
}

fn summary(document: &IdleDocument) -> String {
    let sum = |number: fn(&IdleGroup) -> u64| document.groups.iter().map(number).sum::<u64>();
    let bound = humantime::format_duration(Duration::from_secs_f64(document.silent_for_seconds));
    let looked_at = format!("of {} ESTABLISHED", document.established);
    let mut text = match sum(|group| group.idle) {
        0 => format!("No connection without keepalive has been silent for {bound} or longer ({looked_at})"),
        1 => format!("1 connection without keepalive, silent for {bound} or longer ({looked_at})"),
        n => format!("{n} connections without keepalive, silent for {bound} or longer ({looked_at})"),
    };
    match sum(|group| group.peer_gone) {
        0 => {}
        1 => text.push_str("; the peer of 1 does not acknowledge what is sent"),
        n => text.push_str(&format!("; the peers of {n} do not acknowledge what is sent")),
    }
    match sum(|group| group.not_read) {
        0 => {}
        1 => text.push_str(&format!("; 1 has data that nobody has read for {bound}")),
        n => text.push_str(&format!("; {n} have data that nobody has read for {bound}")),
    }
    text
}

fn groups(document: &IdleDocument, limit: usize, own: u32, width: Option<u16>) -> String {
    let mut header = vec!["~OWNER", "SIDE", ">PORT", ">IDLE", ">LOCAL", ">SILENT", ">NOT READ", ">PEER GONE"];
    let elsewhere = document.groups.iter().any(|group| group.netns != own);
    if elsewhere {
        header.push("~NETNS");
    }
    let shown = document.groups.get(..limit).unwrap_or(&document.groups);
    let cells = |group: &IdleGroup| {
        let mut row = vec![
            owners(&group.owners, if width.is_some_and(|width| width < NARROW) { 1 } else { OWNERS }),
            group.side.name().to_owned(),
            group.port.to_string(),
            group.idle.to_string(),
            group.local.to_string(),
            if group.idle == 0 { "-".to_owned() } else { table::span(group.silent_seconds) },
            group.not_read.to_string(),
            group.peer_gone.to_string(),
        ];
        if elsewhere {
            row.push(labels::netns_cell(group.netns, group.netns_name.as_deref(), own));
        }
        row
    };
    let rows: Vec<Vec<String>> = shown.iter().map(cells).collect();
    let mut text = match rows.is_empty() {
        true => String::new(),
        false => table::render(&header, &rows, width) + "\n",
    };
    let more = document.groups.len() - shown.len() + document.groups_left;
    if more > 0 {
        text.push_str(&format!("… {more} more\n"));
    }
    text + &hints(shown, width)
}

/// How the programs of the first groups with remote peers are given keepalive.
fn hints(groups: &[IdleGroup], width: Option<u16>) -> String {
    let with_remote_peers = groups.iter().filter(|group| group.idle > group.local);
    let mut lines = Vec::new();
    for owner in with_remote_peers.filter_map(|group| group.owners.first()) {
        let line = format!("keepalive for {}: {}", labels::process(owner), suggest::keepalive(owner));
        if lines.len() < HINTS && !lines.contains(&line) {
            lines.push(line);
        }
    }
    let lines: Vec<String> = lines.iter().map(|line| table::wrap(line, width) + "\n").collect();
    if lines.is_empty() { String::new() } else { "\n".to_owned() + &lines.concat() }
}

/// `api[42], api[43], 6 more`, with so many names at the most.
fn owners(owners: &[Owner], most: usize) -> String {
    let mut names: Vec<String> = owners.iter().take(most).map(labels::process).collect();
    if owners.len() > most {
        names.push(format!("{} more", owners.len() - most));
    }
    if names.is_empty() { "unknown".to_owned() } else { names.join(", ") }
}

fn sockets(document: &IdleDocument, own: u32, width: Option<u16>) -> String {
    const HEADER: [&str; 7] = [">SILENT", "WHY", "SIDE", ">UNREAD", "LOCAL", "PEER", "~OWNER[PID]:FD"];
    let cells = |socket: &IdleSocket| {
        let place = labels::netns_named(socket.netns, socket.netns_name.as_deref());
        let local = match socket.netns == own {
            true => socket.local.to_string(),
            false => format!("{} in {place}", socket.local),
        };
        let holders: Vec<String> = socket
            .owners
            .iter()
            .take(OWNERS)
            .map(|owner| format!("{}:{}", labels::process(owner), owner.fd))
            .collect();
        let holders = match socket.owners.len() {
            0 => "unknown".to_owned(),
            n if n > OWNERS => format!("{}, {} more", holders.join(", "), n - OWNERS),
            _ => holders.join(", "),
        };
        vec![
            table::span(socket.silent_seconds),
            socket.why.name().to_owned(),
            socket.side.name().to_owned(),
            socket.unread_bytes.to_string(),
            local,
            socket.peer.to_string(),
            holders,
        ]
    };
    let rows: Vec<Vec<String>> = document.sockets.iter().map(cells).collect();
    let more = (document.matching as u64).saturating_sub(rows.len() as u64);
    let mut text = match rows.is_empty() {
        true => String::new(),
        false => table::render(&HEADER, &rows, width) + "\n",
    };
    if more > 0 {
        text.push_str(&format!("… {more} more\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    use crate::linux::process::Process;
    use crate::names::{IdleReason, Runtime, Side};
    use crate::report::envelope::DocumentSource;
    use crate::report::fixtures::owner;
    use crate::report::sockets::Cookie;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        idle: Idle,
    }

    fn document() -> IdleDocument {
        let go = |pid| {
            let owner = owner(pid, "a\u{1b}pi", (1, 2));
            let process = Process { runs: Some(Runtime::Go), ..(*owner.process).clone() };
            Owner { process: process.into(), ..owner }
        };
        let group = |owners, port, idle, local, peer_gone| IdleGroup {
            owners,
            side: Side::Server,
            port,
            netns: 7,
            netns_name: None,
            idle,
            local,
            silent_seconds: 7380.0,
            not_read: peer_gone / 2,
            peer_gone,
        };
        let socket = IdleSocket {
            why: IdleReason::Idle,
            side: Side::Client,
            port: 5432,
            local: "10.0.0.5:40000".parse().unwrap(),
            peer: "10.0.0.9:5432".parse().unwrap(),
            cookie: Cookie(1),
            inode: 7,
            uid: 1000,
            netns: 7,
            netns_name: None,
            silent_seconds: 7380.0,
            unread_bytes: 0,
            local_peer: false,
            owners: vec![go(42)],
        };
        IdleDocument {
            schema: SCHEMA,
            host: "h".to_owned(),
            boot_id: String::new(),
            at: String::new(),
            source: DocumentSource::Agent,
            silent_for_seconds: 600.0,
            incomplete: Vec::new(),
            established: 1200,
            groups: vec![
                group((42..47).map(go).collect(), 8080, 700, 20, 0),
                group(vec![owner(9, "nginx", (1, 2))], 443, 3, 0, 2),
                group(Vec::new(), 5000, 1, 1, 0),
            ],
            groups_left: 0,
            matching: 704,
            sockets: vec![socket],
        }
    }

    #[test]
    fn the_text_has_owners_and_how_they_are_mended() {
        let idle = |words: &[&str]| CommandLine::parse_from(["idle"].iter().chain(words)).idle;
        let text = idle(&[]).text(&document(), "agent", 7, Some(100));
        let listed = idle(&["--sockets"]).text(&document(), "agent", 8, Some(140));
        crate::ui::golden::check("idle.txt", &format!("{text}\n{listed}"));
        let cut = idle(&["--limit", "1"]).text(&document(), "agent", 7, None);
        assert!(cut.contains("… 2 more\n") && !cut.contains("nginx"), "{cut}");
        let narrow = idle(&[]).text(&document(), "agent", 7, Some(40));
        assert!(!table::overflows(&narrow, Some(40)), "{narrow}");
        let none = IdleDocument { groups: Vec::new(), sockets: Vec::new(), ..document() };
        assert!(idle(&[]).text(&none, "agent", 7, None).starts_with(
            "No connection without keepalive has been silent for 10m or longer (of 1200 ESTABLISHED)\n\nsource"
        ));
    }
}
