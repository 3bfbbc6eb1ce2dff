//! Transitions as aligned columns, which grow as needed.

use std::time::SystemTime;

use tcpclose_common::state::TcpState;

use crate::failure::printable;
use crate::names::Role;
use crate::report::watch::line::{CloserLine, Line, Lost};
use crate::ui::durations::span;
use crate::ui::labels::{netns_cell, state};

/// The names of the columns.
const HEADER: [&str; 10] = ["TIME", "FROM", "TO", "AFTER", "SIDE", "ROLE", "LOCAL", "PEER", "NETNS", "OWNER"];

/// The initial widths; most cells fit, so that columns seldom move.
const WIDTHS: [usize; 10] = [15, 13, 10, 11, 6, 7, 21, 21, 5, 0];

/// The column of numbers, which go to the right.
const AFTER: usize = 3;

/// The time zone of the first column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    Utc,
    Local,
}

impl Clock {
    /// The time of day in `time` (RFC 3339, UTC), in microseconds: clocks of two CPUs agree to that.
    fn time_of_day(self, time: &str) -> String {
        let utc = || {
            let clock = time.split_once('T').map_or(time, |(_, clock)| clock);
            clock.get(..15).unwrap_or(clock).to_owned()
        };
        match self {
            Self::Utc => utc(),
            Self::Local => local_time(time).unwrap_or_else(utc),
        }
    }
}

/// The local time of day of `time` (RFC 3339, UTC).
fn local_time(time: &str) -> Option<String> {
    let since = humantime::parse_rfc3339(time).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let seconds = libc::time_t::try_from(since.as_secs()).ok()?;
    let mut local = std::mem::MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are valid for the call, and localtime_r() fills in the whole of `local` unless it returns null.
    let local = unsafe {
        if libc::localtime_r(&seconds, local.as_mut_ptr()).is_null() {
            return None;
        }
        local.assume_init()
    };
    let (hour, minute, second) = (local.tm_hour, local.tm_min, local.tm_sec);
    Some(format!("{hour:02}:{minute:02}:{second:02}.{:06}", since.subsec_micros()))
}

/// The columns with their widths so far.
pub struct Columns {
    widths: [usize; HEADER.len()],
    own_netns: u32,
    clock: Clock,
}

impl Columns {
    /// `own_netns`: the namespace that needs no name.
    pub const fn new(own_netns: u32, clock: Clock) -> Self {
        Self { widths: WIDTHS, own_netns, clock }
    }

    pub fn header(&mut self) -> String {
        let mut header = HEADER.map(str::to_owned);
        if self.clock == Clock::Utc {
            header[0].push_str(" (UTC)");
        }
        self.row(header)
    }

    pub fn line(&mut self, line: &Line) -> String {
        let text = self.row([
            self.clock.time_of_day(&line.time),
            format!("{} →", state(line.from.name())),
            state(line.to.name()),
            // The time in a state before the close phase is not measured.
            match line.from {
                TcpState::Established | TcpState::SynRecv => "-".to_owned(),
                _ => span(line.spent()),
            },
            line.side.name().to_owned(),
            match line.role {
                Role::None => "-".to_owned(),
                role => role.name().to_owned(),
            },
            line.local.to_string(),
            line.peer.to_string(),
            netns(line, self.own_netns),
            owner(line.owner.as_ref()),
        ]);
        match line.outcome {
            // The columns show how long after it.
            Some(outcome) if line.stale_write => {
                format!("{text}  {}: written to after the peer closed", outcome.name())
            }
            Some(outcome) => match &line.reset_reason {
                Some(reason) => format!("{text}  {}: {}", outcome.name(), printable(reason)),
                None => format!("{text}  {}", outcome.name()),
            },
            None => text,
        }
    }

    fn row(&mut self, cells: [String; HEADER.len()]) -> String {
        let mut text = String::new();
        for (at, cell) in cells.iter().enumerate() {
            let length = cell.chars().count();
            let width = self.widths.get_mut(at).map_or(length, |width| {
                *width = length.max(*width);
                *width
            });
            let pad = " ".repeat(width.saturating_sub(length));
            let gap = if at == 0 { "" } else { "  " };
            text += gap;
            text += &if at == AFTER { pad + cell } else { cell.to_owned() + &pad };
        }
        text.trim_end().to_owned()
    }
}

