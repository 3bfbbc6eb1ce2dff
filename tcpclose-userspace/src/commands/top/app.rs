//! The state of `top`, and the effect of keys and answers. Pure.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::commands::suggest::StackSource;
use crate::commands::top::order;
use crate::commands::top::order::{PortsBy, SocketsBy};
use crate::commands::top::poller::Update;
use crate::linux::stacks::frames::Stack;
use crate::metrics::port_labels::PortLabel;
use crate::names::Phase;
use crate::report::ports::{PortUse, PortsDocument};
use crate::report::sockets::{Cookie, StuckSocket};
use crate::report::verdict_group::VerdictGroup;

/// The current view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Ports,
    /// The sockets of a port.
    Sockets(PortLabel),
    /// One of them.
    Socket(PortLabel, Cookie),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppStep {
    Stay,
    Quit,
}

pub struct App {
    pub ports: PortsDocument,
    /// The sockets of the port in view; `None` until the agent answers.
    pub sockets: Option<Vec<StuckSocket>>,
    /// The stacks that these have indices of.
    pub stacks: Vec<Stack>,
    /// The verdicts on their programs.
    pub verdicts: Vec<VerdictGroup>,
    /// States that are not listed, in words.
    pub left_out: Vec<String>,
    pub view: View,
    /// The selected row, by its key, since rows move.
    port: Option<PortLabel>,
    socket: Option<Cookie>,
    pub ports_by: PortsBy,
    pub sockets_by: SocketsBy,
    pub reversed: bool,
    /// The state of OLDEST, MEDIAN and P99 in the table of ports.
    pub phase: Phase,
    pub filter: String,
    /// The filter is being typed.
    pub editing: bool,
    /// The list of keys is shown.
    pub help: bool,
    /// Who records the code that leaves sockets open.
    pub stack_source: StackSource,
    /// Why the agent does not answer.
    pub trouble: Option<String>,
    pub colour: bool,
}

/// Rows per page key.
const PAGE: isize = 10;

impl App {
    pub fn new(ports: PortsDocument, colour: bool) -> Self {
        Self {
            ports,
            sockets: None,
            stacks: Vec::new(),
            verdicts: Vec::new(),
            left_out: Vec::new(),
            view: View::Ports,
            port: None,
            socket: None,
            ports_by: PortsBy::Stuck,
            sockets_by: SocketsBy::Age,
            reversed: false,
            phase: Phase::CloseWait,
            filter: String::new(),
            editing: false,
            help: false,
            stack_source: StackSource::default(),
            trouble: None,
            colour,
        }
    }

    /// The port whose sockets the agent is asked for.
    pub fn wanted(&self) -> Option<PortLabel> {
        match self.view {
            View::Ports => None,
            View::Sockets(label) | View::Socket(label, _) => Some(label),
        }
    }

    /// Takes an answer in; one that came too late is dropped.
    pub fn receive(&mut self, update: Update) {
        match update {
            Update::Ports(ports) => self.ports = *ports,
            Update::Sockets(found) if self.wanted() == Some(found.label) => {
                self.sockets = Some(found.sockets);
                self.stacks = found.stacks;
                self.verdicts = found.verdicts;
                self.left_out = found.left_out;
            }
            Update::Sockets(_) => {}
            Update::Trouble(failure) => return self.trouble = Some(failure.to_string()),
        }
        self.trouble = None;
    }

    /// The ports as shown.
    pub fn rows(&self) -> Vec<&PortUse> {
        let filter = if self.view == View::Ports { self.filter.as_str() } else { "" };
        order::ports(&self.ports.ports, self.ports_by, self.reversed, self.phase, filter)
    }

    /// The sockets as shown.
    pub fn socket_rows(&self) -> Vec<&StuckSocket> {
        let all = self.sockets.as_deref().unwrap_or_default();
        order::sockets(all, self.sockets_by, self.reversed, &self.filter)
    }

    /// The index of the selected port in [`Self::rows`], by default the first.
    pub fn chosen_port(&self) -> Option<usize> {
        place(self.rows().iter().map(|port| port.label()), self.port)
    }

