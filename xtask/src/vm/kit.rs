//! The parts of guests: QEMU, Debian's kernels and its static busybox, unpacked below target/, not installed.
//!
//! An installed kernel would need a boot loader and an initramfs; an installed busybox-static or QEMU would replace the
//! host's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::archive::{self, Architecture, Archive, Suite};
use crate::cross::Builder;
use crate::{build, sh};

/// The kernels that guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    /// With PREEMPT_RT, which has a longer header in front of each tracepoint's record
    #[value(name = "6.1-rt")]
    V6_1Rt,
    #[value(name = "6.12")]
    V6_12,
    /// The newest that Debian has backported to its stable release
    #[value(name = "newest")]
    Newest,
    #[value(name = "6.12-arm64")]
    Arm64V6_12,
    /// Its pages have 16 KiB
    #[value(name = "6.12-arm64-16k")]
    Arm64V6_12Pages16K,
    #[value(name = "newest-arm64")]
    Arm64Newest,
}

impl Kernel {
    pub const ALL: [Self; 5] = [Self::V5_10, Self::V6_1, Self::V6_1Rt, Self::V6_12, Self::Newest];
    pub const ARM64: [Self; 3] = [Self::Arm64V6_12, Self::Arm64V6_12Pages16K, Self::Arm64Newest];
    /// All of both architectures.
    pub const EVERY: [Self; 8] = [
        Self::V5_10,
        Self::V6_1,
        Self::V6_1Rt,
        Self::V6_12,
        Self::Newest,
        Self::Arm64V6_12,
        Self::Arm64V6_12Pages16K,
        Self::Arm64Newest,
    ];
    /// The kernels of `cargo xtask test`.
    pub const QUICK: [Self; 2] = [Self::V6_1, Self::Newest];

    /// The kernels for Debian with systemd in `cargo xtask test --all`.
    pub const WITH_SYSTEMD: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// Its series.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_1Rt => "6.1-rt",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
            Self::Arm64V6_12 => "6.12-arm64",
            Self::Arm64V6_12Pages16K => "6.12-arm64-16k",
            Self::Arm64Newest => "newest-arm64",
        }
    }

    /// All for an architecture.
    pub const fn all(architecture: Architecture) -> &'static [Self] {
        match architecture {
            Architecture::Amd64 => &Self::ALL,
            Architecture::Arm64 => &Self::ARM64,
        }
    }

    pub fn architecture(self) -> Architecture {
        if Self::ARM64.contains(&self) { Architecture::Arm64 } else { Architecture::Amd64 }
    }

    /// The ending of its packages' names. The cloud kernels are small ones for virtual machines.
    fn flavour(self) -> &'static str {
        match self {
            Self::Arm64V6_12Pages16K => "-arm64-16k",
            Self::V6_1Rt => "-rt-amd64",
            _ if self.architecture() == Architecture::Arm64 => "-cloud-arm64",
            _ => "-cloud-amd64",
        }
    }

    /// What it refuses of the state hooks and of the ways to watch TIME-WAIT, with commas. tp_btf programs and hooks call
    /// bpf_get_socket_cookie(), which they cannot before 5.12.
    pub const fn lacking(self) -> &'static str {
        match self {
            Self::V5_10 => "btf,hooks,destroy_minisockets,ktls,sockmap",
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
            Self::V6_1 | Self::V6_1Rt => (Suite::Bookworm, &["linux-image-6.1."]),
            Self::V6_12 | Self::Arm64V6_12 | Self::Arm64V6_12Pages16K => {
                (Suite::Trixie, &["linux-image-6.12."])
            }
            Self::Newest | Self::Arm64Newest => {
                (Suite::TrixieBackports, &["linux-binary-", "linux-modules-"])
            }
        }
    }
}

/// A part that is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The emulator for an architecture; one folder has both.
    Qemu(Architecture),
    Busybox(Architecture),
    /// The compiler for another architecture.
    Compiler(Architecture),
    Kernel(Kernel),
}

