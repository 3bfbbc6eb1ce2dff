//! `tcpclose ports`: the close phase by service port.

use std::process::ExitCode;

use clap::{Args, ValueHint};

use crate::client::fetch::{AgentAddress, Fetched, fetch_document};
use crate::commands::arguments::{number, port};
use crate::commands::output::{json, print};
use crate::failure::Failure;
use crate::linux::netns::Scope;
use crate::report::ports::{Durations, PortUse, PortsDocument, QuantileBounds, SCHEMA, StateUse};
use crate::report::requests::{DEFAULT_STUCK_AFTER, PORTS_PATH};
use crate::report::sockets::DocumentSource;
use crate::ui::footer::footer;
use crate::ui::{labels, table};

/// Ports that are shown by default.
const PORTS: usize = 20;

/// Show sockets per port and state: count, oldest, time in state, closes per second, stuck
///
/// Asks the agent; the numbers match its /metrics. Without one it takes a snapshot, which shows the current sockets and the
/// proven minimum of their ages.
///
/// MEDIAN and P99 cover the sockets that left the state since the agent started; each is shown as the interval
/// that the histogram proves. CLOSES/S covers the last minute. A leak shows in STUCK and OLDEST, never in MEDIAN.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose ports\n  tcpclose ports --port 8080 --port 443\n  \
    tcpclose ports --json | jq '.ports[] | select(.stuck > 0)'")]
pub struct Ports {
    /// Only this service port (local on a server, remote on a client); may be repeated. In JSON, sums over all ports stay.
    #[arg(long = "port", value_name = "PORT", value_parser = port, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    ports: Vec<u16>,
    /// Maximum number of ports: those with stuck sockets first, then those with the most sockets
    #[arg(long, value_name = "N", default_value_t = PORTS, value_parser = number, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    limit: usize,
    /// Print JSON, with every port regardless of --limit
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    address: AgentAddress,
}

impl Ports {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let bound_ns = DEFAULT_STUCK_AFTER.as_nanos() as u64;
        let snapshot = || crate::client::snapshot::ports(bound_ns, Scope::All);
        let Fetched { mut document, source, remark } =
            fetch_document(&self.address, (PORTS_PATH, SCHEMA), snapshot)?;
        document.incomplete.extend(remark);
        let selective = !self.ports.is_empty();
        if selective {
            select(&mut document, &self.ports);
        }
        let text = match self.json {
            true => json(&document)?,
            false => text(&mut document, &source, (self.limit, selective), table::width()),
        };
        print(&text).map(|()| ExitCode::SUCCESS)
    }
}

/// Keeps the `wanted` ports. Where one has no series of its own, that is missing.
fn select(document: &mut PortsDocument, wanted: &[u16]) {
    let known = |wanted: &u16| document.ports.iter().any(|port| port.port == Some(*wanted));
    let shared = document.ports.iter().any(|port| port.port.is_none());
    let mut without: Vec<u16> = wanted.iter().copied().filter(|wanted| shared && !known(wanted)).collect();
    without.sort_unstable();
    without.dedup();
    document.ports.retain(|port| port.port.is_some_and(|port| wanted.contains(&port)));
    document.incomplete.extend(without.iter().map(|port| {
        format!("port {port} has no series of its own: what it has is in port \"other\" (start the agent with --name-port {port})")
    }));
}

/// The worst ports first.
pub fn sort(ports: &mut [PortUse]) {
    ports.sort_by(|a, b| {
        let rank = |port: &PortUse| (port.stuck, port.possibly_stuck, port.sockets);
        let rate = |port: &PortUse| port.closes_per_second.unwrap_or(0.0);
        rank(b).cmp(&rank(a)).then(rate(b).total_cmp(&rate(a))).then(a.label().cmp(&b.label()))
    });
}

