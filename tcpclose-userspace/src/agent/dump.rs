//! One dump of the kernel's sockets: streamed into the tracker, with lookups for what it did not meet.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::linux::netns::NetnsPath;
use crate::linux::netns_dump;
use crate::linux::netns_dump::{DumpRequest, LookupKey, LookupResult};
use crate::names::Phase;
use crate::tracker::vanished::Suspect;

use crate::agent::cpu_budget::timed;
use crate::agent::malloc_trim;
use crate::agent::scheduler::NetnsCost;
use crate::agent::tracking::Tracking;

/// A dump that met more sockets is worth a malloc_trim().
const MANY: usize = 10_000;

/// Absent sockets that a dump looks up one by one. The others are left to the next one.
const MOST_LOOKUPS: usize = 1000;
/// As many if somebody waits for the numbers: more than close between two dumps where every minisocket is skipped.
const MOST_LOOKUPS_REQUESTED: usize = 100_000;

/// Chunks of a dump that wait to be merged; with more of them the dump waits.
const CHUNKS: usize = 2;

/// How much work a dump may be.
#[derive(Clone, Copy, Debug)]
pub struct DumpLimits {
    /// CPU time after which the rest of the namespaces is left to another dump; about.
    pub cpu: Option<Duration>,
    /// Absent sockets that are looked up one by one.
    pub lookups: usize,
}

impl DumpLimits {
    /// `cpu`: as there. `all`: no absent socket is left to the next dump, since a user waits for the result.
    pub const fn new(cpu: Option<Duration>, all: bool) -> Self {
        Self { cpu, lookups: if all { MOST_LOOKUPS_REQUESTED } else { MOST_LOOKUPS } }
    }
}

/// The result of a dump.
pub struct Dumped {
    /// CPU time by namespace.
    pub charges: Vec<NetnsCost>,
    /// What the next dump is to repeat: more sockets were absent there than are looked up at a time.
    pub again: Option<(DumpRequest, Vec<NetnsPath>)>,
    /// Namespaces that it did not get to.
    pub rest: Vec<NetnsPath>,
}

impl Dumped {
    /// Charges `cpu` that no single namespace caused.
    pub fn charge_to_all(&mut self, cpu: Duration) {
        let each = cpu.as_nanos() as u64 / self.charges.len().max(1) as u64;
        self.charges.iter_mut().for_each(|charge| charge.cpu_ns += each);
    }

    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.charges.iter().map(|charge| charge.cpu_ns).sum())
    }
}

/// How long the record of a full socket's end is waited for when dump and lookup find none. The kernel takes a socket out of its
/// tables before it reports the last step (net/ipv4/tcp.c, `tcp_set_state()`: `unhash()`, then `inet_sk_state_store()`, 5.8 to
/// 6.18), and a hypervisor can take the processor away in between. Without losses nothing waits.
const LATE_RECORD: Duration = Duration::from_millis(250);

