//! Compares the agent's gauges with dumps, and dumps with /proc/net/sockstat, at one sample.

use std::collections::{BTreeMap, HashSet};

use tcpclose_common::state::TcpState;

use crate::linux::proc_net::SockStat;
use crate::names::Phase;
use crate::report::verify::verdict::{Agreement, Causes, Span};
use crate::report::verify::{
    AuditRow, AuditSample, DumpedSockets, KernelSample, NetnsSample, Part, Reach, span,
};

/// Compares the agent's `tcpclose_sockets`. `earlier`: where dumps follow minisockets, the kernel's sockets at a time whose
/// transitions have all been dumped since.
pub fn agent(
    sample: &AuditSample,
    earlier: Option<&BTreeMap<u32, KernelSample>>,
    reach: Reach,
    causes: &Causes,
) -> Vec<AuditRow> {
    let none = KernelSample::default();
    let before = |id| earlier.map(|earlier| earlier.get(&id).unwrap_or(&none));
    let skipped = earlier.map_or(0, |earlier| skipped(sample, earlier, reach));
    let rows = Phase::ALL.into_iter().map(|phase| {
        let agent = sample.metrics.sum("tcpclose_sockets", &[("state", phase.name())]) as i64;
        let agent = Span::exact(agent);
        let (kernel, namespaces) = sample.sum(reach, |id, netns| in_phase(phase, netns, before(id)));
        let verdict = match agent.beyond(kernel) {
            beyond if is_of_minisockets(phase) && (1..=skipped).contains(&beyond) => {
                Agreement::Explained(format!(
                    "the kernel's TIME-WAIT table was full: it skipped {skipped} (TCPTimeWaitOverflow), and the agent notices \
                     that at its next dump"
                ))
            }
            _ => causes.judge(agent, kernel),
        };
        AuditRow { what: format!("sockets in {}", phase.name()), agent, kernel: Some(kernel), verdict, namespaces }
    });
    rows.collect()
}

/// Phases of minisockets: with a full table the kernel makes none, and without hooks the agent assumes that it did.
fn is_of_minisockets(phase: Phase) -> bool {
    matches!(phase, Phase::FinWait2 | Phase::TimeWait)
}

/// How many minisockets the kernel did not make since `earlier`.
fn skipped(sample: &AuditSample, earlier: &BTreeMap<u32, KernelSample>, reach: Reach) -> i64 {
    let count = |view: &KernelSample| view.counters.get("TCPTimeWaitOverflow") as i64;
    let since = |id, netns: &NetnsSample| {
        let first = earlier.get(&id).map_or(0, count);
        let last = [&netns.before, &netns.after].into_iter().flatten().map(count).max().unwrap_or(first);
        Span { min: 0, max: (last - first).max(0) }
    };
    sample.sum(reach, since).0.max
}

/// How many sockets of a namespace the agent may correctly report in `phase`.
fn in_phase(phase: Phase, netns: &NetnsSample, earlier: Option<&KernelSample>) -> Span {
    let of = |sockets: &DumpedSockets| sockets.in_state(phase.state());
    let (before, after) = netns.sockets(of);
    let Some(KernelSample { sockets: earlier, .. }) = earlier.filter(|_| is_of_minisockets(phase)) else {
        return span(&before, &after);
    };
    // Minisockets change and end without an event: the agent may still report what was true since `earlier`.
    let first = of(earlier);
    let min = first.intersection(&after).count() as i64;
    let mut possible: HashSet<u64> = &(&first | &before) | &after;
    if phase == Phase::FinWait2 {
        let waiting = |sockets: &DumpedSockets| sockets.in_state(TcpState::TimeWait);
        let (before, after) = netns.sockets(waiting);
        possible.extend((&before | &after).difference(&waiting(earlier)));
    }
    Span { min, max: possible.len() as i64 }
}

/// Checks that dumps, on which the agent and this audit rely, show what the kernel counts.
pub fn dumps(sample: &AuditSample) -> Vec<AuditRow> {
    vec![
        in_each("minisockets, sockstat tw", sample, DumpedSockets::minisockets, |stat| stat.tw),
        in_each("full sockets, sockstat inuse", sample, DumpedSockets::in_use, |stat| stat.inuse),
        orphans(sample),
    ]
}

const DUMPS: &str = "sock_diag: ";

