//! The exported series, and their greatest number.

use tcpclose_common::state::TcpState;

use crate::agent::server::handlers::metrics::*;
use crate::metrics::charge::Charge;
use crate::metrics::gauges::Standing;
use crate::metrics::port_labels::{LabelRequest, PortLabels};
use crate::names::{
    Correction, Diagnosis, Outcome, Phase, PortKey, PortKind, Role, Side, TimeWaitEnd, UnmeasuredReason,
    Verdict,
};
use crate::report::owner_counts;
use crate::tracker::event::{EventSink, TrackerEvent};

/// The promise of the README, with default settings.
const PROMISED: usize = 3200;
/// Of those, the agent's own: the same on every host, and counted by the test `cardinality`.
const OWN: usize = 140;

#[test]
fn a_kernel_without_run_statistics_leaves_no_zeros() {
    let samples = |runs| program_runs(runs).map(|family| family.metrics.len());
    assert_eq!(samples(ProgramStats { missed: 3, ..ProgramStats::default() }), [0, 0]);
    assert_eq!(samples(ProgramStats { count: 2, ns: 80, missed: 0 }), [1, 1]);
    let [seconds, _] = program_runs(ProgramStats { count: 2, ns: 2_500_000_000, missed: 0 });
    assert_eq!(seconds.metrics[0].get_counter().get_value(), 2.5);
}

#[test]
fn age_labels_are_written_as_the_flag_writes_them() {
    let s = 1_000_000_000;
    assert_eq!(
        stuck_labels(&[60 * s, 600 * s, 3600 * s, 5400 * s, 2 * s, s / 2]),
        ["1m", "10m", "1h", "1h30m", "2s", "500ms"]
    );
}

/// All that a hostile network, a hostile host and bad luck can make at the same time, with the defaults.
#[test]
fn the_worst_case_stays_within_the_promise() {
    let mut labels = PortLabels::new(32, &[]);
    for pair in Side::ALL.into_iter().flat_map(|side| (1..=60).map(move |port| PortKey { side, port })) {
        labels.facts().listens(pair.port, Charge::Root);
        labels.facts().holds(pair, Charge::Root);
        let kind = if pair.side == Side::Unknown { PortKind::Unproven } else { PortKind::Service };
        labels.label(LabelRequest { pair, kind, stuck: true }, 1);
    }
    let mut metrics = Metrics::new(labels);
    for (side, port) in Side::ALL.into_iter().flat_map(|side| (1..=60).map(move |port| (side, port))) {
        let pair = PortKey { side, port };
        for phase in Phase::ALL {
            metrics.event(1, TrackerEvent::StateDuration { phase, pair, ns: 5 });
        }
        for (role, outcome) in Role::ALL.iter().flat_map(|role| Outcome::ALL.map(|outcome| (*role, outcome)))
        {
            metrics.event(1, TrackerEvent::Closed { pair, role, outcome });
        }
        metrics.event(1, TrackerEvent::StaleWrite { pair });
        metrics.event(1, TrackerEvent::FinRetransmit { pair });
    }
    let phases = Phase::ALL.map(Phase::state);
    for from in phases.into_iter().chain([TcpState::Established, TcpState::SynRecv]) {
        for to in phases.into_iter().chain([TcpState::Close]).filter(|to| *to != from) {
            metrics.event(1, TrackerEvent::Transition { from, to });
        }
    }
    TimeWaitEnd::ALL.into_iter().for_each(|how| metrics.event(1, TrackerEvent::TimeWaitEnded { how }));
    Correction::ALL.into_iter().for_each(|what| metrics.event(1, TrackerEvent::Corrected { what }));
    for (phase, why) in Phase::ALL.iter().flat_map(|phase| UnmeasuredReason::ALL.map(|why| (*phase, why))) {
        metrics.event(1, TrackerEvent::Unmeasured { phase, why });
    }

    let mut now = Gauges::default();
    for (label, phase, _) in metrics.durations() {
        now.standing.insert((label, phase), Standing { sockets: 1, oldest_ns: 1 });
        now.stuck.insert(label, vec![1; 3]);
        now.unproven.insert(label, 1);
    }
    assert_eq!(now.stuck.len(), 32 + Side::ALL.len(), "each pair that can have a name has one");
    let holder = |nth: usize| OwnerLabels { comm: nth.to_string(), ..OwnerLabels::default() };
    let counts = StuckCounts {
        owners: (0..=owner_counts::MOST).map(|nth| (holder(nth), 1)).collect(),
        diagnoses: Diagnosis::ALL.map(|why| (why, 1)).into(),
    };

    let mut families = Vec::new();
    counters(&mut families, &metrics, 1);
    gauges(&mut families, &now, &["1m", "10m", "1h"].map(str::to_owned));
    stuck_counts(&mut families, &counts);
    let reasons: Vec<String> = (0..64).map(|nth| format!("reason {nth:02}")).collect();
    let sent = reasons.into_iter().map(|name| (&*name.leak(), 1)).collect();
    families.push(resets(&sent, [("stale_write", 1), ("unknown", 1)]).done());
    for family in &families {
        println!("{:<40} {:>5}", family.name(), series_of(family));
    }
    // Each verdict of each side under `other`, besides.
    let verdicts = MOST_VERDICTS + Side::ALL.len() * Verdict::ALL.len();
    let worst = families.iter().map(series_of).sum::<usize>() + verdicts;
    println!("{worst} series at the worst, and {OWN} for the agent itself");
    assert!(worst + OWN <= PROMISED, "{worst}");
}
