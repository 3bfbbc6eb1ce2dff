//! How many of the ports that connect() may take are in use: looked at for `/metrics` at a pace, and for `GET /exhaustion`
//! at once.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::collect;
use crate::linux::ephemeral_ports;
use crate::linux::host;
use crate::names::Flow;
use crate::report::exhaustion::change::UsageSample;
use crate::report::exhaustion::document;
use crate::report::exhaustion::document::{Closer, ExhaustionInputs, Pick};
use crate::report::exhaustion::port_table::{EphemeralUse, Kind, PortTable};
use crate::report::sockets::DocumentSource;

use crate::agent::cpu_budget::CpuBudget;
use crate::agent::reload::Intervals;
use crate::agent::server::handlers::sockets::QueryError;
use crate::agent::tracking::Tracking;

/// Where the command line asks.
pub const PATH: &str = "/exhaustion";

/// Between looks for `/metrics`, at the least.
const INTERVAL: Duration = Duration::from_secs(15);
/// They take at most a tenth of what all dumps together may take: the pause is this many times longer.
const PART: u32 = 10;
/// CPU time of one of them: where that does not suffice, namespaces with few sockets are left out.
const BUDGET: Duration = Duration::from_millis(50);
/// Over less than this rates are rough, over less than [`SHORTEST`] there are none.
const LONG_ENOUGH: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_secs(1);
/// Looks that are remembered.
const LOOKS: usize = 2;
/// TIME-WAITs of a tuple whose closers are looked up, each in the tracker: the agent does nothing else meanwhile.
const MOST_CLOSERS: usize = 2000;
/// Tuples that are described unless the question says otherwise, and at the most.
const TUPLES: usize = 20;
const MOST_TUPLES: usize = 1000;

/// What the looks have come to.
#[derive(Debug, Default)]
pub struct ExhaustionRatios {
    /// The paced ones, the oldest first.
    looks: VecDeque<Arc<UsageSample>>,
    /// The used ratio of the fullest tuple at the last look; `None` before the first.
    pub fullest: Option<f64>,
    /// CPU time of looks that no pause has been made for yet.
    spent: Duration,
}

impl ExhaustionRatios {
    /// The look to compare with one at `now_ns`: the last that is old enough for good rates, else an older or younger one.
    fn before(&self, now_ns: u64) -> Option<Arc<UsageSample>> {
        let age = |look: &&Arc<UsageSample>| Duration::from_nanos(now_ns.saturating_sub(look.at_ns));
        let good = self.looks.iter().rev().find(|look| age(look) >= LONG_ENOUGH);
        good.or_else(|| self.looks.front().filter(|look| age(look) >= SHORTEST)).cloned()
    }

    /// CPU time that dumps are to pause for too; once.
    pub fn take_spent(&mut self) -> Duration {
        std::mem::take(&mut self.spent)
    }

    fn took(&mut self, looked: &EphemeralUse) {
        self.fullest =
            Some(looked.tables.iter().map(|(_, table)| PortTable::fullest(table)).fold(0.0, f64::max));
    }
}

/// Looks for as long as the agent runs.
pub async fn run(engine: Rc<RefCell<Tracking>>, intervals: Rc<Intervals>) {
    let mut pace = CpuBudget::default();
    loop {
        let pause = match paced_look(&engine).await {
            Ok(cost) => (pace.after(cost) * PART).min(intervals.most()).max(INTERVAL),
            Err(why) => {
                log::warn!("no look at the ports in use: {why:#}");
                INTERVAL
            }
        };
        sleep(pause).await;
    }
}

/// One look, and what it has cost.
async fn paced_look(engine: &RefCell<Tracking>) -> Result<Duration> {
    let places =
        engine.borrow().namespaces.places(None).into_iter().map(|(_, place)| place).collect::<Vec<_>>();
    let looked = spawn_blocking(move || {
        let looked = ephemeral_ports::look(&places, BUDGET)?;
        let before = host::thread_cpu_ns();
        let look = document::remember(&looked);
        let cost_ns = looked.cpu_ns + host::thread_cpu_ns().saturating_sub(before);
        anyhow::Ok((looked, Arc::new(look), Duration::from_nanos(cost_ns)))
    });
    let (looked, look, cost) = looked.await.context("the look died")??;
    let watched = &mut engine.borrow_mut().exhaustion;
    watched.took(&looked);
    watched.spent += cost;
    if watched.looks.len() >= LOOKS {
        watched.looks.pop_front();
    }
    watched.looks.push_back(look);
    Ok(cost)
}

