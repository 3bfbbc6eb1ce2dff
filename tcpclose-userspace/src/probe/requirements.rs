//! What this process and this kernel must have before anything is loaded.

use std::path::Path;

use aya::maps::MapType;
use aya::sys::is_map_supported;

use crate::failure::Failure;
use crate::linux::host;
use crate::linux::host::Capability;
use crate::probe::backend::{StateHook, tracepoint};
use crate::probe::errors::{CANNOT_LOAD, lockdown_note, one_line};
use crate::probe::object::OBJECT;
use crate::probe::offsets;
use crate::probe::tracefs;

/// Checks, before anything is loaded, that this process may load the probe and that this kernel has what the state backend
/// `only` needs, or what any needs.
///
/// # Errors
/// Names the first thing that is missing: a capability, the ring buffer, the tracepoint.
pub fn require(only: Option<StateHook>) -> Result<(), Failure> {
    require_object()?;
    require_capabilities()?;
    require_ring_buffer()?;
    require_tracepoint(only)
}

/// build.rs embeds no object where it is told to, and in debug builds without the eBPF toolchain.
fn require_object() -> Result<(), Failure> {
    if OBJECT.is_empty() {
        let todo = "build it with `cargo xtask build`; `tcpclose stuck --no-agent` needs no probe";
        return Err(Failure::new(CANNOT_LOAD, "this binary was built without it", todo));
    }
    Ok(())
}

/// CAP_BPF to load, CAP_PERFMON to attach to a tracepoint and read kernel memory; since 5.8 both are parts of
/// CAP_SYS_ADMIN (include/linux/capability.h, bpf_capable, perfmon_capable). Only those of the first user namespace
/// count.
fn require_capabilities() -> Result<(), Failure> {
    let missing: Vec<&str> = [Capability::Bpf, Capability::Perfmon]
        .into_iter()
        .filter(|&cap| !host::has_cap(cap) && !host::has_cap(Capability::SysAdmin))
        .map(Capability::name)
        .collect();
    if !missing.is_empty() {
        let (missing, them) = (missing.join(" and "), if missing.len() > 1 { "them" } else { "it" });
        return Err(Failure::new(
            CANNOT_LOAD,
            format!("this process lacks {missing}"),
            format!("run it as root or grant {them}; `tcpclose stuck --no-agent` needs none to list sockets"),
        ));
    }
    if host::in_user_namespace() {
        return Err(Failure::new(
            CANNOT_LOAD,
            "CAP_BPF and CAP_PERFMON of a user namespace do not count",
            "run it outside, as the host's root; `tcpclose stuck --no-agent` needs none to list sockets",
        ));
    }
    Ok(())
}

fn require_ring_buffer() -> Result<(), Failure> {
    match is_map_supported(MapType::RingBuf) {
        Ok(false) => Err(Failure::new(
            CANNOT_LOAD,
            "this kernel has no BPF ring buffer",
            "use Linux 5.8 or later; `tcpclose stuck --no-agent` needs no probe",
        )),
        // An unknown answer is no refusal: the load will report one.
        Ok(true) | Err(_) => Ok(()),
    }
}

fn require_tracepoint(only: Option<StateHook>) -> Result<(), Failure> {
    let btf = match Path::new(offsets::VMLINUX).exists() {
        true => Ok(()),
        false => Err(format!("no BTF ({} is missing)", offsets::VMLINUX)),
    };
    let tracepoint = match tracefs::visible(tracefs::has_tracepoint) {
        Ok(true) => Ok(()),
        Ok(false) => Err("no such event in tracefs".to_owned()),
        Err(why) => Err(one_line(&why)),
    }
    .map_err(|why| {
        let lockdown = lockdown_note(&why);
        format!("no tracepoint sock:{} ({why}){lockdown}", tracepoint::NAME)
    });

    let (why, other) = match (only, btf, tracepoint) {
        (None | Some(StateHook::Btf), Ok(()), _) | (None | Some(StateHook::Tracepoint), _, Ok(())) => {
            return Ok(());
        }
        (None, Err(btf), Err(tracepoint)) => (format!("{tracepoint}, and {btf}"), false),
        (Some(StateHook::Btf), Err(btf), other) => (btf, other.is_ok()),
        (Some(StateHook::Tracepoint), other, Err(tracepoint)) => (tracepoint, other.is_ok()),
    };
    let todo = match other {
        true => "try --state-hook auto",
        false => {
            "mount tracefs at /sys/kernel/tracing, or use Linux 5.8 or later with CONFIG_FTRACE or BTF; \
             `tcpclose stuck --no-agent` needs no probe"
        }
    };
    Err(Failure::new("cannot watch TCP states", format!("this kernel shows {why}"), todo))
}
