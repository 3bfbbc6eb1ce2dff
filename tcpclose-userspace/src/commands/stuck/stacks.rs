//! The code that left sockets open, below the groups; or whole stacks with counts.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use tcpclose_common::stack::Moment;

use crate::commands::groups::SocketGroup;
use crate::failure::printable;
use crate::linux::stacks::frames::Stack;
use crate::report::sockets::StuckSocket;
use crate::report::stacks::{BY_WEIGHT, cut_in_words, in_a_line, in_words, place, words};
use crate::ui::table;

/// One to three lines for each group that has stacks: the most frequent places.
pub fn places(groups: &[SocketGroup<'_>], stacks: &[Stack], width: Option<u16>) -> String {
    const LINES: usize = 3;
    let mut text = String::new();
    for group in groups {
        let mut lines = Vec::new();
        for moment in BY_WEIGHT {
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for stack in of(group.sockets(), moment, stacks) {
                *counts.entry(in_words(&place(stack))).or_default() += 1;
            }
            let all: usize = counts.values().sum();
            let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
            counts.sort_by_key(|(_, count)| Reverse(*count));
            // The end that was read says most.
            let most = if moment == Moment::EndRead { LINES - 1 } else { 1 };
            let after = if moment == Moment::EndRead { ", never closed" } else { "" };
            lines.extend(counts.iter().take(most).map(|(at, count)| {
                let line = format!("  {} {at}{after}: {count} of {all} sockets", words(moment));
                table::wrap(&printable(&line), width)
            }));
        }
        if !lines.is_empty() {
            lines.truncate(LINES);
            // Writing to a String cannot fail.
            let _ = writeln!(text, "code: {}\n{}", group.title(), lines.join("\n"));
        }
    }
    text
}

/// Whole stacks with counts, the most frequent first, `limit` a group.
pub fn whole(groups: &[SocketGroup<'_>], stacks: &[Stack], limit: usize) -> String {
    let mut text = String::new();
    for group in groups {
        for moment in BY_WEIGHT {
            let mut counts: BTreeMap<usize, (usize, &Stack)> = BTreeMap::new();
            for stack in of(group.sockets(), moment, stacks) {
                counts.entry(std::ptr::from_ref(stack) as usize).or_insert((0, stack)).0 += 1;
            }
            let mut counts: Vec<(usize, &Stack)> = counts.into_values().collect();
            counts.sort_by_key(|(count, _)| Reverse(*count));
            for (count, stack) in counts.iter().take(limit) {
                let _ = writeln!(text, "{}: {}, {count} sockets:", group.title(), words(moment));
                for frame in &stack.frames {
                    let inlined = if frame.inlined { " (inlined)" } else { "" };
                    let _ = writeln!(text, "    {}{inlined}", printable(&in_a_line(frame)));
                }
                if let Some(cut) = stack.cut {
                    let _ = writeln!(text, "    … {}", cut_in_words(cut));
                }
            }
            if counts.len() > limit {
                let _ = writeln!(text, "    … {} other stacks", counts.len() - limit);
            }
        }
    }
    text
}

fn of<'a>(
    sockets: &'a [&StuckSocket],
    moment: Moment,
    stacks: &'a [Stack],
) -> impl Iterator<Item = &'a Stack> {
    sockets.iter().filter_map(move |socket| stacks.get(socket.stacks?.get(moment)? as usize))
}
