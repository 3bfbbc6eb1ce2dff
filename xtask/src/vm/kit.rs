//! What the guests are made of: Debian's kernels and its static busybox, unpacked below target/, not installed.
//!
//! An installed kernel would want a boot loader and an initramfs of its own, and an installed busybox-static takes the
//! place of the busybox that may be there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::apt::Apt;
use crate::{build, sh};

/// The kernels that guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
}

impl Kernel {
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// As its packages name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    pub fn part(self) -> Part {
        Part::Kernel(self)
    }
}

/// The packages whose one dependency is the newest kernel of a series: which series the second means depends on
/// Debian's release. The "cloud" kernels are the small ones, for virtual machines.
const KERNEL_PACKAGES: fn(&str) -> [String; 2] =
    |series| [format!("linux-image-{series}-cloud-amd64"), "linux-image-cloud-amd64".to_owned()];

/// Something that is fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Busybox,
    Kernel(Kernel),
}

impl Part {
    /// What is not there yet.
    pub fn missing() -> Result<Vec<Self>> {
        let mut parts = vec![Self::Busybox];
        parts.extend(Kernel::ALL.map(Self::Kernel));
        let mut missing = Vec::new();
        for part in parts {
            if !part.folder()?.is_dir() {
                missing.push(part);
            }
        }
        Ok(missing)
    }

    /// For a list of what is missing.
    pub fn describe(self) -> String {
        match self {
            Self::Busybox => "busybox-static, which is the guests' userland".to_owned(),
            Self::Kernel(kernel) => format!("Debian's kernel {}, which a guest runs", kernel.name()),
        }
    }

    /// Where it is unpacked.
    pub fn folder(self) -> Result<PathBuf> {
        Ok(folder()?.join(match self {
            Self::Busybox => "busybox".to_owned(),
            Self::Kernel(kernel) => format!("kernels/{}", kernel.name()),
        }))
    }

    /// Downloads and unpacks it. The folder appears when everything is in it.
    pub fn fetch(self, apt: &Apt) -> Result<()> {
        let package = match self {
            Self::Busybox => "busybox-static".to_owned(),
            Self::Kernel(kernel) => kernel_package(apt, kernel)?,
        };
        let folder = self.folder()?;
        let mut partial = folder.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        // What an earlier run left when it was interrupted.
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
        let archive = apt.download(&package, &partial)?;
        sh::run(Command::new("dpkg").arg("-x").arg(&archive).arg(&partial))?;
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
        fs::rename(&partial, &folder).with_context(|| format!("cannot make {}", folder.display()))
    }
}

/// The package of the newest kernel of a series.
fn kernel_package(apt: &Apt, kernel: Kernel) -> Result<String> {
    let asked = KERNEL_PACKAGES(kernel.name());
    let found = asked.iter().find_map(|package| {
        apt.dependencies(package).into_iter().find(|dependency| is_kernel(dependency, kernel.name()))
    });
    match found {
        Some(package) => Ok(package),
        None => bail!(
            "no kernel {} among this system's packages (neither {} depends on one)",
            kernel.name(),
            asked.join(" nor ")
        ),
    }
}

/// True for `linux-image-6.1.0-56-cloud-amd64` of the series 6.1, and false for that of 6.12.
fn is_kernel(package: &str, series: &str) -> bool {
    package
        .strip_prefix("linux-image-")
        .and_then(|rest| rest.strip_prefix(series))
        .is_some_and(|rest| rest.starts_with('.'))
}

/// Everything of the guests: parts, initial filesystems, logs.
pub fn folder() -> Result<PathBuf> {
    Ok(build::target_folder()?.join("vm"))
}

/// The static busybox.
pub fn busybox() -> Result<PathBuf> {
    Ok(Part::Busybox.folder()?.join("bin/busybox"))
}

/// A kernel's bzImage.
pub fn image(kernel: Kernel) -> Result<PathBuf> {
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
    fn a_series_is_told_from_its_neighbours() {
        assert!(is_kernel("linux-image-6.1.0-56-cloud-amd64", "6.1"));
        assert!(is_kernel("linux-image-6.12.117+deb12-cloud-amd64", "6.12"));
        assert!(!is_kernel("linux-image-6.12.117+deb12-cloud-amd64", "6.1"));
        assert!(!is_kernel("linux-image-cloud-amd64", "6.1"));
    }
}
