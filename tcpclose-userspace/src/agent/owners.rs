//! Counts stuck sockets by owner and by diagnosis at an interval, for `/metrics`.

use std::time::Duration;

use tokio::time::sleep;

use crate::agent::cpu_budget::SHARE;
use crate::agent::parts::Parts;
use crate::agent::server::handlers::sockets;
use crate::agent::server::handlers::sockets::Described;
use crate::agent::tracking::Tracking;
use crate::linux::host;
use crate::metrics::gauges::Stuckness;
use crate::names::Phase;
use crate::report::owner_counts::{StuckCounts, diagnoses, tally};
use crate::report::owner_series::OwnerSeries;
use crate::report::sockets::Depth;
use crate::report::sockets::seconds;

/// Counts for as long as the agent runs; costs nothing while no socket is stuck.
pub async fn run(parts: Parts, interval: Duration) {
    let Parts { tracking, intervals, stuck_counts, stacks, stacks_wake, .. } = parts;
    let mut pause = interval;
    let mut series = OwnerSeries::default();
    loop {
        sleep(pause).await;
        pause = interval;
        let bound_ns = tracking.borrow().stuck_after.first_ns();
        if !any_stuck(&tracking.borrow()) {
            stuck_counts.take();
            continue;
        }
        let bound = Duration::from_nanos(bound_ns);
        match sockets::describe(&tracking, Phase::CloseWait, bound, Depth::Owners).await {
            Ok(Described { document, cpu_ns }) => {
                let (sockets, bound) = (&document.sockets, seconds(bound_ns));
                stacks.borrow_mut().counted(sockets, bound, &mut tracking.borrow_mut(), &stacks_wake);
                let owners = series.name(tally(sockets, bound), host::monotonic_ns());
                stuck_counts.replace(StuckCounts { owners, diagnoses: diagnoses(sockets, bound) });
                let paced = Duration::from_nanos(cpu_ns).saturating_mul(SHARE);
                pause = interval.max(paced.min(intervals.max.get()));
            }
            Err(why) => log::warn!("cannot count the owners of stuck sockets: {why:#}"),
        }
    }
}

fn any_stuck(tracking: &Tracking) -> bool {
    let now_ns = host::monotonic_ns();
    let reached = |netns| tracking.namespaces.reaches(netns);
    let mut sockets = tracking.sockets_and_writes();
    sockets.any(|(socket, written)| {
        matches!(tracking.stuck_after.judge(socket, written, now_ns, reached), Stuckness::Stuck(_))
    })
}
