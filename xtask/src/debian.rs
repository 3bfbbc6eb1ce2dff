//! A Debian, made with debootstrap, as a root or as an archive of one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::archive::{self, Architecture, Archive, Suite};
use crate::{build, sh};
use tcpclose_common::progress::Ticker;

/// Files that a guest does not need.
const LEFT_OUT: &[&str] = &[
    "./dev/*",
    "./usr/lib/*/gconv",
    "./usr/share/doc",
    "./usr/share/i18n",
    "./usr/share/info",
    "./usr/share/locale",
    "./usr/share/man",
    "./usr/share/zoneinfo",
    "./var/cache",
    "./var/lib/apt",
    "./var/lib/dpkg",
];

/// The smallest Debian with the packages `included` (with commas), as `debian-SUITE.tar` in `folder`: made once. Takes root.
pub fn archive(folder: &Path, included: &str) -> Result<PathBuf> {
    let origin = Origin::of_this_system()?;
    let archive = folder.join(format!("debian-{}-{}.tar", origin.suite, included.replace(',', "-")));
    if archive.is_file() {
        return Ok(archive);
    }
    let root = folder.join("debian.partial");
    origin.make(&root, included)?;
    let partial = folder.join("debian.tar.partial");
    let mut tar = sh::as_root("tar", &[]);
    tar.arg("--create").arg("--file").arg(&partial).arg("--directory").arg(&root);
    tar.args(["--sort=name", "--numeric-owner", "--one-file-system", "--no-wildcards-match-slash"]);
    tar.args(LEFT_OUT.iter().map(|path| format!("--exclude={path}")));
    sh::run(tar.arg("."))?;
    remove(&root)?;
    fs::rename(&partial, &archive).with_context(|| format!("cannot make {}", archive.display()))?;
    Ok(archive)
}

/// A release of Debian, and where its packages come from.
pub struct Origin {
    mirror: String,
    pub suite: String,
}

impl Origin {
    /// The release that this system is.
    pub fn of_this_system() -> Result<Self> {
        let os = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
        let suite = codename(&os).context("/etc/os-release names no release (this needs Debian)")?;
        Self::of(suite)
    }

    pub fn of(suite: &str) -> Result<Self> {
        Ok(Self { mirror: archive::mirror()?, suite: suite.to_owned() })
    }

    /// Makes the smallest Debian with the packages `included` (with commas) in `root`, in place of what is there. Takes root.
    pub fn make(&self, root: &Path, included: &str) -> Result<()> {
        remove(root)?;
        let _ticker = Ticker::start(format!("a root of {}", self.suite));
        // Debootstrap does not look at what its caller's PATH lacks.
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let environment = [("PATH", path), ("DEBIAN_FRONTEND", "noninteractive")];
        let mut debootstrap = match sh::find("debootstrap") {
            Some(host) => sh::as_root(host, &environment),
            None => {
                let (script, functions) = unpacked_debootstrap()?;
                let functions = functions.to_str().context("the path of target/ is not UTF-8")?;
                sh::as_root(script, &[&environment[..], &[("DEBOOTSTRAP_DIR", functions)]].concat())
            }
        };
        debootstrap.arg("--variant=minbase");
        if !included.is_empty() {
            debootstrap.arg(format!("--include={included}"));
        }
        sh::run(debootstrap.arg(&self.suite).arg(root).arg(&self.mirror))
    }
}

/// Debootstrap below target/: the script, and the folder of its functions.
fn unpacked_debootstrap() -> Result<(PathBuf, PathBuf)> {
    if sh::find("wget").is_none() {
        bail!("wget is missing, which debootstrap needs");
    }
    let machine = Architecture::of_this_machine();
    let machine = machine.context("no Debian packages for this architecture")?;
    let root = build::target_folder()?.join("tools/debootstrap");
    Archive::open(Suite::Trixie, machine)?.unpack(&["debootstrap"], &root)?;
    Ok((root.join("usr/sbin/debootstrap"), root.join("usr/share/debootstrap")))
}

fn codename(os_release: &str) -> Option<&str> {
    os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))
}

/// Removes a root, as root.
pub fn remove(root: &Path) -> Result<()> {
    if root.exists() {
        sh::run(sh::as_root("rm", &[]).args(["--recursive", "--force", "--one-file-system"]).arg(root))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_of_this_systems_release() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=trixie\n"), Some("trixie"));
        assert_eq!(codename("ID=arch\n"), None);
    }
}
