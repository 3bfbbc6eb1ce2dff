//! The verdicts on the programs whose sockets are listed.

use crate::commands::groups::SocketGroup;
use crate::failure::printable;
use crate::names::Verdict;
use crate::report::verdict::group_of;
use crate::report::verdict_group::VerdictGroup;
use crate::ui::table;

/// A paragraph for each verdict on the sockets of `shown`, in the order of `verdicts`.
pub fn lines(shown: &[SocketGroup<'_>], verdicts: &[VerdictGroup], width: Option<u16>) -> String {
    let mut listed: Vec<&VerdictGroup> = shown
        .iter()
        .flat_map(|group| group.sockets().first())
        .filter_map(|socket| group_of(socket, verdicts))
        .collect();
    listed.sort_by_key(|of| verdicts.iter().position(|group| std::ptr::eq(group, *of)));
    listed.dedup_by(|a, b| std::ptr::eq(*a, *b));
    listed.into_iter().map(|group| paragraph(group, width)).collect()
}

fn paragraph(group: &VerdictGroup, width: Option<u16>) -> String {
    let text = format!("verdict: {}: {}: {}", title(group), in_words(group.verdict), reasons(group));
    let mut lines = table::wrap(&text, width) + "\n";
    if let Some(advice) = &group.advice {
        lines += &(table::wrap(&format!("what to do: {}", printable(advice)), width) + "\n");
    }
    lines
}

/// The evidence, and what an undecided group waits for, in one phrase.
pub fn reasons(group: &VerdictGroup) -> String {
    let waits = group.waits_for.as_ref().map(|waits| format!("the verdict waits for {waits}"));
    let all: Vec<&str> = group.evidence.iter().chain(&waits).map(String::as_str).collect();
    printable(&all.join("; ")).into_owned()
}

/// `api[4242], server port 8080`.
fn title(group: &VerdictGroup) -> String {
    let first = group.pids.first().copied().unwrap_or_default();
    let name = printable(&group.comm);
    let who = match (group.of_children, group.pids.len()) {
        (true, _) => format!("{name}, children of [{first}]"),
        (false, 0 | 1) => format!("{name}[{first}]"),
        (false, n) => format!("{name}[{first}] +{}", n - 1),
    };
    format!("{who}, {} port {}", group.side.name(), group.port)
}

/// A verdict as people write it.
pub fn in_words(verdict: Verdict) -> String {
    verdict.name().replace('_', " ")
}
