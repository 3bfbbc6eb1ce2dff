//! A Debian of this system's release, made with debootstrap, as a root or as an archive of one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::Ticker;
use crate::sh;

/// What nobody reads in a guest.
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

/// Where this system's packages come from.
pub struct Origin {
    mirror: String,
    /// Which release it is.
    pub suite: String,
}

impl Origin {
    pub fn of_this_system() -> Result<Self> {
        let mut apt = Command::new("apt-get");
        let targets = sh::ask(apt.args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(CODENAME)",
            "Created-By: Packages",
        ]));
        let targets = targets.context("apt-get tells no origin of packages: this takes a system with apt")?;
        let os = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
        match of_this_release(&targets, &os) {
            Some((mirror, suite)) => Ok(Self { mirror: mirror.to_owned(), suite: suite.to_owned() }),
            None => bail!("none of apt's sources is this system's release"),
        }
    }

    /// Makes the smallest Debian with the packages `included` (with commas) in `root`, in place of what is there. Takes root.
    pub fn make(&self, root: &Path, included: &str) -> Result<()> {
        remove(root)?;
        let _ticker = Ticker::start(format!("a root of {}", self.suite));
        // Debootstrap does not look at what its caller's PATH lacks.
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut debootstrap =
            sh::as_root("debootstrap", &[("PATH", path), ("DEBIAN_FRONTEND", "noninteractive")]);
        debootstrap.args(["--variant=minbase", &format!("--include={included}")]);
        sh::run(debootstrap.arg(&self.suite).arg(root).arg(&self.mirror))
    }
}

fn of_this_release<'a>(targets: &'a str, os_release: &str) -> Option<(&'a str, &'a str)> {
    let codename = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    let mut targets = targets.lines().filter_map(|line| line.split_once(' '));
    targets.find(|(_, suite)| *suite == codename)
}

/// Removes a root, which is root's.
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
        let targets =
            "http://a/security/ trixie-security\nhttp://b/debian/ trixie\nhttp://b/debian/ trixie-updates\n";
        let os = "ID=debian\nVERSION_CODENAME=trixie\n";
        assert_eq!(of_this_release(targets, os), Some(("http://b/debian/", "trixie")));
        assert_eq!(of_this_release(targets, "VERSION_CODENAME=sid\n"), None);
    }
}
