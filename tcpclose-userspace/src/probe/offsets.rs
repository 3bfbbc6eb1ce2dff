//! Field offsets of the running kernel, from its BTF.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use btf_rs::{Backend, Btf, Member, Type};
use tcpclose_common::control::RESET_REASONS;
use tcpclose_common::layout::Layout;

use crate::linux::netns;

/// The file in which the kernel publishes its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Resolves every offset that the probe reads. This takes some milliseconds and, while it runs, some megabytes: call it
/// once and keep the [`Layout`].
///
/// # Errors
/// When the kernel has no BTF, or when its BTF lacks a field, which the message names: then nothing read from a socket
/// could be trusted.
pub fn resolve() -> Result<Resolved> {
    if !Path::new(VMLINUX).exists() {
        bail!("this kernel has no BTF ({VMLINUX} is missing; CONFIG_DEBUG_INFO_BTF)");
    }
    // Only newer kernels allow to map the BTF of sysfs.
    let btf = Btf::from_file_with_backend(VMLINUX, Backend::Mmap)
        .or_else(|_| Btf::from_bytes(&fs::read(VMLINUX)?))
        .with_context(|| format!("{VMLINUX} cannot be read"))?;
    let (layout, reset_reasons) = (from_btf(&btf)?, reset_reasons(&btf));
    let layout = Layout {
        has_reset_reason: u32::from(!reset_reasons.is_empty()),
        has_retransmit_error: u32::from(has_retransmit_error(&btf)),
        ..layout
    };
    Ok(Resolved { layout, reset_reasons })
}

/// What the kernel's BTF tells.
pub struct Resolved {
    pub layout: Layout,
    /// The names of the reasons that `tcp_send_reset` gives for a RST, by number and in lower case; none where it gives no reason.
    pub reset_reasons: Vec<String>,
}

/// The names in `enum sk_rst_reason`, if `tcp_send_reset` has one as its third argument (since 6.10).
fn reset_reasons(btf: &Btf) -> Vec<String> {
    const PREFIX: &str = "SK_RST_REASON_";
    // The tracepoint's own data comes first.
    const PARAMETERS: usize = 4;
    if parameters(btf, "btf_trace_tcp_send_reset") != Some(PARAMETERS) {
        return Vec::new();
    }
    let mut names = Vec::new();
    for ty in btf.resolve_types_by_name("sk_rst_reason").unwrap_or_default() {
        let Type::Enum(reasons) = ty else { continue };
        for member in &reasons.members {
            let (number, name) = (member.val() as usize, btf.resolve_name(member).unwrap_or_default());
            let name = name.strip_prefix(PREFIX).unwrap_or(&name).to_lowercase();
            // The enumeration ends with its size.
            if number < RESET_REASONS as usize && name != "max" {
                names.resize(names.len().max(number + 1), String::new());
                if let Some(place) = names.get_mut(number) {
                    *place = name;
                }
            }
        }
    }
    names
}

/// Whether `tcp_retransmit_skb` has an error as its third argument (since 6.17).
fn has_retransmit_error(btf: &Btf) -> bool {
    // The tracepoint's own data comes first.
    parameters(btf, "btf_trace_tcp_retransmit_skb") == Some(4)
}

/// The number of parameters of the function that the type `name` points to.
fn parameters(btf: &Btf, name: &str) -> Option<usize> {
    let types = btf.resolve_types_by_name(name).ok()?;
    let typedef = types.into_iter().find_map(|ty| match ty {
        Type::Typedef(typedef) => Some(typedef),
        _ => None,
    })?;
    let Type::Ptr(pointer) = btf.resolve_chained_type(&typedef).ok()? else { return None };
    let Type::FuncProto(function) = btf.resolve_chained_type(&pointer).ok()? else { return None };
    Some(function.parameters.len())
}

fn from_btf(btf: &Btf) -> Result<Layout> {
    let layout = Layout::resolve(|name, path| match field_offset(btf, name, path) {
        // CONFIG_MPTCP (include/linux/tcp.h, since 5.6).
        Err(_) if (name, path) == ("tcp_sock", "is_mptcp") => Ok(0),
        found => found,
    })?;
    Ok(Layout { net_id: net_id(btf)?, ..layout })
}

/// The offset of a field of [`Layout`].
fn field_offset(btf: &Btf, name: &str, path: &str) -> Result<u32> {
    match name {
        // Only stacks need registers.
        "pt_regs" => Ok(register_offset(btf, path).unwrap_or(0)),
        _ => offset(btf, name, path),
    }
}

/// The offset of a register in `struct pt_regs` (arch/*/include/asm/ptrace.h, 5.8 to 6.18), by its name on x86-64; 0 for one
/// that this architecture has not.
fn register_offset(btf: &Btf, name: &str) -> Result<u32> {
    if cfg!(target_arch = "x86_64") {
        return match name {
            "lr" => Ok(0),
            "nr" => offset(btf, "pt_regs", "orig_ax"),
            name => offset(btf, "pt_regs", name),
        };
    }
    if !cfg!(target_arch = "aarch64") {
        bail!("the registers of this architecture are not known");
    }
    // `regs[31]`: x29 is the frame pointer, x30 the link register.
    let of_number = |number: u32| Ok(offset(btf, "pt_regs", "regs")? + 8 * number);
    match name {
        "ip" => offset(btf, "pt_regs", "pc"),
        "bp" => of_number(29),
        "lr" => of_number(30),
        "nr" => offset(btf, "pt_regs", "syscallno"),
        name => offset(btf, "pt_regs", name),
    }
}

