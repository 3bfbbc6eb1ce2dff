//! The dumps: the first ones, those that follow minisockets, and the reconcile, in every network namespace that can hold
//! what is sought.
//!
//! When which is due, [`Scheduler`] says: the host's own namespace at its own interval, all others in slices, so that
//! what must be looked at more often is looked at in between. The search for namespaces goes beside them ([`NetnsSearch`]).

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::linux::host;
use crate::linux::netns::{Descriptors, FoundNetns, NetnsPath};
use crate::linux::netns_dump;
use crate::linux::netns_dump::{DumpRequest, LookupKey, LookupResult};
use crate::names::Phase;
use crate::tracker::vanished::Suspect;

use crate::agent::malloc_trim;
use crate::agent::netns_search::NetnsSearch;
use crate::agent::reload::Intervals;
use crate::agent::scheduler::{Charge, Limits, Scheduler};
use crate::agent::tracking::{EVERYTHING, MOST_SUSPECTS, Tracking};

/// The CPU time from which on the rest of a dump's namespaces wait for the next one.
pub const SLICE: Duration = Duration::from_millis(50);

/// How long at most the dumps rest while nothing is tracked and no record comes.
const REST: Duration = Duration::from_secs(10);

/// How often a long pause is looked at: what made it long may be gone.
const TICK: Duration = Duration::from_secs(1);

/// Between two words on the budget.
const SAY_AGAIN: Duration = Duration::from_secs(600);

/// What a dump of more sockets takes is worth giving back.
const MANY: usize = 10_000;

/// Chunks of a dump that wait to be taken in; with more of them the dump waits.
const CHUNKS: usize = 2;

/// What a dump has come to.
struct Dumped {
    /// The CPU time that it took, by namespace.
    charges: Vec<Charge>,
    /// Where more sockets were absent than are looked up at a time: the next dump is to ask the same there.
    again: Option<(DumpRequest, Vec<NetnsPath>)>,
    /// Where it did not get to.
    rest: Vec<NetnsPath>,
}

impl Dumped {
    /// Charges `cpu` that no namespace alone has cost.
    fn also_took(&mut self, cpu: Duration) {
        let each = cpu.as_nanos() as u64 / self.charges.len().max(1) as u64;
        self.charges.iter_mut().for_each(|charge| charge.cpu_ns += each);
    }

    fn cpu(&self) -> Duration {
        Duration::from_nanos(self.charges.iter().map(|charge| charge.cpu_ns).sum())
    }
}

