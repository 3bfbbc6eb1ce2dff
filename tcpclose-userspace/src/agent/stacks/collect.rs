//! Takes stacks from the probe while a process is armed, and has them named.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use tcpclose_common::stack::{FRAMES, Moment, StackKey, StackRecord};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::linux::host;
use crate::linux::stacks::frames::RawStack;
use crate::linux::stacks::helper::NameRequest;
use crate::names::Phase;

use crate::agent::stacks::arming::{Armed, ProcessId};
use crate::agent::stacks::table::SocketId;
use crate::agent::stacks::{Stacks, is_gone};
use crate::agent::tracking::Tracking;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// All of this takes at most a twentieth of a core: the pause is so many times longer than the work.
const SHARE: u32 = 20;
/// A stack that was taken is looked at again after this: the newest counts.
const AGAIN_NS: u64 = 10_000_000_000;
/// The most stacks of a look.
const AT_ONCE: usize = 500;
/// How long naming them may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs for as long as the agent does; waits on `wake` while nobody is armed.
pub async fn run(tracking: Rc<RefCell<Tracking>>, stacks: Rc<RefCell<Stacks>>, wake: Rc<Notify>) {
    loop {
        if stacks.borrow().arming.armed().is_empty() {
            rest(&stacks);
            wake.notified().await;
        }
        let cost = look(&tracking, &stacks).await;
        sleep(INTERVAL.max(cost * SHARE).min(60 * INTERVAL)).await;
        expire(&mut tracking.borrow_mut(), &mut stacks.borrow_mut());
    }
}

/// Ends the helper.
fn rest(stacks: &RefCell<Stacks>) {
    let mut stacks = stacks.borrow_mut();
    if let Some(namer) = &mut stacks.namer {
        namer.rest();
    }
    stacks.taken_ns.clear();
}

fn expire(tracking: &mut Tracking, stacks: &mut Stacks) {
    let now_ns = host::monotonic_ns();
    for process in stacks.arming.expire_accept(now_ns) {
        tracking.probe.disarm_accept(process.pid);
    }
    for process in stacks.arming.expire(now_ns, is_gone) {
        tracking.probe.disarm(process.pid);
    }
}

/// Takes what is new, and has it named. Returns what that cost.
async fn look(tracking: &RefCell<Tracking>, stacks: &RefCell<Stacks>) -> Duration {
    let before = host::thread_cpu_ns();
    let taken = take(&tracking.borrow(), &mut stacks.borrow_mut());
    let mut cost_ns = host::thread_cpu_ns().saturating_sub(before);
    for Taken { process, uid, request, of } in taken {
        let Some(mut namer) = stacks.borrow_mut().namer.take() else { break };
        let asked = spawn_blocking(move || {
            let reply = namer.name(&request, uid, PATIENCE);
            (namer, reply)
        });
        let Ok((namer, reply)) = asked.await else { break };
        let stacks = &mut stacks.borrow_mut();
        stacks.namer = Some(namer);
        match reply {
            Ok(reply) => {
                cost_ns += reply.cpu_ns;
                match reply.stacks {
                    Ok(named) => {
                        let of = of.into_iter().zip(named);
                        of.for_each(|((id, moment), stack)| stacks.table.insert(id, moment, stack));
                    }
                    Err(why) => {
                        stacks.unnamed += of.len() as u64;
                        log::debug!("cannot name {} stacks: {why}", of.len());
                    }
                }
            }
            Err(why) => {
                stacks.unnamed += of.len() as u64;
                cost_ns += PATIENCE.as_nanos() as u64 / u64::from(SHARE);
                log::warn!(
                    "cannot name stacks of process {}: {why} (none are taken by --stacks auto for an hour: of this process if it is root's, else of its user's)",
                    process.pid
                );
                stacks.arming.ban(process, host::monotonic_ns());
                tracking.borrow_mut().probe.disarm(process.pid);
            }
        }
    }
    Duration::from_nanos(cost_ns)
}

/// The new stacks of a process.
struct Taken {
    process: ProcessId,
    uid: u32,
    request: NameRequest,
    /// In the order of the request's stacks.
    of: Vec<(SocketId, Moment)>,
}

/// Stacks of one process, and of which socket and moment each is.
type StacksOfProcess = (Vec<RawStack>, Vec<(SocketId, Moment)>);

/// The stacks of sockets in CLOSE-WAIT that are new, and those of accepted sockets, by process.
fn take(tracking: &Tracking, stacks: &mut Stacks) -> Vec<Taken> {
    let Some(hook) = tracking.probe.stacks() else { return Vec::new() };
    let keys = hook.keys();
    let waiting: FxHashSet<u64> = tracking
        .sockets_and_writes()
        .filter(|(socket, _)| socket.phase == Phase::CloseWait)
        .map(|(socket, _)| socket.cookie)
        .collect();
    let now_ns = host::monotonic_ns();
    let in_kernel: FxHashSet<StackKey> = keys.iter().copied().collect();
    stacks.taken_ns.retain(|key, _| in_kernel.contains(key));
    let mut by_pid: FxHashMap<u32, StacksOfProcess> = FxHashMap::default();
    let mut left = AT_ONCE;
    for key in keys {
        if left == 0 {
            break;
        }
        let Some(moment) = Moment::ALL.into_iter().find(|moment| *moment as u32 == key.moment) else {
            continue;
        };
        let is_accepted = moment == Moment::Accepted;
        let taken_ns = stacks.taken_ns.get(&key).copied();
        let is_again = taken_ns.is_some_and(|taken_ns| now_ns.saturating_sub(taken_ns) < AGAIN_NS);
        if !is_accepted && (is_again || !waiting.contains(&key.id)) {
            continue;
        }
        match hook.get(key) {
            // The descriptor has accepted nothing since.
            Ok(Some(record))
                if is_accepted && taken_ns.is_some_and(|taken_ns| record.time_ns <= taken_ns) => {}
            Ok(Some(record)) => {
                left -= 1;
                stacks.taken_ns.insert(key, now_ns);
                let id = if is_accepted { SocketId::Inode(record.inode) } else { SocketId::Cookie(key.id) };
                let (raw, of) = by_pid.entry(record.pid).or_default();
                raw.push(raw_stack(&record));
                of.push((id, moment));
            }
            // Closed meanwhile.
            Ok(None) => {}
            Err(why) => log::debug!("cannot read a stack: {why:#}"),
        }
    }
    let armed = stacks.arming.armed();
    let request = |(pid, (raw, of)): (u32, StacksOfProcess)| {
        let armed = armed.iter().find(|armed| armed.process.pid == pid)?;
        let Armed { process, uid, .. } = *armed;
        Some(Taken {
            process,
            uid,
            request: NameRequest { pid, began_ns: process.began_ns, stacks: raw },
            of,
        })
    };
    by_pid.into_iter().filter_map(request).collect()
}

fn raw_stack(record: &StackRecord) -> RawStack {
    RawStack {
        ip: record.ip,
        sp: record.sp,
        fp: record.fp,
        lr: record.lr,
        call: record.call,
        found: record.found().to_vec(),
        found_all: record.found().len() < FRAMES,
        words: record.copied().to_vec(),
    }
}
