//! Loads the probe and attaches it: the best backend of each hook that this kernel takes.

use std::io;
use std::os::fd::OwnedFd;

use anyhow::Result;
use aya::{Btf, Ebpf, EbpfLoader, GlobalData, Pod};
use log::LevelFilter;
use tcpclose_common::layout::{Layout, RecordLayout};

use crate::failure::Failure;
use crate::linux::host;
use crate::names::HookCoverage;
use crate::probe::backend::fentry::Minisockets;
use crate::probe::backend::stacks::StackHook;
use crate::probe::backend::tp_btf::SegmentHook;
use crate::probe::backend::{OwnersHook, StateHook, TimeWaitHook, fentry, task_file, tp_btf, tracepoint};
use crate::probe::declined::{DeclinedHooks, Hook};
use crate::probe::errors::{cannot_load, one_line};
use crate::probe::object::OBJECT;
use crate::probe::offsets;
use crate::probe::offsets::Resolved;
use crate::probe::ring::Ring;
use crate::probe::running::Probe;

/// How the probe is to be attached. A hook without a backend of its choice takes the best one that loads.
#[derive(Clone, Copy, Debug)]
pub struct Builder {
    pub state: Option<StateHook>,
    pub time_wait: Option<TimeWaitHook>,
    pub owners: Option<OwnersHook>,
    /// Whether to load the programs that take user stacks.
    pub stacks: bool,
    /// In bytes: a power of two, a page of this kernel or more.
    pub ring_size: u32,
    /// The log level of the whole agent. The probe logs at debug (a lost record) and trace (each step).
    pub log_level: LevelFilter,
}

impl Builder {
    /// Loads and attaches the probe. [`require`](crate::probe::require) must have succeeded.
    ///
    /// The minisocket hooks are attached before the state hook, so that no minisocket is created unseen for a socket whose
    /// →CLOSE is seen. Which of them are wanted depends on the state backend, which is known once that is loaded.
    ///
    /// # Errors
    /// When the kernel refuses the object, or no backend of a hook loads.
    pub fn attach(self) -> Result<Probe, Failure> {
        let mut declined = DeclinedHooks::default();
        let Resolved { layout, reset_reasons } = offsets::resolve().unwrap_or_else(|why| {
            declined.push(Hook::State, format!("reading socket fields: {why:#}"));
            Resolved { layout: Layout::default(), reset_reasons: Vec::new() }
        });
        // As long as this process: the probe is loaded once.
        let reset_reasons: &'static [&'static str] =
            reset_reasons.into_iter().map(|name| &*name.leak()).collect::<Vec<_>>().leak();
        let reads_fields = layout.resolved != 0;
        let btf = if reads_fields { Btf::from_sys_fs().ok() } else { None };
        let record = tracepoint::RecordSource::read();
        let mut ebpf = self.load(btf.as_ref(), &layout, &record.layout()).map_err(|why| cannot_load(&why))?;

