//! BTF tracepoints (tp_btf): the state hook with cookies and direct reads, and the hooks on segments.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context, Result};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf};

use crate::probe::backend::tracepoint;
use crate::probe::declined::Hook;
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

/// A hook on segments that matter for a close. It needs no fentry.
#[derive(Clone, Copy, Debug)]
pub enum SegmentHook {
    /// `tcp_send_reset`, which distinguishes a reset that was sent (data after close) from one that was received.
    ResetSent,
    /// `tcp_receive_reset`, which distinguishes a reset from an error that something else has left in the socket.
    ResetReceived,
    /// `tcp_retransmit_skb`, which counts what is sent again after a FIN.
    Retransmitted,
}

impl SegmentHook {
    /// The program, and its tracepoint.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::ResetSent => ("send_reset", "tcp_send_reset"),
            Self::ResetReceived => ("receive_reset", "tcp_receive_reset"),
            Self::Retransmitted => ("retransmit", "tcp_retransmit_skb"),
        }
    }

    pub const fn tracepoint(self) -> &'static str {
        self.names().1
    }

    pub const fn hook(self) -> Hook {
        match self {
            Self::ResetSent | Self::ResetReceived => Hook::Reset,
            Self::Retransmitted => Hook::Retransmit,
        }
    }

    /// The cost of doing without it.
    pub const fn cost(self) -> &'static str {
        match self {
            Self::ResetSent => "a RST that was sent cannot be distinguished from one received",
            Self::ResetReceived => "an error that was left in a socket can be taken for a reset",
            Self::Retransmitted => "segments that are sent again after a FIN are not counted",
        }
    }
}

/// Loads and attaches a hook on segments.
///
/// # Errors
/// When the kernel has no such tracepoint, or refuses the program.
pub fn attach_to_segments(ebpf: &mut Ebpf, btf: &Btf, hook: SegmentHook) -> Result<OwnedFd> {
    let (name, tracepoint) = hook.names();
    let program = program(ebpf, name)?;
    program.load(tracepoint, btf).map_err(refusal)?;
    program.attach()?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint> {
    Ok(ebpf.program_mut(name).context("no such program")?.try_into()?)
}