/// `… 17 lines lost`.
pub fn lost(Lost { lost, in_kernel }: Lost) -> String {
    let lines = if lost == 1 { "line" } else { "lines" };
    match in_kernel {
        true => {
            let events = if lost == 1 { "event" } else { "events" };
            format!("… {lost} {events} lost in the kernel; they may belong to connections shown here")
        }
        false => format!("… {lost} {lines} lost"),
    }
}

/// The network namespace; `-` for the reader's own.
pub fn netns(line: &Line, own: u32) -> String {
    let name = line.more.as_ref().and_then(|more| more.netns_name.as_deref());
    netns_cell(line.netns, name, own)
}

/// `curl[4242]`; `-` before the close, or where the process is unknown.
pub fn owner(closer: Option<&CloserLine>) -> String {
    match closer {
        Some(CloserLine { pid, comm: Some(comm) }) => format!("{}[{pid}]", printable(comm)),
        Some(CloserLine { pid, comm: None }) => format!("ended[{pid}]"),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Outcome;
    use crate::report::watch::line::More;
    use crate::report::watch::line::tests::sample;

    #[test]
    fn lines_are_aligned_and_grow_when_they_must() {
        let mut columns = Columns::new(4_026_531_840, Clock::Utc);
        let first = Line { from: TcpState::Established, to: TcpState::FinWait1, ..sample() };
        let last = Line {
            to: TcpState::Close,
            outcome: Some(Outcome::Graceful),
            max_seconds: Some(1.0),
            ..sample()
        };
        let lines = [columns.header(), columns.line(&first), columns.line(&sample()), columns.line(&last)];
        crate::ui::golden::check("watch.txt", &(lines.join("\n") + "\n"));
        let mut far = sample();
        far.local = "[2001:db8::1:2:3:4]:41234".parse().unwrap();
        let (first, second) = (columns.line(&far), columns.line(&sample()));
        assert_eq!(first.find("10.0.0.5"), second.find("10.0.0.5"));
    }

    #[test]
    fn names_are_escaped_for_the_terminal() {
        let mut line = sample();
        line.netns = 7;
        line.owner = Some(CloserLine { pid: 1, comm: Some("a\x1b[2J\nb".to_owned()) });
        line.more = Some(More { netns_name: Some("n\r".to_owned()), ..More::default() });
        line.outcome = Some(Outcome::Timeout);
        let text = Columns::new(1, Clock::Utc).line(&line);
        assert!(!text.contains(char::is_control), "{text:?}");
        assert!(text.ends_with(r"n\r    a\u{1b}[2J\nb[1]  timeout"), "{text}");
    }

    #[test]
    fn cells_without_a_value_say_so() {
        let mut line = sample();
        (line.netns, line.owner) = (0, None);
        (line.min_seconds, line.max_seconds) = (0.0, None);
        let text = Columns::new(1, Clock::Utc).line(&line);
        assert!(text.contains("    unknown  client") && text.ends_with("unknown  -"), "{text}");
        (line.from, line.role) = (TcpState::Established, Role::None);
        let text = Columns::new(1, Clock::Utc).line(&line);
        assert!(text.contains("          -  client  -    "), "{text}");
        assert_eq!(owner(Some(&CloserLine { pid: 9, comm: None })), "ended[9]");
        assert_eq!(lost(Lost { lost: 1, in_kernel: false }), "… 1 line lost");
        assert_eq!(lost(Lost { lost: 20, in_kernel: false }), "… 20 lines lost");
    }

    #[test]
    fn local_time_differs_from_utc_by_quarters_of_an_hour() {
        let time = "2026-11-22T11:00:00.123456789Z";
        assert_eq!(Clock::Utc.time_of_day(time), "11:00:00.123456");
        let local = Clock::Local.time_of_day(time);
        assert!(local.ends_with(":00.123456") && local.len() == 15, "{local}");
        assert_eq!(Clock::Local.time_of_day("Tnoon"), "noon");
    }
}
