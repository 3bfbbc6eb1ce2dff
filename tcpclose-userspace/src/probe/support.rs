//! Whether this kernel lets this process load what the probe consists of, for `tcpclose doctor`.

use aya::Btf;
use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};

use crate::probe::backend::task_file;

/// Whether a ring buffer can be made.
///
/// # Errors
/// Why that is unknown.
pub fn ring_buffer() -> Result<bool, String> {
    is_map_supported(MapType::RingBuf).map_err(|why| in_words(&why))
}

/// Whether an fentry program can be loaded.
///
/// # Errors
/// Why that is unknown.
pub fn fentry() -> Result<bool, String> {
    is_program_supported(ProgramType::Tracing).map_err(|why| in_words(&why))
}

/// Whether the kernel's BTF can be read.
///
/// # Errors
/// Why not.
pub fn btf() -> Result<(), String> {
    Btf::from_sys_fs().map(drop).map_err(|why| in_words(&why))
}

/// Whether user stacks can be taken here.
///
/// # Errors
/// Why not.
pub fn stacks() -> Result<(), String> {
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return Err("the registers of this architecture are not known".to_owned());
    }
    task_file::require_first_pid_namespace().map_err(|why| format!("{why:#}"))
}

/// The last of the causes of `why`: the kernel's.
fn in_words(why: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(why), |why| why.source());
    causes.last().map_or_else(|| why.to_string(), ToString::to_string)
}
