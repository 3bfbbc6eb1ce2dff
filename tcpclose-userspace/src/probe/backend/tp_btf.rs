//! BTF tracepoints (tp_btf): the state hook with cookies and direct reads, and the hook on resets that are sent.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context, Result};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf};

use crate::probe::backend::tracepoint;
use crate::probe::errors::refusal;

/// Loads the state hook; [`attach`] starts it.
///
/// # Errors
/// When this kernel has no BTF, or refuses the program.
pub fn load(ebpf: &mut Ebpf, btf: Option<&Btf>) -> Result<()> {
    let btf = btf.context("this kernel has no BTF")?;
    program(ebpf, "set_state_btf")?.load(tracepoint::NAME, btf).map_err(refusal)
}

/// Attaches the loaded state hook.
///
/// # Errors
/// When the kernel refuses that.
pub fn attach(ebpf: &mut Ebpf) -> Result<OwnedFd> {
    let program = program(ebpf, "set_state_btf")?;
    program.attach()?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

/// Loads and attaches the hook on `tcp_send_reset`, which distinguishes a reset that was sent (data after close) from one
/// that was received. It needs no fentry.
///
/// # Errors
/// When the kernel has no such tracepoint, or refuses the program.
pub fn attach_resets(ebpf: &mut Ebpf, btf: &Btf) -> Result<OwnedFd> {
    let program = program(ebpf, "send_reset")?;
    program.load("tcp_send_reset", btf).map_err(refusal)?;
    program.attach()?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint> {
    Ok(ebpf.program_mut(name).context("no such program")?.try_into()?)
}