/// `selective`: only some ports were wanted.
fn text(
    document: &mut PortsDocument,
    source: &str,
    (limit, selective): (usize, bool),
    width: Option<u16>,
) -> String {
    const HEADER: [&str; 9] =
        ["SIDE", ">PORT", "STATE", ">SOCKETS", ">OLDEST", ">MEDIAN", ">P99", ">CLOSES/S", ">STUCK"];
    sort(&mut document.ports);
    let ports = &document.ports;
    // In a snapshot the age of the oldest socket is a minimum.
    let minimum = document.source == DocumentSource::Snapshot;
    let rows: Vec<Vec<String>> = ports.iter().take(limit).flat_map(|port| rows(port, minimum)).collect();
    let mut text = match rows.is_empty() {
        _ if ports.is_empty() && selective => "No matching port\n".to_owned(),
        _ if ports.is_empty() => "No connection has closed, and none is closing\n".to_owned(),
        true => String::new(),
        false => table::render(&HEADER, &rows, width) + "\n",
    };
    if ports.len() > limit {
        text.push_str(&format!("… {} more\n", ports.len() - limit));
    }
    text.push('\n');
    let source = document.old().map_or_else(|| source.to_owned(), |old| format!("{source}, {old}"));
    text.push_str(&footer(&source, &document.incomplete, width));
    text
}

/// A row per state; the first one also has the cells of the whole port. `minimum`: the oldest socket may be older.
fn rows(port: &PortUse, minimum: bool) -> Vec<Vec<String>> {
    let whole = [side(port), number_of(port), closes(port), stuck(port)];
    let [side, number, closes, stuck] = whole;
    let cells = |of_state: &StateUse| {
        let mut cells = state_cells(of_state);
        if let (true, Some(seconds), Some(oldest)) = (minimum, of_state.oldest_seconds, cells.get_mut(OLDEST))
        {
            *oldest = format!("≥{}", table::span(seconds));
        }
        cells
    };
    let mut rows: Vec<Vec<String>> = port.states.iter().map(cells).collect();
    if rows.is_empty() {
        let none = || "-".to_owned();
        rows.push(vec![none(), "0".to_owned(), none(), none(), none()]);
    }
    for (at, row) in rows.iter_mut().enumerate() {
        let first = |cell: &str| if at == 0 { cell.to_owned() } else { String::new() };
        row.splice(0..0, [first(&side), first(&number)]);
        row.extend([first(&closes), first(&stuck)]);
    }
    rows
}

pub fn side(port: &PortUse) -> String {
    port.side.name().to_owned()
}

pub fn number_of(port: &PortUse) -> String {
    port.port.map_or_else(|| "other".to_owned(), |port| port.to_string())
}

pub fn closes(port: &PortUse) -> String {
    port.closes_per_second.map_or_else(|| "-".to_owned(), table::rate)
}

/// The number of stuck sockets, with those that may be: `3`, `3–5`.
pub fn stuck(port: &PortUse) -> String {
    match port.possibly_stuck {
        0 => port.stuck.to_string(),
        possibly => format!("{}–{}", port.stuck, port.stuck + possibly),
    }
}

/// Where [`state_cells`] has the age of the oldest socket.
const OLDEST: usize = 2;

/// State, sockets, oldest, median, p99.
pub fn state_cells(of_state: &StateUse) -> Vec<String> {
    let durations = of_state.durations.as_ref();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        labels::phase(of_state.state),
        of_state.sockets.to_string(),
        or_dash(of_state.oldest_seconds.map(table::span)),
        or_dash(durations.map(|durations| quantile(&durations.median, durations))),
        or_dash(durations.map(|durations| quantile(&durations.p99, durations))),
    ]
}

/// The bounds of a quantile: `1–5m`; `>1d` beyond the last bucket.
fn quantile(quantile: &QuantileBounds, durations: &Durations) -> String {
    match bounds(quantile, durations) {
        (from, Some(to)) => table::interval(from, to),
        (from, None) => format!(">{}", table::span(from)),
    }
}

/// The upper bound of a quantile, for narrow columns: `≤5m`.
pub fn quantile_at_most(quantile: &QuantileBounds, durations: &Durations) -> String {
    match bounds(quantile, durations) {
        (_, Some(to)) => format!("≤{}", table::short(to).replace(".0", "")),
        (from, None) => format!(">{}", table::span(from)),
    }
}

/// The bucket of a quantile, where no duration is longer than all of them together.
fn bounds(quantile: &QuantileBounds, durations: &Durations) -> (f64, Option<f64>) {
    let (from, sum) = (quantile.from_seconds, durations.sum_seconds.max(quantile.from_seconds));
    match durations.count {
        1 => (sum, Some(sum)),
        _ => (from, quantile.to_seconds.map(|to| to.min(sum))),
    }
}

#[cfg(test)]
pub mod tests;
