//! Usage of ephemeral ports: looked up at an interval for `/metrics`, and remembered for rates.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::linux::ephemeral_ports;
use crate::linux::host;
use crate::names::NetnsOwner;
use crate::report::exhaustion::change::UsageSample;
use crate::report::exhaustion::document;
use crate::report::exhaustion::port_table::{EphemeralUse, PortTable};

use crate::agent::cpu_budget::CpuBudget;
use crate::agent::intervals::Intervals;
use crate::agent::tracking::Tracking;

/// The shortest pause between two looks.
const INTERVAL: Duration = Duration::from_secs(15);
/// Looks take at most a tenth of what all dumps together may take: the pause is this many times longer.
const PART: u32 = 10;
/// CPU time of a look: if it does not suffice, namespaces with few sockets are left out.
const BUDGET: Duration = Duration::from_millis(50);
/// Rates over less than this are rough; over less than [`SHORTEST`] there are none.
const LONG_ENOUGH: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_secs(1);
/// Samples that are remembered.
const SAMPLES: usize = 2;

#[derive(Debug, Default)]
pub struct PortUsage {
    /// The oldest first.
    samples: VecDeque<Arc<UsageSample>>,
    /// As of the last look, by owner of the namespace; none before the first.
    pub fullest: BTreeMap<NetnsOwner, Fullest>,
    /// CPU time of looks that no pause has been made for yet.
    spent: Duration,
}

/// The highest ratios of ports in use in the namespaces of one owner.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fullest {
    pub used: f64,
    /// Without TIME-WAITs whose ports connect() may choose again.
    pub blocked: f64,
    /// On one local address, over all destinations.
    pub bind: f64,
}

impl Fullest {
    /// By owner; 0 where none of an owner's namespaces has sockets.
    pub fn of(port_use: &EphemeralUse) -> BTreeMap<NetnsOwner, Self> {
        let of_one = |owner: NetnsOwner| {
            let tables = || port_use.tables.iter().filter(move |ports| ports.owner == owner);
            let highest =
                |ratio: fn(&PortTable) -> f64| tables().map(|ports| ratio(&ports.table)).fold(0.0, f64::max);
            Self {
                used: highest(PortTable::fullest),
                blocked: highest(PortTable::fullest_blocked),
                bind: highest(PortTable::fullest_local),
            }
        };
        port_use.owners.iter().map(|&owner| (owner, of_one(owner))).collect()
    }
}

impl PortUsage {
    /// The sample to compare with a look at `now_ns`: the last that is old enough for good rates, else
    /// another one.
    pub fn before(&self, now_ns: u64) -> Option<Arc<UsageSample>> {
        let age = |sample: &&Arc<UsageSample>| Duration::from_nanos(now_ns.saturating_sub(sample.at_ns));
        let good = self.samples.iter().rev().find(|sample| age(sample) >= LONG_ENOUGH);
        good.or_else(|| self.samples.front().filter(|sample| age(sample) >= SHORTEST)).cloned()
    }

    /// Takes the CPU time that dumps are to pause for as well.
    pub fn take_spent(&mut self) -> Duration {
        std::mem::take(&mut self.spent)
    }
}

/// Looks for as long as the agent runs.
pub async fn run(tracking: Rc<RefCell<Tracking>>, usage: Rc<RefCell<PortUsage>>, intervals: Rc<Intervals>) {
    let mut budget = CpuBudget::default();
    loop {
        let pause = match look(&tracking, &usage).await {
            Ok(cost) => (budget.after(cost) * PART).min(intervals.max.get()).max(INTERVAL),
            Err(why) => {
                log::warn!("cannot look up the ports in use: {why:#}");
                INTERVAL
            }
        };
        sleep(pause).await;
    }
}

/// One look. Returns its cost.
async fn look(tracking: &RefCell<Tracking>, usage: &RefCell<PortUsage>) -> Result<Duration> {
    let places =
        tracking.borrow().namespaces.places(None).into_iter().map(|(_, place)| place).collect::<Vec<_>>();
    let looking = spawn_blocking(move || {
        let port_use = ephemeral_ports::look(&places, BUDGET)?;
        let before = host::thread_cpu_ns();
        let sample = document::remember(&port_use);
        let fullest = Fullest::of(&port_use);
        let cost_ns = port_use.cpu_ns + host::thread_cpu_ns().saturating_sub(before);
        anyhow::Ok((fullest, Arc::new(sample), Duration::from_nanos(cost_ns)))
    });
    let (fullest, sample, cost) = looking.await.context("the thread died")??;
    let usage = &mut usage.borrow_mut();
    usage.fullest = fullest;
    usage.spent += cost;
    if usage.samples.len() >= SAMPLES {
        usage.samples.pop_front();
    }
    usage.samples.push_back(sample);
    Ok(cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_compared_with_a_sample_that_is_old_enough() {
        const S: u64 = 1_000_000_000;
        let sample = |at_ns| Arc::new(UsageSample::of(std::iter::empty(), at_ns));
        let usage = PortUsage { samples: [sample(10 * S), sample(25 * S)].into(), ..PortUsage::default() };
        let before = |now| usage.before(now).map(|sample| sample.at_ns / S);
        assert_eq!(
            (before(31 * S), before(27 * S), before(11 * S), before(10 * S)),
            (Some(25), Some(10), Some(10), None)
        );
        assert!(PortUsage::default().before(S).is_none());
    }
}
