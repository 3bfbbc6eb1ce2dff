//! The loop of dumps: of minisockets, of CLOSE-WAITs, and the reconcile, which compares every socket in every
//! network namespace with the tracker.
//!
//! [`Scheduler`] decides what is due. The host's namespace is dumped at its own interval, all others in
//! slices; slices of the reconcile alternate with dumps that are more urgent. The search for namespaces runs
//! beside them ([`NetnsSearch`]).

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::linux::host;
use crate::linux::netns::{Descriptors, NetnsPath};
use crate::linux::netns_dump::DumpRequest;

use crate::agent::cpu_budget::timed;
use crate::agent::dump::{DumpLimits, Dumped, dump};
use crate::agent::netns_search::{FinishedSearch, NetnsSearch};
use crate::agent::parts::Parts;
use crate::agent::scheduler::{Action, Inputs, Limits, NetnsCost, OthersTurn, SLICE, Scheduler, Turn};
use crate::agent::tracking::{EVERYTHING, Tracking};

/// Makes the first dumps, whatever they cost: one of every namespace, and then one of those with tracked
/// sockets. A dump is no snapshot; the second one drops what ended during the first.
pub async fn first(tracking: &RefCell<Tracking>) -> Result<()> {
    let started_ns = host::monotonic_ns();
    let (scope, descriptors, with_sockets) = {
        let tracking = tracking.borrow();
        let namespaces = &tracking.namespaces;
        (namespaces.scope(), namespaces.descriptors(started_ns), tracking.netns_with_sockets())
    };
    let all = matches!(descriptors, Descriptors::All);
    let found = spawn_blocking(move || scope.find(&descriptors)).await.context("the search's thread died")?;
    let found = found.context("/proc cannot be read")?;
    {
        let mut tracking = tracking.borrow_mut();
        if all {
            tracking.namespaces.descriptors_searched(found.descriptors_ns, host::monotonic_ns());
        }
        tracking.begin_round(found, Some(with_sockets), started_ns);
    }
    round_slice(tracking, DumpLimits::new(None, false), false, true).await?;
    let places = tracking.borrow().places_with_sockets();
    if !places.is_empty() {
        dump(tracking, EVERYTHING, places, DumpLimits::new(None, false), false).await?;
    }
    tracking.borrow_mut().ready = true;
    Ok(())
}

/// Makes a slice of the round, within `bounds`. `lost`: records were lost before the round began;
/// `begins`: this is its first slice.
async fn round_slice(
    tracking: &RefCell<Tracking>,
    bounds: DumpLimits,
    lost: bool,
    begins: bool,
) -> Result<Dumped> {
    let places = tracking.borrow_mut().namespaces.unvisited();
    let mut dumped = dump(tracking, EVERYTHING, places, bounds, begins).await.inspect_err(|_| {
        tracking.borrow_mut().namespaces.give_up();
    })?;
    let mut tracking = tracking.borrow_mut();
    let (over, took) = timed(|| tracking.slice_done(std::mem::take(&mut dumped.rest), lost));
    dumped.charge_to_all(took);
    if over {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        tracking.dumps.reconciled_at = now.as_secs_f64();
    }
    Ok(dumped)
}

/// Dumps for as long as the agent runs.
pub async fn run(parts: Parts) {
    let mut reconcile = Reconcile::new(parts);
    loop {
        match reconcile.next() {
            Action::Rest(ns) => reconcile.rest(Duration::from_nanos(ns)).await,
            Action::Wait(ns) => reconcile.wait(Duration::from_nanos(ns)).await,
            Action::Dump { host, others } => reconcile.dump(host, others).await,
        }
    }
}

struct Reconcile {
    parts: Parts,
    scheduler: Scheduler,
    search: NetnsSearch,
    /// Dumps to repeat, of the host's namespace and of others, since they left absences that were not looked
    /// up.
    again_host: Option<(DumpRequest, Vec<NetnsPath>)>,
    again_others: Option<(DumpRequest, Vec<NetnsPath>)>,
    /// CPU time of a dump of several namespaces.
    slice: Option<Duration>,
}

