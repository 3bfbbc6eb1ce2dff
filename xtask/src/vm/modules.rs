//! Which of a kernel's modules go into a guest, and in what order they load.
//!
//! A module names those it needs in its `.modinfo` section. depmod would gather that into modules.dep, but it belongs
//! to a package that a container need not have, and the packages of kernels come without the file.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A module's name and what is inserted.
pub type Module = (String, Vec<u8>);

/// The modules `wanted`, those of `optional` that there are, and all that they need, each after those it needs, from `folder`:
/// lib/modules/RELEASE of a package. What is built into the kernel is left out. Compressed ones are unpacked by `busybox`.
pub fn resolve(folder: &Path, wanted: &[&str], optional: &[&str], busybox: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(&folder.join("kernel"), &mut files)?;
    let file = folder.join("modules.builtin");
    let builtin = match fs::read_to_string(&file) {
        // Debian's packages have left it out since 7.0. No module names one that is built in as what it needs.
        Err(why) if why.kind() == ErrorKind::NotFound => String::new(),
        builtin => builtin.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let builtin: BTreeSet<String> = builtin.lines().filter_map(module_name).collect();

    let found = optional.iter().copied().filter(|name| files.contains_key(*name));
    let wanted: Vec<&str> = wanted.iter().copied().chain(found).collect();
    in_order(&wanted, &builtin, |name| files.get(name).map(|file| read(file, busybox)).transpose())
}

/// The order, given what is built in and how a module is read (`None`: there is none of that name).
fn in_order(
    wanted: &[&str],
    builtin: &BTreeSet<String>,
    read: impl Fn(&str) -> Result<Option<Vec<u8>>>,
) -> Result<Vec<Module>> {
    let mut placed = BTreeSet::new();
    let mut modules = Vec::new();
    // A module comes up twice: first to put what it needs on top of it, then, with all that placed, for itself.
    let mut open: Vec<(String, Option<Vec<u8>>)> =
        wanted.iter().rev().map(|name| (canonical(name), None)).collect();
    while let Some((name, content)) = open.pop() {
        match content {
            Some(content) => modules.push((name, content)),
            None if builtin.contains(&name) || !placed.insert(name.clone()) => {}
            None => {
                let Some(content) = read(&name)? else { bail!("this kernel has no module {name}") };
                let needed = needs(&content);
                open.push((name, Some(content)));
                open.extend(needed.into_iter().rev().map(|needed| (needed, None)));
            }
        }
    }
    Ok(modules)
}

/// The modules that this one needs: `depends=a,b` among the NUL-ended strings of its `.modinfo`.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let mut strings = module.split(|byte| *byte == 0);
    let list = strings
        .find_map(|string| string.strip_prefix(KEY))
        .map_or(Cow::Borrowed(""), String::from_utf8_lossy);
    list.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
}

fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            index(&entry.path(), files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// `some/where/sch-netem.ko.xz` is the module `sch_netem`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    file.split_once(".ko").map(|(name, _)| canonical(name))
}

/// Files and people write either sign; the kernel knows the underscore.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn read(file: &Path, busybox: &Path) -> Result<Vec<u8>> {
    let unpack = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xzcat",
        Some("gz") => "zcat",
        Some("ko") => return fs::read(file).with_context(|| format!("cannot read {}", file.display())),
        _ => bail!("{} has a compression that busybox does not know", file.display()),
    };
    let output =
        Command::new(busybox).arg(unpack).arg(file).stdin(Stdio::null()).stderr(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(output.stdout),
        _ => bail!("busybox cannot unpack {}", file.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel's modules: names and `.modinfo`.
    const MODULES: &[(&str, &[u8])] = &[
        ("tcp_diag", b"\x7fELF\0license=GPL\0depends=inet_diag\0name=tcp_diag\0"),
        ("inet_diag", b"\0depends=\0"),
        ("virtio_console", b"\0depends=virtio-ring,virtio\0"),
        ("virtio_ring", b"\0depends=virtio\0"),
        ("virtio", b"\0license=GPL\0"),
        ("a", b"\0depends=b\0"),
        ("b", b"\0depends=a\0"),
        ("needy", b"\0depends=nobody\0"),
    ];

    fn order(wanted: &[&str], builtin: &[&str]) -> Result<Vec<String>> {
        let builtin = builtin.iter().map(|name| (*name).to_owned()).collect();
        let read = |name: &str| {
            Ok(MODULES.iter().find(|(module, _)| *module == name).map(|(_, content)| content.to_vec()))
        };
        Ok(in_order(wanted, &builtin, read)?.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn each_loads_after_those_it_needs_and_once() {
        let loaded = order(&["tcp_diag", "virtio-console", "inet_diag"], &[]).unwrap();
        assert_eq!(loaded, ["inet_diag", "tcp_diag", "virtio", "virtio_ring", "virtio_console"]);
    }

    #[test]
    fn what_is_built_in_needs_no_file() {
        assert_eq!(order(&["virtio_console"], &["virtio", "virtio_ring"]).unwrap(), ["virtio_console"]);
        assert!(order(&["veth"], &["veth"]).unwrap().is_empty());
    }

    #[test]
    fn one_that_is_not_there_is_named() {
        assert_eq!(order(&["needy"], &[]).unwrap_err().to_string(), "this kernel has no module nobody");
    }

    #[test]
    fn a_circle_ends() {
        assert_eq!(order(&["a"], &[]).unwrap(), ["b", "a"]);
    }

    #[test]
    fn names_are_distinguished_from_files() {
        assert_eq!(module_name("kernel/net/sched/sch-netem.ko.xz").as_deref(), Some("sch_netem"));
        assert_eq!(module_name("veth.ko").as_deref(), Some("veth"));
        assert_eq!(module_name("modules.order"), None);
    }
}
