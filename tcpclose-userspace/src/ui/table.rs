//! Columns and short words for people.

use std::io::{self, IsTerminal};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::report::sockets::AgeSeconds;

/// Narrower than this no table is laid out.
const NARROWEST: u16 = 40;

/// The columns to fill: `COLUMNS` where it is set, else the terminal's; `None` in a pipe, where nothing is wrapped.
pub fn width() -> Option<u16> {
    let told =
        std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|width| *width > 0);
    let of_terminal = || {
        let out = io::stdout();
        out.is_terminal().then(|| rustix::termios::tcgetwinsize(&out).ok()).flatten().map(|size| size.ws_col)
    };
    told.or_else(of_terminal).filter(|width| *width > 0).map(|width: u16| width.max(NARROWEST))
}

/// Lays out `rows` under `header`. Columns whose name starts with `>` are numbers and go to the right. Cells break
/// between words where the table would be wider than `width`.
pub fn render(header: &[&str], rows: &[Vec<String>], width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().map(|name| name.trim_start_matches('>')));
    match width {
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    table.add_rows(rows);
    let last = header.len().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { 2 }));
        if header.get(index).is_some_and(|name| name.starts_with('>')) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
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
    // As it is printed: 9.96 is 10, not 10.0.
    if number < 9.95 && unit != "µs" { format!("{number:.1}{unit}") } else { format!("{number:.0}{unit}") }
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

/// An age: `2m 5s` where it is known to what is shown, `12s–3m`, `≥12s`.
pub fn age(age: &AgeSeconds) -> String {
    let min = span(age.min_seconds);
    match age.max_seconds.map(span) {
        Some(max) if max == min => min,
        Some(max) => format!("{min}–{max}"),
        None => format!("≥{min}"),
    }
}

/// The proven minimum of an age: `2m 5s` where that is the age, `≥2m 5s` where it may be more.
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
}