/// Answers the query `query` (what stands after the `?`): `limit=20`.
pub async fn document(query: &str, engine: &RefCell<Tracking>) -> Result<Vec<u8>, QueryError> {
    let limit = parse(query).map_err(QueryError::Request)?;
    let (scope, descriptors) = {
        let namespaces = &engine.borrow().namespaces;
        (namespaces.scope(), namespaces.descriptors_known())
    };
    let looked = spawn_blocking(move || {
        let found = scope.find(&descriptors)?;
        anyhow::Ok((
            ephemeral_ports::look(&found.places, document::BUDGET)?,
            found.denied,
            found.unread.words(),
        ))
    });
    let (looked, denied, unread) =
        looked.await.context("the look died")?.context("no dump of the kernel's sockets")?;
    let at = host::wall_clock();
    let (closers, before, look) = {
        let engine = &mut *engine.borrow_mut();
        engine.drain_all();
        engine.exhaustion.took(&looked);
        let (picks, _) = document::fullest(&looked, limit);
        (closers(&picks, engine), engine.exhaustion.before(looked.at_ns), engine.probe.owners_lookup())
    };
    let described = spawn_blocking(move || {
        let scene = ExhaustionInputs {
            looked: &looked,
            before: before.as_deref(),
            closers: &closers,
            at,
            source: DocumentSource::Agent,
            denied: denied as usize,
            unread,
        };
        collect::exhaustion::assemble(&scene, limit, look)
    });
    let document = described.await.context("the look for owners died")?.context("/proc cannot be read")?;
    Ok(serde_json::to_vec(&document).context("the answer cannot be written")?)
}

/// Reads the query's fields; keys that it does not know are a newer client's.
///
/// # Errors
/// What is wrong with one that it knows.
pub fn parse(query: &str) -> Result<usize, String> {
    let mut limit = TUPLES;
    for (key, value) in query.split('&').filter_map(|field| field.split_once('=')) {
        if key == "limit" {
            limit = value.parse().map_err(|_| format!("limit={value}: not a number"))?;
        }
    }
    Ok(limit.min(MOST_TUPLES))
}

/// Who closed the TIME-WAITs of `picks`, as far as records told, by cookie.
fn closers(picks: &[Pick<'_>], engine: &Tracking) -> HashMap<u64, Closer> {
    let now_ns = host::monotonic_ns();
    let mut closers = HashMap::new();
    for Pick { netns, tuple, taken, .. } in picks {
        for taken in taken.iter().filter(|taken| taken.kind != Kind::Other).take(MOST_CLOSERS) {
            let flow = Flow {
                local: tuple.local,
                remote: tuple.remote,
                local_port: taken.port,
                remote_port: tuple.remote_port,
            };
            let life = engine.life_of(netns.id, taken.cookie, &flow);
            if let Some(closer) = life.and_then(|life| life.closer()) {
                let (pid, at_ns) = (closer.pid, closer.at_ns);
                closers.insert(taken.cookie, (pid.get(), now_ns.saturating_sub(at_ns)));
            }
        }
    }
    closers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_or_refused() {
        assert_eq!(parse("").ok(), Some(TUPLES));
        assert_eq!(parse("limit=3&later=1").ok(), Some(3));
        assert_eq!(parse("limit=1000000").ok(), Some(MOST_TUPLES));
        assert!(parse("limit=many").is_err_and(|why| why.contains("many")));
    }

    #[test]
    fn a_look_is_compared_with_one_that_is_old_enough() {
        const S: u64 = 1_000_000_000;
        let look = |at_ns| Arc::new(UsageSample::of(std::iter::empty(), at_ns));
        let watched =
            ExhaustionRatios { looks: [look(10 * S), look(25 * S)].into(), ..ExhaustionRatios::default() };
        let before = |now| watched.before(now).map(|look| look.at_ns / S);
        assert_eq!(
            (before(31 * S), before(27 * S), before(11 * S), before(10 * S)),
            (Some(25), Some(10), Some(10), None)
        );
        assert!(ExhaustionRatios::default().before(S).is_none());
    }
}
