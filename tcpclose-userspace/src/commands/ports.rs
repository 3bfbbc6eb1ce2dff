//! `tcpclose ports`: the close phase by service port.

use std::process::ExitCode;

use clap::Args;

use crate::client::fetch;
use crate::client::fetch::Fetched;
use crate::commands::filter::{AgentAddress, STUCK_AFTER};
use crate::commands::stuck::number;
use crate::commands::{json, print};
use crate::failure::Failure;
use crate::linux::netns::Scope;
use crate::report::api::PORTS as PATH;
use crate::report::ports::{PortUse, PortsDocument, QuantileBounds, SCHEMA, StateUse, snapshot};
use crate::ui::table;

/// How many ports are shown unless told otherwise.
const PORTS: usize = 20;

/// Show each port's sockets per state, the oldest of them, how long states last, closes a second, and what is stuck
///
/// Asks the agent, whose numbers are those of its /metrics; where none runs it takes a snapshot, which has the sockets
/// of this moment and the proven minimum of their ages only.
///
/// MEDIAN and P99 are of the sockets that have left the state since the agent began: interpolated in the histogram's
/// bucket, whose bounds --json has too. CLOSES/S is over the last minute. A leak is in STUCK and OLDEST, never in MEDIAN.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose ports\n  \
    tcpclose ports --json | jq '.ports[] | select(.stuck > 0)'")]
pub struct Ports {
    /// At most this many ports: those with stuck sockets first, then those with most
    #[arg(long, value_name = "N", default_value_t = PORTS, value_parser = number, allow_negative_numbers = true)]
    limit: usize,
    /// One JSON document, with every port, whatever the --limit
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: AgentAddress,
}

impl Ports {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let bound_ns = STUCK_AFTER.as_nanos() as u64;
        let look = || snapshot(bound_ns, Scope::All);
        let Fetched { mut document, source, remark } = fetch::ask_or_look(&self.place, (PATH, SCHEMA), look)?;
        document.incomplete.extend(remark);
        let text = match self.json {
            true => json(&document)?,
            false => text(&mut document, &source, self.limit, table::width()),
        };
        print(&text).map(|()| ExitCode::SUCCESS)
    }
}

/// The worst ports first.
pub fn sort(ports: &mut [PortUse]) {
    ports.sort_by(|a, b| {
        let rank = |port: &PortUse| (port.stuck, port.possibly_stuck, port.sockets);
        let rate = |port: &PortUse| port.closes_per_second.unwrap_or(0.0);
        rank(b).cmp(&rank(a)).then(rate(b).total_cmp(&rate(a))).then(a.label().cmp(&b.label()))
    });
}

fn text(document: &mut PortsDocument, source: &str, limit: usize, width: Option<u16>) -> String {
    const HEADER: [&str; 9] =
        ["SIDE", ">PORT", "STATE", ">SOCKETS", ">OLDEST", ">MEDIAN", ">P99", ">CLOSES/S", ">STUCK"];
    sort(&mut document.ports);
    let ports = &document.ports;
    let rows: Vec<Vec<String>> = ports.iter().take(limit).flat_map(rows).collect();
    let mut text = match rows.is_empty() {
        true => "No connection has closed, and none is closing".to_owned(),
        false => table::render(&HEADER, &rows, width),
    };
    text.push('\n');
    if ports.len() > limit {
        text.push_str(&format!("… {} more\n", ports.len() - limit));
    }
    text.push('\n');
    let source = document.old().map_or_else(|| source.to_owned(), |old| format!("{source}, {old}"));
    text.push_str(&fetch::ending(&source, &document.incomplete, width));
    text
}