impl Reconcile {
    fn new(parts: Parts) -> Self {
        // Without BTF no record tells its namespace: only a dump of all of them at once proves that a socket
        // is gone.
        let slice = parts.tracking.borrow().probe.reads_fields.then_some(SLICE);
        Self {
            parts,
            scheduler: Scheduler::new(host::monotonic_ns()),
            search: NetnsSearch::default(),
            again_host: None,
            again_others: None,
            slice,
        }
    }

    fn limits(&self) -> Limits {
        let intervals = &self.parts.intervals;
        Limits { interval_ns: nanoseconds(intervals.dump.get()), max_ns: nanoseconds(intervals.max.get()) }
    }

    fn inputs(&self) -> Inputs {
        let tracking = self.parts.tracking.borrow();
        Inputs {
            limits: self.limits(),
            reconcile_ns: nanoseconds(self.parts.intervals.reconcile.get()),
            requested: self.parts.reconcile_requests.is_pending(tracking.dumps.round_ns),
            idle: tracking.tracker.is_empty(),
            in_round: tracking.namespaces.is_in_round(),
            unsettled: self.again_host.is_some() || self.again_others.is_some(),
            search_settled: self.search.is_settled(),
        }
    }

    fn next(&mut self) -> Action {
        let inputs = self.inputs();
        self.scheduler.next(host::monotonic_ns(), &inputs)
    }

    /// Rests while nothing is tracked.
    async fn rest(&mut self, time: Duration) {
        let activity = Rc::clone(&self.parts.tracking.borrow().activity);
        tokio::select! {
            () = activity.notified() => {}
            () = self.parts.reconcile_requests.arrives() => {}
            () = sleep(time) => {}
        }
    }