/// Dumps `places`, within `bounds`. `all`: there are no other namespaces that dumps can look at.
pub async fn dump(
    tracking: &RefCell<Tracking>,
    request: DumpRequest,
    places: Vec<NetnsPath>,
    bounds: DumpLimits,
    all: bool,
) -> Result<Dumped> {
    tracking.borrow_mut().tracker.dump_started();
    let (sender, mut chunks) = mpsc::channel(CHUNKS);
    let dumping = spawn_blocking(move || {
        netns_dump::stream(places, request, bounds.cpu, |chunk| {
            // The receiver is gone only when the agent ends.
            let _ = sender.blocking_send(chunk);
        })
    });
    let mut merging = Duration::ZERO;
    while let Some(chunk) = chunks.recv().await {
        let mut tracking = tracking.borrow_mut();
        // The records of a burst are no cost of the dump: charged to it they would delay the next one for
        // minutes.
        tracking.drain_all();
        merging += timed(|| tracking.merge_chunk(&chunk, request)).1;
    }
    let mut dumps = match dumping.await.context("the dump's thread died").and_then(|dumps| Ok(dumps?)) {
        Ok(dumps) => dumps,
        Err(why) => {
            tracking.borrow_mut().tracker.dump_failed();
            return Err(why);
        }
    };
    let mut cpu_ns = dumps.cpu_ns + merging.as_nanos() as u64;
    tracking.borrow_mut().drain_all();
    let all = all && dumps.rest.is_empty();
    let (suspects, took) = timed(|| tracking.borrow_mut().finish_dumps(&dumps, request, all, bounds.lookups));
    cpu_ns += took.as_nanos() as u64;
    let taken_ns = dumps.finished_ns - dumps.started_ns;
    let rest = std::mem::take(&mut dumps.rest);
    let charge = |dumped: &netns_dump::NetnsDump| NetnsCost {
        id: dumped.netns.id,
        cpu_ns: dumped.cpu_ns,
        met: dumped.met,
    };
    let charges: Vec<NetnsCost> = dumps.namespaces.iter().map(charge).collect();
    let met: u64 = charges.iter().map(|charge| charge.met).sum();
    let keep_places = || dumps.namespaces.into_iter().map(|dumped| (dumped.netns.id, dumped.place)).collect();
    let (places, freeing): (Vec<(u32, NetnsPath)>, Duration) = timed(keep_places);
    cpu_ns += freeing.as_nanos() as u64;

    let looked_up = suspects.len();
    let more = looked_up >= bounds.lookups;
    let again = more.then(|| (request, places.iter().map(|(_, place)| place.clone()).collect()));
    if !suspects.is_empty() {
        let (gone, lookup_ns) =
            spawn_blocking(move || absent(&places, suspects)).await.context("the lookup's thread died")??;
        if gone.iter().any(|suspect| suspect.is_full) {
            sleep(LATE_RECORD).await;
        }
        tracking.borrow_mut().end_vanished(&gone);
        cpu_ns += lookup_ns;
    }
    if met > MANY as u64 || looked_up > MANY {
        spawn_blocking(malloc_trim::give_back);
    }
    tracking.borrow_mut().dumps.last_ns = taken_ns;
    Ok(Dumped { charges: shared_out(charges, met, cpu_ns), again, rest })
}

/// Charges `cpu_ns`, the cost of a whole dump: what exceeds the sum of `charges` by the number of sockets, of
/// which there are `met` in all.
fn shared_out(mut charges: Vec<NetnsCost>, met: u64, cpu_ns: u64) -> Vec<NetnsCost> {
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

/// The `suspects` that the kernel does not find, and the CPU time of asking, nanoseconds. Those that cannot
/// be looked up are left alone.
fn absent(places: &[(u32, NetnsPath)], suspects: Vec<Suspect>) -> Result<(Vec<Suspect>, u64)> {
    let (mut gone, mut cpu_ns) = (Vec::new(), 0);
    // In parts, since questions and answers take several times as much memory.
    for part in suspects.chunks(MOST_LOOKUPS) {
        let (absent, spent_ns) = absent_of(places, part)?;
        gone.extend(absent);
        cpu_ns += spent_ns;
    }
    Ok((gone, cpu_ns))
}

fn absent_of(places: &[(u32, NetnsPath)], suspects: &[Suspect]) -> Result<(Vec<Suspect>, u64)> {
    let key = |suspect: &Suspect| {
        let Suspect { netns, flow, interface, cookie, .. } = *suspect;
        LookupKey { netns, flow, interface, cookie }
    };
    let keys: Vec<LookupKey> = suspects.iter().map(key).collect();
    let (answers, cpu_ns) = netns_dump::look_up(places, &keys)?;
    let mut answers = answers.into_iter();
    let mut suspects = suspects.to_vec();
    suspects.retain(|_| match answers.next() {
        Some(LookupResult::Gone) => true,
        // Another connection with these addresses, or of this socket: the one that was closing is over.
        Some(LookupResult::There(socket)) => Phase::of(socket.state).is_none(),
        Some(LookupResult::Unknown) | None => false,
    });
    Ok((suspects, cpu_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_a_dump_is_shared_out_by_sockets() {
        let charge = |id, cpu_ns, met| NetnsCost { id, cpu_ns, met };
        let shared = shared_out(vec![charge(1, 10, 3), charge(2, 20, 1)], 4, 130);
        assert_eq!(shared, [charge(1, 85, 3), charge(2, 45, 1)]);
        assert_eq!(shared_out(vec![charge(1, 0, 0), charge(2, 0, 0)], 0, 8)[1].cpu_ns, 4);
        assert!(shared_out(Vec::new(), 0, 8).is_empty());
    }
}
