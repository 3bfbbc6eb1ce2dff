//! Whose the stuck sockets are, counted at an interval for `/metrics`.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::sleep;

use crate::agent::cpu_budget::SHARE;
use crate::agent::reload::Intervals;
use crate::agent::server::handlers::sockets;
use crate::agent::server::handlers::sockets::Described;
use crate::agent::tracking::Tracking;
use crate::linux::host;
use crate::metrics::gauges::Stuckness;
use crate::names::Phase;
use crate::report::owner_counts::tally;
use crate::report::sockets::Depth;
use crate::report::sockets::seconds;

/// Counts for as long as the agent runs. Where nothing is stuck nothing is looked at.
pub async fn run(engine: Rc<RefCell<Tracking>>, interval: Duration, intervals: Rc<Intervals>) {
    let mut pause = interval;
    loop {
        sleep(pause).await;
        pause = interval;
        let bound_ns = engine.borrow().stuck_after.first_ns();
        if !any_stuck(&engine.borrow()) {
            engine.borrow_mut().stuck_owners.clear();
            continue;
        }
        let bound = Duration::from_nanos(bound_ns);
        match sockets::describe(&engine, Phase::CloseWait, bound, Depth::Owners).await {
            Ok(Described { document, cpu_ns }) => {
                engine.borrow_mut().stuck_owners = tally(&document.sockets, seconds(bound_ns));
                let paced = Duration::from_nanos(cpu_ns).saturating_mul(SHARE);
                pause = interval.max(paced.min(intervals.most()));
            }
            Err(why) => log::warn!("no look for the owners of stuck sockets: {why:#}"),
        }
    }
}

fn any_stuck(engine: &Tracking) -> bool {
    let now_ns = host::monotonic_ns();
    let judge = |life| engine.stuck_after.judge(life, now_ns, |netns| engine.namespaces.reaches(netns));
    engine.tracker.sockets().any(|life| matches!(judge(life), Stuckness::Stuck(_)))
}
