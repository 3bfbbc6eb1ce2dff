//! `GET /ports`: the close phase by service port, from the same ledger and census as `/metrics`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tokio::time::sleep;

use crate::collect;
use crate::linux::host;
use crate::metrics::Metrics;
use crate::metrics::gauges::{Gauges, Standing};
use crate::metrics::histogram::Histogram;
use crate::metrics::port_labels::LabelSlot;
use crate::metrics::rates;
use crate::metrics::rates::RateHistory;
use crate::names::Phase;
use crate::report::ports::{PortUse, PortsDocument, StateUse, TransitionUse};
use crate::report::sockets::{DocumentSource, seconds};

use crate::agent::tracking::Tracking;

/// Where the command line and the page ask. On every face: it tells of no single socket.
pub const PATH: &str = "/ports";

/// Remembers what the counters were, for as long as the agent runs.
pub async fn run(engine: Rc<RefCell<Tracking>>) {
    loop {
        {
            let mut engine = engine.borrow_mut();
            engine.drain_all();
            let Tracking { rates, ledger, .. } = &mut *engine;
            rates.sample(ledger, host::monotonic_ns());
        }
        sleep(rates::INTERVAL).await;
    }
}

/// Everything, as of now. `None` before the first dump.
pub fn document(engine: &mut Tracking) -> Option<PortsDocument> {
    if !engine.ready {
        return None;
    }
    engine.drain_all();
    let now_ns = host::monotonic_ns();
    let census = engine.census(now_ns);
    let incomplete = engine.namespaces.incomplete(&BTreeMap::new());
    let head = Head {
        incomplete,
        at: host::wall_clock(),
        now_ns,
        age_ns: engine.ages(now_ns).oldest_ns(),
        stuck_after_ns: engine.stuck_after.first_ns(),
    };
    Some(assemble(head, &engine.ledger, &census, &engine.rates))
}

/// What is neither counted nor measured.
struct Head {
    incomplete: Vec<String>,
    at: String,
    now_ns: u64,
    age_ns: u64,
    stuck_after_ns: u64,
}

fn assemble(head: Head, ledger: &Metrics, census: &Gauges, rates: &RateHistory) -> PortsDocument {
    let window = rates.window(head.now_ns);
    let closes = rates::closes_of(ledger);
    let durations: BTreeMap<(LabelSlot, Phase), &Histogram> =
        ledger.durations().map(|(label, phase, histogram)| ((label, phase), histogram)).collect();
    let standing = |label, phase| census.standing.get(&(label, phase)).copied().unwrap_or_default();
    let mut labels: BTreeSet<LabelSlot> =
        durations.keys().chain(census.standing.keys()).map(|(label, _)| *label).collect();
    labels.extend(closes.keys().chain(census.stuck.keys()));
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
            stuck: census.stuck.get(&label).map_or(0, |classes| classes.iter().sum()),
            possibly_stuck: census.unproven.get(&label).copied().unwrap_or(0),
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
    let transitions = ledger.transitions().map(|(from, to, count)| TransitionUse {
        from: from.name().to_owned(),
        to: to.name().to_owned(),
        count,
        per_second: window.map(|window| window.transitions(from, to, count)),
    });
    let envelope = collect::envelope(DocumentSource::Agent, head.at, head.incomplete);
    PortsDocument {
        age_seconds: Some(seconds(head.age_ns)),
        stuck_after_seconds: seconds(head.stuck_after_ns),
        rate_seconds: window.map(|window| window.seconds),
        states: states.collect(),
        transitions: transitions.collect(),
        ports: ports.collect(),
        ..PortsDocument::within(envelope)
    }
}
