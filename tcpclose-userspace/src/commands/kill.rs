//! `tcpclose kill`: destroys stuck sockets with SOCK_DESTROY.

use std::cell::RefCell;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum, ValueHint};
use tcpclose_common::progress;

use crate::client;
use crate::client::Client;
use crate::client::fetch::AgentAddress;
use crate::client::reply::Reply;
use crate::commands::arguments::number;
use crate::commands::filter;
use crate::commands::filter::{Findings, SocketFilter};
use crate::commands::groups::Listed;
use crate::commands::output::{json, print};
use crate::commands::signals::Interrupt;
use crate::commands::stuck;
use crate::failure::{Failure, printable};
use crate::kill::places::Places;
use crate::kill::{KillOrder, KillOutcome, SCHEMA, execute};
use crate::linux::host;
use crate::linux::host::{Capability, has_cap};
use crate::names::{Diagnosis, Phase};
use crate::report::kill::pace::KillPace;
use crate::report::kill::plan::{DIAGNOSES, Leave, Left, plan};
use crate::report::kill::summary::{Fate, KillReport, Tally};
use crate::report::requests::{KILL_NOT_ALLOWED, KILL_PATH};
use crate::report::sockets::Depth;
use crate::report::sockets::{DocumentSource, StuckSocket};
use crate::ui::footer::footer;
use crate::ui::{labels, table};

/// Destroy sockets stuck in CLOSE-WAIT (default: dry run)
///
/// The peer gets a RST. The program can still read unread data and the end of the stream; poll() reports an error, and the
/// next write fails with ECONNABORTED. The process keeps the descriptor until it closes it: this ends connections and does
/// not fix the leak.
///
/// By default this destroys sockets with a proven age that the program neglects (not_read, not_closed). still_sending is
/// still in use, and not_accepted would stay in its listener's queue: both have to be named by --diagnosis, and other
/// states by --state.
///
/// Without an agent, the age of a socket whose peer still acknowledges is not proven: --possibly includes it.
///
/// Each socket is looked up by addresses and cookie just before. If it has gone, is in another state, or its program writes
/// again, it is spared. A socket that its program closes within microseconds after that is destroyed.
///
/// A running agent destroys the sockets if it was started with --allow-kill; --no-agent destroys them from here and needs
/// CAP_NET_ADMIN, and CAP_SYS_ADMIN for other network namespaces.
///
/// Exit status: 0 if all were destroyed, 1 if some were spared or refused or a signal interrupted it, 2 if it failed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose kill --older-than 1h --port 8080\n  \
    tcpclose kill --older-than 1h --port 8080 --yes --rate 10\n  \
    tcpclose kill --older-than 1h --unit api.service --diagnosis still_sending --yes\n  \
    tcpclose kill --older-than 1h --state last_ack --yes --all")]
pub struct Kill {
    #[command(flatten)]
    filter: SocketFilter,
    /// Only sockets with this diagnosis; may be repeated [default: not_read and not_closed]
    #[arg(long = "diagnosis", value_name = "DIAGNOSIS", value_enum)]
    diagnoses: Vec<DiagnosisChoice>,
    /// Include sockets that are only possibly old enough, because their entry was not observed
    #[arg(long)]
    possibly: bool,
    /// Maximum number of sockets, the oldest first
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    limit: Option<usize>,
    /// Maximum number of sockets per second
    #[arg(long, value_name = "N", default_value = "100", value_parser = rate, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    rate: u32,
    /// Destroy the sockets (default: dry run)
    #[arg(long)]
    yes: bool,
    /// With --yes, allow every socket: without --port, --pid or --unit
    #[arg(long)]
    all: bool,
    /// Print JSON, once all is done
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    address: AgentAddress,
}

/// A diagnosis that can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum DiagnosisChoice {
    NotRead,
    NotClosed,
    StillSending,
    NotAccepted,
}

