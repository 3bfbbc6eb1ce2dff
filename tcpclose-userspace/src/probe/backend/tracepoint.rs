//! The classic tracepoint: the state hook of kernels without BTF tracepoints.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::TracePoint;

use crate::probe::errors::refusal;
use crate::probe::tracefs;

/// The tracepoint of the state hook, here and in [`super::tp_btf`].
pub const NAME: &str = "inet_sock_set_state";

/// Loads and attaches the state hook.
///
/// # Errors
/// When tracefs cannot be read, or the kernel refuses the program.
pub fn attach(ebpf: &mut Ebpf) -> Result<OwnedFd> {
    tracefs::visible(|| attach_here(ebpf)).and_then(|done| done)
}

fn attach_here(ebpf: &mut Ebpf) -> Result<OwnedFd> {
    let program: &mut TracePoint =
        ebpf.program_mut("set_state_tracepoint").context("no such program")?.try_into()?;
    program.load().map_err(refusal)?;
    program.attach("sock", NAME)?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}
