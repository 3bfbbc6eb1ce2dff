//! The cells of the tables. Pure.

use crate::commands::ports;
use crate::commands::stuck::verdicts::{in_words, reasons};
use crate::commands::suggest;
use crate::commands::suggest::StackSource;
use crate::failure::printable;
use crate::linux::stacks::frames::Stack;
use crate::names::Phase;
use crate::report::ports::{PortUse, StateUse};
use crate::report::sockets::StuckSocket;
use crate::report::stacks::{in_a_line, in_one_phrase, of_socket};
use crate::report::verdict::group_of;
use crate::report::verdict_group::VerdictGroup;
use crate::ui::{labels, table};

/// A column: its name in two lines, and how wide it is.
pub type Column = (&'static str, u16);

/// 80 columns in all, with a blank in between; a narrower terminal shows the first of them.
pub const PORTS: [Column; 13] = [
    ("SIDE", 7),
    ("PORT", 5),
    ("STUCK", 5),
    ("CLOSE\nWAIT", 5),
    ("LAST\nACK", 4),
    ("FIN\nWAIT1", 5),
    ("FIN\nWAIT2", 5),
    ("CLOS\nING", 4),
    ("TIME\nWAIT", 5),
    ("CLOSE\n/S", 5),
    ("OLDEST", 6),
    ("MEDIAN", 6),
    ("P99", 6),
];

/// In the order of [`PORTS`].
const PHASES: [Phase; 6] =
    [Phase::CloseWait, Phase::LastAck, Phase::FinWait1, Phase::FinWait2, Phase::Closing, Phase::TimeWait];

/// The sockets of `port` in `phase`.
pub fn in_phase(port: &PortUse, phase: Phase) -> Option<&StateUse> {
    port.states.iter().find(|of| of.state == phase)
}

/// The row of `port`; oldest, median and p99 are those of `phase`.
pub fn port(port: &PortUse, phase: Phase) -> Vec<String> {
    let mut row = vec![ports::side(port), ports::number_of(port), ports::stuck(port)];
    row.extend(PHASES.iter().zip(&PORTS[3..]).map(|(phase, (_, width))| {
        in_phase(port, *phase).map_or_else(|| "0".to_owned(), |of| compact(of.sockets, *width))
    }));
    row.push(ports::closes(port));
    let of_phase = in_phase(port, phase);
    let durations = of_phase.and_then(|of| of.durations.as_ref());
    let cells = [
        of_phase.and_then(|of| of.oldest_seconds).map(table::span),
        durations.map(|durations| ports::quantile_at_most(&durations.median, durations)),
        durations.map(|durations| ports::quantile_at_most(&durations.p99, durations)),
    ];
    let cells = cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
    row.extend(cells.iter().zip(&PORTS[10..]).map(|(cell, (_, width))| shortened(cell, *width)));
    row
}

/// A time in its larger unit alone where two do not fit: `4m` of `4m 50s`, and `≤5m` of `≤4m 50s`.
fn shortened(time: &str, width: u16) -> String {
    let fits = time.chars().count() <= usize::from(width);
    let larger = time.split(' ').next().unwrap_or_default();
    let rounded_up = || {
        let bound = larger.strip_prefix('≤')?;
        let unit = bound.trim_start_matches(|c: char| c.is_ascii_digit());
        let number: u64 = bound.strip_suffix(unit)?.parse().ok()?;
        Some(format!("≤{}{unit}", number + 1))
    };
    if fits { time.to_owned() } else { rounded_up().unwrap_or_else(|| larger.to_owned()) }
}

/// `n` in at most `width` characters: `12345`, `123k`, `1M`. Rounded down.
pub fn compact(n: u64, width: u16) -> String {
    let fits = |text: &String| text.len() <= usize::from(width);
    let short = [(1, ""), (1000, "k"), (1_000_000, "M")].map(|(unit, name)| format!("{}{name}", n / unit));
    short.into_iter().find(fits).unwrap_or_else(|| "many".to_owned())
}

pub const STATES: [Column; 6] =
    [("STATE", 10), ("SOCKETS", 8), ("OLDEST", 8), ("EXITED", 10), ("MEDIAN", 15), ("P99", 15)];

/// The row of a state, in the table below that of ports.
pub fn state(of: &StateUse) -> Vec<String> {
    let mut cells = ports::state_cells(of);
    let left = of.durations.as_ref().map_or(0, |durations| durations.count);
    cells.insert(3, compact(left, STATES[3].1));
    cells
}

pub const SOCKETS: [Column; 6] =
    [("AGE", 10), ("STATE", 10), ("WHY", 12), ("LOCAL", 14), ("PEER", 15), ("OWNER[PID]:FD", 0)];

/// The row of `socket`.
pub fn socket(socket: &StuckSocket) -> Vec<String> {
    vec![
        table::age(&socket.age),
        labels::phase(socket.state),
        labels::why(socket, false),
        socket.local.to_string(),
        socket.peer.to_string(),
        labels::owners(socket),
    ]
}

/// Frames of each stack.
const FRAMES: usize = 8;

/// All facts about `socket`, a name and a value each. `stacks` and `verdicts`: of its document. `source`: who records code.
pub fn facts(
    socket: &StuckSocket,
    stacks: &[Stack],
    verdicts: &[VerdictGroup],
    source: &StackSource,
) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("state", format!("{} for {}", labels::phase(socket.state), table::age(&socket.age))),
        ("side, port", format!("{} {}", socket.side.name(), socket.port)),
        ("local", socket.local.to_string()),
        ("peer", socket.peer.to_string()),
        ("queues", format!("{} bytes unread, {} bytes unsent", socket.unread_bytes, socket.unsent_bytes)),
    ];
    if socket.diagnosis.is_some() || socket.cause.is_some() {
        facts.push(("why", labels::why(socket, false)));
    }
    let verdict = group_of(socket, verdicts);
    if let Some(group) = verdict {
        facts.push(("verdict", format!("{}: {}", in_words(group.verdict), reasons(group))));
        facts.extend(group.advice.iter().map(|advice| ("what to do", printable(advice).into_owned())));
    }
    let netns = format!("net:[{}] {}", socket.netns, socket.netns_name.as_deref().unwrap_or_default());
    facts.push(("namespace", printable(netns.trim_end()).into_owned()));
    facts.push(("cookie", format!("sk:{:x} inode {} uid {}", socket.cookie.0, socket.inode, socket.uid)));
    for owner in &socket.owners {
        let place = [&owner.place.unit, &owner.place.container_id, &owner.exe].into_iter().flatten().cloned();
        let text = [labels::owner(socket, owner)].into_iter().chain(place);
        facts.push(("owner", printable(&text.collect::<Vec<_>>().join("  ")).into_owned()));
    }
    if socket.owners.is_empty() {
        facts.push(("owner", labels::owners(socket)));
    }
    for (moment, stack) in of_socket(socket, stacks) {
        facts.push(("code", printable(&in_one_phrase(moment, stack)).into_owned()));
        for frame in stack.frames.iter().take(FRAMES) {
            facts.push(("", format!("  {}", printable(&in_a_line(frame)))));
        }
    }
    for owner in &socket.peer_owners {
        facts.push(("peer's", format!("{}:{}", labels::process(owner), owner.fd)));
    }
    let verdict = verdict.map(|group| group.verdict);
    let source = if socket.stacks.is_some() { &StackSource::Shown } else { source };
    let next = socket.first_owner().and_then(|owner| suggest::step(owner, socket.diagnosis, verdict, source));
    if let Some((look_for, command)) = next {
        facts.push(("next", look_for));
        facts.push(("", command));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eighty_columns_are_enough_and_numbers_fit() {
        let width = |columns: &[Column]| columns.iter().map(|(_, width)| width + 1).sum::<u16>() - 1;
        assert_eq!(width(&PORTS), 80);
        assert!(width(&STATES) <= 80 && width(&SOCKETS) < 80);
        assert_eq!(
            [(9999, 4), (10_000, 4), (123_456, 4), (9_999_999, 4)].map(|(n, w)| compact(n, w)),
            ["9999", "10k", "123k", "9M"]
        );
        assert_eq!(compact(u64::MAX, 4), "many");
        assert_eq!((shortened("4m 50s", 6), shortened("4m 50s", 5)), ("4m 50s".into(), "4m".into()));
        assert_eq!((shortened("≤31m 49s", 6), shortened("≤1h 30m", 6)), ("≤32m".into(), "≤2h".into()));
    }
}
