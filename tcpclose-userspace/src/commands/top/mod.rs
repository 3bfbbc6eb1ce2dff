//! `tcpclose top`: the close phase by port, live, full screen.
//!
//! * [`app`]: the state of the screen, and the effect of keys and answers. Pure.
//! * [`order`]: sorted and filtered. Pure.
//! * [`draw`]: the screen; [`columns`]: its cells. Pure.
//! * [`poller`]: asks the agent on its own thread, so that keys never wait.
//! * [`screen`]: the terminal, always restored.

pub mod app;
pub mod columns;
pub mod draw;
pub mod order;
pub mod poller;
pub mod screen;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use clap::{Args, ValueHint};
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use crate::commands::arguments::socket_path;
use crate::commands::signals::Interrupt;
use crate::commands::suggest::StackSource;
use crate::commands::top::app::{App, AppStep};
use crate::commands::top::draw::draw;
use crate::commands::top::poller::{Poller, Update};
use crate::commands::top::screen::Screen;
use crate::failure::Failure;
use crate::report::requests::DEFAULT_SOCKET;

/// The longest wait until a key or an answer shows.
const TURN: Duration = Duration::from_millis(100);
/// Enough for an agent to restart.
const PATIENCE: Duration = Duration::from_secs(10);

/// Show ports, their sockets and owners, live and full screen
///
/// Asks the agent once per second. Keys: up and down (or k and j) select, Enter opens a port's sockets and a socket's owners,
/// Esc goes back, s sorts by the next column, r reverses the order, / filters, p shows OLDEST, MEDIAN and P99 of the next
/// state, ? lists the keys, q quits. Respects NO_COLOR.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose top\n  tcpclose top --socket /run/other/tcpclose.sock")]
pub struct Top {
    /// The agent's Unix socket [TCPCLOSE_SOCKET]
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, value_parser = socket_path(), value_hint = ValueHint::FilePath)]
    socket: PathBuf,
}

impl Top {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        suits(
            io::stdin().is_terminal() && io::stdout().is_terminal(),
            std::env::var("TERM").ok().as_deref(),
        )?;
        // Problems with the agent are reported before the screen changes.
        let (asking, first) = Poller::begin(&self.socket)?;
        let interrupt = Interrupt::catch()?;
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let mut app = App::new(first, colour);
        if self.socket != Path::new(DEFAULT_SOCKET) {
            app.stack_source = StackSource::AgentAt(self.socket.clone());
        }
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
    let todo = "run it in a terminal, or use tcpclose ports";
    match term {
        _ if !is_terminal => Err(Failure::new("top", "standard input and output are not a terminal", todo)),
        None | Some("" | "dumb") => {
            let name =
                term.filter(|name| !name.is_empty()).map_or("unset".to_owned(), |name| format!("{name:?}"));
            Err(Failure::new("top", format!("TERM is {name}: cannot draw on this terminal"), todo))
        }
        Some(_) => Ok(()),
    }
}

/// Runs until a key, a signal, or the end of the agent.
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
                // The next drawing sees a new size.
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
                    return Err(Failure::new("top", "it no longer asks the agent", "report this"));
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
    fn a_terminal_that_cannot_draw_is_one_failure() {
        assert!(suits(true, Some("xterm-256color")).is_ok());
        for (is_terminal, term, why) in [
            (false, Some("xterm"), "not a terminal"),
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
