//! The floors: programs that do as little as a monitor could, attached by this process.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::{PerCpuArray, RingBuf};
use aya::programs::Program;
use aya::{Btf, Ebpf, EbpfLoader, GlobalData, Pod};
use tcpclose::linux::host;
use tcpclose::probe::{offsets, tracefs};
use tcpclose_common::layout::Layout;

/// As the agent's while records come.
const DRAIN: Duration = Duration::from_millis(20);

#[derive(Clone, Copy)]
#[repr(transparent)]
struct LayoutGlobal(Layout);

// SAFETY: repr(transparent) over a repr(C) struct of u32 without padding; every bit pattern is a value.
unsafe impl Pod for LayoutGlobal {}

/// A program of the object `floor`, attached until dropped.
pub struct Floor {
    ebpf: Ebpf,
    drainer: Option<Drainer>,
}

struct Drainer {
    stop: Arc<AtomicBool>,
    /// Records taken, and the CPU time that it took.
    thread: JoinHandle<(u64, Duration)>,
}

impl Floor {
    /// Attaches `program` of the object at `object`; if it makes records, something drains them.
    pub fn attach(object: &Path, program: &str) -> Result<Self> {
        let layout = LayoutGlobal(offsets::resolve()?.layout);
        let btf = Btf::from_sys_fs()?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("LAYOUT", GlobalData::from(&layout), true)
            .load_file(object)
            .with_context(|| format!("{} does not load", object.display()))?;
        match ebpf.program_mut(program).context("no such program")? {
            Program::BtfTracePoint(program) => {
                program.load("inet_sock_set_state", &btf)?;
                program.attach()?;
            }
            Program::TracePoint(program) => {
                program.load()?;
                let attached = tracefs::visible(|| program.attach("sock", "inet_sock_set_state"));
                attached.context("no tracefs")??;
            }
            _ => bail!("{program} is no tracepoint's"),
        }
        let ring = if program.starts_with("record") { ebpf.take_map("EVENTS") } else { None };
        let drainer = ring.map(|ring| anyhow::Ok(Drainer::start(RingBuf::try_from(ring)?))).transpose()?;
        Ok(Self { ebpf, drainer })
    }

    /// Detaches. Records taken, lost, and the CPU time of taking them.
    pub fn end(mut self) -> Result<(u64, u64, Duration)> {
        let Some(Drainer { stop, thread }) = self.drainer.take() else { return Ok((0, 0, Duration::ZERO)) };
        stop.store(true, Ordering::Relaxed);
        let (taken, cpu) = thread.join().map_err(|_| anyhow::anyhow!("the drainer died"))?;
        let lost: PerCpuArray<_, u64> = PerCpuArray::try_from(self.ebpf.map("LOST").context("no LOST")?)?;
        Ok((taken, lost.get(&0, 0)?.iter().sum(), cpu))
    }
}

impl Drainer {
    fn start(mut ring: RingBuf<aya::maps::MapData>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let reported = Arc::clone(&stop);
        let thread = spawn(move || {
            let before = host::thread_cpu_ns();
            let mut taken = 0;
            loop {
                let last = reported.load(Ordering::Relaxed);
                while let Some(record) = ring.next() {
                    std::hint::black_box(&*record);
                    taken += 1;
                }
                if last {
                    return (taken, Duration::from_nanos(host::thread_cpu_ns() - before));
                }
                sleep(DRAIN);
            }
        });
        Self { stop, thread }
    }
}
