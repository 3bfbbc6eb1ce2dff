//! What was there at one look: the agent's gauges beside dumps, and dumps beside /proc/net/sockstat.

use std::collections::HashSet;

use tcpclose_common::state::TcpState;

use super::verdict::{Causes, Span, Verdict};
use super::{Look, Row, Sockets, span};
use crate::terms::Phase;

/// The agent's `tcpclose_sockets` at `look`. `earlier`: where minisockets are followed by dumps, the sockets at a time
/// before which every step has been dumped by then.
pub fn agent(look: &Look, earlier: Option<&Sockets>, causes: &Causes) -> Vec<Row> {
    let rows = Phase::ALL.into_iter().map(|phase| {
        let agent = look.metrics.sum("tcpclose_sockets", &[("state", phase.name())]) as i64;
        let agent = Span::exact(agent);
        let kernel = in_phase(phase, look, earlier);
        Row {
            what: format!("sockets in {}", phase.name()),
            agent,
            kernel: Some(kernel),
            verdict: causes.judge(agent, kernel),
        }
    });
    rows.collect()
}

/// How many sockets the agent can rightly say are in `phase`.
fn in_phase(phase: Phase, look: &Look, earlier: Option<&Sockets>) -> Span {
    let of = |sockets: &Sockets| sockets.in_state(phase.state());
    let (before, after) = (of(&look.before.sockets), of(&look.after.sockets));
    let (Some(earlier), Phase::FinWait2 | Phase::TimeWait) = (earlier, phase) else {
        return span(&before, &after);
    };
    // Minisockets switch and end with no event: what was true since `earlier` can still be the agent's word.
    let first = of(earlier);
    let min = first.intersection(&after).count() as i64;
    let mut possible: HashSet<u64> = &(&first | &before) | &after;
    if phase == Phase::FinWait2 {
        let waiting = |sockets: &Sockets| sockets.in_state(TcpState::TimeWait);
        let switched = &waiting(&look.before.sockets) | &waiting(&look.after.sockets);
        possible.extend(switched.difference(&waiting(earlier)));
    }
    Span { min, max: possible.len() as i64 }
}

/// What the agent and this audit rest on: that a dump shows what the kernel counts.
pub fn dumps(look: &Look) -> Vec<Row> {
    let (before, after) = (&look.before, &look.after);
    let row = |what: &str, dumped: Span, counted: Span, larger: Option<&str>| {
        let verdict = match (dumped.beyond(counted), larger) {
            (0, _) => Verdict::Equal,
            (..0, Some(why)) => Verdict::Explained(why.to_owned()),
            _ => Verdict::Differs,
        };
        Row { what: format!("sock_diag: {what}"), agent: dumped, kernel: Some(counted), verdict }
    };
    let counted = |of: fn(&super::View) -> u64| Span::between(of(before) as i64, of(after) as i64);
    vec![
        row(
            "minisockets, sockstat tw",
            span(&before.sockets.minisockets(), &after.sockets.minisockets()),
            counted(|view| view.stat.tw),
            None,
        ),
        row(
            "full sockets, sockstat inuse",
            span(&before.sockets.in_use(), &after.sockets.in_use()),
            counted(|view| view.stat.inuse),
            None,
        ),
        row(
            "orphans, sockstat orphan",
            span(&before.sockets.orphans, &after.sockets.orphans),
            counted(|view| view.stat.orphan),
            Some("the kernel counts the orphans of all network namespaces together"),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::socket;
    use super::super::{View, samples::Samples};
    use super::*;
    use crate::kernel::mib::SockStat;

    fn look(before: &[(TcpState, u64)], metrics: &str, after: &[(TcpState, u64)]) -> Look {
        let view = |sockets: &[(TcpState, u64)]| {
            let mini = |state| matches!(state, TcpState::FinWait2 | TcpState::TimeWait);
            let dumped: Vec<_> =
                sockets.iter().map(|&(state, cookie)| socket(state, cookie, mini(state))).collect();
            let sockets = Sockets::new(&dumped);
            let stat = SockStat { inuse: 0, orphan: 0, tw: sockets.minisockets().len() as u64 };
            View { sockets, stat, ..View::default() }
        };
        Look { before: view(before), metrics: Samples::parse(metrics), after: view(after) }
    }

    fn of(rows: &[Row], phase: Phase) -> &Row {
        rows.iter().find(|row| row.what == format!("sockets in {}", phase.name())).unwrap()
    }

    const ONE: &str =
        "tcpclose_sockets{state=\"close_wait\",port=\"1\"} 1\ntcpclose_sockets{state=\"time_wait\"} 3\n";

    #[test]
    fn a_gauge_lies_between_what_stayed_and_what_was_ever_there() {
        use TcpState::{CloseWait, TimeWait};
        let look = look(&[(CloseWait, 1), (TimeWait, 9)], ONE, &[(CloseWait, 2), (TimeWait, 9)]);
        let rows = agent(&look, None, &Causes::default());
        assert_eq!(of(&rows, Phase::CloseWait).kernel, Some(Span { min: 0, max: 2 }));
        assert_eq!(of(&rows, Phase::CloseWait).verdict, Verdict::Equal);
        assert_eq!(of(&rows, Phase::TimeWait).verdict, Verdict::Differs);
        assert_eq!(of(&rows, Phase::LastAck).verdict, Verdict::Equal);
    }

    #[test]
    fn where_minisockets_are_dumped_the_agents_word_may_be_a_dump_old() {
        use TcpState::{FinWait2, TimeWait};
        let earlier = look(&[(TimeWait, 7), (TimeWait, 8), (FinWait2, 9)], "", &[]).before.sockets;
        let now = [(TimeWait, 8), (TimeWait, 9)];
        let look = look(&now, ONE, &now);
        let rows = agent(&look, Some(&earlier), &Causes::default());
        assert_eq!(of(&rows, Phase::TimeWait).kernel, Some(Span { min: 1, max: 3 }));
        assert_eq!(of(&rows, Phase::FinWait2).kernel, Some(Span { min: 0, max: 1 }));
        assert_eq!(of(&rows, Phase::TimeWait).verdict, Verdict::Equal);
    }

    #[test]
    fn a_dump_that_shows_less_than_the_kernel_counts_is_flagged() {
        let mut look = look(&[(TcpState::TimeWait, 7)], "", &[(TcpState::TimeWait, 7)]);
        assert!(dumps(&look).iter().all(|row| row.verdict == Verdict::Equal));
        (look.before.stat.tw, look.after.stat.tw) = (2, 2);
        (look.before.stat.orphan, look.after.stat.orphan) = (1, 1);
        let rows = dumps(&look);
        assert_eq!(rows[0].verdict, Verdict::Differs);
        assert!(matches!(rows[2].verdict, Verdict::Explained(_)));
    }
}
