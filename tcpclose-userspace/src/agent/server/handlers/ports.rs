//! `GET /ports`: the close phase by service port, from the same counters and gauges as `/metrics`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tokio::time::sleep;

use crate::linux::host;
use crate::metrics::Metrics;
use crate::metrics::gauges::{Gauges, Standing};
use crate::metrics::histogram::Histogram;
use crate::metrics::port_labels::PortLabel;
use crate::metrics::rates;
use crate::metrics::rates::RateHistory;
use crate::names::Phase;
use crate::report::ports::{PortUse, PortsDocument, SCHEMA, StateUse, TransitionUse};
use crate::report::sockets::{DocumentSource, seconds};

use crate::agent::server::response::{Answer, json, not_ready};
use crate::agent::tracking::Tracking;

/// Samples the counters for rates, for as long as the agent runs.
pub async fn run(tracking: Rc<RefCell<Tracking>>, rates: Rc<RefCell<RateHistory>>) {
    loop {
        {
            let mut tracking = tracking.borrow_mut();
            tracking.drain_all();
            rates.borrow_mut().sample(&tracking.output.metrics, host::monotonic_ns());
        }
        sleep(rates::INTERVAL).await;
    }
}

pub fn answer(tracking: &mut Tracking, rates: &RateHistory) -> Answer {
    if !tracking.ready {
        return not_ready();
    }
    tracking.drain_all();
    let now_ns = host::monotonic_ns();
    let gauges = tracking.gauges(now_ns);
    let head = Head {
        incomplete: [tracking.namespaces.incomplete(&BTreeMap::new()), Vec::from_iter(tracking.silence())]
            .concat(),
        at: host::wall_clock(),
        now_ns,
        age_ns: tracking.ages(now_ns).oldest_ns(),
        stuck_after_ns: tracking.stuck_after.first_ns(),
    };
    json(&assemble(head, &tracking.output.metrics, &gauges, rates))
}

/// The fields of the document besides counters and gauges.
struct Head {
    incomplete: Vec<String>,
    at: String,
    now_ns: u64,
    age_ns: u64,
    stuck_after_ns: u64,
}

fn assemble(head: Head, metrics: &Metrics, gauges: &Gauges, rates: &RateHistory) -> PortsDocument {
    let window = rates.window(head.now_ns);
    let closes = rates::closes_of(metrics);
    let durations: BTreeMap<(PortLabel, Phase), &Histogram> =
        metrics.durations().map(|(label, phase, histogram)| ((label, phase), histogram)).collect();
    let standing = |label, phase| gauges.standing.get(&(label, phase)).copied().unwrap_or_default();
    let mut labels: BTreeSet<PortLabel> =
        durations.keys().chain(gauges.standing.keys()).map(|(label, _)| *label).collect();
    labels.extend(closes.keys().chain(gauges.stuck.keys()));
    let ports = labels.iter().map(|&label| {
        let states = Phase::ALL.into_iter().filter_map(|phase| {
            let durations = durations.get(&(label, phase)).copied();
            let of_state = StateUse::new(phase, standing(label, phase), durations);
            (of_state.sockets > 0 || of_state.durations.is_some()).then_some(of_state)
        });
        let states: Vec<StateUse> = states.collect();
        let closes = closes.get(&label).copied().unwrap_or(0);
        PortUse {
            side: label.side,
            port: label.port,
            sockets: states.iter().map(|of_state| of_state.sockets).sum(),
            stuck: gauges.stuck.get(&label).map_or(0, |classes| classes.iter().sum()),
            possibly_stuck: gauges.unproven.get(&label).copied().unwrap_or(0),
            closes: Some(closes),
            closes_per_second: window.map(|window| window.closes(label, closes)),
            states,
        }
    });
    let states = Phase::ALL.into_iter().map(|phase| {
        let mut together = Histogram::new(phase);
        let mut all = Standing::default();
        for &label in &labels {
            if let Some(histogram) = durations.get(&(label, phase)) {
                together.add(histogram);
            }
            let Standing { sockets, oldest_ns } = standing(label, phase);
            all = Standing { sockets: all.sockets + sockets, oldest_ns: all.oldest_ns.max(oldest_ns) };
        }
        StateUse::new(phase, all, Some(&together))
    });
    let transitions = metrics.transitions().map(|(from, to, count)| TransitionUse {
        from: from.name().to_owned(),
        to: to.name().to_owned(),
        count,
        per_second: window.map(|window| window.transitions(from, to, count)),
    });
    PortsDocument {
        schema: SCHEMA,
        host: host::hostname(),
        boot_id: host::boot_id(),
        at: head.at,
        source: DocumentSource::Agent,
        age_seconds: Some(seconds(head.age_ns)),
        incomplete: head.incomplete,
        stuck_after_seconds: seconds(head.stuck_after_ns),
        rate_seconds: window.map(|window| window.seconds),
        states: states.collect(),
        transitions: transitions.collect(),
        ports: ports.collect(),
    }
}
