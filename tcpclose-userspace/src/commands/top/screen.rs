//! The terminal, restored on every way out.

use std::io::{self, stdout};

use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;

/// Holds the terminal; dropping it restores it. ratatui restores it before a panic's message, too.
pub struct Screen {
    pub terminal: DefaultTerminal,
}

impl Screen {
    pub fn take() -> io::Result<Self> {
        ratatui::try_init().map(|terminal| Self { terminal }).inspect_err(|_| restore())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Fails only where the terminal has gone.
fn restore() {
    let _ = ratatui::try_restore();
    let _ = execute!(stdout(), Show);
}
