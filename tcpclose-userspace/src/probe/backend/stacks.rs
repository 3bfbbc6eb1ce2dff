//! The programs that take user stacks of armed processes. They are loaded at the start, while the agent has the privilege to,
//! and attached only while a process is armed.

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::BtfTracePoint;
use aya::programs::tp_btf::BtfTracePointLink;
use aya::{Btf, Ebpf, Pod};
use tcpclose_common::layout::Layout;
use tcpclose_common::stack::{Moment, StackKey, StackRecord, counter};

use crate::probe::backend::task_file;
use crate::probe::declined::{DeclinedHooks, Hook};
use crate::probe::errors::{one_line, refusal};

/// A program, and its tracepoint.
struct StackAttachment {
    program: &'static str,
    tracepoint: &'static str,
    takes: Moment,
}

/// Attached while a process is armed.
const ATTACHMENTS: [StackAttachment; 3] = [
    StackAttachment { program: "stack_opened", tracepoint: "inet_sock_set_state", takes: Moment::Opened },
    StackAttachment { program: "stack_received", tracepoint: "sock_recv_length", takes: Moment::EndRead },
    StackAttachment { program: "stack_sent", tracepoint: "sock_send_length", takes: Moment::Written },
];

/// Attached while somebody asks for what a process accepts: it runs at the end of each system call of the host, and the kernel takes a
/// slower path for all of them.
const ACCEPTED: StackAttachment =
    StackAttachment { program: "stack_accepted", tracepoint: "sys_exit", takes: Moment::Accepted };

/// The numbers of accept() and accept4(); `None` on architectures on which stacks are not taken.
const ACCEPT_CALLS: Option<(u32, u32)> = if cfg!(target_arch = "x86_64") {
    Some((43, 288))
} else if cfg!(target_arch = "aarch64") {
    Some((202, 242))
} else {
    None
};

/// Stacks that the probe took, and those that did not fit, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackCounts {
    pub taken: u64,
    pub full: u64,
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct KeyPod(StackKey);

// SAFETY: repr(transparent) over repr(C) integers without padding; every bit pattern is a value.
unsafe impl Pod for KeyPod {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct RecordPod(StackRecord);

// SAFETY: as for KeyPod.
unsafe impl Pod for RecordPod {}

/// The programs that are loaded, and their maps.
pub struct StackHook {
    loaded: Vec<&'static StackAttachment>,
    links: Vec<BtfTracePointLink>,
    /// While somebody asks for what a process accepts.
    accept_link: Option<BtfTracePointLink>,
    armed: HashMap<MapData, u32, u32>,
    accepting: HashMap<MapData, u32, u64>,
    stacks: HashMap<MapData, KeyPod, RecordPod>,
    counts: PerCpuArray<MapData, u64>,
}

impl StackHook {
    /// Loads the programs that this kernel takes. `None`: none of them; what is refused is added to `declined`.
    pub fn load(
        ebpf: &mut Ebpf,
        btf: Option<&Btf>,
        layout: &Layout,
        declined: &mut DeclinedHooks,
    ) -> Option<Self> {
        let loaded = load(ebpf, btf, layout, declined);
        if loaded.is_empty() {
            return None;
        }
        Self::with_maps(ebpf, loaded)
            .inspect_err(|why| declined.push(Hook::Stacks, format!("stacks: {}", one_line(why))))
            .ok()
    }

    fn with_maps(ebpf: &mut Ebpf, loaded: Vec<&'static StackAttachment>) -> Result<Self> {
        let mut map = |name: &'static str| -> Result<Map> {
            ebpf.take_map(name).with_context(|| format!("no map {name}"))
        };
        Ok(Self {
            loaded,
            links: Vec::new(),
            accept_link: None,
            armed: HashMap::try_from(map("ARMED")?)?,
            accepting: HashMap::try_from(map("ACCEPTING")?)?,
            stacks: HashMap::try_from(map("STACKS")?)?,
            counts: PerCpuArray::try_from(map("STACK_COUNTS")?)?,
        })
    }

    /// Whether stacks of this moment are taken.
    pub fn takes(&self, moment: Moment) -> bool {
        self.loaded.iter().any(|at| at.takes == moment)
    }

