//! The search for network namespaces. It runs beside the dumps, with a budget and a deadline of its own: no
//! dump waits for it.

use std::collections::HashSet;
use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};

use crate::linux::host;
use crate::linux::netns::{Descriptors, FoundNetns};

use crate::agent::cpu_budget::timed;
use crate::agent::namespaces::Namespaces;

/// The pause between two searches is this many times the CPU time of one: a third of a percent of a core. No
/// pause is longer than `--reconcile-max`.
const SHARE: u64 = 300;
/// When a search takes longer, a round goes over the known namespaces.
const PATIENCE_NS: u64 = 3_000_000_000;

type Searched = (io::Result<FoundNetns>, Duration);

/// A search that is over.
#[derive(Debug)]
pub struct FinishedSearch {
    pub found: FoundNetns,
    /// CLOCK_MONOTONIC when it began.
    pub started_ns: u64,
    /// The namespaces with tracked sockets at that time: it may have missed later ones.
    pub with_sockets: HashSet<u32>,
}

#[derive(Debug, Default)]
pub struct NetnsSearch {
    running: Option<Running>,
    /// The last search.
    fresh: Option<FinishedSearch>,
    /// CLOCK_MONOTONIC before which no search begins.
    due_ns: u64,
}

#[derive(Debug)]
struct Running {
    task: JoinHandle<()>,
    result: Arc<Mutex<Option<Searched>>>,
    started_ns: u64,
    with_sockets: HashSet<u32>,
    all_descriptors: bool,
}

impl NetnsSearch {
    /// Returns when the running search ends; never without one.
    pub async fn ends(&mut self) {
        match &mut self.running {
            Some(running) if !running.task.is_finished() => {
                // `collect` takes the result, and notices a panic.
                let _ = (&mut running.task).await;
            }
            _ => pending().await,
        }
    }

    /// Whether no search is worth waiting for: none is running, it is over, or it takes too long.
    pub fn is_settled(&self) -> bool {
        let settled = |running: &Running| {
            running.task.is_finished()
                || host::monotonic_ns().saturating_sub(running.started_ns) > PATIENCE_NS
        };
        self.running.as_ref().is_none_or(settled)
    }

    /// A search that began at `since_ns` or later. If there is none, begins one: when the last one is long enough
    /// ago, or `now`. `with_sockets`: the namespaces with tracked sockets.
    pub fn found(
        &mut self,
        namespaces: &Namespaces,
        with_sockets: impl FnOnce() -> HashSet<u32>,
        since_ns: u64,
        now: bool,
    ) -> Option<FinishedSearch> {
        if let Some(fresh) = self.fresh.take_if(|fresh| fresh.started_ns >= since_ns) {
            return Some(fresh);
        }
        if self.running.is_none() && (now || host::monotonic_ns() >= self.due_ns) {
            self.begin(namespaces, with_sockets());
        }
        None
    }

    fn begin(&mut self, namespaces: &Namespaces, with_sockets: HashSet<u32>) {
        let started_ns = host::monotonic_ns();
        let (scope, descriptors) = (namespaces.scope(), namespaces.descriptors(started_ns));
        let all_descriptors = matches!(descriptors, Descriptors::All);
        let result = Arc::new(Mutex::new(None));
        let to_fill = Arc::clone(&result);
        let task = spawn_blocking(move || {
            let searched = timed(|| scope.find(&descriptors));
            *to_fill.lock().unwrap_or_else(PoisonError::into_inner) = Some(searched);
        });
        self.running = Some(Running { task, result, started_ns, with_sockets, all_descriptors });
    }

    /// Takes the result of the search if it is over.
    pub fn collect(&mut self, namespaces: &mut Namespaces, max_ns: u64) {
        let Some(running) = self.running.take_if(|running| running.task.is_finished()) else { return };
        let now_ns = host::monotonic_ns();
        let Running { result, started_ns, with_sockets, all_descriptors, .. } = running;
        let searched = result.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (found, took) =
            searched.unwrap_or_else(|| (Err(io::Error::other("its thread died")), Duration::ZERO));
        let mut cpu_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        match found {
            Ok(found) => {
                if all_descriptors {
                    // Descriptors have a budget of their own.
                    cpu_ns = cpu_ns.saturating_sub(found.descriptors_ns);
                    namespaces.descriptors_searched(found.descriptors_ns, now_ns);
                }
                self.fresh = Some(FinishedSearch { found, started_ns, with_sockets });
            }
            Err(why) => log::warn!("cannot search for network namespaces: {why} (mount /proc)"),
        }
        self.due_ns = now_ns.saturating_add(cpu_ns.saturating_mul(SHARE).min(max_ns));
        log::debug!("searched for network namespaces in {took:?} of CPU time");
    }
}
