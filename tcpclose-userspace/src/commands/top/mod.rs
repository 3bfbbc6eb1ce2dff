//! `tcpclose top`: the close phase by port, live, on the whole terminal.
//!
//! * [`app`]: what is shown, and what a key does to it. Pure.
//! * [`order`]: sorted and filtered. Pure.
//! * [`draw`]: the picture of it; [`columns`]: its cells. Pure.
//! * [`poller`]: asks the agent, on a thread of its own, so that keys never wait.
//! * [`screen`]: the terminal, given back whatever happens.

pub mod app;
pub mod columns;
pub mod draw;
pub mod order;
pub mod poller;
pub mod screen;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use crate::commands::arguments::socket_path;
use crate::commands::signals::Interrupt;
use crate::commands::top::app::{App, AppStep};
use crate::commands::top::draw::draw;
use crate::commands::top::poller::{Poller, Update};
use crate::commands::top::screen::Screen;
use crate::failure::Failure;
use crate::report::requests::DEFAULT_SOCKET;

/// How long a key or an answer may wait to be seen.
const TURN: Duration = Duration::from_millis(100);
/// An agent that is restarted is back by then.
const PATIENCE: Duration = Duration::from_secs(10);

/// Watch each port's close phase, live: sockets per state, rates, durations, what is stuck; down to a socket's owners
///
/// Asks the running agent once a second. Keys: up and down (or j and k) choose, Enter goes from a port to its sockets and
/// from a socket to its owners, Esc goes back, s sorts by the next column and r the other way round, / filters, p takes
/// OLDEST, MEDIAN and P99 of the next state, q quits. NO_COLOR is obeyed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose top\n  tcpclose top --socket /run/other/tcpclose.sock")]
pub struct Top {
    /// The agent's unix socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, value_parser = socket_path())]
    socket: PathBuf,
}

impl Top {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        suits(
            io::stdin().is_terminal() && io::stdout().is_terminal(),
            std::env::var("TERM").ok().as_deref(),
        )?;
        // Whatever is wrong with the agent is said before the screen changes.
        let (asking, first) = Poller::begin(&self.socket)?;
        let interrupt = Interrupt::catch()?;
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let mut app = App::new(first, colour);
        let mut screen = Screen::take().map_err(lost)?;
        let done = show(&mut app, &asking, &interrupt, &mut screen);
        drop(screen);
        done.map(|()| ExitCode::SUCCESS)
    }
}

fn lost(why: io::Error) -> Failure {
    Failure::new("the terminal", why, "try tcpclose ports")
}

/// Whether this is a terminal that can be drawn on.
fn suits(is_terminal: bool, term: Option<&str>) -> Result<(), Failure> {
    let todo = "run it in a terminal, or see tcpclose ports";
    match term {
        _ if !is_terminal => Err(Failure::new("top", "standard input and output are no terminal", todo)),
        None | Some("" | "dumb") => {
            let name =
                term.filter(|name| !name.is_empty()).map_or("unset".to_owned(), |name| format!("{name:?}"));
            Err(Failure::new("top", format!("TERM is {name}: no terminal to draw on"), todo))
        }
        Some(_) => Ok(()),
    }
}

/// Shows until a key, a signal, or an agent that is gone for good ends it.
fn show(app: &mut App, asking: &Poller, interrupt: &Interrupt, screen: &mut Screen) -> Result<(), Failure> {
    let mut trouble_since: Option<Instant> = None;
    let mut changed = true;
    loop {
        if changed {
            screen.terminal.draw(|frame| draw(app, frame)).map_err(lost)?;
        }
        changed = event::poll(TURN).map_err(lost)?;
        if changed {
            match event::read().map_err(lost)? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    if app.key(key) == AppStep::Quit {
                        return Ok(());
                    }
                    asking.want(app.wanted());
                }
                // A new size is seen by the next drawing.
                _ => {}
            }
        }
        if interrupt.within(Duration::ZERO) {
            return Ok(());
        }
        loop {
            match asking.updates.try_recv() {
                Ok(Update::Trouble(failure)) => {
                    let since = *trouble_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= PATIENCE {
                        return Err(failure);
                    }
                    app.trouble = Some(failure.to_string());
                }
                Ok(update) => {
                    trouble_since = None;
                    app.receive(update);
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    return Err(Failure::new("top", "it asks the agent no more", "report this"));
                }
            }
            changed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_can_be_drawn_one_line_says_so() {
        assert!(suits(true, Some("xterm-256color")).is_ok());
        for (is_terminal, term, why) in [
            (false, Some("xterm"), "no terminal"),
            (true, Some("dumb"), "\"dumb\""),
            (true, None, "unset"),
            (true, Some(""), "unset"),
        ] {
            let line = suits(is_terminal, term).unwrap_err().to_string();
            assert!(
                line.starts_with("tcpclose: top: ") && line.contains(why) && line.contains("; run it"),
                "{line}"
            );
        }
    }
}