/// One dump of `places`, taken in, with its absences looked up. `all`: there are no others that dumps can look at.
async fn dump(
    engine: &RefCell<Tracking>,
    ask: DumpRequest,
    places: Vec<NetnsPath>,
    most: Option<Duration>,
    all: bool,
) -> Result<Dumped> {
    engine.borrow_mut().tracker.dump_started();
    let (sender, mut chunks) = mpsc::channel(CHUNKS);
    let surveying = spawn_blocking(move || {
        netns_dump::stream(places, ask, most, |chunk| {
            // Nobody takes it any more when the agent ends, and nobody misses it then.
            let _ = sender.blocking_send(chunk);
        })
    });
    let mut joining = Duration::ZERO;
    while let Some(chunk) = chunks.recv().await {
        let mut engine = engine.borrow_mut();
        // The records of a burst are no cost of the dump: charged to it they would hold up the next one for minutes.
        engine.drain_all();
        joining += timed(|| engine.take_chunk(&chunk, ask)).1;
    }
    let mut survey = match surveying.await.context("the dump died").and_then(|survey| Ok(survey?)) {
        Ok(survey) => survey,
        Err(why) => {
            engine.borrow_mut().tracker.dump_failed();
            return Err(why);
        }
    };
    let mut cpu_ns = survey.cpu_ns + joining.as_nanos() as u64;
    engine.borrow_mut().drain_all();
    let all = all && survey.rest.is_empty();
    let (suspects, took) = timed(|| engine.borrow_mut().take_survey(&survey, ask, all));
    cpu_ns += took.as_nanos() as u64;
    let taken_ns = survey.finished_ns - survey.started_ns;
    let rest = std::mem::take(&mut survey.rest);
    let charge = |looked: &netns_dump::NetnsDump| Charge {
        id: looked.netns.id,
        cpu_ns: looked.cpu_ns,
        met: looked.met,
    };
    let charges: Vec<Charge> = survey.looked.iter().map(charge).collect();
    let met: u64 = charges.iter().map(|charge| charge.met).sum();
    let keep_places = || survey.looked.into_iter().map(|looked| (looked.netns.id, looked.place)).collect();
    let (places, letting_go): (Vec<(u32, NetnsPath)>, Duration) = timed(keep_places);
    cpu_ns += letting_go.as_nanos() as u64;

    let more = suspects.len() >= MOST_SUSPECTS;
    let again = more.then(|| (ask, places.iter().map(|(_, place)| place.clone()).collect()));
    if !suspects.is_empty() {
        let (gone, lookup_ns) =
            spawn_blocking(move || absent(&places, suspects)).await.context("a lookup died")??;
        engine.borrow_mut().take_gone(&gone);
        cpu_ns += lookup_ns;
    }
    if met > MANY as u64 {
        spawn_blocking(malloc_trim::give_back);
    }
    engine.borrow_mut().dumps.last_ns = taken_ns;
    Ok(Dumped { charges: shared_out(charges, met, cpu_ns), again, rest })
}

/// Shares `cpu_ns`, what a dump took in all, out: each namespace has cost what its dump took, and of the rest as much as
/// it has sockets.
fn shared_out(mut charges: Vec<Charge>, met: u64, cpu_ns: u64) -> Vec<Charge> {
    let rest = cpu_ns.saturating_sub(charges.iter().map(|charge| charge.cpu_ns).sum());
    let namespaces = charges.len() as u64;
    for charge in &mut charges {
        let part = match met {
            0 => rest / namespaces,
            met => (u128::from(rest) * u128::from(charge.met) / u128::from(met)) as u64,
        };
        charge.cpu_ns += part;
    }
    charges
}

/// Those of `suspects` that the kernel does not find, and the CPU time that asking took, nanoseconds. What cannot be
/// looked up is left alone.
fn absent(places: &[(u32, NetnsPath)], mut suspects: Vec<Suspect>) -> Result<(Vec<Suspect>, u64)> {
    let key = |suspect: &Suspect| {
        let Suspect { netns, flow, interface, cookie, .. } = *suspect;
        LookupKey { netns, flow, interface, cookie }
    };
    let keys: Vec<LookupKey> = suspects.iter().map(key).collect();
    let (answers, cpu_ns) = netns_dump::look_up(places, &keys)?;
    let mut answers = answers.into_iter();
    suspects.retain(|_| match answers.next() {
        Some(LookupResult::Gone) => true,
        // Another connection of these addresses, or another of this socket: what was closing is over.
        Some(LookupResult::There(socket)) => Phase::of(socket.state).is_none(),
        Some(LookupResult::Unknown) | None => false,
    });
    Ok((suspects, cpu_ns))
}

/// Does `what`, and tells how much CPU time that took.
pub fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let before = host::thread_cpu_ns();
    let done = what();
    (done, Duration::from_nanos(host::thread_cpu_ns().saturating_sub(before)))
}

/// Goes on with a round of the reconcile, for `most` of CPU time. `lost`: records were lost before it began; `begins`: it
/// has been nowhere yet.
async fn go_round(
    engine: &RefCell<Tracking>,
    most: Option<Duration>,
    lost: bool,
    begins: bool,
) -> Result<Dumped> {
    let places = engine.borrow_mut().namespaces.unvisited();
    let mut dumped = dump(engine, EVERYTHING, places, most, begins).await.inspect_err(|_| {
        engine.borrow_mut().namespaces.give_up();
    })?;
    let mut engine = engine.borrow_mut();
    let (over, took) = timed(|| engine.go_on_round(std::mem::take(&mut dumped.rest), lost));
    dumped.also_took(took);
    if over {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        engine.dumps.reconciled_at = now.as_secs_f64();
    }
    Ok(dumped)
}

