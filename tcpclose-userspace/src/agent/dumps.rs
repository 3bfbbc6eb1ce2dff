//! The dumps: the first ones, those that follow minisockets, and the reconcile, in every network namespace that can hold
//! what is sought.
//!
//! All of them together take at most 1 % of a core ([`Pace`]). A round through many namespaces is made in slices, so
//! that what must be looked at more often is looked at in between.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::kernel::host;
use crate::kernel::netns::{Descriptors, Place};
use crate::kernel::survey::{self, Answer, Ask, Key};
use crate::terms::Phase;
use crate::tracker::absent::Suspect;

use super::engine::{EVERYTHING, Engine, MOST_SUSPECTS};
use super::memory;
use super::pace::{Pace, SHARE};
use super::reload::Intervals;

/// The CPU time from which on the rest of a dump's namespaces wait for the next one.
const SLICE: Duration = Duration::from_millis(50);

/// How long at most the dumps rest while nothing is tracked and no record comes.
const REST: Duration = Duration::from_secs(10);

/// What a dump of more sockets takes is worth giving back.
const MANY: usize = 10_000;

/// Chunks of a dump that wait to be taken in; with more of them the dump waits.
const CHUNKS: usize = 2;

/// What a dump has come to.
struct Dumped {
    /// The CPU time that it took.
    cpu: Duration,
    /// Where more sockets were absent than are looked up at a time: the next dump is to ask the same there.
    again: Option<Vec<Place>>,
    /// Where it did not get to.
    rest: Vec<Place>,
}

/// One dump of `places`, taken in, with its absences looked up. `all`: there are no others that dumps can look at.
async fn dump(
    engine: &RefCell<Engine>,
    ask: Ask,
    places: Vec<Place>,
    most: Option<Duration>,
    all: bool,
) -> Result<Dumped> {
    engine.borrow_mut().tracker.dump_started();
    let (sender, mut chunks) = mpsc::channel(CHUNKS);
    let surveying = spawn_blocking(move || {
        survey::stream(places, ask, most, |chunk| {
            // Nobody takes it any more when the agent ends, and nobody misses it then.
            let _ = sender.blocking_send(chunk);
        })
    });
    let (mut met, mut joining) = (0, Duration::ZERO);
    while let Some(chunk) = chunks.recv().await {
        met += chunk.sockets.len();
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
    let keep_places = || survey.looked.into_iter().map(|looked| (looked.netns.id, looked.place)).collect();
    let (places, letting_go): (Vec<(u32, Place)>, Duration) = timed(keep_places);
    cpu_ns += letting_go.as_nanos() as u64;

    let more = suspects.len() >= MOST_SUSPECTS;
    let again = more.then(|| places.iter().map(|(_, place)| place.clone()).collect());
    if !suspects.is_empty() {
        let (gone, lookup_ns) =
            spawn_blocking(move || absent(&places, suspects)).await.context("a lookup died")??;
        engine.borrow_mut().take_gone(&gone);
        cpu_ns += lookup_ns;
    }
    if met > MANY {
        spawn_blocking(memory::give_back);
    }
    engine.borrow_mut().dumps.last_ns = taken_ns;
    Ok(Dumped { cpu: Duration::from_nanos(cpu_ns), again, rest })
}

/// Those of `suspects` that the kernel does not find, and the CPU time that asking took, nanoseconds. What cannot be
/// looked up is left alone.
fn absent(places: &[(u32, Place)], mut suspects: Vec<Suspect>) -> Result<(Vec<Suspect>, u64)> {
    let key = |suspect: &Suspect| {
        let Suspect { netns, flow, interface, cookie, .. } = *suspect;
        Key { netns, flow, interface, cookie }
    };
    let keys: Vec<Key> = suspects.iter().map(key).collect();
    let (answers, cpu_ns) = survey::look_up(places, &keys)?;
    let mut answers = answers.into_iter();
    suspects.retain(|_| match answers.next() {
        Some(Answer::Gone) => true,
        // Another connection of these addresses, or another of this socket: what was closing is over.
        Some(Answer::There(socket)) => Phase::of(socket.state).is_none(),
        Some(Answer::Unknown) | None => false,
    });
    Ok((suspects, cpu_ns))
}

/// Does `what`, and tells how much CPU time that took.
fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let before = host::thread_cpu_ns();
    let done = what();
    (done, Duration::from_nanos(host::thread_cpu_ns().saturating_sub(before)))
}

