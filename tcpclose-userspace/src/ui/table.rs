//! Columns and short words for people.

use std::io::{self, IsTerminal};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::report::sockets::AgeSeconds;

/// Blanks between columns, where they fit.
const GAP: u16 = 2;

/// The narrowest layout.
const NARROWEST: u16 = 40;

/// The width of the output: `COLUMNS` if set, else the terminal's; `None` in a pipe, where nothing is wrapped.
pub fn width() -> Option<u16> {
    let variable =
        std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|width| *width > 0);
    let of_terminal = || {
        let out = io::stdout();
        out.is_terminal().then(|| rustix::termios::tcgetwinsize(&out).ok()).flatten().map(|size| size.ws_col)
    };
    variable.or_else(of_terminal).filter(|width| *width > 0).map(|width: u16| width.max(NARROWEST))
}

/// Lays out `rows` under `header`. A column `>NAME` has numbers, which go to the right and are never broken; the cells of
/// `~NAME` may be shortened, those of the last column may wrap. Where even that is wider than `width`, a row is the pairs
/// `NAME cell`, on as many lines as it takes.
pub fn render(header: &[&str], rows: &[Vec<String>], width: Option<u16>) -> String {
    let (header, rows) = lines(header, rows, width);
    let lines: Vec<String> = header.into_iter().chain(rows).collect();
    lines.join("\n")
}

/// Like [`render`]: the header, where there is one, and the lines of each row.
pub fn lines(header: &[&str], rows: &[Vec<String>], width: Option<u16>) -> (Option<String>, Vec<String>) {
    let (first, natural) = aligned(header, rows, GAP);
    let fits = |first: &String, rows: &[String]| {
        !overflows(first, width) && !rows.iter().any(|row| overflows(row, width))
    };
    let Some(columns) = width.map(usize::from).filter(|_| !fits(&first, &natural)) else {
        return (Some(first), natural);
    };
    for gap in [GAP, 1] {
        let (first, narrow) = aligned(header, &shortened(header, rows, columns, gap), gap);
        if fits(&first, &narrow) {
            return (Some(first), narrow);
        }
    }
    // The last column wraps where it has room for some words.
    const WORDS: usize = 24;
    let last = header.len().saturating_sub(1);
    let is_words = header.last().is_some_and(|name| !name.starts_with(['>', '~']));
    let before: Vec<Vec<String>> = rows.iter().map(|row| row.iter().take(last).cloned().collect()).collect();
    let (first, mut before) = aligned(header.get(..last).unwrap_or_default(), &before, GAP);
    let left = before.iter().chain([&first]).map(|line| line.chars().count() + 2).max().unwrap_or(0);
    if is_words && left + WORDS <= columns {
        let pad = |line: &str| format!("{line}{}", " ".repeat(left.saturating_sub(line.chars().count())));
        for (line, row) in before.iter_mut().zip(rows) {
            let words = wrap(row.last().map_or("", String::as_str), u16::try_from(columns - left).ok());
            *line = format!("{}{}", pad(line), words.replace('\n', &format!("\n{}", " ".repeat(left))));
        }
        let first = pad(&first) + header.last().copied().unwrap_or_default();
        return (Some(first), before);
    }
    (None, rows.iter().map(|row| pairs(header, row, columns)).collect())
}

/// The name of a column without its mark.
fn name_of(column: &str) -> &str {
    column.trim_start_matches(['>', '~'])
}

/// The header and the rows at their natural width, with `gap` blanks between columns.
fn aligned(header: &[&str], rows: &[Vec<String>], gap: u16) -> (String, Vec<String>) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().map(|name| name_of(name)));
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.add_rows(rows);
    let last = header.len().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { gap }));
        if header.get(index).is_some_and(|name| name.starts_with('>')) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text = table.trim_fmt();
    let mut lines = text.lines().map(str::to_owned);
    (lines.next().unwrap_or_default(), lines.collect())
}

