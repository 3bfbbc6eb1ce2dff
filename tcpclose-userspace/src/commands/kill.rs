//! `tcpclose kill`: destroys stuck sockets by SOCK_DESTROY.

use std::cell::RefCell;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use crate::client;
use crate::client::{Client, Said};
use crate::commands::filter::{AgentAddress, Findings, SocketFilter};
use crate::commands::groups::Listed;
use crate::commands::signals::Interrupt;
use crate::commands::{filter, groups, json, print, stuck};
use crate::failure::{Failure, printable};
use crate::kill::places::Places;
use crate::kill::{KillOrder, KillOutcome, SCHEMA, execute};
use crate::linux::host;
use crate::linux::host::{Capability, has_cap};
use crate::names::{Diagnosis, Phase};
use crate::report::Depth;
use crate::report::api::{KILL as PATH, KILL_NOT_ALLOWED as NOT_ALLOWED};
use crate::report::kill::pace::KillPace;
use crate::report::kill::plan::{DIAGNOSES, Leave, Left, plan};
use crate::report::kill::summary::{Fate, KillReport, Tally};
use crate::report::sockets::{DocumentSource, StuckSocket};
use crate::ui::progress;
use crate::ui::table;

/// Destroy sockets that are stuck in CLOSE-WAIT: shows which, and does it with --yes
///
/// The peer gets a RST. The program still reads what was unread and the end of the stream; poll() tells it of an error,
/// and its next write fails with ECONNABORTED. It keeps its file descriptor until it closes it: this ends connections, it
/// mends no leak.
///
/// What goes: sockets whose age is proven and that the program neglects (not_read, not_closed). What does not, unless
/// named: still_sending is at work; not_accepted would stay in its listener's queue all the same; other states.
///
/// Without an agent the ages of sockets whose peers go on acknowledging are not proven: --possibly takes them too.
///
/// Immediately before, the socket is looked up by addresses and cookie: one that has gone, or is in another state, or
/// whose program writes again, is spared. A socket that its program closes in the microseconds after that is destroyed.
///
/// Where an agent runs it destroys them, if it was started with --allow-kill; --no-agent does it from here, which needs
/// CAP_NET_ADMIN, and CAP_SYS_ADMIN for sockets of other network namespaces. Exits with 0 when all went, with 1 when some were spared or refused or a signal came first, with 2 when
/// nothing could be done.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose kill --older-than 1h --port 8080\n  \
    tcpclose kill --older-than 1h --port 8080 --yes --rate 10\n  \
    tcpclose kill --older-than 1h --diagnosis still_sending --yes\n  \
    tcpclose kill --older-than 1h --state last_ack --yes")]
pub struct Kill {
    #[command(flatten)]
    filter: SocketFilter,
    /// Only sockets of this diagnosis; may be repeated [default: not_read and not_closed]
    #[arg(long = "diagnosis", value_name = "DIAGNOSIS", value_enum)]
    diagnoses: Vec<DiagnosisChoice>,
    /// Those too that are only possibly past the bound: their entry was not seen
    #[arg(long)]
    possibly: bool,
    /// At most this many, the oldest first
    #[arg(long, value_name = "N", value_parser = stuck::number, allow_negative_numbers = true)]
    limit: Option<usize>,
    /// At most this many a second
    #[arg(long, value_name = "N", default_value = "100", value_parser = rate, allow_negative_numbers = true)]
    rate: u32,
    /// Do it; without, nothing is touched
    #[arg(long)]
    yes: bool,
    /// One JSON document, when all is done
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: AgentAddress,
}

/// A diagnosis that can be asked for.
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
    text.parse().ok().filter(|rate| *rate > 0).ok_or("not a rate; write how many a second, for example 100")
}

/// Who destroys.
enum Executor {
    /// This process.
    Own(RefCell<Places>),
    Agent(Client),
}

/// What has been done so far.
struct Done {
    fates: Vec<Fate>,
    tally: Tally,
    interrupted: bool,
}

impl Kill {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let mut findings = self.filter.find(&self.place, Depth::WithPeers)?;
        let looked = Instant::now();
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
        let done = self.destroy(&findings, going, &leave, looked)?;
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
        let width = table::width();
        let what = match going.len() {
            0 => "Nothing to destroy".to_owned(),
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
        text.push_str(&self.remarks(findings, left));
        if !going.is_empty() {
            text.push_str("dry run: nothing was touched; --yes destroys them\n");
        }
        print(&text).map(|()| ExitCode::SUCCESS)
    }

    /// Where it comes from, what was left, and what could not be seen.
    fn remarks(&self, findings: &Findings, left: Left) -> String {
        let left = match left.words().as_slice() {
            [] => None,
            words => Some(format!("left alone: {}", words.join("; "))),
        };
        let source = format!("source: {}", printable(&findings.source));
        let incomplete =
            findings.document.incomplete.iter().map(|remark| format!("incomplete: {}", printable(remark)));
        let lines = left.into_iter().chain([source]).chain(incomplete);
        lines.map(|line| table::wrap(&line, table::width()) + "\n").collect()
    }

