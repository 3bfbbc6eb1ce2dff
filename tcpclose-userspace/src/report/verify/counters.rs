//! Compares the agent's counters with the kernel's between two samples.

use tcpclose_common::state::TcpState;

use crate::report::verify::verdict::{Agreement, Causes, Span};
use crate::report::verify::{
    AuditRow, AuditSample, BackendsInUse, KernelSample, NetnsSample, Part, Reach, span,
};

/// Counters of the kernel without an equivalent counter of the agent, and why.
pub const NOT_COMPARED: &str = "not compared: OutRsts (also counts RSTs for ports without a listener), \
    TCPAbortOnTimeout (also counts connection attempts), TCPAbortOnData (counts closes with linger 0 and data after close)";

/// What the row of [`OVERFLOWS`] means where dumps show TIME-WAIT.
pub const OWN_OVERFLOWS: &str =
    "time_wait skipped: without hooks the agent reads this counter itself, of its own network namespace";
const OVERFLOWS: &str = "time_wait skipped, TCPTimeWaitOverflow";

/// Compares the counts from `from` to `to`. `own`: the agent's network namespace; `reach`: the namespaces in which
/// minisockets are followed. Records come from all.
pub fn compare(
    from: &AuditSample,
    to: &AuditSample,
    backends: &BackendsInUse,
    (own, reach): (u32, Reach),
    causes: &Causes,
) -> Vec<AuditRow> {
    let pair = Comparison { from, to, own, reach };
    vec![
        pair.established_resets(causes),
        pair.minisockets_born(backends, causes),
        pair.overflows(backends, causes),
        pair.reused(backends, causes),
        pair.aborts_on_close(causes),
    ]
}

struct Comparison<'a> {
    from: &'a AuditSample,
    to: &'a AuditSample,
    own: u32,
    reach: Reach,
}

