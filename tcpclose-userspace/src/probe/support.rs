//! Whether this kernel lets this process load what the probe consists of, for `tcpclose doctor`.

use aya::Btf;
use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};

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

/// The last of the causes of `why`: the kernel's.
fn in_words(why: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(why), |why| why.source());
    causes.last().map_or_else(|| why.to_string(), ToString::to_string)
}
