//! `tcpclose watch`: every transition of the close phase, live.

use std::io::{self, ErrorKind, Write as _};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueHint};
use rustix::event::{PollFd, PollFlags, poll};

use crate::agent;
use crate::agent::config::Config;
use crate::agent::tracking::Tracking;
use crate::client::fetch::AgentAddress;
use crate::client::reply::{Alone, Reply, denied, no_agent};
use crate::client::stream::follow;
use crate::commands::arguments::{duration, outcome, pid, port, state};
use crate::commands::filter::{own_netns, require_process};
use crate::commands::output::{note, written};
use crate::failure::{Failure, harmless_json};
use crate::linux::host;
use crate::names::{Outcome, Phase};
use crate::report::watch::filter::WatchFilter;
use crate::report::watch::handshake::{ClosedConnection, Handshakes};
use crate::report::watch::line::{Item, Line};
use crate::ui::drawing;
use crate::ui::watch_columns;
use crate::ui::watch_columns::{Clock, Columns};

/// Show every transition of the close phase, live
///
/// This includes TIME-WAIT and orphaned FIN-WAIT-2, which no tracepoint reports. Asks the agent; without one it attaches its
/// own eBPF programs, which needs root. AFTER is the time spent in the previous state: 1.203s if both ends were observed,
/// 30–31s if only the bounds are known, - if the state was entered before tcpclose was watching, and for ESTABLISHED.
///
/// --handshake draws connections with their sequence numbers; missing parts are `not observed`. An ACK is drawn when it is
/// due: a delayed ACK leaves up to 200 ms later.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tcpclose watch --port 8080\n  tcpclose watch --handshake --port 443\n  \
    tcpclose watch --state close_wait --longer-than 10s --json | jq -r .peer"
)]
pub struct Watch {
    /// Only connections of this service port (local on a server, remote on a client); may be repeated
    #[arg(long = "port", value_name = "PORT", value_parser = port, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    ports: Vec<u16>,
    /// Only transitions from or to this state; may be repeated
    #[arg(long = "state", value_name = "STATE", value_parser = state())]
    states: Vec<Phase>,
    /// Only connections closed by this process, from its close() or shutdown() on
    #[arg(long, value_name = "PID", value_parser = pid, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    pid: Option<u32>,
    /// Only the last transition of connections with this outcome; may be repeated
    #[arg(long = "outcome", value_name = "OUTCOME", value_parser = outcome())]
    outcomes: Vec<Outcome>,
    /// Only transitions out of a state that lasted at least this long (proven minimum)
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true, value_hint = ValueHint::Other)]
    longer_than: Option<Duration>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    /// Draw each finished connection with its sequence numbers; the other filters then select connections
    #[arg(long, conflicts_with = "json")]
    handshake: bool,
    /// Show times in UTC instead of local time
    #[arg(long)]
    utc: bool,
    #[command(flatten)]
    address: AgentAddress,
}

impl Watch {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        // Elsewhere the pid, which is one of the first PID namespace, says nothing here.
        if let Some(pid) = self.pid.filter(|_| host::in_first_pid_namespace()) {
            require_process(pid)?;
        }
        let mut show = Show::new(self);
        let AgentAddress { socket, is_explicit, no_agent: alone } = &self.address;
        if !alone {
            let ready = || note(&format!("watching through the agent at {}", socket.display()));
            let each = |lines: Option<Vec<(Item, String)>>| show.take(lines);
            match follow(socket, &self.wanted(), ready, each)? {
                Reply::Answer(()) => return Ok(ExitCode::SUCCESS),
                Reply::NoAgent if *is_explicit => return Err(no_agent(socket, Alone::Attach)),
                Reply::NoAgent => {}
                Reply::Denied => return Err(denied(socket)),
            }
        }
        let ready = |tracking: &Tracking| {
            let why = match alone {
                true => String::new(),
                false => format!("no agent at {}: ", socket.display()),
            };
            let (hook, time_wait) = (tracking.probe.hook.name(), tracking.probe.time_wait.name());
            note(&format!(
                "{why}watching with its own eBPF programs (state hook {hook}, TIME-WAIT hook {time_wait})"
            ));
        };
        let each = |items: Option<Vec<Item>>| {
            let text = |item: &Item| serde_json::to_string(item).unwrap_or_default();
            show.take(items.map(|items| items.into_iter().map(|item| (item.clone(), text(&item))).collect()))
        };
        agent::watch_alone(&Config::alone(), self.wanted(), ready, each)?;
        Ok(ExitCode::SUCCESS)
    }

    /// The filter for the agent. A drawing needs every transition of its connection.
    fn wanted(&self) -> WatchFilter {
        let filter = WatchFilter { ports: self.ports.clone(), more: !self.json, ..WatchFilter::default() };
        if self.handshake {
            return filter;
        }
        WatchFilter {
            states: self.states.clone(),
            outcomes: self.outcomes.clone(),
            pid: self.pid,
            longer_than: self.longer_than.unwrap_or_default(),
            ..filter
        }
    }

    /// Whether a connection is to be drawn.
    fn chooses(&self, connection: &ClosedConnection) -> bool {
        let bound = self.longer_than.map_or(0, |bound| bound.as_nanos());
        let long = |step: &Line| u128::from(step.spent().min_ns) >= bound;
        let by = |step: &Line| step.owner.as_ref().map(|owner| owner.pid);
        (self.states.is_empty() || self.states.iter().any(|phase| connection.has_been_in(phase.state())))
            && (self.outcomes.is_empty() || self.outcomes.contains(&connection.outcome()))
            && self.pid.is_none_or(|pid| connection.steps.iter().any(|step| by(step) == Some(pid)))
            && connection.steps.iter().any(long)
    }
}