/// The offset of the 32 bits that identify a namespace: records and dumps must name the same number.
fn net_id(btf: &Btf) -> Result<u32> {
    const LOW_HALF: u32 = if cfg!(target_endian = "big") { 4 } else { 0 };
    match offset(btf, "net", "net_cookie") {
        Ok(cookie) if netns::has_cookies() => Ok(cookie + LOW_HALF),
        Ok(_) | Err(_) => offset(btf, "net", "ns.inum"),
    }
}

/// The offset of the field at `path` in `struct name`, both as in [`Layout`].
fn offset(btf: &Btf, name: &str, path: &str) -> Result<u32> {
    let (path, width) = match path.split_once(':') {
        Some((path, width)) => (path, Some(width.parse::<u32>()?)),
        None => (path, None),
    };
    let missing = || anyhow!("this kernel's BTF has no {path} in struct {name}");
    let mut here = btf
        .resolve_types_by_name(name)
        .map_err(|_| missing())?
        .into_iter()
        .find(|ty| matches!(ty, Type::Struct(_)))
        .ok_or_else(missing)?;
    let mut bits = 0;
    for field in path.split('.') {
        let (at, ty) = member(btf, &here, field)?.ok_or_else(missing)?;
        bits += at;
        here = ty;
    }
    if let Some(width) = width {
        let (byte, first) = (bits / 8, bits % 8);
        if first + width > 8 {
            bail!("{path} of struct {name} is in two bytes in this kernel's BTF");
        }
        // Bits are counted from the most significant one on a big-endian machine (include/uapi/linux/btf.h,
        // BTF_MEMBER_BIT_OFFSET).
        let less = if cfg!(target_endian = "big") { 8 - first - width } else { first };
        return Ok(8 * byte + less);
    }
    if bits % 8 != 0 {
        bail!("{path} of struct {name} is a bit field in this kernel's BTF");
    }
    Ok(bits / 8)
}

/// The bit offset and type (without typedefs and qualifiers) of `field` among the members of `ty` and of its unnamed structs
/// and unions.
fn member(btf: &Btf, ty: &Type, field: &str) -> Result<Option<(u32, Type)>> {
    let (Type::Struct(ty) | Type::Union(ty)) = ty else { return Ok(None) };
    for m in &ty.members {
        let name = btf.resolve_name(m).unwrap_or_default();
        if name == field {
            return Ok(Some((m.bit_offset(), strip(btf, m)?)));
        }
        if name.is_empty()
            && let Some((at, found)) = member(btf, &strip(btf, m)?, field)?
        {
            return Ok(Some((m.bit_offset() + at, found)));
        }
    }
    Ok(None)
}

/// The type of a member without its typedefs and qualifiers.
fn strip(btf: &Btf, m: &Member) -> Result<Type> {
    let mut ty = btf.resolve_chained_type(m)?;
    loop {
        ty = match &ty {
            Type::Typedef(t) => btf.resolve_chained_type(t)?,
            Type::Const(t) => btf.resolve_chained_type(t)?,
            Type::Volatile(t) => btf.resolve_chained_type(t)?,
            Type::TypeTag(t) => btf.resolve_chained_type(t)?,
            _ => return Ok(ty),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_every_field() {
        if !Path::new(VMLINUX).exists() {
            eprintln!("SKIPPED: this kernel has no BTF");
            return;
        }
        let Resolved { layout, reset_reasons } = resolve().unwrap();
        // Since 6.10.
        if layout.has_reset_reason == 1 {
            assert_eq!(reset_reasons.first().map(String::as_str), Some("not_specified"));
            assert!(reset_reasons.iter().any(|name| name == "tcp_abort_on_data"), "{reset_reasons:?}");
        }
        // struct sock_common has begun with the address pair since it exists, and skc_family has stood at 16 in
        // every kernel of the range (include/net/sock.h).
        assert_eq!((layout.skc_daddr, layout.skc_rcv_saddr), (0, 4));
        assert_eq!(layout.skc_dport, 12);
        assert_eq!(layout.skc_family, 16);
        assert_eq!(layout.skc_v6_rcv_saddr, layout.skc_v6_daddr + 16);
        assert!(layout.inet_sport > layout.sk_protocol);
        // skc_state is one byte, and skc_reuse is in the next.
        assert_eq!(layout.skc_reuse / 8, layout.skc_state + 1);
    }

    #[test]
    fn a_missing_field_is_named() {
        if !Path::new(VMLINUX).exists() {
            return;
        }
        let btf = Btf::from_file(VMLINUX).unwrap();
        let error = offset(&btf, "sock", "sk_lock.banana").unwrap_err().to_string();
        assert_eq!(error, "this kernel's BTF has no sk_lock.banana in struct sock");
        assert!(offset(&btf, "no_such_struct", "x").is_err());
    }
}
