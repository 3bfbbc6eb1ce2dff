//! `tcpclose kill`: destroys stuck sockets with SOCK_DESTROY.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, ValueEnum, ValueHint};

use crate::client::fetch::AgentAddress;
use crate::client::reply::Alone;
use crate::commands::arguments::limit;
use crate::commands::filter::{Findings, SocketFilter};
use crate::commands::output::{json, print};
use crate::failure::Failure;
use crate::kill::SCHEMA;
use crate::names::Diagnosis;
use crate::report::kill::plan::{DIAGNOSES, Leave, Left, plan};
use crate::report::kill::summary::{Fate, KillReport, Tally};
use crate::report::sockets::{Depth, StuckSocket};
use crate::ui::table;

mod execution;
mod text;

/// Destroy sockets stuck in CLOSE-WAIT (default: dry run)
///
/// The peer gets a RST. The program can still read unread data and the end of the stream; poll() reports an error, and the
/// next write fails with ECONNABORTED. The process keeps the descriptor until it closes it: this ends connections and does
/// not fix the leak.
///
/// By default this destroys only sockets whose age is proven and that the program neglects (not_read, not_closed). A
/// still_sending socket is still in use, and a not_accepted one would stay in its listener's queue: select them with
/// --diagnosis, and other states with --state. If a process on this host holds the other end in FIN-WAIT-2, it may wait for an
/// answer: select these with --half-closed or --cookie.
///
/// Without an agent, the age of a socket whose peer still acknowledges is not proven: --possibly includes it.
///
/// Each socket is looked up again, by addresses and cookie, right before it is destroyed. A socket that is gone, has changed
/// state or has sent data again is spared. One that its program closes in the microseconds in between is still destroyed.
///
/// A running agent destroys the sockets if it was started with --allow-kill; with --no-agent, this command does and needs
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
    /// Include sockets that are only possibly old enough, because their entry was not observed, or that only possibly
    /// belong to --pid or --unit
    #[arg(long)]
    possibly: bool,
    /// Include sockets whose local peer has sent its FIN and may wait for an answer
    #[arg(long)]
    half_closed: bool,
    /// Maximum number of sockets, the oldest first
    #[arg(long, value_name = "N", value_parser = limit, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    limit: Option<usize>,
    /// Maximum number of sockets per second
    #[arg(long, value_name = "N", default_value = "100", value_parser = rate, allow_negative_numbers = true, value_hint = ValueHint::Other)]
    rate: u32,
    /// Destroy the sockets (default: dry run)
    #[arg(long)]
    yes: bool,
    /// With --yes, destroy every matching socket even without --port, --pid, --unit or --cookie
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

/// The results so far.
struct Done {
    fates: Vec<Fate>,
    tally: Tally,
    interrupted: bool,
}

impl Kill {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        if self.yes && !self.all && !self.filter.has_target() {
            let todo =
                "add --port, --pid, --unit or --cookie, or --all to destroy every socket of the dry run";
            return Err(Failure::new("kill --yes", "no target", todo));
        }
        let mut findings = self.filter.find(&self.address, Alone::Destroy, Depth::WithPeers)?;
        let found_at = Instant::now();
        let sockets = std::mem::take(&mut findings.document.sockets);
        let leave = Leave {
            bound: findings.bound.as_secs_f64(),
            diagnoses: self.diagnoses(),
            possibly: self.possibly,
            half_closed: self.half_closed || self.filter.names_cookies(),
            by_owner: self.filter.names_owner(),
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
}

#[cfg(test)]
mod tests;
