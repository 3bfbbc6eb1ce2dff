//! What the guests are made of: QEMU, Debian's kernels and its static busybox, unpacked below target/, not installed.
//!
//! An installed kernel would want a boot loader and an initramfs of its own, an installed busybox-static takes the place
//! of the busybox that may be there, and another QEMU that of the host's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::archive::{Architecture, Archive, Suite};
use crate::{build, sh};

/// The kernels that guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    /// The newest that Debian has backported to its stable release
    #[value(name = "newest")]
    Newest,
}

impl Kernel {
    pub const ALL: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::Newest];
    /// Those of `cargo xtask test`.
    pub const QUICK: [Self; 2] = [Self::V6_1, Self::Newest];

    /// Those that boot Debian with systemd in `cargo xtask test --all`.
    pub const WITH_SYSTEMD: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// Its series.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    /// What it refuses of the state hooks and of the ways to watch TIME-WAIT, with commas. tp_btf programs and hooks call
    /// bpf_get_socket_cookie(), which they cannot before 5.12.
    pub const fn lacking(self) -> &'static str {
        match self {
            Self::V5_10 => "btf,hooks",
            _ => "",
        }
    }

    pub const fn part(self) -> Part {
        Part::Kernel(self)
    }

    /// The suite that has it, and the beginnings of its packages' names: what comes after them is its release. The
    /// first package has the kernel. Since 7.0 modules have a package of their own.
    const fn packages(self) -> (Suite, &'static [&'static str]) {
        match self {
            Self::V5_10 => (Suite::Bullseye, &["linux-image-5.10."]),
            Self::V6_1 => (Suite::Bookworm, &["linux-image-6.1."]),
            Self::V6_12 => (Suite::Trixie, &["linux-image-6.12."]),
            Self::Newest => (Suite::TrixieBackports, &["linux-binary-", "linux-modules-"]),
        }
    }
}

/// The small kernels, for virtual machines.
const FLAVOUR: &str = "-cloud-amd64";

/// Something that is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Qemu,
    Busybox,
    Kernel(Kernel),
}

impl Part {
    /// What the guests with `kernels` need and is not there yet.
    pub fn missing(kernels: &[Kernel]) -> Result<Vec<Self>> {
        let parts = [Self::Qemu, Self::Busybox].into_iter().chain(kernels.iter().map(|kernel| kernel.part()));
        let mut missing = Vec::new();
        for part in parts {
            if !part.is_there()? {
                missing.push(part);
            }
        }
        Ok(missing)
    }

    fn is_there(self) -> Result<bool> {
        Ok((self == Self::Qemu && host_qemu()) || Archive::is_complete(&self.folder()?))
    }

    /// For a list of what is missing.
    pub fn describe(self) -> String {
        match self {
            Self::Qemu => "QEMU, which is the guests' machine".to_owned(),
            Self::Busybox => "busybox-static, which is the guests' userland".to_owned(),
            Self::Kernel(Kernel::Newest) => "Debian's newest kernel, which a guest runs".to_owned(),
            Self::Kernel(kernel) => format!("Debian's kernel {}, which a guest runs", kernel.name()),
        }
    }

    /// For a note that it cannot be had.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "QEMU",
            Self::Busybox => "busybox-static",
            Self::Kernel(Kernel::V5_10) => "kernel 5.10",
            Self::Kernel(Kernel::V6_1) => "kernel 6.1",
            Self::Kernel(Kernel::V6_12) => "kernel 6.12",
            Self::Kernel(Kernel::Newest) => "newest kernel",
        }
    }

    /// What is skipped without it.
    pub const fn without(self) -> &'static str {
        match self {
            Self::Qemu | Self::Busybox => "no guest runs",
            Self::Kernel(_) => "its guests do not run",
        }
    }

    /// Where it is unpacked.
    pub fn folder(self) -> Result<PathBuf> {
        Ok(folder()?.join(match self {
            Self::Qemu => "qemu".to_owned(),
            Self::Busybox => "busybox".to_owned(),
            Self::Kernel(kernel) => format!("kernels/{}", kernel.name()),
        }))
    }

    /// Downloads and unpacks it.
    pub fn fetch(self) -> Result<()> {
        let folder = self.folder()?;
        match self {
            Self::Qemu => {
                let machine = Architecture::of_this_machine();
                let machine =
                    machine.context("Debian's packages for this kind of machine are not known here")?;
                let archive = Archive::open(Suite::Trixie, machine)?;
                archive.unpack_closure(&["qemu-system-x86", "qemu-system-arm"], &folder)
            }
            Self::Busybox => {
                Archive::open(Suite::Bookworm, Architecture::Amd64)?.unpack(&["busybox-static"], &folder)
            }
            Self::Kernel(kernel) => {
                let (suite, prefixes) = kernel.packages();
                let archive = Archive::open(suite, Architecture::Amd64)?;
                let packages = kernel_packages(&archive, prefixes)
                    .with_context(|| format!("no kernel {} in Debian {}", kernel.name(), suite.name()))?;
                let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
                archive.unpack(&packages, &folder)
            }
        }
    }
}