/// How lines are shown.
enum Style {
    Json,
    Columns(Columns),
    Drawings(Handshakes),
}

struct Show<'a> {
    watch: &'a Watch,
    style: Style,
    own_netns: u32,
    begun: bool,
}

impl<'a> Show<'a> {
    fn new(watch: &'a Watch) -> Self {
        let own_netns = own_netns();
        let style = match (watch.json, watch.handshake) {
            (true, _) => Style::Json,
            (_, true) => Style::Drawings(Handshakes::default()),
            _ => Style::Columns(Columns::new(own_netns, if watch.utc { Clock::Utc } else { Clock::Local })),
        };
        Self { watch, style, own_netns, begun: false }
    }

    /// Prints new lines; `None` after a while without any. Breaks when nobody reads any more.
    fn take(&mut self, items: Option<Vec<(Item, String)>>) -> Result<ControlFlow<()>, Failure> {
        let mut text = String::new();
        if !std::mem::replace(&mut self.begun, true)
            && let Style::Columns(columns) = &mut self.style
        {
            text = columns.header() + "\n";
        }
        let Some(mut items) = items else {
            let going_on = write(&text)?;
            return Ok(if is_read() { going_on } else { ControlFlow::Break(()) });
        };
        in_order(&mut items);
        for (item, json) in items {
            let shown = match (&mut self.style, item) {
                (Style::Json, _) => Some(harmless_json(json)),
                (_, Item::Lost(lost)) => Some(watch_columns::lost(lost)),
                (Style::Columns(columns), Item::Line(line)) => Some(columns.line(&line)),
                (Style::Drawings(handshakes), Item::Line(line)) => {
                    let done = handshakes.take(*line);
                    let forgotten = handshakes.forgotten();
                    if forgotten > 0 {
                        text +=
                            &format!("… {forgotten} unfinished connections dropped: too many at a time\n");
                    }
                    done.filter(|connection| self.watch.chooses(connection))
                        .map(|connection| drawing::draw(&connection, self.own_netns))
                }
            };
            if let Some(shown) = shown {
                text += &shown;
                text.push('\n');
            }
        }
        write(&text)
    }
}

/// Sorts lines that came together by time. Lost lines stay where they were.
fn in_order(items: &mut [(Item, String)]) {
    let is_lost = |(item, _): &(Item, String)| matches!(item, Item::Lost(_));
    for lines in items.split_mut(is_lost) {
        lines.sort_by_key(|(item, _)| match item {
            Item::Line(line) => line.time_ns,
            Item::Lost(_) => 0,
        });
    }
}

/// Writes to standard output at once; breaks when its reader has gone (`| head`).
fn write(text: &str) -> Result<ControlFlow<()>, Failure> {
    let mut out = io::stdout().lock();
    let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    let gone = done.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
    written(done)?;
    Ok(if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
}

/// Whether standard output has a reader. A pipe without one is in error, which a write would only show with the next line.
fn is_read() -> bool {
    let out = io::stdout();
    let mut fds = [PollFd::new(&out, PollFlags::empty())];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&now)) {
        Ok(_) => !fds.iter().any(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::NVAL)),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::watch::line::Lost;
    use crate::report::watch::line::tests::sample;

    #[test]
    fn lines_that_come_together_are_sorted_by_time() {
        let line = |time_ns| (Item::Line(Box::new(Line { time_ns, ..sample() })), time_ns.to_string());
        let lost = (Item::Lost(Lost { lost: 1, in_kernel: false }), "lost".to_owned());
        let mut items = vec![line(3), line(1), line(2), lost, line(9), line(8)];
        in_order(&mut items);
        let texts: Vec<&str> = items.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["1", "2", "3", "lost", "8", "9"]);
    }
}