        let loaded_btf = self.load_state(&mut ebpf, btf.as_ref(), &mut declined);
        let mut programs = Vec::new();
        let segments = [SegmentHook::ResetSent, SegmentHook::ResetReceived, SegmentHook::Retransmitted];
        let [resets, received_resets, _] = segments.map(|hook| match &btf {
            Some(btf) => attach_to_segments(&mut ebpf, btf, hook, &mut programs, &mut declined),
            None => false,
        });
        let minisockets =
            self.attach_minisockets(&mut ebpf, btf.as_ref(), loaded_btf, &mut programs, &mut declined)?;
        let since_ns = host::monotonic_ns();
        let (hook, program) = self.attach_state(&mut ebpf, loaded_btf, &record, &mut declined)?;
        let owners = self.load_owners(&mut ebpf, btf.as_ref(), &mut declined)?;
        let stacks =
            if self.stacks { StackHook::load(&mut ebpf, btf.as_ref(), &layout, &mut declined) } else { None };
        let ring = Ring::take(&mut ebpf).map_err(|why| cannot_load(&why))?;
        programs.push(program);
        let (time_wait, births, links) = match minisockets {
            Some(Minisockets { births, links }) => (TimeWaitHook::Hooks, births, links),
            None => (TimeWaitHook::Diag, false, None),
        };
        let lives = time_wait == TimeWaitHook::Hooks;
        Ok(Probe {
            hook,
            reads_fields,
            time_wait,
            owners,
            declined,
            coverage: HookCoverage { births, ends: lives, resets, received_resets, reset_reasons, since_ns },
            ring,
            stacks,
            programs,
            ebpf,
            _links: links,
        })
    }

    fn load(&self, btf: Option<&Btf>, layout: &Layout, record: &RecordLayout) -> Result<Ebpf> {
        raise_memlock();
        let (layout, record) = (LayoutGlobal(*layout), RecordGlobal(*record));
        let level = probe_level(self.log_level);
        let mut loader = EbpfLoader::new();
        loader
            .btf(btf)
            .override_global("LAYOUT", GlobalData::from(&layout), true)
            .override_global("RECORD", GlobalData::from(&record), true)
            .override_global(aya_log::LEVEL, GlobalData::from(&level), false)
            .map_max_entries("EVENTS", self.ring_size);
        if !self.stacks {
            // The kernel makes every map of the object.
            loader.map_max_entries("STACKS", 1);
        }
        Ok(loader.load(OBJECT)?)
    }

    /// Loads the tp_btf backend of the state hook. Returns whether it is loaded.
    fn load_state(&self, ebpf: &mut Ebpf, btf: Option<&Btf>, declined: &mut DeclinedHooks) -> bool {
        if self.state == Some(StateHook::Tracepoint) {
            return false;
        }
        let loaded = tp_btf::load(ebpf, btf);
        if let Err(why) = &loaded {
            declined.push(Hook::State, format!("state hook btf: {}", one_line(why)));
        }
        loaded.is_ok()
    }

    /// Attaches the hooks on minisockets. `None`: none is in use.
    fn attach_minisockets(
        &self,
        ebpf: &mut Ebpf,
        btf: Option<&Btf>,
        by_cookie: bool,
        programs: &mut Vec<OwnedFd>,
        declined: &mut DeclinedHooks,
    ) -> Result<Option<Minisockets>, Failure> {
        if self.time_wait == Some(TimeWaitHook::Diag) {
            return Ok(None);
        }
        let attached = match btf {
            Some(btf) => fentry::attach(ebpf, btf, by_cookie, programs, declined),
            None => {
                declined.push(Hook::TimeWait, "hooks: this kernel has no BTF");
                None
            }
        };
        if attached.is_none() && self.time_wait == Some(TimeWaitHook::Hooks) {
            let first = declined.of(Hook::TimeWait).next();
            let why = first.map_or("none loads", |declined| declined.reason.as_str());
            let todo = "try --time-wait auto or diag";
            return Err(Failure::new("no TIME-WAIT hook can be attached", why, todo));
        }
        Ok(attached)
    }

    /// Attaches the state hook: by tp_btf where that is loaded, else by the classic tracepoint.
    fn attach_state(
        &self,
        ebpf: &mut Ebpf,
        loaded_btf: bool,
        record: &tracepoint::RecordSource,
        declined: &mut DeclinedHooks,
    ) -> Result<(StateHook, OwnedFd), Failure> {
        if loaded_btf {
            match tp_btf::attach(ebpf) {
                Ok(program) => return Ok((StateHook::Btf, program)),
                Err(why) => declined.push(Hook::State, format!("state hook btf: {}", one_line(&why))),
            }
        }
        if self.state != Some(StateHook::Btf) {
            match tracepoint::attach(ebpf, record) {
                Ok(program) => {
                    if let Some(assumption) = record.assumption() {
                        declined.push(Hook::State, assumption);
                    }
                    return Ok((StateHook::Tracepoint, program));
                }
                Err(why) => declined.push(Hook::State, format!("state hook tracepoint: {}", one_line(&why))),
            }
        }
        let todo = match self.state {
            Some(_) => "try --state-hook auto, or `tcpclose stuck --no-agent` for a snapshot",
            None => "try `tcpclose stuck --no-agent` for a snapshot",
        };
        Err(Failure::new("no state hook can be attached", declined.joined(Hook::State), todo))
    }

    /// Loads the iterator over files, and returns the backend for owners.
    fn load_owners(
        &self,
        ebpf: &mut Ebpf,
        btf: Option<&Btf>,
        declined: &mut DeclinedHooks,
    ) -> Result<OwnersHook, Failure> {
        if self.owners == Some(OwnersHook::Proc) {
            return Ok(OwnersHook::Proc);
        }
        match (task_file::load(ebpf, btf), self.owners) {
            (Ok(()), _) => Ok(OwnersHook::TaskFile),
            (Err(why), None) => {
                declined.push(Hook::Owners, format!("owners task_file: {}", one_line(&why)));
                Ok(OwnersHook::Proc)
            }
            (Err(why), Some(_)) => {
                let todo = "try --owners auto or proc";
                Err(Failure::new("no iterator over files can be loaded", one_line(&why), todo))
            }
        }
    }
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct LayoutGlobal(Layout);

// SAFETY: repr(transparent) over a repr(C) struct of u32 without padding; every bit pattern is a value.
unsafe impl Pod for LayoutGlobal {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct RecordGlobal(RecordLayout);

// SAFETY: as for LayoutGlobal.
unsafe impl Pod for RecordGlobal {}

/// Attaches a hook on segments. Returns whether it is in use.
fn attach_to_segments(
    ebpf: &mut Ebpf,
    btf: &Btf,
    hook: SegmentHook,
    programs: &mut Vec<OwnedFd>,
    declined: &mut DeclinedHooks,
) -> bool {
    match tp_btf::attach_to_segments(ebpf, btf, hook) {
        Ok(program) => {
            programs.push(program);
            true
        }
        Err(why) => {
            declined.push(hook.hook(), format!("{}: {why:#}: {}", hook.tracepoint(), hook.cost()));
            false
        }
    }
}

/// The probe's log level: off unless the agent logs more than warnings, since logging a record costs many times what sending
/// it does.
const fn probe_level(level: LevelFilter) -> u8 {
    match level {
        LevelFilter::Trace => aya_log::Level::Trace as u8,
        LevelFilter::Debug => aya_log::Level::Debug as u8,
        _ => 0,
    }
}

/// Below 5.11 the kernel charges maps to RLIMIT_MEMLOCK. A refusal is no error: a newer kernel does not ask.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let unlimited = Rlimit { current: None, maximum: None };
    if let Err(why) = setrlimit(Resource::Memlock, unlimited) {
        log::debug!("RLIMIT_MEMLOCK is not raised: {}", io::Error::from(why));
    }
}
