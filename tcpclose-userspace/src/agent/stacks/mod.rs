//! The stacks of leaking processes: who is armed, what was taken, and how it is named.
//!
//! * [`arming`]: decides who is armed. * [`table`]: keeps named stacks. [`collect`]: takes them from the probe and has them named,
//!   for as long as a process is armed.

pub mod arming;
pub mod collect;
pub mod table;

use std::time::Duration;

use anyhow::{Context, Result};
use rustc_hash::FxHashMap;
use tcpclose_common::stack::{Moment, StackKey};
use tokio::sync::Notify;

use crate::linux::host;
use crate::linux::process;
use crate::linux::stacks::namer::Namer;
use crate::report::sockets::{Owner, SocketsDocument, StuckSocket};

use crate::agent::stacks::arming::{Arming, ArmingRule, ProcessId, StuckOwner};
use crate::agent::stacks::table::StackTable;
use crate::agent::tracking::Tracking;

/// Everything about stacks that the agent has.
#[derive(Debug)]
pub struct Stacks {
    pub arming: Arming,
    pub table: StackTable,
    /// `None` while it is at work.
    namer: Option<Namer>,
    /// When each stack was last taken, by its key in the kernel.
    taken_ns: FxHashMap<StackKey, u64>,
    /// Stacks that could not be named, since the start.
    pub unnamed: u64,
}

impl Stacks {
    pub fn new(rule: Option<ArmingRule>) -> Self {
        Self {
            arming: Arming::new(rule),
            table: StackTable::default(),
            namer: Some(Namer::default()),
            taken_ns: FxHashMap::default(),
            unnamed: 0,
        }
    }

    /// Takes a count of stuck sockets, and arms whose number grows.
    pub fn counted(&mut self, sockets: &[StuckSocket], bound: f64, tracking: &mut Tracking, wake: &Notify) {
        let now_ns = host::monotonic_ns();
        let (new, over) = self.arming.counted(&stuck_owners(sockets, bound), now_ns);
        for process in over {
            tracking.probe.disarm(process.pid);
        }
        for process in new {
            match tracking.probe.arm(process.pid) {
                Ok(()) => {
                    log::info!("takes stacks of process {}: its stuck sockets grow in number", process.pid)
                }
                Err(why) => {
                    log::warn!("cannot take stacks of process {}: {why:#}", process.pid);
                    self.arming.end(process, now_ns);
                }
            }
        }
        wake.notify_waiters();
    }

    /// Arms a process because somebody asks; `accept`: for what it accepts, too.
    ///
    /// # Errors
    /// Why it cannot be armed.
    pub fn ask(
        &mut self,
        pid: u32,
        time: Duration,
        accept: bool,
        tracking: &mut Tracking,
        wake: &Notify,
    ) -> Result<()> {
        let now_ns = host::monotonic_ns();
        let (began_ns, _) = process::started(pid).with_context(|| format!("no process has the pid {pid}"))?;
        let process = ProcessId { pid, began_ns };
        let uid = process::uid(pid).unwrap_or(u32::MAX);
        let is_new = self.arming.ask(process, uid, time, now_ns);
        let is_new = is_new
            .map_err(|_| anyhow::anyhow!("stacks of {} processes are taken already", arming::MOST_ASKED))?;
        if is_new && let Err(why) = tracking.probe.arm(pid) {
            self.arming.end(process, now_ns);
            return Err(why);
        }
        if accept {
            tracking.probe.arm_accept(pid)?;
            self.arming.ask_accept(process, time, now_ns);
        }
        wake.notify_waiters();
        Ok(())
    }

    /// Adds the stacks of the sockets in `document`, each once.
    pub fn add_to(&self, document: &mut SocketsDocument) {
        let mut at = FxHashMap::default();
        for socket in &mut document.sockets {
            for moment in Moment::ALL {
                let (cookie, inode) = (socket.cookie.0, u64::from(socket.inode));
                let Some(stack) = self.table.get(cookie, inode, moment) else { continue };
                let next = document.stacks.len() as u32;
                let index = *at.entry(std::sync::Arc::as_ptr(stack)).or_insert_with(|| {
                    document.stacks.push((**stack).clone());
                    next
                });
                socket.stacks.get_or_insert_default().set(moment, index);
            }
        }
    }
}

/// Whether a process has ended.
fn is_gone(process: ProcessId) -> bool {
    process::started(process.pid).is_none_or(|(began_ns, _)| began_ns != process.began_ns)
}

/// The processes that hold stuck sockets alone, and how many.
fn stuck_owners(sockets: &[StuckSocket], bound: f64) -> Vec<StuckOwner> {
    let mut counts: FxHashMap<u32, u64> = FxHashMap::default();
    for socket in sockets.iter().filter(|socket| socket.is_past(bound)) {
        let mut pids = socket.owners.iter().filter(|owner| !owner.candidate).map(|owner: &Owner| owner.pid);
        if let Some(pid) = pids.next()
            && pids.all(|other| other == pid)
        {
            *counts.entry(pid).or_default() += 1;
        }
    }
    let owner = |(pid, stuck)| {
        let (began_ns, _) = process::started(pid)?;
        let uid = process::uid(pid)?;
        Some(StuckOwner { process: ProcessId { pid, began_ns }, uid, stuck })
    };
    counts.into_iter().filter_map(owner).collect()
}
