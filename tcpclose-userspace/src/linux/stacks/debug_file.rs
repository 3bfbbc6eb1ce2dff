//! Finds the file with the debugging information of a stripped one: by its build id, or by the name and checksum in
//! `.gnu_debuglink`; below the process's root, and below this host's.
//!
//! The library that names functions would follow these links as well, to wherever a process's file says. So it is never shown a file
//! that says so, unless root owns it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::linux::stacks::module::{DebugFile, Module};
use crate::linux::stacks::root::{open_below, root_of};

/// Where debugging information is installed.
const INSTALLED: &str = "/usr/lib/debug";
/// The most bytes that are read for a checksum.
const LARGEST: u64 = 256 << 20;

/// Finds the debugging information of `module`, which the process with this root has mapped from `path`.
pub fn find(module: &Module, path: &str, root: &OwnedFd) -> Option<DebugFile> {
    if module.has_debug {
        return None;
    }
    let installed = module.build_id.as_deref().and_then(by_build_id);
    let named = module.debug_link.as_ref().map_or_else(Vec::new, |(name, _)| by_name(name, path));
    let found =
        |root: &OwnedFd, path: &String| open_below(root, path).ok().and_then(|file| checked(module, file));
    // Beside the file itself only the process's own root has it.
    if let Some(found) = installed.iter().chain(&named).find_map(|path| found(root, path)) {
        return Some(DebugFile { module: found, is_trusted: false });
    }
    let host = root_of(1).or_else(|_| root_of(std::process::id())).ok()?;
    let named = named.iter().filter(|path| path.starts_with(INSTALLED));
    let found = installed.iter().chain(named).find_map(|path| found(&host, path))?;
    let is_trusted = found.file().metadata().is_ok_and(|of| of.uid() == 0);
    Some(DebugFile { module: found, is_trusted })
}

/// The path of a build id, as distributions install it.
fn by_build_id(build_id: &str) -> Option<String> {
    let (first, rest) = build_id.split_at_checked(2).filter(|(_, rest)| rest.len() >= 6)?;
    Some(format!("{INSTALLED}/.build-id/{first}/{rest}.debug"))
}

/// The paths of a name in `.gnu_debuglink`, which must be no path.
fn by_name(name: &str, path: &str) -> Vec<String> {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let Some((folder, own)) = path.rsplit_once('/') else { return Vec::new() };
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Vec::new();
    }
    let beside = (name != own).then(|| format!("{folder}/{name}"));
    let others = [format!("{folder}/.debug/{name}"), format!("{INSTALLED}{folder}/{name}")];
    beside.into_iter().chain(others).collect()
}

/// A candidate, if it is the one: the build ids are the same, or it has the checksum of the link.
fn checked(module: &Module, file: File) -> Option<Box<Module>> {
    let found = Module::read(file, 0).ok()?;
    let is_it = match (&module.build_id, &found.build_id, &module.debug_link) {
        (Some(wanted), Some(has), _) => wanted == has,
        (_, _, Some((_, wanted))) => crc(found.file()) == Some(*wanted),
        _ => false,
    };
    is_it.then(|| Box::new(found))
}

fn crc(file: &File) -> Option<u32> {
    if file.metadata().ok()?.len() > LARGEST {
        return None;
    }
    let mut hasher = crc32fast::Hasher::new();
    let mut bytes = vec![0; 1 << 16];
    let mut at = 0;
    while at < LARGEST {
        // Not by the position of `file`, which reading its headers has moved.
        let length = file.read_at(&mut bytes, at).ok()?;
        if length == 0 {
            break;
        }
        hasher.update(bytes.get(..length)?);
        at += length as u64;
    }
    Some(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_nowhere_else() {
        assert_eq!(
            by_name("api.debug", "/opt/x/api (deleted)"),
            ["/opt/x/api.debug", "/opt/x/.debug/api.debug", "/usr/lib/debug/opt/x/api.debug"]
        );
        assert_eq!(by_name("api", "/opt/api"), ["/opt/.debug/api", "/usr/lib/debug/opt/api"]);
        for name in ["", ".", "..", "/dev/zero", "../secret"] {
            assert!(by_name(name, "/opt/api").is_empty(), "{name}");
        }
    }

    #[test]
    fn a_build_id_is_a_path() {
        assert_eq!(
            by_build_id("ab0123456789").as_deref(),
            Some("/usr/lib/debug/.build-id/ab/0123456789.debug")
        );
        assert!(by_build_id("ab01").is_none() && by_build_id("").is_none());
    }
}