/// `rows` with the cells of columns that may be shortened cut, the widest first, until the table has `columns` if it can.
fn shortened(header: &[&str], rows: &[Vec<String>], columns: usize, gap: u16) -> Vec<Vec<String>> {
    let width_of = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
        cells.chain(header.get(at).map(|name| name_of(name).chars().count())).max().unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..header.len()).map(width_of).collect();
    let may_shrink: Vec<usize> =
        header.iter().enumerate().filter(|(_, name)| name.starts_with('~')).map(|(at, _)| at).collect();
    let mut excess = (widths.iter().sum::<usize>() + usize::from(gap) * header.len().saturating_sub(1))
        .saturating_sub(columns);
    while excess > 0 {
        let widest = may_shrink.iter().copied().max_by_key(|at| widths.get(*at).copied());
        let Some(width) = widest.and_then(|at| widths.get_mut(at)).filter(|width| **width > 1) else { break };
        *width -= 1;
        excess -= 1;
    }
    let cut = |row: &Vec<String>| {
        let cells = row.iter().enumerate();
        cells
            .map(|(at, cell)| match may_shrink.contains(&at) {
                true => shorten(cell, widths.get(at).copied().unwrap_or(usize::MAX)),
                false => cell.clone(),
            })
            .collect()
    };
    rows.iter().map(cut).collect()
}

/// `cell` in `width` columns, or in as few as its numbers allow: `fifteen-le…[4194304] +1`.
fn shorten(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    // The pid, and what stands behind it.
    let (name, rest) = cell.split_at(cell.find(['[', ',']).unwrap_or(cell.len()));
    let room = width.saturating_sub(rest.chars().count() + 1).max(3);
    if name.chars().count() <= room {
        return cell.to_owned();
    }
    let start: String = name.chars().take(room).collect();
    format!("{start}…{rest}")
}

/// A row as `NAME cell  NAME cell`, broken between pairs, and within those of words that are longer than a line.
fn pairs(header: &[&str], row: &[String], columns: usize) -> String {
    const INDENT: usize = 2;
    /// Keeps a name and the first word of its cell together.
    const TIE: &str = "\u{a0}";
    let mut text = String::new();
    let mut column = 0;
    for (name, cell) in header.iter().zip(row).filter(|(_, cell)| !cell.is_empty()) {
        let pair = format!("{} {cell}", name_of(name));
        let length = pair.chars().count();
        let is_words = !name.starts_with(['>', '~']) && cell.contains(' ');
        if column > 0 && column + 2 + length > columns {
            text.push_str("\n  ");
            column = INDENT;
        } else if column > 0 {
            text.push_str("  ");
            column += 2;
        }
        if is_words && column + length > columns {
            let width = u16::try_from(columns.saturating_sub(column)).unwrap_or(u16::MAX);
            let lines = wrap(&format!("{}{TIE}{cell}", name_of(name)), Some(width)).replace(TIE, " ");
            let last = lines.lines().last().map_or(0, |line| line.chars().count());
            text.push_str(&lines.replace('\n', &format!("\n{}", " ".repeat(column))));
            column += last;
        } else {
            text.push_str(&pair);
            column += length;
        }
    }
    text
}

/// Whether `text` has a line longer than `width`.
pub fn overflows(text: &str, width: Option<u16>) -> bool {
    width.is_some_and(|width| text.lines().any(|line| line.chars().count() > usize::from(width)))
}

/// Breaks `text` between words at `width`; the lines after the first are indented by two more than it is.
pub fn wrap(text: &str, width: Option<u16>) -> String {
    let Some(width) = width.map(usize::from) else { return text.to_owned() };
    let words = text.trim_start();
    let indent = text.len() - words.len();
    let mut wrapped = " ".repeat(indent);
    let mut column = indent;
    for (index, word) in words.split(' ').enumerate() {
        let length = word.chars().count();
        if index > 0 && column + 1 + length > width {
            wrapped.push('\n');
            wrapped.push_str(&" ".repeat(indent + 2));
            column = indent + 2;
        } else if index > 0 {
            wrapped.push(' ');
            column += 1;
        }
        wrapped.push_str(word);
        column += length;
    }
    wrapped
}

