//! `tcpclose watch`: every transition of the close phase, as it happens.

use std::io::{self, ErrorKind, Write as _};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};

use crate::agent;
use crate::agent::config::Config;
use crate::agent::tracking::Tracking;
use crate::client::fetch::AgentAddress;
use crate::client::reply::{Reply, denied, no_agent};
use crate::client::stream::follow;
use crate::commands::arguments::{duration, pid, port, state};
use crate::commands::filter::own_netns;
use crate::commands::output::{note, written};
use crate::failure::Failure;
use crate::names::{Outcome, Phase};
use crate::report::watch::filter::WatchFilter;
use crate::report::watch::handshake::{Connection, Handshakes};
use crate::report::watch::line::{Item, Line};
use crate::ui::drawing;
use crate::ui::watch_columns;
use crate::ui::watch_columns::Columns;

/// Show every transition of the close phase, live
///
/// TIME-WAIT and orphaned FIN-WAIT-2 included, which no tracepoint reports. Asks the agent; where none runs it attaches
/// by itself, which needs root. AFTER is the time spent in the state that was left: 1.203 s where both ends of it were
/// seen, 30–31 s where they are known to lie within that, unknown where the state was entered before anybody looked.
///
/// In a drawing, what nobody saw is `not observed`. An ACK is drawn as sent where it falls due: a delayed one leaves up to
/// 200 ms later.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tcpclose watch --port 8080\n  tcpclose watch --handshake --port 443\n  \
    tcpclose watch --state close_wait --longer-than 10s --json | jq -r .peer"
)]
pub struct Watch {
    /// Only connections of this service port (the local one on a server, the remote one on a client); may be repeated
    #[arg(long = "port", value_name = "PORT", value_parser = port, allow_negative_numbers = true)]
    ports: Vec<u16>,
    /// Only steps that leave or enter this state; may be repeated
    #[arg(long = "state", value_name = "STATE", value_parser = state)]
    states: Vec<Phase>,
    /// Only what this process has closed, from its close() or shutdown() on
    #[arg(long, value_name = "PID", value_parser = pid, allow_negative_numbers = true)]
    pid: Option<u32>,
    /// Only the last step of connections that end like this: graceful, reset_received, reset_sent, aborted, timeout,
    /// destroyed or unknown; may be repeated
    #[arg(long = "outcome", value_name = "OUTCOME", value_parser = outcome)]
    outcomes: Vec<Outcome>,
    /// Only steps out of a state that lasted for this long or longer, by the proven minimum
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    longer_than: Option<Duration>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Draw each finished connection as textbooks do, with its sequence numbers; the other filters then choose
    /// connections
    #[arg(long, conflicts_with = "json")]
    handshake: bool,
    #[command(flatten)]
    address: AgentAddress,
}

fn outcome(text: &str) -> Result<Outcome, &'static str> {
    let name = text.to_ascii_lowercase().replace('-', "_");
    Outcome::ALL.into_iter().find(|outcome| outcome.name() == name).ok_or(
        "not an outcome; write graceful, reset_received, reset_sent, aborted, timeout, destroyed or unknown",
    )
}

impl Watch {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let mut show = Show::new(self);
        let AgentAddress { socket, is_explicit, no_agent: alone } = &self.address;
        if !alone {
            let ready = || note(&format!("watching: the agent at {}", socket.display()));
            let each = |lines: Option<Vec<(Item, String)>>| show.take(lines);
            match follow(socket, &self.wanted(), ready, each)? {
                Reply::Answer(()) => return Ok(ExitCode::SUCCESS),
                Reply::NoAgent if *is_explicit => {
                    let todo = "start it, name another --socket, or add --no-agent";
                    return Err(Failure { todo: todo.to_owned(), ..no_agent(socket) });
                }
                Reply::NoAgent => {}
                Reply::Denied => return Err(denied(socket)),
            }
        }
        let ready = |engine: &Tracking| {
            let why = match alone {
                true => String::new(),
                false => format!("no agent at {}: ", socket.display()),
            };
            let (hook, time_wait) = (engine.probe.hook.name(), engine.probe.time_wait.name());
            note(&format!("{why}watching: attached (state hook {hook}, time wait {time_wait})"));
        };
        let each = |items: Option<Vec<Item>>| {
            let text = |item: &Item| serde_json::to_string(item).unwrap_or_default();
            show.take(items.map(|items| items.into_iter().map(|item| (item.clone(), text(&item))).collect()))
        };
        agent::watch_alone(&Config::alone(), self.wanted(), ready, each)?;
        Ok(ExitCode::SUCCESS)
    }

    /// What is to be told: of connections that are drawn, every step.
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
    fn chooses(&self, connection: &Connection) -> bool {
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
            _ => Style::Columns(Columns::new(own_netns)),
        };
        Self { watch, style, own_netns, begun: false }
    }

    /// Prints what has come; `None` when nothing has for a while. Breaks when nobody reads any more.
    fn take(&mut self, items: Option<Vec<(Item, String)>>) -> Result<ControlFlow<()>, Failure> {
        let mut text = String::new();
        if !std::mem::replace(&mut self.begun, true)
            && let Style::Columns(columns) = &mut self.style
        {
            text = columns.header() + "\n";
        }
        let Some(items) = items else {
            let going_on = write(&text)?;
            return Ok(if is_read() { going_on } else { ControlFlow::Break(()) });
        };
        for (item, json) in items {
            let shown = match (&mut self.style, item) {
                (Style::Json, _) => Some(json),
                (_, Item::Lost(lost)) => Some(watch_columns::lost(lost)),
                (Style::Columns(columns), Item::Line(line)) => Some(columns.line(&line)),
                (Style::Drawings(handshakes), Item::Line(line)) => {
                    let done = handshakes.take(*line);
                    let forgotten = handshakes.forgotten();
                    if forgotten > 0 {
                        text += &format!("… {forgotten} unfinished forgotten: too many at a time\n");
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

/// Writes to standard output at once; breaks when its reader has gone (`| head`).
fn write(text: &str) -> Result<ControlFlow<()>, Failure> {
    let mut out = io::stdout().lock();
    let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    let gone = done.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
    written(done)?;
    Ok(if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
}

/// Whether somebody reads what is written: a pipe without a reader is in error, which a write would only find out when
/// something comes to be written.
fn is_read() -> bool {
    let out = io::stdout();
    let mut fds = [PollFd::new(&out, PollFlags::empty())];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&now)) {
        Ok(_) => !fds.iter().any(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::NVAL)),
        Err(_) => true,
    }
}
