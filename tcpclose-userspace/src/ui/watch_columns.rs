//! A line for people, under columns that grow with what has come so far.

use crate::failure::printable;
use crate::report::watch::line::{CloserLine, Line, Lost};
use crate::ui::durations::span;
use crate::ui::labels::state;

/// The names of the columns; the last is as wide as what stands in it.
const HEADER: [&str; 10] =
    ["TIME (UTC)", "FROM", "TO", "AFTER", "SIDE", "ROLE", "LOCAL", "PEER", "NETNS", "OWNER"];

/// What each is wide from the start: most of what comes fits, so that columns seldom move.
const WIDTHS: [usize; 10] = [15, 13, 10, 11, 6, 7, 21, 21, 5, 0];

/// The column of numbers, which go to the right.
const AFTER: usize = 3;

/// How wide the columns are by now.
pub struct Columns {
    widths: [usize; HEADER.len()],
    own_netns: u32,
}

impl Columns {
    /// `own_netns`: the namespace that needs no name.
    pub const fn new(own_netns: u32) -> Self {
        Self { widths: WIDTHS, own_netns }
    }

    pub fn header(&mut self) -> String {
        self.row(HEADER.map(str::to_owned))
    }

    pub fn line(&mut self, line: &Line) -> String {
        let clock = line.time.split_once('T').map_or(line.time.as_str(), |(_, clock)| clock);
        let text = self.row([
            // Microseconds: what the clocks of two CPUs agree on.
            clock.get(..15).unwrap_or(clock).to_owned(),
            format!("{} →", state(line.from.name())),
            state(line.to.name()),
            span(line.spent()),
            line.side.name().to_owned(),
            line.role.name().to_owned(),
            line.local.to_string(),
            line.peer.to_string(),
            netns(line, self.own_netns),
            owner(line.owner.as_ref()),
        ]);
        match line.outcome {
            Some(outcome) => format!("{text}  {}", outcome.name()),
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
        true => format!("… {lost} {lines} lost in the kernel, perhaps of what is watched here"),
        false => format!("… {lost} {lines} lost"),
    }
}

/// The network namespace: its name, else its inode; `-` for the reader's own, `unknown` where nobody told.
pub fn netns(line: &Line, own: u32) -> String {
    let name = line.more.as_ref().and_then(|more| more.netns_name.as_deref());
    match (line.netns, name) {
        (0, _) => "unknown".to_owned(),
        (inum, _) if inum == own => "-".to_owned(),
        (_, Some(name)) => printable(name).into_owned(),
        (inum, None) => inum.to_string(),
    }
}

/// `curl[4242]`; `-` while nobody has closed, or where that is not known.
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
        let mut columns = Columns::new(4_026_531_840);
        let header = columns.header();
        let line = columns.line(&sample());
        assert_eq!(
            [header.as_str(), line.as_str()],
            [
                "TIME (UTC)       FROM           TO                AFTER  SIDE    ROLE     LOCAL                  \
                 PEER                   NETNS  OWNER",
                "11:00:00.123456  FIN-WAIT-2 →   TIME-WAIT    512.000 ms  client  active   10.0.0.9:41234         \
                 10.0.0.5:8080          -      curl[4242]",
            ]
        );
        let mut far = sample();
        far.local = "[2001:db8::1:2:3:4]:41234".parse().unwrap();
        let (first, second) = (columns.line(&far), columns.line(&sample()));
        assert_eq!(first.find("10.0.0.5"), second.find("10.0.0.5"));
    }

    #[test]
    fn what_a_stranger_named_cannot_reach_the_terminal() {
        let mut line = sample();
        line.netns = 7;
        line.owner = Some(CloserLine { pid: 1, comm: Some("a\x1b[2J\nb".to_owned()) });
        line.more = Some(More { netns_name: Some("n\r".to_owned()), ..More::default() });
        line.outcome = Some(Outcome::Timeout);
        let text = Columns::new(1).line(&line);
        assert!(!text.contains(char::is_control), "{text:?}");
        assert!(text.ends_with(r"n\r    a\u{1b}[2J\nb[1]  timeout"), "{text}");
    }

    #[test]
    fn what_is_unknown_is_said() {
        let mut line = sample();
        (line.netns, line.owner) = (0, None);
        (line.min_seconds, line.max_seconds) = (0.0, None);
        let text = Columns::new(1).line(&line);
        assert!(text.contains("    unknown  client") && text.ends_with("unknown  -"), "{text}");
        assert_eq!(owner(Some(&CloserLine { pid: 9, comm: None })), "ended[9]");
        assert_eq!(lost(Lost { lost: 1, in_kernel: false }), "… 1 line lost");
        assert_eq!(lost(Lost { lost: 20, in_kernel: false }), "… 20 lines lost");
    }
}