    pub fn chosen_socket(&self) -> Option<usize> {
        place(self.socket_rows().iter().map(|socket| socket.cookie), self.socket)
    }

    pub fn key(&mut self, key: KeyEvent) -> AppStep {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return AppStep::Quit;
        }
        if std::mem::take(&mut self.help) && key.code != KeyCode::Char('q') {
            return AppStep::Stay;
        }
        if self.editing {
            self.write(key.code);
            return AppStep::Stay;
        }
        match key.code {
            KeyCode::Char('q') => return AppStep::Quit,
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::PageUp => self.go(-PAGE),
            KeyCode::PageDown => self.go(PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.go(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.go(isize::MAX),
            KeyCode::Enter | KeyCode::Right => self.enter(),
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left => self.back(),
            KeyCode::Char('s') if self.view == View::Ports => self.ports_by = self.ports_by.next(),
            KeyCode::Char('s') => self.sockets_by = self.sockets_by.next(),
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Char('p') => self.phase = next(self.phase),
            KeyCode::Char('/') => self.editing = true,
            KeyCode::Char('?') => self.help = true,
            _ => {}
        }
        AppStep::Stay
    }

    /// A key while the filter is being typed.
    fn write(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.editing = false,
            KeyCode::Esc => {
                self.editing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if !c.is_control() => self.filter.push(c),
            _ => {}
        }
    }

    fn go(&mut self, by: isize) {
        match self.view {
            View::Ports => {
                let rows: Vec<PortLabel> = self.rows().iter().map(|port| port.label()).collect();
                self.port = moved(&rows, self.port, by);
            }
            View::Sockets(_) => {
                let rows: Vec<Cookie> = self.socket_rows().iter().map(|socket| socket.cookie).collect();
                self.socket = moved(&rows, self.socket, by);
            }
            View::Socket(..) => {}
        }
    }

    fn enter(&mut self) {
        match self.view {
            View::Ports => {
                let Some(label) =
                    self.chosen_port().and_then(|at| self.rows().get(at).map(|port| port.label()))
                else {
                    return;
                };
                self.port = Some(label);
                (self.sockets, self.socket) = (None, None);
                self.stacks.clear();
                self.verdicts.clear();
                self.left_out.clear();
                self.leave_for(View::Sockets(label));
            }
            View::Sockets(label) => {
                let rows = self.socket_rows();
                let chosen = self.chosen_socket().and_then(|at| rows.get(at).map(|socket| socket.cookie));
                if let Some(cookie) = chosen {
                    self.socket = Some(cookie);
                    // The filter stays for the way back.
                    self.view = View::Socket(label, cookie);
                }
            }
            View::Socket(..) => {}
        }
    }

    fn back(&mut self) {
        match self.view {
            View::Ports => self.filter.clear(),
            View::Sockets(_) => self.leave_for(View::Ports),
            View::Socket(label, _) => self.view = View::Sockets(label),
        }
    }

    fn leave_for(&mut self, view: View) {
        self.filter.clear();
        self.reversed = false;
        self.view = view;
    }
}

const fn next(phase: Phase) -> Phase {
    match phase {
        Phase::FinWait1 => Phase::FinWait2,
        Phase::FinWait2 => Phase::Closing,
        Phase::Closing => Phase::TimeWait,
        Phase::TimeWait => Phase::CloseWait,
        Phase::CloseWait => Phase::LastAck,
        Phase::LastAck => Phase::FinWait1,
    }
}

/// The index of `chosen` in `rows`, by default the first; `None` without rows.
fn place<T: PartialEq>(rows: impl Iterator<Item = T>, chosen: Option<T>) -> Option<usize> {
    let rows: Vec<T> = rows.collect();
    let found = rows.iter().position(|row| chosen.as_ref() == Some(row));
    found.or((!rows.is_empty()).then_some(0))
}

/// The row `by` away from `chosen`, at most the first or last.
fn moved<T: PartialEq + Copy>(rows: &[T], chosen: Option<T>, by: isize) -> Option<T> {
    let at = place(rows.iter().copied(), chosen)?;
    let to = at.saturating_add_signed(by).min(rows.len().saturating_sub(1));
    rows.get(to).copied()
}

#[cfg(test)]
pub mod tests;
