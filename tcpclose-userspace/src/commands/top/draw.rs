//! The screen of an [`App`]. Pure: state in, cells out.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use crate::commands::ports;
use crate::commands::top::app::{App, View};
use crate::commands::top::columns;
use crate::commands::top::columns::Column;
use crate::failure::printable;
use crate::metrics::port_labels::PortLabel;
use crate::report::ports::PortUse;
use crate::report::sockets::StuckSocket;
use crate::ui::{labels, table};

/// The smallest terminal that is drawn on.
const SMALLEST: (u16, u16) = (40, 8);
/// The height from which the states of the selected port have their own table.
const TALL: u16 = 20;
/// Its header and a line per state.
const STATES: u16 = 8;

/// The list of keys.
const KEYS: &str = "\
up, down, k, j   select a row
PgUp, PgDn       ten rows up or down
Home, End, g, G  first or last row
Enter, right     open: a port's sockets, a socket's owners and code
Esc, left        back
s                sort by the next column
r                reverse the order
/                filter rows; Enter keeps the filter, Esc clears it
p                OLDEST, MEDIAN and P99 of the next state
?                this list
q, Ctrl-C        quit";

pub fn draw(app: &App, frame: &mut Frame<'_>) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        return frame.render_widget(Paragraph::new("tcpclose top: terminal too small"), area);
    }
    let [title, body, help] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)]).areas(area);
    frame.render_widget(headline(app), title);
    if app.help {
        frame.render_widget(Paragraph::new(KEYS), body);
        return frame.render_widget(Line::raw("q quit  any other key goes back"), help);
    }
    match app.view {
        View::Ports => draw_ports(app, frame, body),
        View::Sockets(label) => draw_sockets(app, label, frame, body),
        View::Socket(_, cookie) => {
            let all = app.sockets.as_deref().unwrap_or_default();
            draw_socket(app, all.iter().find(|socket| socket.cookie == cookie), frame, body);
        }
    }
    frame.render_widget(footline(app), help);
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

/// For problems: red with colours, bold everywhere.
fn bad(app: &App) -> Style {
    if app.colour { bold().fg(Color::Red) } else { bold() }
}

fn headline(app: &App) -> Line<'_> {
    if let Some(trouble) = &app.trouble {
        return Line::styled(trouble.clone(), bad(app));
    }
    let document = &app.ports;
    // 2026-11-22T11:00:00.123456789Z
    let clock = document.at.get(11..19).unwrap_or_default();
    let mut words = format!("tcpclose top  {}  {clock}Z", printable(&document.host));
    match app.view {
        View::Ports => {
            let rates = document
                .rate_seconds
                .map_or_else(|| "no rates yet".to_owned(), |s| format!("rates over {}", table::span(s)));
            let name = labels::phase(app.phase);
            words.push_str(&format!("  {rates}  times in {name}"));
            if let Some(old) = document.old() {
                words.push_str(&format!("  {old}"));
            }
        }
        View::Sockets(label) | View::Socket(label, _) => {
            words.push_str(&format!("  {} {}", label.side.name(), port_name(label)));
        }
    }
    Line::styled(words, bold())
}

fn port_name(label: PortLabel) -> String {
    label.port.map_or_else(|| "other ports".to_owned(), |port| format!("port {port}"))
}

fn footline(app: &App) -> Line<'_> {
    if app.editing {
        return Line::raw(format!("filter: {}_   Enter keep  Esc clear", printable(&app.filter)));
    }
    let (keys, by) = match app.view {
        View::Ports => {
            ("q quit  ? keys  Enter sockets  s sort  r reverse  p state  / filter", app.ports_by.name())
        }
        View::Sockets(_) => {
            ("q quit  ? keys  Enter owners  Esc back  s sort  r reverse  / filter", app.sockets_by.name())
        }
        View::Socket(..) => return Line::raw("q quit  ? keys  Esc back"),
    };
    let arrow = if app.reversed { "↑" } else { "↓" };
    let words = format!("{keys}  by {by} {arrow}");
    // The filter comes first, since it hides rows.
    Line::raw(match app.filter.is_empty() {
        true => words,
        false => format!("filter: {}  {words}", printable(&app.filter)),
    })
}

fn draw_ports(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let rows = app.rows();
    let chosen = app.chosen_port();
    let below = if area.height >= TALL { STATES } else { 0 };
    let [list, states] = Layout::vertical([Constraint::Min(3), Constraint::Length(below)]).areas(area);
    if rows.is_empty() {
        let why = match app.ports.ports.is_empty() {
            true => "No connection has closed yet, and none is closing.",
            false => "Nothing matches the filter (Esc).",
        };
        return frame.render_widget(Paragraph::new(why), list);
    }
    let lines = rows.iter().map(|port| {
        let style = if port.stuck > 0 { bad(app) } else { Style::new() };
        (columns::port(port, app.phase), style)
    });
    draw_table(&columns::PORTS, &lines.collect::<Vec<Cells>>(), 1, chosen, frame, list);
    if let Some(port) = chosen.and_then(|at| rows.get(at)).filter(|_| below > 0) {
        draw_states(port, frame, states);
    }
}

/// The states of one port, below the table of ports.
fn draw_states(port: &PortUse, frame: &mut Frame<'_>, area: Rect) {
    let [title, list] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    let closes = port.closes.map_or_else(String::new, |n| format!(": {n} closes, {}/s", ports::closes(port)));
    let words =
        format!("{} {}{closes}, {} stuck", port.side.name(), port_name(port.label()), ports::stuck(port));
    frame.render_widget(Line::styled(words, bold()), title);
    let lines: Vec<Cells> = port.states.iter().map(|of| (columns::state(of), Style::new())).collect();
    draw_table(&columns::STATES, &lines, 1, None, frame, list);
}