/// A number per namespace, which must be the same in each.
fn in_each(
    what: &str,
    sample: &AuditSample,
    dumped: impl Fn(&DumpedSockets) -> HashSet<u64>,
    counted: impl Fn(&SockStat) -> u64,
) -> AuditRow {
    let zero = Span::exact(0);
    let (mut all_dumped, mut all_counted, mut differs, mut namespaces) = (zero, zero, false, Vec::new());
    for netns in sample.namespaces.values() {
        let (before, after) = netns.sockets(&dumped);
        let dumped = span(&before, &after);
        let count = |view: &Option<KernelSample>| view.as_ref().map_or(0, |view| counted(&view.stat)) as i64;
        let counted = Span::between(count(&netns.before), count(&netns.after));
        all_dumped = all_dumped.plus(dumped);
        all_counted = all_counted.plus(counted);
        differs |= dumped.beyond(counted) != 0;
        if (dumped, counted) != (zero, zero) {
            namespaces.push(Part { dumped: Some(dumped), ..netns.part(counted) });
        }
    }
    let verdict = if differs { Agreement::Differs } else { Agreement::Equal };
    AuditRow {
        what: format!("{DUMPS}{what}"),
        agent: all_dumped,
        kernel: Some(all_counted),
        verdict,
        namespaces,
    }
}

