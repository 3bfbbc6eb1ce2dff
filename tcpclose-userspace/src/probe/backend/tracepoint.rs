//! The classic tracepoint: the state hook of kernels without BTF tracepoints.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::programs::TracePoint;
use tcpclose_common::layout::RecordLayout;

use crate::probe::errors::{lockdown_note, one_line, refusal};
use crate::probe::record_format::{self, FormatError};
use crate::probe::tracefs;

/// The tracepoint of the state hook, here and in [`super::tp_btf`].
pub const NAME: &str = "inet_sock_set_state";

/// How the program is to read the tracepoint's record.
#[derive(Debug)]
pub enum RecordSource {
    /// As tracefs tells.
    Read(RecordLayout),
    /// As in mainline, since tracefs cannot be read.
    Assumed(String),
    /// Not at all: tracefs tells of a record that it cannot read.
    Refused(FormatError),
}

impl RecordSource {
    /// Reads the tracepoint's format.
    pub fn read() -> Self {
        let format = tracefs::visible(|| tracefs::format().with_context(|| tracefs::FORMAT.to_owned()));
        match format.and_then(|read| read) {
            Ok(format) => record_format::parse(&format).map_or_else(Self::Refused, Self::Read),
            Err(why) => {
                let why = one_line(&why);
                let lockdown = lockdown_note(&why);
                Self::Assumed(why + lockdown)
            }
        }
    }

    pub fn layout(&self) -> RecordLayout {
        match self {
            Self::Read(layout) => *layout,
            Self::Assumed(_) | Self::Refused(_) => RecordLayout::MAINLINE,
        }
    }

    /// Why the tracepoint cannot be used.
    fn refusal(&self) -> Option<anyhow::Error> {
        let Self::Refused(why) = self else { return None };
        Some(anyhow!("{why}: this version cannot read the records of sock:{NAME}"))
    }

    /// What was assumed of it, and why.
    pub fn assumption(&self) -> Option<String> {
        let Self::Assumed(why) = self else { return None };
        Some(format!("the tracepoint's own offsets (mainline's are assumed): {why}"))
    }
}

/// Loads and attaches the state hook. `record`: what the program was loaded for.
///
/// # Errors
/// When tracefs cannot be read, its record has another form, or the kernel refuses the program.
pub fn attach(ebpf: &mut Ebpf, record: &RecordSource) -> Result<OwnedFd> {
    if let Some(refusal) = record.refusal() {
        return Err(refusal);
    }
    tracefs::visible(|| attach_here(ebpf)).and_then(|done| done)
}

fn attach_here(ebpf: &mut Ebpf) -> Result<OwnedFd> {
    let program: &mut TracePoint =
        ebpf.program_mut("set_state_tracepoint").context("no such program")?.try_into()?;
    program.load().map_err(refusal)?;
    program.attach("sock", NAME)?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}