/// A time span in at most two units, rounded down: `0.3s`, `45s`, `2m 5s`, `3h 10m`, `4d 2h`.
pub fn span(seconds: f64) -> String {
    // Rounded down, so that a proven minimum stays one.
    let whole = seconds as u64;
    let two = |big: u64, unit: &str, small: u64, rest: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit} {small}{rest}"),
    };
    match whole {
        0..10 => format!("{:.1}s", (seconds * 10.0).floor() / 10.0),
        10..60 => format!("{whole}s"),
        60..3600 => two(whole / 60, "m", whole % 60, "s"),
        3600..86_400 => two(whole / 3600, "h", whole / 60 % 60, "m"),
        _ => two(whole / 86_400, "d", whole / 3600 % 24, "h"),
    }
}

/// A measured time, to two or three digits: `420µs`, `8.9ms`, `120ms`, `1.2s`; from a minute on as [`span`] writes it.
pub fn short(seconds: f64) -> String {
    let (number, unit) = match seconds {
        ..0.001 => (seconds * 1e6, "µs"),
        ..1.0 => (seconds * 1e3, "ms"),
        ..60.0 => (seconds, "s"),
        _ => return span(seconds),
    };
    // By the printed value: 9.96 is 10, not 10.0.
    if number < 9.95 && unit != "µs" { format!("{number:.1}{unit}") } else { format!("{number:.0}{unit}") }
}

/// An interval of times: `1–5m`, `0–1ms`, `0.5s–1m`.
pub fn interval(from: f64, to: f64) -> String {
    let unit = |text: &str| text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').to_owned();
    let (low, high) = (short(from).replace(".0", ""), short(to).replace(".0", ""));
    match () {
        () if low == high => high,
        () if from == 0.0 => format!("0–{high}"),
        () if unit(&low) == unit(&high) => format!("{}–{high}", low.trim_end_matches(&unit(&low))),
        () => format!("{low}–{high}"),
    }
}

/// A rate: `0`, `0.03`, `4.2`, `120`.
pub fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0".to_owned(),
        ..0.095 => format!("{per_second:.2}"),
        ..9.95 => format!("{per_second:.1}"),
        _ => format!("{per_second:.0}"),
    }
}

/// An age: `2m 5s` where it is known that exactly, else `12s–3m` or `≥12s`.
pub fn age(age: &AgeSeconds) -> String {
    let min = span(age.min_seconds);
    match age.max_seconds.map(span) {
        Some(max) if max == min => min,
        Some(max) => format!("{min}–{max}"),
        None => format!("≥{min}"),
    }
}

/// The proven minimum of an age: `2m 5s` where that is the age, `≥2m 5s` where it may be older.
pub fn at_least(age: &AgeSeconds) -> String {
    let min = span(age.min_seconds);
    match age.max_seconds.map(span) {
        Some(max) if max == min => min,
        _ => format!("≥{min}"),
    }
}