    /// Arms a process, and attaches the programs for the first one.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn arm(&mut self, ebpf: &mut Ebpf, pid: u32) -> Result<()> {
        self.armed.insert(pid, 1, 0).context("too many armed processes")?;
        if self.links.is_empty() {
            let attached: Result<Vec<BtfTracePointLink>> = self
                .loaded
                .iter()
                .filter(|at| at.takes != Moment::Accepted)
                .map(|at| attach(ebpf, at.program))
                .collect();
            match attached {
                Ok(links) => self.links = links,
                Err(why) => {
                    let _ = self.armed.remove(&pid);
                    return Err(why);
                }
            }
        }
        Ok(())
    }

    /// Takes stacks of what an armed process accepts, too.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn arm_accept(&mut self, ebpf: &mut Ebpf, pid: u32) -> Result<()> {
        if !self.takes(Moment::Accepted) {
            bail!("the program that sees accept() is not loaded");
        }
        let (accept, accept4) =
            ACCEPT_CALLS.context("the system calls of this architecture are not known")?;
        let numbers = u64::from(accept4) << 32 | u64::from(accept);
        self.accepting.insert(pid, numbers, 0).context("too many processes")?;
        if self.accept_link.is_none() {
            match attach(ebpf, ACCEPTED.program) {
                Ok(link) => self.accept_link = Some(link),
                Err(why) => {
                    let _ = self.accepting.remove(&pid);
                    return Err(why);
                }
            }
        }
        Ok(())
    }

    /// Takes no more stacks of what a process accepts; after the last one that program is detached.
    pub fn disarm_accept(&mut self, pid: u32) {
        let _ = self.accepting.remove(&pid);
        if self.accepting.keys().next().is_none() {
            self.accept_link = None;
        }
    }

    /// Disarms a process; after the last one the programs are detached and all stacks are dropped.
    pub fn disarm(&mut self, pid: u32) {
        self.disarm_accept(pid);
        let _ = self.armed.remove(&pid);
        if self.armed.keys().next().is_none() {
            self.links.clear();
            let keys: Vec<KeyPod> = self.stacks.keys().filter_map(Result::ok).collect();
            for key in keys {
                let _ = self.stacks.remove(&key);
            }
        }
    }

    /// The keys of all stacks in the kernel.
    pub fn keys(&self) -> Vec<StackKey> {
        self.stacks.keys().filter_map(Result::ok).map(|key| key.0).collect()
    }

    /// A stack; `None` if its socket was closed meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn get(&self, key: StackKey) -> Result<Option<StackRecord>> {
        match self.stacks.get(&KeyPod(key), 0) {
            Ok(record) => Ok(Some(record.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(why) => Err(why.into()),
        }
    }

    /// Drops a stack, to make room.
    pub fn remove(&mut self, key: StackKey) {
        let _ = self.stacks.remove(&KeyPod(key));
    }

    pub fn counts(&self) -> StackCounts {
        let sum = |which| self.counts.get(&which, 0).map_or(0, |all| all.iter().sum());
        StackCounts { taken: sum(counter::TAKEN), full: sum(counter::FULL) }
    }
}

fn load(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    layout: &Layout,
    declined: &mut DeclinedHooks,
) -> Vec<&'static StackAttachment> {
    let Some(btf) = btf else {
        declined.push(Hook::Stacks, "stacks: this kernel has no BTF");
        return Vec::new();
    };
    // No register is first in struct pt_regs on x86-64 and arm64.
    if layout.regs_sp == 0 || layout.regs_nr == 0 {
        declined
            .push(Hook::Stacks, "stacks: struct pt_regs of this kernel is not known (x86-64 and arm64 only)");
        return Vec::new();
    }
    if let Err(why) = task_file::require_first_pid_namespace() {
        declined.push(Hook::Stacks, format!("stacks: {}", one_line(&why)));
        return Vec::new();
    }
    let mut loaded = Vec::new();
    for at in ATTACHMENTS.iter().chain([&ACCEPTED]) {
        let done =
            program(ebpf, at.program).and_then(|program| program.load(at.tracepoint, btf).map_err(refusal));
        match done {
            Ok(()) => loaded.push(at),
            Err(why) => {
                declined.push(Hook::Stacks, format!("stacks at {}: {}", at.tracepoint, one_line(&why)))
            }
        }
    }
    loaded
}

fn attach(ebpf: &mut Ebpf, name: &str) -> Result<BtfTracePointLink> {
    let program = program(ebpf, name)?;
    let link = program.attach()?;
    Ok(program.take_link(link)?)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint> {
    Ok(ebpf.program_mut(name).context("no such program")?.try_into()?)
}