impl Part {
    /// The missing parts of guests with `kernels`.
    pub fn missing(kernels: &[Kernel]) -> Result<Vec<Self>> {
        let mut parts = Vec::new();
        // This machine's own busybox unpacks modules.
        for architecture in Architecture::ALL {
            if kernels.iter().any(|kernel| kernel.architecture() == architecture) {
                parts.extend([Self::Qemu(architecture), Self::Busybox(architecture)]);
                if Some(architecture) != Architecture::of_this_machine() {
                    parts.push(Self::Compiler(architecture));
                }
            }
        }
        if let Some(host) = Architecture::of_this_machine()
            && !parts.contains(&Self::Busybox(host))
        {
            parts.push(Self::Busybox(host));
        }
        parts.extend(kernels.iter().map(|kernel| kernel.part()));
        let mut missing = Vec::new();
        for part in parts {
            if !part.is_there()? {
                missing.push(part);
            }
        }
        Ok(missing)
    }

    fn is_there(self) -> Result<bool> {
        match self {
            Self::Qemu(architecture) if host_qemu(architecture) => Ok(true),
            Self::Compiler(architecture) => Ok(Builder::is_there(architecture)),
            _ => Ok(Archive::is_complete(&self.folder()?)),
        }
    }

    /// True if guests with this kernel need it.
    pub fn is_for(self, kernel: Kernel) -> bool {
        match self {
            Self::Kernel(own) => own == kernel,
            // This machine's own unpacks every kernel's modules.
            Self::Busybox(architecture) if Some(architecture) == Architecture::of_this_machine() => true,
            Self::Qemu(architecture) | Self::Busybox(architecture) | Self::Compiler(architecture) => {
                architecture == kernel.architecture()
            }
        }
    }

    /// For a list of what is missing.
    pub fn describe(self) -> String {
        match self {
            Self::Qemu(architecture) => {
                format!("QEMU for {}, which is the guests' machine", architecture.name())
            }
            Self::Busybox(architecture) => {
                format!("busybox-static for {}, which is the guests' userland", architecture.name())
            }
            Self::Compiler(architecture) => {
                format!("a compiler for {}, which builds the guests' programs", architecture.name())
            }
            Self::Kernel(kernel) => format!("Debian's kernel {}, which a guest runs", kernel.name()),
        }
    }

    /// Its name, for a note.
    pub fn name(self) -> String {
        match self {
            Self::Qemu(architecture) => format!("QEMU for {}", architecture.name()),
            Self::Busybox(architecture) => format!("busybox-static for {}", architecture.name()),
            Self::Compiler(architecture) => format!("compiler for {}", architecture.name()),
            Self::Kernel(kernel) => format!("kernel {}", kernel.name()),
        }
    }

    /// What is skipped without it.
    pub const fn without(self) -> &'static str {
        match self {
            Self::Qemu(Architecture::Amd64) | Self::Busybox(Architecture::Amd64) => "no guest runs",
            Self::Qemu(_) | Self::Busybox(_) | Self::Compiler(_) => "guests of that architecture do not run",
            Self::Kernel(_) => "its guests do not run",
        }
    }

    /// Its folder.
    pub fn folder(self) -> Result<PathBuf> {
        Ok(folder()?.join(match self {
            Self::Qemu(_) => "qemu".to_owned(),
            Self::Busybox(Architecture::Amd64) => "busybox".to_owned(),
            Self::Busybox(architecture) => format!("busybox-{}", architecture.name()),
            Self::Compiler(architecture) => format!("compiler-{}", architecture.name()),
            Self::Kernel(kernel) => format!("kernels/{}", kernel.name()),
        }))
    }

    /// Downloads and unpacks it.
    pub fn fetch(self) -> Result<()> {
        let folder = self.folder()?;
        match self {
            Self::Qemu(_) => {
                let machine = Architecture::of_this_machine();
                let machine = machine.context("no Debian packages for this architecture")?;
                let archive = Archive::open(Suite::Trixie, machine)?;
                archive.unpack_closure(&["qemu-system-x86", "qemu-system-arm"], &folder)
            }
            Self::Compiler(architecture) => Builder::of(architecture).map(drop),
            Self::Busybox(architecture) => {
                Archive::open(Suite::Bookworm, architecture)?.unpack(&["busybox-static"], &folder)
            }
            Self::Kernel(kernel) => {
                let (suite, prefixes) = kernel.packages();
                let archive = Archive::open(suite, kernel.architecture())?;
                let packages = kernel_packages(&archive, prefixes, kernel.flavour())
                    .with_context(|| format!("no kernel {} in Debian {}", kernel.name(), suite.name()))?;
                let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
                archive.unpack(&packages, &folder)
            }
        }
    }
}

