//! Counts stuck sockets by owner and by diagnosis at an interval, for `/metrics`.

use std::cell::RefCell;
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
use crate::report::sockets::{Depth, StuckSocket, seconds};
use crate::report::verdict::rules::StuckBounds;
use crate::tracker::socket::{SocketKind, TrackedSocket};

/// Counts for as long as the agent runs; costs nothing while no socket is stuck.
pub async fn run(parts: Parts, interval: Duration) {
    let Parts { tracking, intervals, stuck_counts, stacks, stacks_wake, .. } = parts;
    let mut pause = interval;
    let mut series = OwnerSeries::default();
    loop {
        sleep(pause).await;
        pause = interval;
        let bound_ns = tracking.borrow().stuck_after.first_ns();
        let bounds = StuckBounds::of(tracking.borrow().stuck_after.bounds_ns());
        if !any_stuck(&tracking.borrow()) {
            stuck_counts.take();
            let verdicts = &mut tracking.borrow_mut().output.verdicts;
            if !verdicts.is_empty() {
                verdicts.nothing_stuck(bounds, host::monotonic_ns());
            }
            continue;
        }
        let bound = Duration::from_nanos(bound_ns);
        match sockets::describe(&tracking, Phase::CloseWait, bound, Depth::WithPeers).await {
            Ok(Described { document, cpu_ns }) => {
                let (sockets, bound) = (&document.sockets, seconds(bound_ns));
                stacks.borrow_mut().counted(sockets, bound, &mut tracking.borrow_mut(), &stacks_wake);
                let owners = series.name(tally(sockets, bound), host::monotonic_ns());
                stuck_counts.replace(StuckCounts { owners, diagnoses: diagnoses(sockets, bound) });
                let (fin_wait_2, more_ns) = half_closed(&tracking).await;
                let verdicts = &mut tracking.borrow_mut().output.verdicts;
                verdicts.look(sockets, &fin_wait_2, bounds, host::monotonic_ns());
                let paced = Duration::from_nanos(cpu_ns + more_ns).saturating_mul(SHARE);
                pause = interval.max(paced.min(intervals.max.get()));
            }
            Err(why) => log::warn!("cannot count the owners of stuck sockets: {why:#}"),
        }
    }
}

/// The sockets in FIN-WAIT-2 that processes hold, and the CPU time that it takes to describe them, nanoseconds. None are looked for
/// where none is known.
async fn half_closed(tracking: &RefCell<Tracking>) -> (Vec<StuckSocket>, u64) {
    let is_held =
        |socket: &TrackedSocket| socket.phase == Phase::FinWait2 && socket.kind == SocketKind::Socket;
    /// A flood of others is not described for the sake of a few.
    const MOST: usize = 10_000;
    let (mut all, mut held) = (0, 0);
    for socket in tracking.borrow().tracker.sockets().filter(|socket| socket.phase == Phase::FinWait2) {
        all += 1;
        held += usize::from(is_held(socket));
    }
    if held == 0 || all > MOST {
        return (Vec::new(), 0);
    }
    match sockets::describe(tracking, Phase::FinWait2, Duration::ZERO, Depth::Owners).await {
        Ok(Described { document, cpu_ns }) => {
            let held = document.sockets.into_iter().filter(|socket| socket.inode != 0);
            (held.collect(), cpu_ns)
        }
        Err(why) => {
            log::debug!("cannot describe sockets in FIN-WAIT-2: {why:#}");
            (Vec::new(), 0)
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