impl Comparison<'_> {
    /// The agent's count.
    fn agent(&self, name: &str, labels: &[(&str, &str)]) -> i64 {
        (self.to.metrics.sum(name, labels) - self.from.metrics.sum(name, labels)) as i64
    }

    fn transitions(&self, from: Option<&str>, to: &str) -> i64 {
        let to = ("to", to);
        match from {
            Some(from) => self.agent("tcpclose_transitions_total", &[("from", from), to]),
            None => self.agent("tcpclose_transitions_total", &[to]),
        }
    }

    /// The kernel's count between the two readings of the agent, before and after each of which it was read.
    fn kernel(&self, reach: Reach, names: &[&str]) -> (Span, Vec<Part>) {
        let sum = |view: &KernelSample| names.iter().map(|name| view.counters.get(name)).sum::<u64>() as i64;
        let at = |view: Option<&KernelSample>| view.map(sum);
        self.to.sum(reach, |id, to| {
            let from = self.from.namespaces.get(&id);
            let before = |netns: Option<&NetnsSample>| at(netns.and_then(|netns| netns.before.as_ref()));
            let after = |netns: Option<&NetnsSample>| at(netns.and_then(|netns| netns.after.as_ref()));
            // Counters begin at 0. A namespace without a reading did not exist yet, or was not found.
            let first = before(from).unwrap_or(0);
            let last = after(Some(to)).or_else(|| before(Some(to))).or_else(|| after(from));
            let min = before(Some(to)).zip(after(from)).map_or(0, |(to, from)| to - from);
            Span { min, max: last.map_or(min, |last| last - first).max(min) }
        })
    }

    /// `tcp_set_state()` counts ESTABLISHED or CLOSE-WAIT to CLOSE.
    fn established_resets(&self, causes: &Causes) -> AuditRow {
        let agent =
            self.transitions(Some("established"), "closed") + self.transitions(Some("close_wait"), "closed");
        let agent = Span::exact(agent);
        let (kernel, namespaces) = self.kernel(Reach::All, &["EstabResets"]);
        AuditRow {
            what: "established or close_wait to closed, EstabResets".to_owned(),
            agent,
            kernel: Some(kernel),
            verdict: causes.judge(agent, kernel),
            namespaces,
        }
    }

    /// A minisocket is created in TIME-WAIT, which the agent counts as a transition, or in FIN-WAIT-2, where it still
    /// is or which it has left for TIME-WAIT (the transition) or its end.
    fn minisockets_born(&self, backends: &BackendsInUse, causes: &Causes) -> AuditRow {
        // Minisockets of other namespaces are neither followed there nor counted here.
        let elsewhere = [("state", "time_wait"), ("why", "namespace")];
        let entered =
            self.transitions(None, "time_wait") - self.agent("tcpclose_unseen_phases_total", &elsewhere);
        let ended = self.transitions(Some("fin_wait_2"), "closed");
        // In FIN-WAIT-2 the agent counts full sockets too.
        let minisockets = |sample: &AuditSample| {
            let all = sample.metrics.sum("tcpclose_sockets", &[("state", "fin_wait_2")]) as i64;
            let (full, _) = sample.sum(self.reach, |_, netns| {
                let (before, after) = netns.sockets(|sockets| sockets.full_in(TcpState::FinWait2));
                span(&before, &after)
            });
            Span::exact(all).minus(full)
        };
        let agent = Span { min: entered, max: entered + ended }
            .plus(minisockets(self.to))
            .minus(minisockets(self.from));
        let (born, namespaces) = self.kernel(self.reach, &["TW", "TWKilled"]);
        // Without hooks, a minisocket that the full table refused seems to have been created.
        let skipped = match backends.dumps() {
            true => self.kernel(self.reach, &["TCPTimeWaitOverflow"]).0.max,
            false => 0,
        };
        let kernel = Span { max: born.max + skipped, ..born };
        AuditRow {
            what: "minisockets born, TW + TWKilled".to_owned(),
            agent,
            kernel: Some(kernel),
            verdict: causes.judge(agent, kernel),
            namespaces,
        }
    }

    fn overflows(&self, backends: &BackendsInUse, causes: &Causes) -> AuditRow {
        let agent = Span::exact(self.agent("tcpclose_time_wait_overflows_total", &[]));
        let reach = if backends.dumps() { Reach::Only(self.own) } else { Reach::All };
        let (kernel, namespaces) = self.kernel(reach, &["TCPTimeWaitOverflow"]);
        let verdict = causes.judge(agent, kernel);
        AuditRow { what: OVERFLOWS.to_owned(), agent, kernel: Some(kernel), verdict, namespaces }
    }

    fn reused(&self, backends: &BackendsInUse, causes: &Causes) -> AuditRow {
        let agent = Span::exact(self.agent("tcpclose_time_wait_ended_total", &[("reason", "reused")]));
        let (kernel, namespaces) = self.kernel(Reach::All, &["TWRecycled"]);
        let verdict = match backends.dumps() {
            true => Agreement::NotTold("a dump does not show what ended a TIME-WAIT".to_owned()),
            false => causes.judge(agent, kernel),
        };
        AuditRow {
            what: "time_wait reused by connect, TWRecycled".to_owned(),
            agent,
            kernel: Some(kernel),
            verdict,
            namespaces,
        }
    }

    /// Every close with unread data is an abort. So are linger 0 and disconnects, for which the kernel has no counter.
    fn aborts_on_close(&self, causes: &Causes) -> AuditRow {
        let closes = |outcome| self.agent("tcpclose_closes_total", &[("outcome", outcome)]);
        let aborted = closes("aborted");
        let agent = Span { min: aborted, max: aborted + closes("unknown") };
        let (kernel, namespaces) = self.kernel(Reach::All, &["TCPAbortOnClose"]);
        let verdict = match agent.beyond(kernel) {
            1.. => Agreement::Explained("closes with linger 0 and disconnects are aborts too".to_owned()),
            _ => causes.judge(agent, kernel),
        };
        AuditRow {
            what: "closes aborted, TCPAbortOnClose".to_owned(),
            agent,
            kernel: Some(kernel),
            verdict,
            namespaces,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::proc_net::MibCounters;
    use crate::report::verify::tests::sample as sample_at;

    fn sample(metrics: &str, before: &[(&'static str, u64)], after: &[(&'static str, u64)]) -> AuditSample {
        sample_at(metrics, [(1, Some(view(before)), Some(view(after)))])
    }

    fn view(counters: &[(&'static str, u64)]) -> KernelSample {
        KernelSample { counters: MibCounters(counters.iter().copied().collect()), ..KernelSample::default() }
    }

    fn between<'a>(from: &'a AuditSample, to: &'a AuditSample) -> Comparison<'a> {
        Comparison { from, to, own: 1, reach: Reach::All }
    }

    fn backends(time_wait: &str) -> BackendsInUse {
        BackendsInUse { state: "btf".to_owned(), time_wait: time_wait.to_owned() }
    }

    #[test]
    fn the_agents_difference_lies_in_what_the_kernel_counted_meanwhile() {
        let from = sample(
            "tcpclose_transitions_total{from=\"established\",to=\"closed\"} 5\n",
            &[("EstabResets", 10)],
            &[("EstabResets", 11)],
        );
        let to = sample(
            "tcpclose_transitions_total{from=\"established\",to=\"closed\"} 7\n\
             tcpclose_transitions_total{from=\"close_wait\",to=\"closed\"} 2\n",
            &[("EstabResets", 14)],
            &[("EstabResets", 15)],
        );
        let row = between(&from, &to).established_resets(&Causes::default());
        assert_eq!((row.agent, row.kernel), (Span::exact(4), Some(Span { min: 3, max: 5 })));
        assert_eq!(row.verdict, Agreement::Equal);
        let row = between(&from, &from).established_resets(&Causes::default());
        assert_eq!(row.verdict, Agreement::Equal);
    }

    #[test]
    fn a_minisocket_is_accounted_for_where_it_is_or_where_it_went() {
        let none = sample("", &[], &[]);
        let to = sample(
            "tcpclose_transitions_total{from=\"fin_wait_2\",to=\"time_wait\"} 5\n\
             tcpclose_transitions_total{from=\"fin_wait_2\",to=\"closed\"} 1\n\
             tcpclose_sockets{state=\"fin_wait_2\"} 3\n",
            &[("TW", 8)],
            &[("TW", 8), ("TCPTimeWaitOverflow", 1)],
        );
        let pair = between(&none, &to);
        let row = pair.minisockets_born(&backends("hooks"), &Causes::default());
        assert_eq!((row.agent, row.verdict), (Span { min: 8, max: 9 }, Agreement::Equal));
        let row = pair.minisockets_born(&backends("diag"), &Causes::default());
        assert_eq!(row.kernel, Some(Span { min: 8, max: 9 }));
        let elsewhere = sample(
            "tcpclose_transitions_total{from=\"fin_wait_2\",to=\"time_wait\"} 5\n\
             tcpclose_unseen_phases_total{state=\"time_wait\",why=\"namespace\"} 5\n",
            &[],
            &[],
        );
        let row = between(&none, &elsewhere).minisockets_born(&backends("diag"), &Causes::default());
        assert_eq!((row.agent, row.verdict), (Span::exact(0), Agreement::Equal));
    }

    #[test]
    fn a_backend_that_cannot_know_says_so() {
        let (from, to) = (sample("", &[], &[]), sample("", &[("TWRecycled", 7)], &[("TWRecycled", 7)]));
        let pair = between(&from, &to);
        assert!(matches!(pair.reused(&backends("diag"), &Causes::default()).verdict, Agreement::NotTold(_)));
        assert_eq!(pair.reused(&backends("hooks"), &Causes::default()).verdict, Agreement::Differs);
    }

    #[test]
    fn more_aborts_than_the_kernels_counter_have_other_causes_and_fewer_have_none() {
        let (from, to) =
            (sample("", &[], &[]), sample("tcpclose_closes_total{outcome=\"aborted\"} 3\n", &[], &[]));
        let pair = between(&from, &to);
        assert!(matches!(pair.aborts_on_close(&Causes::default()).verdict, Agreement::Explained(_)));
        let to = sample("", &[("TCPAbortOnClose", 3)], &[("TCPAbortOnClose", 3)]);
        let pair = between(&from, &to);
        assert_eq!(pair.aborts_on_close(&Causes::default()).verdict, Agreement::Differs);
    }

    #[test]
    fn a_namespace_that_came_counts_from_nothing_and_one_that_went_until_it_was_seen_last() {
        let count = |n| Some(view(&[("EstabResets", n)]));
        let from = sample_at("", [(1, count(10), count(10)), (2, count(5), count(6))]);
        let to = sample_at("", [(1, count(11), count(12)), (2, None, None), (3, count(4), count(7))]);
        let (sum, parts) = between(&from, &to).kernel(Reach::All, &["EstabResets"]);
        assert_eq!(sum, Span { min: 1, max: 2 + 1 + 7 });
        assert_eq!(parts.len(), 3);
        let (own, _) = between(&from, &to).kernel(Reach::Only(1), &["EstabResets"]);
        assert_eq!(own, Span { min: 1, max: 2 });
    }
}