impl From<DiagnosisChoice> for Diagnosis {
    fn from(named: DiagnosisChoice) -> Self {
        match named {
            DiagnosisChoice::NotRead => Self::NotRead,
            DiagnosisChoice::NotClosed => Self::NotClosed,
            DiagnosisChoice::StillSending => Self::StillSending,
            DiagnosisChoice::NotAccepted => Self::NotAccepted,
        }
    }
}

fn rate(text: &str) -> Result<u32, &'static str> {
    text.parse().ok().filter(|rate| *rate > 0).ok_or("not a rate; write a number per second, for example 100")
}

/// What destroys the sockets.
enum Executor {
    /// This process.
    Own(RefCell<Places>),
    Agent(Client),
}

/// The results so far.
struct Done {
    fates: Vec<Fate>,
    tally: Tally,
    interrupted: bool,
}

impl Kill {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        if self.yes && !self.all && !self.filter.has_target() {
            let todo = "add --port, --pid or --unit, or --all to destroy every socket of the dry run";
            return Err(Failure::new("kill --yes", "no target", todo));
        }
        let mut findings = self.filter.find(&self.address, Depth::WithPeers)?;
        let found_at = Instant::now();
        let sockets = std::mem::take(&mut findings.document.sockets);
        let leave = Leave {
            bound: findings.bound.as_secs_f64(),
            diagnoses: self.diagnoses(),
            possibly: self.possibly,
            limit: self.limit.unwrap_or(usize::MAX),
        };
        let (going, left) = plan(self.filter.select(sockets), &leave);
        if !self.yes {
            return self.show(&findings, going, left, leave.bound);
        }
        let done = self.destroy(&findings, going, &leave, found_at)?;
        let all = !done.interrupted && done.tally.spared() + done.tally.refused() == 0;
        let text = match self.json {
            true => self.json(&findings, done, left)?,
            false => self.closing_words(&findings, &done, left),
        };
        print(&text)?;
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn diagnoses(&self) -> Vec<Diagnosis> {
        match self.diagnoses.as_slice() {
            [] => DIAGNOSES.to_vec(),
            named => named.iter().copied().map(Diagnosis::from).collect(),
        }
    }

    /// The dry run.
    fn show(
        &self,
        findings: &Findings,
        going: Vec<StuckSocket>,
        left: Left,
        bound: f64,
    ) -> Result<ExitCode, Failure> {
        if self.json {
            let fates = going.into_iter().map(|socket| Fate { socket, result: None, tried_at: None });
            let done = Done { fates: fates.collect(), tally: Tally::default(), interrupted: false };
            return print(&self.json(findings, done, left)?).map(|()| ExitCode::SUCCESS);
        }
        let text = self.dry_run_text(findings, &going, left, bound, table::width());
        print(&text).map(|()| ExitCode::SUCCESS)
    }

    fn dry_run_text(
        &self,
        findings: &Findings,
        going: &[StuckSocket],
        left: Left,
        bound: f64,
        width: Option<u16>,
    ) -> String {
        let what = match going.len() {
            0 => "No socket to destroy".to_owned(),
            n => format!("Would destroy {}", table::count(n, "socket", "sockets")),
        };
        let sure = if self.possibly { "possibly " } else { "" };
        let line = format!(
            "{what}: in {}, {sure}for {} or longer",
            self.filter.state_in_words(),
            humantime::format_duration(findings.bound)
        );
        let mut text = table::wrap(&line, width) + "\n";
        let own = filter::own_netns();
        if !going.is_empty() {
            let listed: Vec<Listed<'_>> = going
                .iter()
                .map(|socket| Listed {
                    socket,
                    possibly: !socket.age.is_past(bound),
                    elsewhere: socket.netns != own,
                })
                .collect();
            text.push_str(&format!("\n{}\n", stuck::list(&listed, usize::MAX, width)));
        }
        text.push_str(&remarks(findings, left, width));
        if !going.is_empty() {
            let yes = match self.filter.has_target() {
                true => "--yes",
                false => "--yes with --all",
            };
            text.push_str(&format!("dry run: nothing was destroyed; {yes} destroys them\n"));
        }
        text
    }