/// The packages of the newest kernel whose names begin so.
fn kernel_packages(archive: &Archive, prefixes: &[&str]) -> Result<Vec<String>> {
    let first = prefixes.first().copied().unwrap_or_default();
    let names = archive.names(first)?;
    let release = newest(names.iter().map(String::as_str), first, FLAVOUR)
        .with_context(|| format!("no package {first}*{FLAVOUR}"))?;
    Ok(prefixes.iter().map(|prefix| format!("{prefix}{release}")).collect())
}

/// What comes after `prefix` in the name with the highest version between `prefix` and `flavour`.
fn newest<'a>(names: impl Iterator<Item = &'a str>, prefix: &str, flavour: &str) -> Option<&'a str> {
    let releases = names.filter_map(|name| {
        let release = name.strip_prefix(prefix)?;
        let version = release.strip_suffix(flavour)?;
        // Not linux-binary-unsigned-7.3.4.
        version.starts_with(|c: char| c.is_ascii_digit()).then(|| (numbers(version), release))
    });
    releases.max().map(|(_, release)| release)
}

/// `6.12.117+deb13` as numbers, which sort as its versions do.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// Everything of the guests: parts, initial filesystems, logs.
pub fn folder() -> Result<PathBuf> {
    Ok(build::target_folder()?.join("vm"))
}

/// The oldest QEMU that guests were run in.
const OLDEST_QEMU: &[u64] = &[7, 2];

/// True if the host's own QEMU is one that guests run in.
fn host_qemu() -> bool {
    let version = sh::ask(Command::new(super::QEMU).arg("--version"));
    version.is_some_and(|text| qemu_version(&text).is_some_and(|version| version.as_slice() >= OLDEST_QEMU))
}

fn qemu_version(text: &str) -> Option<Vec<u64>> {
    let version = text.strip_prefix("QEMU emulator version ")?.split_ascii_whitespace().next()?;
    Some(numbers(version))
}

/// QEMU by its program's name, as words of a command: the host's, or the unpacked one. That is started through its own
/// root's loader, so it takes neither root nor this system's libraries.
pub fn qemu(program: &str) -> Result<Vec<String>> {
    let root = Part::Qemu.folder()?;
    if !Archive::is_complete(&root) {
        return Ok(vec![program.to_owned()]);
    }
    let (loader, triplet) = match Architecture::of_this_machine() {
        Some(Architecture::Arm64) => ("lib/ld-linux-aarch64.so.1", "aarch64-linux-gnu"),
        _ => ("lib64/ld-linux-x86-64.so.2", "x86_64-linux-gnu"),
    };
    let path = |below: &str| root.join(below).display().to_string();
    // The firmware of x86 machines is a package of its own.
    let words = [path(loader), "--library-path".to_owned(), path(&format!("usr/lib/{triplet}"))];
    let data = [path(&format!("usr/bin/{program}")), "-L".to_owned(), path("usr/share/qemu")];
    Ok(words.into_iter().chain(data).chain(["-L".to_owned(), path("usr/share/seabios")]).collect())
}

/// The static busybox.
pub fn busybox() -> Result<PathBuf> {
    Ok(Part::Busybox.folder()?.join("bin/busybox"))
}

/// A kernel's bzImage: since 7.0 it lies with its modules.
pub fn image(kernel: Kernel) -> Result<PathBuf> {
    let beside = modules(kernel)?.join("vmlinuz");
    if beside.is_file() {
        return Ok(beside);
    }
    only_entry(&kernel.part().folder()?.join("boot"), "vmlinuz-")
}

/// A kernel's modules: lib/modules/RELEASE.
pub fn modules(kernel: Kernel) -> Result<PathBuf> {
    let folder = kernel.part().folder()?;
    // Debian is moving /lib below /usr.
    let below = ["lib/modules", "usr/lib/modules"].into_iter().find(|below| folder.join(below).is_dir());
    only_entry(&folder.join(below.unwrap_or("lib/modules")), "")
}

/// The entry of `folder` whose name starts with `prefix`.
fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut fitting = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path());
    match fitting.next() {
        Some(entry) => Ok(entry),
        None => bail!("nothing named {prefix}* in {}; remove it and run setup again", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_told_by_its_numbers() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-unsigned",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
        ];
        let found = newest(names.into_iter(), "linux-image-6.1.", FLAVOUR);
        assert_eq!(found, Some("0-56-cloud-amd64"));
        let names = [
            "linux-binary-7.2.12+deb13-cloud-amd64",
            "linux-binary-unsigned-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
        ];
        assert_eq!(newest(names.into_iter(), "linux-binary-", FLAVOUR), Some("7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest([].into_iter(), "linux-binary-", FLAVOUR), None);
    }

    #[test]
    fn a_qemu_says_how_old_it_is() {
        let old = qemu_version("QEMU emulator version 5.2.0 (Debian 1:5.2+dfsg-11)\nCopyright").unwrap();
        let new = qemu_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n").unwrap();
        assert!(old.as_slice() < OLDEST_QEMU && new.as_slice() >= OLDEST_QEMU);
        assert_eq!(qemu_version("no such thing"), None);
    }
}