fn draw_sockets(app: &App, label: PortLabel, frame: &mut Frame<'_>, area: Rect) {
    let rows = app.socket_rows();
    let remarks =
        app.left_out.iter().map(|what| format!("not listed: {what} on this host (too many sockets)"));
    let remarks: Vec<String> = remarks.collect();
    let [list, below] =
        Layout::vertical([Constraint::Min(3), Constraint::Length(remarks.len() as u16)]).areas(area);
    frame.render_widget(Paragraph::new(remarks.join("\n")), below);
    if rows.is_empty() {
        let why = match &app.sockets {
            None => "asking the agent…".to_owned(),
            Some(all) if all.is_empty() => format!("No socket of {} is closing.", port_name(label)),
            Some(_) => "Nothing matches the filter (/ Esc).".to_owned(),
        };
        return frame.render_widget(Paragraph::new(why), list);
    }
    // Only visible rows: the cells of tens of thousands would cost more than the request.
    let height = usize::from(list.height.saturating_sub(1)).max(1);
    let chosen = app.chosen_socket().unwrap_or(0);
    let from = chosen.saturating_sub(height - 1);
    let seen: Vec<Cells> =
        rows.iter().skip(from).take(height).map(|socket| (columns::socket(socket), Style::new())).collect();
    // Addresses are never cut; the owner has the rest.
    let mut widths = columns::SOCKETS;
    for (at, (_, width)) in widths.iter_mut().enumerate() {
        let longest =
            seen.iter().filter_map(|(cells, _)| cells.get(at)).map(|cell| cell.chars().count()).max();
        *width = longest.map_or(*width, |longest| (longest as u16).max(5));
    }
    let shown = socket_columns(&widths, list.width);
    let of_shown =
        |cells: &Vec<String>| shown.iter().filter_map(|&at| cells.get(at).cloned()).collect::<Vec<String>>();
    let seen: Vec<Cells> = seen.iter().map(|(cells, style)| (of_shown(cells), *style)).collect();
    let widths: Vec<Column> = shown.iter().filter_map(|&at| widths.get(at).copied()).collect();
    draw_table(&widths, &seen, usize::MAX, Some(chosen - from), frame, list);
}

/// The places of the columns of sockets that are shown on a narrow terminal: addresses are never cut, so others go first. Enter shows
/// all of a socket.
fn socket_columns(widths: &[Column], width: u16) -> Vec<usize> {
    const STATE: usize = 1;
    const WHY: usize = 2;
    const LOCAL: usize = 3;
    /// A short name and a PID.
    const OWNER: u16 = 12;
    let mut shown: Vec<usize> = (0..widths.len()).collect();
    for narrow in [STATE, LOCAL, WHY] {
        // The last one, the owner's, has what is left.
        let others = shown.iter().filter(|at| **at + 1 < widths.len());
        let taken: u16 = others.filter_map(|&at| widths.get(at)).map(|(_, width)| width + 1).sum();
        if taken + OWNER <= width {
            break;
        }
        shown.retain(|at| *at != narrow);
    }
    shown
}

fn draw_socket(app: &App, socket: Option<&StuckSocket>, frame: &mut Frame<'_>, area: Rect) {
    let Some(socket) = socket else {
        return frame.render_widget(
            Paragraph::new("This socket is closed or in another state. Esc goes back."),
            area,
        );
    };
    let lines = columns::facts(socket, &app.stacks, &app.verdicts, &app.stack_source)
        .into_iter()
        .map(|(what, of)| Line::raw(format!("{what:<11} {of}")));
    let text = Text::from(lines.collect::<Vec<_>>());
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }), area);
}

/// The cells of one row, and their style.
type Cells = (Vec<String>, Style);

/// A table with a blank between columns. The columns after the first `left` are numbers, which go to the right. Columns
/// that do not fit are left out, unless all are text: then the last one has the rest.
fn draw_table(
    columns: &[Column],
    rows: &[Cells],
    left: usize,
    chosen: Option<usize>,
    frame: &mut Frame<'_>,
    area: Rect,
) {
    let is_text = left >= columns.len();
    let mut end = 0;
    let has_room = |(_, width): &&Column| {
        end += width + 1;
        is_text || end <= area.width + 1
    };
    let columns: Vec<&Column> = columns.iter().take_while(has_room).collect();
    let height = columns.iter().map(|(name, _)| name.lines().count()).max().unwrap_or(1);
    // One line names stand on the second line.
    let name = |name: &str| "\n".repeat(height - name.lines().count()) + name;
    let names: Vec<String> = columns.iter().map(|(of, _)| name(of)).collect();
    let row = |cells: &[String]| {
        Row::new(cells.iter().take(columns.len()).enumerate().map(|(at, cell)| {
            let text = Text::from(cell.clone());
            Cell::from(if at < left { text } else { text.right_aligned() })
        }))
    };
    let widths =
        columns.iter().enumerate().map(|(at, (_, width))| match is_text && at + 1 == columns.len() {
            true => Constraint::Fill(1),
            false => Constraint::Length(*width),
        });
    let safe = |cells: &[String]| cells.iter().map(|cell| printable(cell).into_owned()).collect::<Vec<_>>();
    let rows = rows.iter().map(|(cells, style)| row(&safe(cells)).style(*style));
    let table = Table::new(rows, widths)
        .header(row(&names).style(bold()).height(height as u16))
        .column_spacing(1)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::default().with_selected(chosen);
    frame.render_stateful_widget(table, area, &mut state);
}

#[cfg(test)]
mod tests;