    /// Waits, and then checks whether a loss, or a namespace that has shrunk, makes a dump due earlier.
    async fn wait(&mut self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            () = self.parts.reconcile_requests.arrives() => {}
            () = self.search.ends() => {}
        }
        let limits = self.limits();
        let mut tracking = self.parts.tracking.borrow_mut();
        if tracking.check_for_losses() {
            self.scheduler.records_lost();
        }
        for NetnsCost { id, met, .. } in self.scheduler.expensive(limits) {
            // A namespace that is no longer known was gone at the last search.
            let now = match tracking.namespaces.place(id) {
                Some(place) => place.population(),
                None => Some(0),
            };
            if let Some(now) = now.filter(|&now| now < met / 2 || now == 0) {
                self.scheduler.shrank(id, now);
            }
        }
        tracking.dumps.interval_ns = self.scheduler.pause_ns(limits);
    }

    async fn dump(&mut self, host: bool, others: bool) {
        let now_ns = host::monotonic_ns();
        let inputs = self.inputs();
        let (mut targets, mut choosing) = {
            let mut tracking = self.parts.tracking.borrow_mut();
            if tracking.check_for_losses() {
                self.scheduler.records_lost();
            }
            timed(|| tracking.dump_targets(host::monotonic_ns()))
        };
        if host {
            let (begins, took) = timed(|| self.begin_round(&inputs));
            choosing += took;
            let target = self.again_host.take().or(targets.host.take());
            if begins {
                // The host's namespace comes first in it.
                self.round_slice(choosing, true).await;
                return self.plan(&targets.needing);
            }
            match target {
                Some(target) => {
                    self.dump_target(target, None, std::mem::take(&mut choosing), Turn::Host).await
                }
                None => self.scheduler.idle_host(now_ns, inputs.limits),
            }
        }
        if others {
            let target = self.again_others.take().or(targets.others.take());
            match (self.scheduler.others_turn(&inputs, target.is_some()), target) {
                (OthersTurn::RoundSlice, _) => self.round_slice(choosing, false).await,
                (OthersTurn::Targets, Some(target)) => {
                    self.dump_target(target, self.slice, choosing, Turn::Others).await;
                }
                _ => self.scheduler.idle_others(now_ns, inputs.limits),
            }
        }
        self.plan(&targets.needing);
    }

    async fn round_slice(&mut self, choosing: Duration, begins: bool) {
        let lost = self.scheduler.lost_before_round();
        // Without BTF a minisocket's namespace is unknown, and each one is a lookup.
        let all = self.inputs().requested && self.parts.tracking.borrow().probe.reads_fields;
        let bounds = DumpLimits::new(self.slice, all);
        let dumped = round_slice(&self.parts.tracking, bounds, lost, begins).await;
        if dumped.is_err() {
            self.scheduler.round_failed();
        }
        self.done(dumped, choosing, if begins { Turn::Host } else { Turn::Others });
    }

    async fn dump_target(
        &mut self,
        (request, places): (DumpRequest, Vec<NetnsPath>),
        most: Option<Duration>,
        choosing: Duration,
        turn: Turn,
    ) {
        let all = self.parts.tracking.borrow().namespaces.places(None).len() == places.len();
        let bounds = DumpLimits::new(most, false);
        let dumped = dump(&self.parts.tracking, request, places, bounds, all).await;
        self.done(dumped, choosing, turn);
    }

    /// Begins a round of the reconcile if one is due and namespaces to go over are known. Returns whether it
    /// has begun.
    fn begin_round(&mut self, inputs: &Inputs) -> bool {
        let mut tracking = self.parts.tracking.borrow_mut();
        self.search.collect(&mut tracking.namespaces, inputs.limits.max_ns);
        let now_ns = host::monotonic_ns();
        if !self.scheduler.is_round_due(now_ns, inputs, || tracking.has_new_namespace()) {
            return false;
        }
        let since_ns = self.parts.reconcile_requests.requested_ns();
        let with_sockets = || tracking.netns_with_sockets();
        let found = self.search.found(&tracking.namespaces, with_sockets, since_ns, inputs.requested);
        let inputs = Inputs { search_settled: self.search.is_settled(), ..*inputs };
        let searched = found.is_some();
        match found {
            Some(FinishedSearch { found, started_ns, with_sockets }) => {
                tracking.begin_round(found, Some(with_sockets), started_ns);
            }
            // The search takes long, or is not due yet: the known namespaces are dumped meanwhile.
            None if self.scheduler.may_use_known(now_ns, &inputs) => {
                let known = tracking.namespaces.known();
                tracking.begin_round(known, None, host::monotonic_ns());
            }
            None => return false,
        }
        self.scheduler.round_begins(host::monotonic_ns(), searched);
        true
    }

    /// Accounts for a dump.
    fn done(&mut self, dumped: Result<Dumped>, choosing: Duration, turn: Turn) {
        let (limits, now_ns) = (self.limits(), host::monotonic_ns());
        let mut dumped = match dumped {
            Ok(dumped) => dumped,
            Err(why) => {
                log::warn!("cannot dump the kernel's sockets: {why:#} (the next dump tries again)");
                self.parts.reconcile_requests.drop_pending();
                return self.scheduler.dump_failed(now_ns, limits);
            }
        };
        dumped.charge_to_all(choosing);
        self.scheduler.charge_other(self.parts.port_usage.borrow_mut().take_spent().as_nanos() as u64);
        let mut tracking = self.parts.tracking.borrow_mut();
        // Without BTF there is one dump for all.
        let host = tracking.namespaces.host().filter(|_| tracking.probe.reads_fields);
        tracking.namespaces.charge(&dumped.charges);
        let host_alone = self.scheduler.dump_done(now_ns, limits, turn, host, &dumped.charges);
        log::debug!("dumped {} network namespaces in {:?} of CPU time", dumped.charges.len(), dumped.cpu());
        if turn == Turn::Host && host_alone {
            self.again_host = dumped.again;
        } else {
            self.again_others = dumped.again;
        }
    }

    /// Updates what is left to do, and whether the budget suffices for it.
    fn plan(&mut self, needing: &HashSet<u32>) {
        let limits = self.limits();
        let intervals = &self.parts.intervals;
        let mut tracking = self.parts.tracking.borrow_mut();
        let now_ns = host::monotonic_ns();
        self.scheduler.set_backlog(tracking.namespaces.backlog(needing, now_ns, limits.max_ns));
        if self.scheduler.is_warning_due(now_ns, limits) {
            log::warn!(
                "dumps take more than 1 % of a core: they must keep every number younger than {} (raise --reconcile-max to lower the cost)",
                humantime::format_duration(intervals.max.get())
            );
        }
        let dumps = &mut tracking.dumps;
        dumps.over_budget = self.scheduler.is_over_budget(limits);
        dumps.interval_ns = self.scheduler.pause_ns(limits);
        dumps.overdue_ns = nanoseconds(intervals.reconcile.get().saturating_add(intervals.max.get()));
        dumps.max_ns = limits.max_ns;
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