/// Orphans, which the kernel counts for all namespaces together.
fn orphans(sample: &AuditSample) -> AuditRow {
    let (dumped, namespaces) = sample.sum(Reach::All, |_, netns| {
        let (before, after) = netns.sockets(|sockets| sockets.orphans.clone());
        span(&before, &after)
    });
    let namespaces = namespaces.into_iter().map(|part| Part { dumped: Some(part.kernel), ..part }).collect();
    let views = sample.namespaces.values().flat_map(|netns| [&netns.before, &netns.after]);
    let counts: Vec<i64> = views.flatten().map(|view| view.stat.orphan as i64).collect();
    let bound = |bound: Option<&i64>| bound.copied().unwrap_or(0);
    let counted = Span { min: bound(counts.iter().min()), max: bound(counts.iter().max()) };
    let verdict = match dumped.beyond(counted) {
        0 => Agreement::Equal,
        ..0 => Agreement::Explained(
            "the kernel counts orphans of all network namespaces together, including those that cannot be found"
                .to_owned(),
        ),
        1.. => Agreement::Differs,
    };
    let what = format!("{DUMPS}orphans, sockstat orphan");
    AuditRow { what, agent: dumped, kernel: Some(counted), verdict, namespaces }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::proc_net::MibCounters;
    use crate::report::verify::tests::{sample as sample_at, socket};

    fn view(sockets: &[(TcpState, u64)]) -> KernelSample {
        let mini = |state| matches!(state, TcpState::FinWait2 | TcpState::TimeWait);
        let dumped: Vec<_> =
            sockets.iter().map(|&(state, cookie)| socket(state, cookie, mini(state))).collect();
        let sockets = DumpedSockets::new(&dumped);
        let (inuse, tw) = (sockets.in_use().len() as u64, sockets.minisockets().len() as u64);
        let stat = SockStat { inuse, orphan: 0, tw };
        KernelSample { sockets, stat, ..KernelSample::default() }
    }

    fn sample(before: &[(TcpState, u64)], metrics: &str, after: &[(TcpState, u64)]) -> AuditSample {
        sample_at(metrics, [(1, Some(view(before)), Some(view(after)))])
    }

    fn of(rows: &[AuditRow], phase: Phase) -> &AuditRow {
        rows.iter().find(|row| row.what == format!("sockets in {}", phase.name())).unwrap()
    }

    const ONE: &str =
        "tcpclose_sockets{state=\"close_wait\",port=\"1\"} 1\ntcpclose_sockets{state=\"time_wait\"} 3\n";

    #[test]
    fn a_gauge_lies_between_what_stayed_and_what_was_ever_there() {
        use TcpState::{CloseWait, TimeWait};
        let sample = sample(&[(CloseWait, 1), (TimeWait, 9)], ONE, &[(CloseWait, 2), (TimeWait, 9)]);
        let rows = agent(&sample, None, Reach::All, &Causes::default());
        assert_eq!(of(&rows, Phase::CloseWait).kernel, Some(Span { min: 0, max: 2 }));
        assert_eq!(of(&rows, Phase::CloseWait).verdict, Agreement::Equal);
        assert_eq!(of(&rows, Phase::TimeWait).verdict, Agreement::Differs);
        assert_eq!(of(&rows, Phase::LastAck).verdict, Agreement::Equal);
    }

    #[test]
    fn where_minisockets_are_dumped_the_agents_word_may_be_a_dump_old() {
        use TcpState::{FinWait2, TimeWait};
        let earlier = sample(&[(TimeWait, 7), (TimeWait, 8), (FinWait2, 9)], "", &[]);
        let earlier = earlier.namespaces.into_values().filter_map(|netns| netns.before);
        let earlier = earlier.map(|view| (1, view)).collect();
        let now = [(TimeWait, 8), (TimeWait, 9)];
        let sample = sample(&now, ONE, &now);
        let rows = agent(&sample, Some(&earlier), Reach::All, &Causes::default());
        assert_eq!(of(&rows, Phase::TimeWait).kernel, Some(Span { min: 1, max: 3 }));
        assert_eq!(of(&rows, Phase::FinWait2).kernel, Some(Span { min: 0, max: 1 }));
        assert_eq!(of(&rows, Phase::TimeWait).verdict, Agreement::Equal);
    }

    #[test]
    fn what_the_kernel_skipped_since_is_explained_and_no_more() {
        let view = |overflows| KernelSample {
            counters: MibCounters([("TCPTimeWaitOverflow", overflows)].into()),
            ..view(&[(TcpState::TimeWait, 1)])
        };
        let earlier = BTreeMap::from([(1, view(10))]);
        let at = |overflows| {
            let sample = sample_at(ONE, [(1, Some(view(overflows)), Some(view(overflows)))]);
            let rows = agent(&sample, Some(&earlier), Reach::All, &Causes::default());
            assert_eq!(of(&rows, Phase::CloseWait).verdict, Agreement::Differs);
            of(&rows, Phase::TimeWait).verdict.clone()
        };
        assert_eq!((at(10), at(11)), (Agreement::Differs, Agreement::Differs));
        assert!(matches!(at(12), Agreement::Explained(why) if why.contains("it skipped 2 (")));
        // With hooks the agent is told of each.
        let sample = sample_at(ONE, [(1, Some(view(12)), Some(view(12)))]);
        let rows = agent(&sample, None, Reach::All, &Causes::default());
        assert_eq!(of(&rows, Phase::TimeWait).verdict, Agreement::Differs);
    }

    #[test]
    fn a_dump_that_shows_less_than_the_kernel_counts_is_flagged() {
        let mut sample = sample(&[(TcpState::TimeWait, 7)], "", &[(TcpState::TimeWait, 7)]);
        assert!(dumps(&sample).iter().all(|row| row.verdict == Agreement::Equal));
        for view in sample.namespaces.values_mut().flat_map(|netns| [&mut netns.before, &mut netns.after]) {
            let stat = &mut view.as_mut().unwrap().stat;
            (stat.tw, stat.orphan) = (2, 1);
        }
        let rows = dumps(&sample);
        assert_eq!(rows[0].verdict, Agreement::Differs);
        assert!(matches!(rows[2].verdict, Agreement::Explained(_)));
    }

    #[test]
    fn namespaces_are_added_and_one_that_differs_is_not_hidden_by_another() {
        use TcpState::{CloseWait, TimeWait};
        let (one, two) = (view(&[(CloseWait, 1), (TimeWait, 3)]), view(&[(TimeWait, 1), (TimeWait, 2)]));
        let metrics = "tcpclose_sockets{state=\"close_wait\"} 1\ntcpclose_sockets{state=\"time_wait\"} 3\n";
        let both = |one: &KernelSample, two: &KernelSample| {
            let seen = |view: &KernelSample| Some(view.clone());
            sample_at(metrics, [(1, seen(one), seen(one)), (2, seen(two), seen(two))])
        };
        let sample = both(&one, &two);
        let rows = agent(&sample, None, Reach::All, &Causes::default());
        assert_eq!(of(&rows, Phase::TimeWait).verdict, Agreement::Equal);
        let parts: Vec<i64> = of(&rows, Phase::TimeWait).namespaces.iter().map(|p| p.kernel.min).collect();
        assert_eq!(parts, [1, 2]);
        let rows = agent(&sample, None, Reach::Own(2), &Causes::default());
        assert_eq!(of(&rows, Phase::TimeWait).kernel, Some(Span { min: 2, max: 3 }));
        assert!(dumps(&sample).iter().all(|row| row.verdict == Agreement::Equal));
        let (mut more, mut less) = (one, two);
        (more.stat.tw, less.stat.tw) = (2, 1);
        let row = &dumps(&both(&more, &less))[0];
        assert_eq!((row.agent, row.kernel), (Span::exact(3), Some(Span::exact(3))));
        assert_eq!(row.verdict, Agreement::Differs);
        // One that was there before the metrics were read alone may be counted or not.
        let sample = sample_at(metrics, [(1, Some(more), None)]);
        let rows = agent(&sample, None, Reach::All, &Causes::default());
        assert_eq!(of(&rows, Phase::CloseWait).kernel, Some(Span { min: 0, max: 1 }));
    }
}