/// A line a state; what is of the whole port is on the first.
fn rows(port: &PortUse) -> Vec<Vec<String>> {
    let whole = [side(port), number_of(port), closes(port), stuck(port)];
    let [side, number, closes, stuck] = whole;
    let mut rows: Vec<Vec<String>> = port.states.iter().map(state_cells).collect();
    if rows.is_empty() {
        rows.push(vec![String::new(), "0".to_owned(), String::new(), String::new(), String::new()]);
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

/// What is proven to be stuck, and what may be: `3`, `3–5`.
pub fn stuck(port: &PortUse) -> String {
    match port.possibly_stuck {
        0 => port.stuck.to_string(),
        possibly => format!("{}–{}", port.stuck, port.stuck + possibly),
    }
}

/// State, sockets, oldest, median, p99.
pub fn state_cells(of_state: &StateUse) -> Vec<String> {
    let durations = of_state.durations.as_ref();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        of_state.state.name().to_uppercase().replace('_', "-"),
        of_state.sockets.to_string(),
        or_dash(of_state.oldest_seconds.map(table::span)),
        or_dash(durations.map(|durations| quantile(&durations.median))),
        or_dash(durations.map(|durations| quantile(&durations.p99))),
    ]
}

/// As interpolated; `>2m` beyond the last bucket.
fn quantile(quantile: &QuantileBounds) -> String {
    let beyond = || format!(">{}", table::span(quantile.from_seconds));
    quantile.seconds.map_or_else(beyond, table::short)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::names::{Phase, Side};
    use crate::report::ports::Durations;
    use crate::report::sockets::DocumentSource;

    pub fn document() -> PortsDocument {
        let at = |seconds, from_seconds, to_seconds| QuantileBounds { seconds, from_seconds, to_seconds };
        let durations = Durations {
            count: 200,
            sum_seconds: 1.0,
            median: at(Some(0.00042), 0.0, Some(0.001)),
            p99: at(None, 86400.0, None),
        };
        let state = |state, sockets, oldest_seconds, durations| StateUse {
            state,
            sockets,
            oldest_seconds,
            durations,
        };
        let port = |side, port, states: Vec<StateUse>| PortUse {
            side,
            port,
            sockets: states.iter().map(|state| state.sockets).sum(),
            stuck: 0,
            possibly_stuck: 0,
            closes: Some(9),
            closes_per_second: Some(12.0),
            states,
        };
        let waits = vec![
            state(Phase::TimeWait, 4, Some(50.0), None),
            state(Phase::CloseWait, 12, Some(7384.0), Some(durations)),
        ];
        let many = vec![state(Phase::TimeWait, 4000, Some(60.5), None)];
        PortsDocument {
            schema: SCHEMA,
            host: "h".to_owned(),
            boot_id: String::new(),
            at: "2026-11-22T11:00:00.123456789Z".to_owned(),
            source: DocumentSource::Agent,
            age_seconds: Some(4.9),
            incomplete: vec!["something".to_owned()],
            stuck_after_seconds: 60.0,
            rate_seconds: Some(60.0),
            states: Vec::new(),
            transitions: Vec::new(),
            ports: vec![
                port(Side::Client, None, many),
                PortUse { stuck: 10, possibly_stuck: 2, ..port(Side::Server, Some(8080), waits) },
                port(Side::Server, Some(443), Vec::new()),
            ],
        }
    }

    #[test]
    fn the_worst_port_comes_first_and_a_line_is_a_state() {
        let text = text(&mut document(), "agent", 2, Some(80));
        let expected = "\
SIDE     PORT  STATE       SOCKETS  OLDEST  MEDIAN  P99  CLOSES/S  STUCK
server   8080  TIME-WAIT         4     50s       -    -        12  10–12
               CLOSE-WAIT       12   2h 3m   420µs  >1d
client  other  TIME-WAIT      4000      1m       -    -        12      0
… 1 more

source: agent
incomplete: something
";
        assert_eq!(text, expected);
        let old = PortsDocument { age_seconds: Some(40.2), ..document() };
        let text = super::text(&mut old.clone(), "agent", 2, Some(80));
        assert!(text.contains("\nsource: agent, numbers 40 s old\n"), "{text}");
    }
}