/// The first dumps, at once and whatever they cost: one of every namespace, and, since that is no snapshot, a second one
/// where it has found something, which drops what is gone.
pub async fn first(engine: &RefCell<Tracking>) -> Result<()> {
    let started_ns = host::monotonic_ns();
    let (scope, descriptors) = {
        let namespaces = &engine.borrow().namespaces;
        (namespaces.scope(), namespaces.descriptors(started_ns))
    };
    let all = matches!(descriptors, Descriptors::All);
    let found = spawn_blocking(move || scope.find(&descriptors)).await.context("the search died")?;
    let found = found.context("/proc cannot be read")?;
    {
        let mut engine = engine.borrow_mut();
        if all {
            engine.namespaces.looked_at_descriptors(found.descriptors_ns, host::monotonic_ns());
        }
        engine.begin_round(found, true, started_ns);
    }
    go_round(engine, None, false, true).await?;
    let places = engine.borrow().places_with_lives();
    if !places.is_empty() {
        dump(engine, EVERYTHING, places, None, false).await?;
    }
    engine.borrow_mut().ready = true;
    Ok(())
}

/// Dumps for as long as the agent runs.
pub async fn run(engine: Rc<RefCell<Tracking>>, intervals: Rc<Intervals>) {
    let mut dumps = Dumping::new(engine, intervals);
    loop {
        dumps.rest().await;
        dumps.turn().await;
    }
}

/// What the dumps go by.
struct Dumping {
    engine: Rc<RefCell<Tracking>>,
    intervals: Rc<Intervals>,
    schedule: Scheduler,
    searching: NetnsSearch,
    reconciled: Instant,
    /// Records were lost since the last round began, and before that.
    lost: bool,
    lost_before: bool,
    was_round: bool,
    /// What the last dump of the host's namespace, and of others, asked for, and where, if it left absences unsettled.
    again_host: Option<(DumpRequest, Vec<NetnsPath>)>,
    again_others: Option<(DumpRequest, Vec<NetnsPath>)>,
    most: Option<Duration>,
    said_over: Option<Instant>,
}

impl Dumping {
    fn new(engine: Rc<RefCell<Tracking>>, intervals: Rc<Intervals>) -> Self {
        // Without BTF no record tells its namespace: only a look at all of them at once shows that something is gone.
        let most = engine.borrow().probe.reads_fields.then_some(SLICE);
        Self {
            engine,
            intervals,
            schedule: Scheduler::default(),
            searching: NetnsSearch::default(),
            reconciled: Instant::now(),
            lost: false,
            lost_before: false,
            was_round: false,
            again_host: None,
            again_others: None,
            most,
            said_over: None,
        }
    }

    fn limits(&self) -> Limits {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Limits { interval_ns: ns(self.intervals.dump.get()), max_ns: ns(self.intervals.most()) }
    }

    /// Whether there is something to do though nothing is tracked.
    fn in_hand(&self) -> bool {
        let engine = self.engine.borrow();
        self.lost
            || self.again_host.is_some()
            || self.again_others.is_some()
            || engine.namespaces.is_under_way()
            || engine.is_asked()
    }