/// Begins a round of the reconcile or goes on with it, for `most` of CPU time. `lost`: records were lost before it began.
async fn go_round(engine: &RefCell<Engine>, most: Option<Duration>, lost: bool) -> Result<Dumped> {
    let mut cpu = Duration::ZERO;
    let begins = !engine.borrow().namespaces.is_searching();
    if begins {
        let started_ns = host::monotonic_ns();
        let (scope, descriptors) = {
            let namespaces = &engine.borrow().namespaces;
            (namespaces.scope(), namespaces.descriptors(started_ns))
        };
        let all = matches!(descriptors, Descriptors::All);
        let search = spawn_blocking(move || timed(|| scope.find(&descriptors)));
        let (found, took) = search.await.context("the search died")?;
        let found = found.context("/proc cannot be read")?;
        cpu += took;
        if all {
            // That has a pace of its own.
            cpu = cpu.saturating_sub(Duration::from_nanos(found.descriptors_ns));
            let mut engine = engine.borrow_mut();
            engine.namespaces.looked_at_descriptors(found.descriptors_ns, host::monotonic_ns());
        }
        cpu += timed(|| engine.borrow_mut().begin_round(found, started_ns)).1;
    }
    let places = engine.borrow_mut().namespaces.unvisited();
    let mut dumped = dump(engine, EVERYTHING, places, most, begins).await.inspect_err(|_| {
        engine.borrow_mut().namespaces.give_up();
    })?;
    let mut engine = engine.borrow_mut();
    let (over, took) = timed(|| engine.go_on_round(std::mem::take(&mut dumped.rest), lost));
    dumped.cpu += cpu + took;
    if over {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        engine.dumps.reconciled_at = now.as_secs_f64();
    }
    Ok(dumped)
}

/// The first dumps, at once and whatever they cost: one of every namespace, and, since that is no snapshot, a second one
/// where it has found something, which drops what is gone.
pub async fn first(engine: &RefCell<Engine>) -> Result<()> {
    go_round(engine, None, false).await?;
    let places = engine.borrow().places_with_lives();
    if !places.is_empty() {
        dump(engine, EVERYTHING, places, None, false).await?;
    }
    engine.borrow_mut().ready = true;
    Ok(())
}

/// Dumps for as long as the agent runs.
pub async fn run(engine: Rc<RefCell<Engine>>, intervals: Rc<Intervals>) {
    let mut reconciled = Instant::now();
    // Records were lost since the last round began, and before that.
    let (mut lost, mut lost_before) = (false, false);
    let mut was_round = false;
    // Without BTF no record tells its namespace: only a look at all of them at once shows that something is gone.
    let most = engine.borrow().probe.facts.then_some(SLICE);
    let (mut of_rounds, mut of_others) = (Pace::default(), Pace::default());
    let mut pause = intervals.dump.get();
    // What the last dump asked for, and where, if it left absences unsettled.
    let mut again: Option<(Ask, Vec<Place>)> = None;
    loop {
        // While nothing is tracked there is nothing to follow, and on an idle host each look would wake it for nothing.
        let in_hand = lost || again.is_some() || engine.borrow().namespaces.is_searching();
        if !in_hand && engine.borrow().tracker.is_empty() {
            let stirred = Rc::clone(&engine.borrow().stirred);
            let rest = intervals.reconcile.get().saturating_sub(reconciled.elapsed()).min(REST);
            tokio::select! {
                () = stirred.notified() => {}
                () = sleep(rest) => {}
            }
        }
        sleep(pause).await;
        let dump_interval = intervals.dump.get();
        lost |= engine.borrow_mut().has_lost();
        let (wanted, choosing) = timed(|| engine.borrow().wanted(host::monotonic_ns()));
        let wanted = again.take().or(wanted);
        let (round_is_due, looking) = timed(|| {
            let engine = engine.borrow();
            lost || engine.namespaces.is_searching()
                || reconciled.elapsed() >= intervals.reconcile.get()
                || engine.has_new_namespace()
        });
        let choosing = choosing + looking;
        let is_round = round_is_due && !(was_round && wanted.is_some());
        was_round = is_round;
        let dumped = if is_round {
            let begins = !engine.borrow().namespaces.is_searching();
            if begins {
                reconciled = Instant::now();
                lost_before = std::mem::take(&mut lost);
            }
            let dumped = go_round(&engine, most, lost_before).await;
            lost |= dumped.is_err() && lost_before;
            dumped.map(|dumped| (of_rounds.after(choosing + dumped.cpu), dumped, EVERYTHING))
        } else if let Some((ask, places)) = wanted {
            let all = engine.borrow().namespaces.places(None).len() == places.len();
            let dumped = dump(&engine, ask, places, most, all).await;
            dumped.map(|dumped| (of_others.after(choosing + dumped.cpu), dumped, ask))
        } else {
            pause = dump_interval;
            let mut engine = engine.borrow_mut();
            engine.dumps.interval_ns = pause.as_nanos() as u64;
            // In a time without dumps they had the share to themselves.
            engine.exhaustion.take_spent();
            continue;
        };
        match dumped {
            Ok((stretched, dumped, ask)) => {
                again = dumped.again.map(|places| (ask, places));
                if stretched > dump_interval && pause <= dump_interval {
                    log::info!("dumps are {stretched:?} apart: one takes {:?} of CPU", dumped.cpu);
                }
                let spent = engine.borrow_mut().exhaustion.take_spent();
                pause = (stretched + spent * SHARE).max(dump_interval);
                engine.borrow_mut().dumps.interval_ns = pause.as_nanos() as u64;
            }
            Err(why) => log::warn!("no dump of the kernel's sockets: {why:#}"),
        }
    }
}

/// The namespaces that lives are in; without those whose namespace nobody told.
pub fn ids_of<'a>(lives: impl Iterator<Item = &'a crate::tracker::life::Life>) -> HashSet<u32> {
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