/// `1 socket`, `2 sockets`.
pub fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short_and_never_rounded_up() {
        for (seconds, text) in [
            (0.0, "0.0s"),
            (0.39, "0.3s"),
            (9.99, "9.9s"),
            (59.99, "59s"),
            (60.0, "1m"),
            (125.0, "2m 5s"),
            (3599.9, "59m 59s"),
            (11_400.0, "3h 10m"),
            (86_400.0, "1d"),
            (352_800.0, "4d 2h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn times_and_rates_have_two_or_three_digits() {
        let times = [0.0, 0.00042, 0.0089, 0.00996, 0.12, 1.25, 9.96, 59.0, 61.0];
        let text = ["0µs", "420µs", "8.9ms", "10ms", "120ms", "1.2s", "10s", "59s", "1m 1s"];
        assert_eq!(times.map(short), text);
        assert_eq!(
            [0.0, 0.031, 0.099, 4.24, 9.96, 1234.5].map(rate),
            ["0", "0.03", "0.1", "4.2", "10", "1234"]
        );
    }

    #[test]
    fn ages_say_what_is_proven() {
        let of = |min, max| AgeSeconds { exact: max == Some(min), min_seconds: min, max_seconds: max };
        assert_eq!(age(&of(125.0, Some(125.0))), "2m 5s");
        assert_eq!(age(&of(125.01, Some(125.9))), "2m 5s");
        assert_eq!(
            (age(&of(12.0, Some(180.0))), at_least(&of(12.0, Some(180.0)))),
            ("12s–3m".into(), "≥12s".into())
        );
        assert_eq!((age(&of(12.0, None)), at_least(&of(12.0, None))), ("≥12s".into(), "≥12s".into()));
    }

    #[test]
    fn long_lines_break_between_words() {
        assert_eq!(wrap("one two three", Some(8)), "one two\n  three");
        assert_eq!(wrap("one two three", None), "one two three");
        assert_eq!(wrap("  one two three", Some(9)), "  one two\n    three");
        assert_eq!(wrap("unbreakable-and-long x", Some(8)), "unbreakable-and-long\n  x");
    }

    #[test]
    fn numbers_go_right_and_no_line_ends_in_blanks() {
        let rows = [vec!["api".to_owned(), "7".to_owned(), "x".to_owned()]];
        assert_eq!(render(&["OWNER", ">COUNT", "WHY"], &rows, None), "OWNER  COUNT  WHY\napi        7  x");
    }

    #[test]
    fn intervals_name_their_unit_once() {
        for (from, to, text) in [
            (60.0, 300.0, "1–5m"),
            (0.0, 0.001, "0–1ms"),
            (0.1, 0.25, "100–250ms"),
            (0.5, 1.0, "500ms–1s"),
            (60.0, 65.4, "1m–1m 5s"),
            (5.0, 5.0, "5s"),
        ] {
            assert_eq!(interval(from, to), text);
        }
    }

    #[test]
    fn no_width_breaks_a_number_or_a_pid() {
        let header = ["~OWNER", "SIDE", ">PORT", ">COUNT", ">OLDEST", "VERDICT"];
        let row = |owner: &str, verdict: &str| {
            [owner, "server", "54321", "1234567", "10d 23h", verdict].map(str::to_owned).to_vec()
        };
        let rows = [
            row("fifteen-letters[4194304] +12", "explained: 17 events were lost"),
            row("unknown, uid 1000", "equal"),
        ];
        for width in 10..=100 {
            let text = render(&header, &rows, Some(width));
            for whole in ["[4194304]", "54321", "1234567", "10d 23h", "uid 1000", "server"] {
                assert!(text.contains(whole), "{width}: no {whole} in\n{text}");
            }
            assert!(width < 40 || !overflows(&text, Some(width)), "{width}:\n{text}");
        }
        assert!(render(&header, &rows, Some(60)).contains("explained: 17"));
        assert_eq!(
            render(&header[..4], &rows[1..], Some(24)),
            "OWNER unknown, uid 1000\n  SIDE server\n  PORT 54321\n  COUNT 1234567"
        );
        assert_eq!(shorten("fifteen-letters[4194304]:5", 20), "fifteen-…[4194304]:5");
    }

    #[test]
    fn words_wrap_within_their_pair() {
        let header = ["CHECK", "RESULT", "DETAIL"];
        let row = |detail: &str| [["load eBPF programs", "FAILED", detail].map(str::to_owned).to_vec()];
        assert_eq!(
            render(&header, &row("CAP_BPF missing: run it as root or grant it to the agent"), Some(40)),
            "CHECK load eBPF programs  RESULT FAILED\n  DETAIL CAP_BPF missing: run it as root\n    or grant it to the agent"
        );
        // A name stays with the first word, however long that is.
        let long = "x".repeat(40);
        let text = render(&header, &row(&format!("{long} y")), Some(40));
        assert_eq!(text, format!("CHECK load eBPF programs  RESULT FAILED\n  DETAIL {long}\n    y"));
        let first = [vec!["time_wait skipped, by the kernel's own counter".to_owned(), "7".to_owned()]];
        assert_eq!(
            render(&["WHAT", ">AGENT"], &first, Some(40)),
            "WHAT time_wait skipped, by the kernel's\n  own counter  AGENT 7"
        );
    }
}