    fn destroy(
        &self,
        findings: &Findings,
        going: Vec<StuckSocket>,
        leave: &Leave,
        looked: Instant,
    ) -> Result<Done, Failure> {
        let mut done = Done { fates: Vec::new(), tally: Tally::default(), interrupted: false };
        if going.is_empty() {
            return Ok(done);
        }
        let hand = self.hand(findings)?;
        let own = filter::own_netns();
        // What the first one meets the others meet too.
        let alike = going.windows(2).all(|pair| matches!(pair, [a, b] if a.netns == b.netns));
        let interrupt = Interrupt::hear()?;
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
            let elapsed = looked.elapsed().as_secs_f64();
            let order = KillOrder::new(&socket, &leave.diagnoses, leave.bound, elapsed);
            let tried_at = host::wall_clock();
            let outcome = self.one(&hand, &order).map_err(|mut failure| {
                if at > 0 {
                    failure.why.push_str(&format!(", after {} of {all}", done.tally.words()));
                }
                failure
            })?;
            if alike
                && done.tally.destroyed == 0
                && let Some(why) = hopeless(&outcome, order.state, &hand)
            {
                return Err(why);
            }
            done.tally.add(&outcome);
            if !self.json {
                progress.clear();
                print(&told(&socket, socket.netns != own, &outcome))?;
            }
            let left = pace.left(began.elapsed(), all - at - 1);
            progress.show(at + 1, all, left);
            done.fates.push(Fate { socket, result: Some(outcome), tried_at: Some(tried_at) });
        }
        progress.clear();
        Ok(done)
    }

    fn hand(&self, findings: &Findings) -> Result<Executor, Failure> {
        if findings.document.source == DocumentSource::Agent {
            return Client::new(&self.place.socket, client::PATIENCE).map(Executor::Agent);
        }
        if !has_cap(Capability::NetAdmin) {
            return Err(Failure::new(
                "destroying sockets",
                format!("this process lacks {}", Capability::NetAdmin.name()),
                "run it as root, or through an agent that was started with --allow-kill",
            ));
        }
        Ok(Executor::Own(RefCell::default()))
    }

    fn one(&self, hand: &Executor, order: &KillOrder) -> Result<KillOutcome, Failure> {
        let client = match hand {
            Executor::Own(places) => return Ok(execute(order, &mut places.borrow_mut())),
            Executor::Agent(client) => client,
        };
        let gone = || client.failure("it has gone".to_owned());
        let body = serde_json::to_vec(order).map_err(|why| client.failure(why.to_string()))?;
        let answer = match client.post(PATH, body)? {
            Said::Answer(answer) => answer,
            Said::NoAgent | Said::Denied => return Err(gone()),
        };
        if answer.status == hyper::StatusCode::FORBIDDEN {
            let what = format!("agent at {}", self.place.socket.display());
            let why = answer.first_line();
            let todo = match why == NOT_ALLOWED.trim_end() {
                true => "restart it with that flag, or add --no-agent to destroy from here",
                false => "ask as one of them, or add --no-agent to destroy from here",
            };
            return Err(Failure::new(what, why, todo));
        }
        let answer = answer.expect_ok().map_err(|why| client.failure(why))?;
        serde_json::from_slice(&answer.body)
            .map_err(|why| client.failure(format!("its answer is none of tcpclose ({why})")))
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
            true => "stopped by a signal: ",
            false => "",
        };
        let line = match all {
            0 => format!(
                "Nothing to destroy: in {} for {} or longer",
                self.filter.state_in_words(),
                humantime::format_duration(findings.bound)
            ),
            _ => format!("{stopped}{} of {all}", printable(&done.tally.words())),
        };
        table::wrap(&line, table::width()) + "\n" + &self.remarks(findings, left)
    }
}

/// The failure that a refusal is which every other socket would meet too.
fn hopeless(outcome: &KillOutcome, state: Phase, hand: &Executor) -> Option<Failure> {
    let KillOutcome::Refused { errno: Some(errno), why } = outcome else { return None };
    let minisockets = matches!(state, Phase::TimeWait | Phase::FinWait2);
    match *errno {
        libc::EPERM => {
            let who = match hand {
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
            "end the program that holds them instead: tcpclose stuck names it",
        )),
        _ => None,
    }
}

/// The line about one socket; `elsewhere`: it is in another network namespace than ours.
fn told(socket: &StuckSocket, elsewhere: bool, outcome: &KillOutcome) -> String {
    let (what, why) = match outcome {
        KillOutcome::Destroyed => ("destroyed", None),
        KillOutcome::Spared { why } => ("spared", Some(why)),
        KillOutcome::Refused { why, .. } => ("refused", Some(why)),
    };
    let diagnosis = socket.diagnosis.map_or_else(|| socket.state.name(), Diagnosis::name);
    let mut line = format!(
        "{what:<9}  {}  {}  {}  {diagnosis}  {}",
        groups::local(socket, elsewhere),
        socket.peer,
        table::age(&socket.age),
        stuck::owners(socket)
    );
    if let Some(why) = why {
        line.push_str(&format!("  ({})", printable(why)));
    }
    line.push('\n');
    line
}

/// How far it is.
struct KillProgress {
    on: bool,
    shown: bool,
}

impl KillProgress {
    fn new(alone: bool) -> Self {
        // Where standard output is the same terminal, its lines are the progress; ours stands below them.
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