    fn destroy(
        &self,
        findings: &Findings,
        going: Vec<StuckSocket>,
        leave: &Leave,
        found_at: Instant,
    ) -> Result<Done, Failure> {
        let mut done = Done { fates: Vec::new(), tally: Tally::default(), interrupted: false };
        if going.is_empty() {
            return Ok(done);
        }
        let executor = self.executor(findings)?;
        let own = filter::own_netns();
        // In one namespace the others fail as the first one does.
        let alike = going.windows(2).all(|pair| matches!(pair, [a, b] if a.netns == b.netns));
        let interrupt = Interrupt::catch()?;
        let (mut pace, began, all) = (KillPace::new(self.rate), Instant::now(), going.len());
        let mut progress = KillProgress::new(self.json);
        for (at, socket) in going.into_iter().enumerate() {
            let pause = pace.wait(began.elapsed());
            done.interrupted = done.interrupted || interrupt.within(pause);
            if done.interrupted {
                done.fates.push(Fate { socket, result: None, tried_at: None });
                continue;
            }
            pace.take(began.elapsed());
            let elapsed = found_at.elapsed().as_secs_f64();
            let order = KillOrder::new(&socket, &leave.diagnoses, leave.bound, elapsed);
            let tried_at = host::wall_clock();
            let outcome = self.one(&executor, &order).map_err(|mut failure| {
                if at > 0 {
                    failure.why.push_str(&format!(", after {} of {all}", done.tally.words()));
                }
                failure
            })?;
            if alike
                && done.tally.destroyed == 0
                && let Some(why) = hopeless(&outcome, order.state, &executor)
            {
                return Err(why);
            }
            done.tally.add(&outcome);
            if !self.json {
                progress.clear();
                print(&result_line(&socket, socket.netns != own, &outcome))?;
            }
            let left = pace.left(began.elapsed(), all - at - 1);
            progress.show(at + 1, all, left);
            done.fates.push(Fate { socket, result: Some(outcome), tried_at: Some(tried_at) });
        }
        progress.clear();
        Ok(done)
    }

    fn executor(&self, findings: &Findings) -> Result<Executor, Failure> {
        if findings.document.source == DocumentSource::Agent {
            return Client::new(&self.address.socket, client::PATIENCE).map(Executor::Agent);
        }
        if !has_cap(Capability::NetAdmin) {
            return Err(Failure::new(
                "destroying sockets",
                format!("this process lacks {}", Capability::NetAdmin.name()),
                "run it as root, or start an agent with --allow-kill",
            ));
        }
        Ok(Executor::Own(RefCell::default()))
    }

    fn one(&self, executor: &Executor, order: &KillOrder) -> Result<KillOutcome, Failure> {
        let client = match executor {
            Executor::Own(places) => return Ok(execute(order, &mut places.borrow_mut())),
            Executor::Agent(client) => client,
        };
        let body = serde_json::to_vec(order).map_err(|why| client.failure(why.to_string()))?;
        let Reply::Answer(answer) = client.post(KILL_PATH, body)? else { return Err(client.gone()) };
        if answer.status == hyper::StatusCode::FORBIDDEN {
            let what = format!("agent at {}", self.address.socket.display());
            let why = answer.first_line();
            let todo = match why == KILL_NOT_ALLOWED.trim_end() {
                true => "restart it with --allow-kill, or add --no-agent to destroy them from here",
                false => "run it as one of them, or add --no-agent to destroy them from here",
            };
            return Err(Failure::new(what, why, todo));
        }
        let answer = answer.expect_ok().map_err(|why| client.failure(why))?;
        serde_json::from_slice(&answer.body)
            .map_err(|why| client.failure(format!("this version cannot read its answer ({why})")))
    }