    /// Waits until a dump may be due.
    async fn rest(&mut self) {
        let asked = Rc::clone(&self.engine.borrow().asked);
        // While nothing is tracked there is nothing to follow, and on an idle host each look would wake it for nothing.
        if !self.in_hand() && self.engine.borrow().tracker.is_empty() {
            let stirred = Rc::clone(&self.engine.borrow().stirred);
            let rest = self.intervals.reconcile.get().saturating_sub(self.reconciled.elapsed()).min(REST);
            tokio::select! {
                () = stirred.notified() => {}
                () = asked.notified() => {}
                () = sleep(rest) => {}
            }
        }
        loop {
            let limits = self.limits();
            let due_ns = self.schedule.host_due_ns(limits).min(self.schedule.others_due_ns(limits));
            let left = Duration::from_nanos(due_ns.saturating_sub(host::monotonic_ns()));
            if left.is_zero() || self.engine.borrow().is_asked() && self.searching.is_settled() {
                return;
            }
            tokio::select! {
                () = sleep(left.min(TICK)) => {}
                () = asked.notified() => {}
                () = self.searching.ends() => {}
            }
            self.look_up();
        }
    }

    /// Looks whether what makes a pause long is still there.
    fn look_up(&mut self) {
        let mut engine = self.engine.borrow_mut();
        self.lost |= engine.has_lost();
        for Charge { id, met, .. } in self.schedule.dearest(self.limits()) {
            // What is no longer known was gone at the last look.
            let now = match engine.namespaces.place(id) {
                Some(place) => place.population(),
                None => Some(0),
            };
            if let Some(now) = now.filter(|&now| now < met / 2 || now == 0) {
                self.schedule.shrank(id, now);
            }
        }
        engine.dumps.interval_ns = self.schedule.pause_ns(self.limits());
    }

    async fn turn(&mut self) {
        let limits = self.limits();
        let now_ns = host::monotonic_ns();
        let asked = self.engine.borrow().is_asked();
        let under_way = self.engine.borrow().namespaces.is_under_way();
        let host_is_due = asked && !under_way || now_ns >= self.schedule.host_due_ns(limits);
        let others_are_due = asked || now_ns >= self.schedule.others_due_ns(limits);
        let (mut wanted, mut choosing) = {
            let mut engine = self.engine.borrow_mut();
            self.lost |= engine.has_lost();
            timed(|| engine.wanted(host::monotonic_ns()))
        };
        if host_is_due {
            let (begins, looking) = timed(|| self.begin_round(asked));
            choosing += looking;
            let to_dump = self.again_host.take().or(wanted.host.take());
            if begins {
                // The host's namespace comes first in it.
                let dumped = go_round(&self.engine, self.most, self.lost_before, true).await;
                self.lost |= dumped.is_err() && self.lost_before;
                self.was_round = true;
                self.took(dumped, choosing, true);
                return self.plan(&wanted.needing);
            }
            match to_dump {
                Some((ask, places)) => {
                    let all = self.engine.borrow().namespaces.places(None).len() == places.len();
                    let dumped = dump(&self.engine, ask, places, None, all).await;
                    self.took(dumped, std::mem::take(&mut choosing), true);
                }
                None => self.schedule.idle_host(now_ns, limits),
            }
        }
        if others_are_due {
            let to_dump = self.again_others.take().or(wanted.others.take());
            let is_round = under_way && (asked || !(self.was_round && to_dump.is_some()));
            self.was_round = is_round;
            if is_round {
                let dumped = go_round(&self.engine, self.most, self.lost_before, false).await;
                self.lost |= dumped.is_err() && self.lost_before;
                self.took(dumped, choosing, false);
            } else if let Some((ask, places)) = to_dump {
                let all = self.engine.borrow().namespaces.places(None).len() == places.len();
                let dumped = dump(&self.engine, ask, places, self.most, all).await;
                self.took(dumped, choosing, false);
            } else {
                self.schedule.idle_others(now_ns, limits);
            }
        }
        self.plan(&wanted.needing);
    }

