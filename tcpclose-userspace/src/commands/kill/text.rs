//! What `tcpclose kill` prints on a terminal.

use std::io::{self, IsTerminal};
use std::time::Duration;

use tcpclose_common::progress;

use super::{Done, Kill};
use crate::commands::filter;
use crate::commands::filter::Findings;
use crate::commands::groups::ListedSocket;
use crate::commands::stuck;
use crate::failure::printable;
use crate::kill::KillOutcome;
use crate::names::Diagnosis;
use crate::report::kill::plan::Left;
use crate::report::sockets::{DocumentSource, StuckSocket};
use crate::ui::footer::footer;
use crate::ui::{labels, table};

impl Kill {
    pub(super) fn dry_run_text(
        &self,
        findings: &Findings,
        going: &[StuckSocket],
        left: Left,
        bound: f64,
        width: Option<u16>,
    ) -> String {
        let what = match going.len() {
            0 if self.filter.is_selective() => "No matching socket to destroy".to_owned(),
            0 => "No socket to destroy".to_owned(),
            n => format!("Would destroy {}", table::count(n, "socket", "sockets")),
        };
        let sure = if self.possibly { "possibly " } else { "" };
        let line = format!(
            "{what} (in {}, {sure}for {} or longer)",
            self.filter.state_in_words(),
            humantime::format_duration(findings.bound)
        );
        let mut text = table::wrap(&line, width) + "\n";
        let own = filter::own_netns();
        if !going.is_empty() {
            let listed: Vec<ListedSocket<'_>> = going
                .iter()
                .map(|socket| ListedSocket {
                    socket,
                    possibly: !socket.is_past(bound),
                    elsewhere: socket.netns != own,
                })
                .collect();
            text.push_str(&format!("\n{}\n", stuck::list(&listed, usize::MAX, width)));
        }
        text.push_str(&remarks(findings, left, width));
        if !going.is_empty() {
            let yes = match self.filter.has_target() {
                true => "--yes",
                false => "--yes --all",
            };
            let needs = match findings.document.source {
                DocumentSource::Agent => "; an agent does so only with --allow-kill",
                DocumentSource::Snapshot => "; that takes root",
            };
            let line = format!("dry run: nothing was destroyed (add {yes} to destroy them{needs})");
            text.push_str(&(table::wrap(&line, width) + "\n"));
        }
        text
    }

    pub(super) fn closing_words(&self, findings: &Findings, done: &Done, left: Left) -> String {
        let all = done.fates.len();
        let stopped = match done.interrupted {
            true => "interrupted by a signal: ",
            false => "",
        };
        let line = match all {
            0 => format!(
                "No socket to destroy (in {}, for {} or longer)",
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

/// The line about one socket; `elsewhere`: it is in another network namespace than this process.
pub(super) fn result_line(socket: &StuckSocket, elsewhere: bool, outcome: &KillOutcome) -> String {
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
pub(super) struct KillProgress {
    on: bool,
    shown: bool,
}

impl KillProgress {
    pub(super) fn new(alone: bool) -> Self {
        // Without a terminal for standard output, only with --json: otherwise its lines are the progress.
        let on = alone || io::stdout().is_terminal();
        Self { on, shown: false }
    }

    pub(super) fn show(&mut self, done: usize, all: usize, left: Duration) {
        if self.on && (self.shown || left >= progress::WORTH) {
            let left = table::span(left.as_secs_f64());
            progress::show(&format!("{done} of {all}, {left} left"));
            self.shown = true;
        }
    }

    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            progress::clear();
        }
    }
}