/// The packages of the newest kernel with these prefixes.
fn kernel_packages(archive: &Archive, prefixes: &[&str], flavour: &str) -> Result<Vec<String>> {
    let first = prefixes.first().copied().unwrap_or_default();
    let names = archive.names(first)?;
    let release = newest(names.iter().map(String::as_str), first, flavour)
        .with_context(|| format!("no package {first}*{flavour}"))?;
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

/// The emulator of a machine.
pub const fn emulator(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Amd64 => "qemu-system-x86_64",
        Architecture::Arm64 => "qemu-system-aarch64",
    }
}

/// The oldest QEMU that guests were run in; arm64's machine has had a second serial line since 9.2.
const fn oldest_qemu(architecture: Architecture) -> &'static [u64] {
    match architecture {
        Architecture::Amd64 => &[7, 2],
        Architecture::Arm64 => &[9, 2],
    }
}

/// True if the host's own QEMU is one that guests run in.
fn host_qemu(architecture: Architecture) -> bool {
    let version = sh::ask(Command::new(emulator(architecture)).arg("--version"));
    let oldest = oldest_qemu(architecture);
    version.is_some_and(|text| qemu_version(&text).is_some_and(|version| version.as_slice() >= oldest))
}

fn qemu_version(text: &str) -> Option<Vec<u64>> {
    let version = text.strip_prefix("QEMU emulator version ")?.split_ascii_whitespace().next()?;
    Some(numbers(version))
}

/// QEMU for a machine, as words of a command: the host's, or the unpacked one. That is started through its own root's
/// loader, so it takes neither root nor this system's libraries.
pub fn qemu(architecture: Architecture) -> Result<Vec<String>> {
    let (root, program) = (Part::Qemu(architecture).folder()?, emulator(architecture));
    if !Archive::is_complete(&root) {
        return Ok(vec![program.to_owned()]);
    }
    let words = archive::through_loader(&root, &format!("usr/bin/{program}"));
    // The firmware of x86 machines is a package of its own.
    let data = ["usr/share/qemu", "usr/share/seabios"].map(|below| root.join(below).display().to_string());
    Ok(words.into_iter().chain(data.into_iter().flat_map(|folder| ["-L".to_owned(), folder])).collect())
}

/// The static busybox.
pub fn busybox(architecture: Architecture) -> Result<PathBuf> {
    Ok(Part::Busybox(architecture).folder()?.join("bin/busybox"))
}

/// A kernel's image: since 7.0 it lies with its modules.
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
        None => bail!("no {prefix}* in {} (remove the folder and run setup again)", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_known_by_its_numbers() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-unsigned",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.1.0-56-rt-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
        ];
        let rt = newest(names.into_iter(), "linux-image-6.1.", "-rt-amd64");
        assert_eq!(rt, Some("0-56-rt-amd64"));
        let found = newest(names.into_iter(), "linux-image-6.1.", "-cloud-amd64");
        assert_eq!(found, Some("0-56-cloud-amd64"));
        let names = [
            "linux-binary-7.2.12+deb13-cloud-amd64",
            "linux-binary-unsigned-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
        ];
        assert_eq!(
            newest(names.into_iter(), "linux-binary-", "-cloud-amd64"),
            Some("7.3.4+deb13-cloud-amd64")
        );
        assert_eq!(newest([].into_iter(), "linux-binary-", "-cloud-amd64"), None);
    }

    #[test]
    fn a_qemu_says_how_old_it_is() {
        let old = qemu_version("QEMU emulator version 5.2.0 (Debian 1:5.2+dfsg-11)\nCopyright").unwrap();
        let new = qemu_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n").unwrap();
        assert!(
            old.as_slice() < oldest_qemu(Architecture::Amd64)
                && new.as_slice() >= oldest_qemu(Architecture::Arm64)
        );
        assert_eq!(qemu_version("no such thing"), None);
    }
}