    /// Begins a round of the reconcile where one is due and places to go to are known. Returns whether it has begun.
    fn begin_round(&mut self, asked: bool) -> bool {
        let mut engine = self.engine.borrow_mut();
        self.searching.collect(&mut engine, self.intervals.most().as_nanos() as u64);
        if engine.namespaces.is_under_way() {
            return false;
        }
        let overdue = self.reconciled.elapsed() >= self.intervals.reconcile.get();
        if !(asked || self.lost || overdue || engine.has_new_namespace()) {
            return false;
        }
        let since_ns = engine.asked_ns;
        let (found, searched) = match self.searching.found(&mut engine, since_ns, asked) {
            Some(found) => (found, true),
            // It takes long, or may not take place yet: those that are known are dumped meanwhile.
            None if self.searching.is_settled() && (overdue || asked) => {
                ((engine.namespaces.known(), host::monotonic_ns()), false)
            }
            None => return false,
        };
        let (found, started_ns): (FoundNetns, u64) = found;
        engine.begin_round(found, searched, started_ns);
        self.reconciled = Instant::now();
        // Without a search nothing proves that what was lost is gone.
        self.lost_before = searched && std::mem::take(&mut self.lost);
        true
    }

    /// Takes in what a dump has come to. `of_host`: it was the host's turn.
    fn took(&mut self, dumped: Result<Dumped>, choosing: Duration, of_host: bool) {
        let (limits, now_ns) = (self.limits(), host::monotonic_ns());
        let mut dumped = match dumped {
            Ok(dumped) => dumped,
            Err(why) => {
                log::warn!("no dump of the kernel's sockets: {why:#}");
                // Who asked is told by what does not come.
                self.engine.borrow_mut().asked_ns = 0;
                return self.schedule.failed(now_ns, limits);
            }
        };
        dumped.also_took(choosing);
        let mut engine = self.engine.borrow_mut();
        self.schedule.owes(engine.exhaustion.take_spent().as_nanos() as u64);
        // Without BTF there is one dump for all.
        let host = engine.namespaces.host().filter(|_| engine.probe.reads_fields);
        engine.namespaces.cost(&dumped.charges);
        self.schedule.took(now_ns, host, &dumped.charges);
        let is_host = |charge: &Charge| Some(charge.id) == host;
        if of_host && !dumped.charges.iter().any(is_host) {
            self.schedule.idle_host(now_ns, limits);
        }
        if !of_host && dumped.charges.iter().all(is_host) {
            self.schedule.idle_others(now_ns, limits);
        }
        log::debug!("a dump of {} namespaces took {:?} of CPU", dumped.charges.len(), dumped.cpu());
        if of_host && dumped.charges.iter().all(is_host) {
            self.again_host = dumped.again;
        } else {
            self.again_others = dumped.again;
        }
    }

    /// What is left to do, and whether the budget suffices for it.
    fn plan(&mut self, needing: &HashSet<u32>) {
        let limits = self.limits();
        let mut engine = self.engine.borrow_mut();
        let backlog = engine.namespaces.backlog(needing, host::monotonic_ns(), limits.max_ns);
        self.schedule.set_backlog(backlog);
        let over = self.schedule.is_over_budget(limits);
        let most = humantime::format_duration(self.intervals.most());
        if over && self.said_over.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
            self.said_over = Some(Instant::now());
            log::warn!(
                "dumps take more than 1 % of a core, so that no number is older than {most} (--reconcile-max)"
            );
        }
        engine.dumps.over_budget = over;
        engine.dumps.interval_ns = self.schedule.pause_ns(limits);
        let reconcile = self.intervals.reconcile.get().saturating_add(self.intervals.most());
        engine.dumps.overdue_ns = u64::try_from(reconcile.as_nanos()).unwrap_or(u64::MAX);
        engine.dumps.max_ns = limits.max_ns;
    }
}

/// The namespaces that lives are in; without those whose namespace nobody told.
pub fn ids_of<'a>(lives: impl Iterator<Item = &'a crate::tracker::socket::TrackedSocket>) -> HashSet<u32> {
    let mut ids = HashSet::new();
    let mut last = 0;
    for life in lives {
        // Lives come in runs of one namespace: most need no hashing.
        if life.netns != last {
            last = life.netns;
            ids.insert(last);
        }
    }
    ids.remove(&0);
    ids
}