    fn json(&self, findings: &Findings, done: Done, left: Left) -> Result<String, Failure> {
        let document = &findings.document;
        let report = KillReport {
            schema: SCHEMA,
            host: document.host.clone(),
            boot_id: document.boot_id.clone(),
            at: document.at.clone(),
            source: document.source,
            dry_run: !self.yes,
            interrupted: done.interrupted,
            destroyed: done.tally.destroyed,
            spared: done.tally.spared(),
            refused: done.tally.refused(),
            left,
            incomplete: document.incomplete.clone(),
            sockets: done.fates,
        };
        json(&report)
    }

    fn closing_words(&self, findings: &Findings, done: &Done, left: Left) -> String {
        let all = done.fates.len();
        let stopped = match done.interrupted {
            true => "interrupted by a signal: ",
            false => "",
        };
        let line = match all {
            0 => format!(
                "No socket to destroy: in {} for {} or longer",
                self.filter.state_in_words(),
                humantime::format_duration(findings.bound)
            ),
            _ => format!("{stopped}{} of {all}", printable(&done.tally.words())),
        };
        table::wrap(&line, table::width()) + "\n" + &remarks(findings, left, table::width())
    }
}

/// The sockets left alone, the source, and what is missing.
fn remarks(findings: &Findings, left: Left, width: Option<u16>) -> String {
    let left = match left.words().as_slice() {
        [] => String::new(),
        words => table::wrap(&format!("left alone: {}", words.join("; ")), width) + "\n",
    };
    left + &footer(&findings.source, &findings.document.incomplete, width)
}

/// A refusal that every other socket would meet too, as a failure.
fn hopeless(outcome: &KillOutcome, state: Phase, executor: &Executor) -> Option<Failure> {
    let KillOutcome::Refused { errno: Some(errno), why } = outcome else { return None };
    let minisockets = matches!(state, Phase::TimeWait | Phase::FinWait2);
    match *errno {
        libc::EPERM => {
            let who = match executor {
                Executor::Own(_) => "this process",
                Executor::Agent(_) => "the agent",
            };
            Some(Failure::new(
                "destroying sockets",
                format!("{who} lacks {} in this network namespace ({why})", Capability::NetAdmin.name()),
                "run it as root of the namespace's user namespace",
            ))
        }
        // Before 6.1, tcp_abort() knows no minisocket.
        libc::EOPNOTSUPP if !minisockets => Some(Failure::new(
            "destroying sockets",
            "this kernel cannot (CONFIG_INET_DIAG_DESTROY is not set)",
            "stop the program that holds them instead: tcpclose stuck names it",
        )),
        _ => None,
    }
}

/// The line about one socket; `elsewhere`: it is in another network namespace than this process.
fn result_line(socket: &StuckSocket, elsewhere: bool, outcome: &KillOutcome) -> String {
    let (what, why) = match outcome {
        KillOutcome::Destroyed => ("destroyed", None),
        KillOutcome::Spared { why } => ("spared", Some(why)),
        KillOutcome::Refused { why, .. } => ("refused", Some(why)),
    };
    let diagnosis = socket.diagnosis.map_or_else(|| socket.state.name(), Diagnosis::name);
    let mut line = format!(
        "{what:<9}  {}  {}  {}  {diagnosis}  {}",
        labels::local(socket, elsewhere),
        socket.peer,
        table::age(&socket.age),
        labels::owners(socket)
    );
    if let Some(why) = why {
        line.push_str(&format!("  ({})", printable(why)));
    }
    line.push('\n');
    line
}

/// The line of progress.
struct KillProgress {
    on: bool,
    shown: bool,
}

impl KillProgress {
    fn new(alone: bool) -> Self {
        // Without a terminal for standard output, only with --json: otherwise its lines are the progress.
        let on = alone || io::stdout().is_terminal();
        Self { on, shown: false }
    }

    fn show(&mut self, done: usize, all: usize, left: Duration) {
        if self.on && (self.shown || left >= progress::WORTH) {
            let left = table::span(left.as_secs_f64());
            progress::show(&format!("{done} of {all}, {left} left"));
            self.shown = true;
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            progress::clear();
        }
    }
}

#[cfg(test)]
mod tests;
