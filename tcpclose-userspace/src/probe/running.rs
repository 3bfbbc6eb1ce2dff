//! The attached probe.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::PerCpuArray;

use crate::linux::owners::OwnersLookup;
use crate::names::HookCoverage;
use crate::probe::backend::stacks::StackHook;
use crate::probe::backend::{OwnersHook, StateHook, TimeWaitHook, task_file};
use crate::probe::declined::DeclinedHooks;
use crate::probe::pinned_links::PinnedLinks;
use crate::probe::prog_stats::ProgramStats;
use crate::probe::ring::Ring;

/// The attached probe. Dropping it detaches every program.
pub struct Probe {
    /// The backend in use for state changes.
    pub hook: StateHook,
    /// Whether field offsets are known, and with them namespace, side and outcome.
    pub reads_fields: bool,
    /// The backend in use for TIME-WAIT.
    pub time_wait: TimeWaitHook,
    /// The backend in use for owners.
    pub owners: OwnersHook,
    /// The better backends that are not in use.
    pub declined: DeclinedHooks,
    /// What the hooks on minisockets and resets report.
    pub coverage: HookCoverage,
    pub ring: Ring,
    /// The programs that take user stacks; `None` where none is loaded.
    pub(super) stacks: Option<StackHook>,
    /// Every attached program.
    pub(super) programs: Vec<OwnedFd>,
    /// Holds the programs and the other links.
    pub(super) ebpf: Ebpf,
    /// Holds the links of the hooks on minisockets.
    pub(super) _links: Option<PinnedLinks>,
}

impl Probe {
    /// Starts a search for owners by the backend in use.
    pub fn owners_lookup(&mut self) -> OwnersLookup {
        task_file::lookup(&mut self.ebpf, self.owners)
    }

    /// The stacks in the kernel; `None` where no program that takes them is loaded.
    pub const fn stacks(&self) -> Option<&StackHook> {
        self.stacks.as_ref()
    }

    /// Takes stacks of a process from now on.
    ///
    /// # Errors
    /// When the kernel refuses it, or no program is loaded.
    pub fn arm(&mut self, pid: u32) -> Result<()> {
        self.stacks.as_mut().context("no program that takes stacks is loaded")?.arm(&mut self.ebpf, pid)
    }

    /// Takes stacks of what an armed process accepts, too.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn arm_accept(&mut self, pid: u32) -> Result<()> {
        let stacks = self.stacks.as_mut().context("no program that takes stacks is loaded")?;
        stacks.arm_accept(&mut self.ebpf, pid)
    }

    /// Takes no more stacks of what a process accepts.
    pub fn disarm_accept(&mut self, pid: u32) {
        if let Some(stacks) = &mut self.stacks {
            stacks.disarm_accept(pid);
        }
    }

    /// Takes no more stacks of a process.
    pub fn disarm(&mut self, pid: u32) {
        if let Some(stacks) = &mut self.stacks {
            stacks.disarm(pid);
        }
    }

    /// The loaded object, for [`aya_log::EbpfLogger`].
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// The kernel's run statistics of all attached programs together.
    pub fn runs(&self) -> ProgramStats {
        ProgramStats::of(&self.programs)
    }

    /// RSTs that were sent, by the name of the kernel's reason, `unknown` where it gives none; nothing where they are not counted.
    pub fn resets_sent(&self) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        let counts = self.ebpf.map("RESETS_SENT").and_then(|map| PerCpuArray::<_, u64>::try_from(map).ok());
        let Some(counts) = counts.filter(|_| self.coverage.resets) else { return sums };
        for raw in 0..self.coverage.reset_reasons.len().max(1) as u32 {
            let name = self.coverage.reset_reason(raw as u16).unwrap_or("unknown");
            // An array has every element.
            let count: u64 = counts.get(&raw, 0).map_or(0, |by_cpu| by_cpu.iter().sum());
            if count > 0 {
                *sums.entry(name).or_default() += count;
            }
        }
        sums
    }

    /// How often the kernel skipped a program because it was already running on that CPU: each is a lost event. 0 on
    /// kernels that do not count this.
    pub fn recursion_misses(&self) -> u64 {
        self.runs().missed
    }
}
