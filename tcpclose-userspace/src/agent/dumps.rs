//! The dumps: the first one, those that follow minisockets, and the reconcile.
//!
//! All of them together take at most 1 % of a core: after each the pause is a hundred times its CPU time, if that is
//! longer than the interval asked for.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::kernel::host;
use crate::kernel::sock_diag;
use crate::tracker::join::Suspect;

use super::engine::{EVERYTHING, Engine, MOST_SUSPECTS, Wanted};

/// The pause after a dump is this many times its CPU time.
pub const SHARE: u32 = 100;

/// What a dump has come to.
pub struct Dumped {
    /// The CPU time that it took.
    pub cpu: Duration,
    /// More sockets were absent than are looked up at a time: the next dump is to ask for the same.
    pub more: bool,
}

/// One dump, taken in, with its absences looked up.
pub async fn dump(engine: &RefCell<Engine>, wanted: Wanted) -> Result<Dumped> {
    engine.borrow_mut().tracker.dump_started();
    let dumped = spawn_blocking(move || sock_diag::dump(wanted.states, wanted.info)).await;
    let dump = match dumped.context("the dump died").and_then(|dump| Ok(dump?)) {
        Ok(dump) => dump,
        Err(why) => {
            engine.borrow_mut().tracker.dump_failed();
            return Err(why);
        }
    };
    let mut cpu_ns = dump.cpu_ns;
    // The records of a burst are no cost of the dump: charged to it they would hold up the next one for minutes.
    engine.borrow_mut().drain_all();
    let before = host::thread_cpu_ns();
    let suspects = engine.borrow_mut().take_dump(&dump, wanted);
    cpu_ns += host::thread_cpu_ns().saturating_sub(before);
    let taken_ns = dump.finished_ns - dump.started_ns;
    drop(dump);

    let more = suspects.len() >= MOST_SUSPECTS;
    if !suspects.is_empty() {
        let (gone, lookup_ns) = spawn_blocking(move || absent(suspects)).await.context("a lookup died")?;
        engine.borrow_mut().take_gone(&gone);
        cpu_ns += lookup_ns;
    }

    let mut engine = engine.borrow_mut();
    engine.dumps.last_ns = taken_ns;
    if wanted == EVERYTHING {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        engine.dumps.reconciled_at = now.as_secs_f64();
    }
    Ok(Dumped { cpu: Duration::from_nanos(cpu_ns), more })
}

/// Those of `suspects` that the kernel does not find, and the CPU time that asking took. What cannot be looked up is
/// left alone.
fn absent(mut suspects: Vec<Suspect>) -> (Vec<Suspect>, u64) {
    let before = host::thread_cpu_ns();
    suspects.retain(|suspect| {
        let cookie = (suspect.cookie != 0).then_some(suspect.cookie);
        matches!(sock_diag::lookup(&suspect.flow, suspect.interface, cookie), Ok(None))
    });
    (suspects, host::thread_cpu_ns().saturating_sub(before))
}

/// Dumps for as long as the agent runs.
pub async fn run(engine: Rc<RefCell<Engine>>, dump_interval: Duration, reconcile_interval: Duration) {
    let mut reconciled = Instant::now();
    // Records were lost since the last reconcile.
    let mut lost = false;
    let mut pause = dump_interval;
    // What the last dump asked for, where it left absences unsettled.
    let mut again: Option<Wanted> = None;
    loop {
        engine.borrow_mut().dumps.interval_ns = pause.as_nanos() as u64;
        sleep(pause).await;
        lost |= engine.borrow_mut().has_lost();
        let wanted = if lost || reconciled.elapsed() >= reconcile_interval {
            Some(EVERYTHING)
        } else {
            again.take().or_else(|| engine.borrow().wanted(host::monotonic_ns()))
        };
        let Some(wanted) = wanted else {
            pause = dump_interval;
            continue;
        };
        match dump(&engine, wanted).await {
            Ok(Dumped { cpu, more }) => {
                again = more.then_some(wanted);
                if wanted == EVERYTHING {
                    reconciled = Instant::now();
                    lost = false;
                }
                let stretched = cpu * SHARE;
                if stretched > dump_interval && pause <= dump_interval {
                    log::info!("dumps are {stretched:?} apart: one takes {cpu:?} of CPU");
                }
                pause = stretched.max(dump_interval);
            }
            Err(why) => log::warn!("no dump of the kernel's sockets: {why:#}"),
        }
    }
}
