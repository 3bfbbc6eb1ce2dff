//! Installs, runs and removes each package in a root of its own: trial.sh, from outside of that root, in a mount and a
//! network namespace that end with it.
//!
//! The roots of the .deb and the .rpm are copies of one made with debootstrap: of this system's release, from where its
//! own packages come. They are booted as well, for only systemd shows what an upgrade does to an agent that runs. The tarball's is an empty folder, which proves that its binary needs nothing of a system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Packages, VERSION, name};
use crate::progress::Ticker;
use crate::setup::{self, Purpose};
use crate::{build, sh};

const SCRIPT: &str = include_str!("trial.sh");

/// What the root has besides a smallest Debian: what the packages ask for, and what reads manuals, completions and .rpm.
const INCLUDED: &str = "systemd,man-db,rpm,zsh,fish";

/// Has lintian read the .deb, and tries all three.
pub fn run(packages: &Packages) -> Result<()> {
    setup::ready(Purpose::Trial, false)?;
    lint(&packages.deb)?;
    let folder = build::target_folder()?.join("package");
    let base = base(&folder)?;
    let script = folder.join("trial.sh");
    fs::write(&script, SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
    for (kind, package) in [("deb", &packages.deb), ("rpm", &packages.rpm), ("tarball", &packages.tarball)] {
        let root = folder.join(format!("root-{kind}"));
        remove_root(&root)?;
        if kind == "tarball" {
            fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        } else {
            let mut copy = sh::as_root("cp", &[]);
            sh::run(
                copy.args(["--archive", "--reflink=auto", "--no-target-directory"]).arg(&base).arg(&root),
            )?;
        }
        let mut trial = sh::as_root("unshare", &[]);
        trial.args(["--mount", "--net", "--propagation", "private", "bash"]).arg(&script);
        sh::run(trial.arg(kind).arg(&root).arg(package).arg(VERSION)).with_context(|| {
            format!("{} does not pass its trial; its root is {}", name(package), root.display())
        })?;
        remove_root(&root)?;
    }
    Ok(())
}

fn lint(deb: &Path) -> Result<()> {
    let mut lintian = Command::new("lintian");
    lintian.env("LC_ALL", "C").args(["--allow-root", "--fail-on", "error,warning"]);
    sh::run(lintian.args(["--tag-display-limit", "0"]).arg(deb))?;
    println!("lintian has nothing against {} but what is overridden", name(deb));
    Ok(())
}

/// The root that others are copies of. It appears when everything is in it.
fn base(folder: &Path) -> Result<PathBuf> {
    let (mirror, suite) = origin()?;
    let base = folder.join(format!("root-of-{suite}"));
    // A newer list of what is in it makes another root.
    let stamp = base.join("included");
    if fs::read_to_string(&stamp).is_ok_and(|included| included == INCLUDED) {
        return Ok(base);
    }
    remove_root(&base)?;
    let partial = folder.join("root.partial");
    remove_root(&partial)?;
    let _ticker = Ticker::start(format!("a root of {suite}"));
    // Debootstrap does not look at what its caller's PATH lacks.
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut debootstrap =
        sh::as_root("debootstrap", &[("PATH", path), ("DEBIAN_FRONTEND", "noninteractive")]);
    debootstrap.args(["--variant=minbase", &format!("--include={INCLUDED}")]);
    sh::run(debootstrap.arg(&suite).arg(&partial).arg(&mirror))?;
    sh::run(
        sh::as_root("sh", &[])
            .args(["-c", "printf %s \"$1\" >\"$2\"", "sh", INCLUDED])
            .arg(partial.join("included")),
    )?;
    sh::run(sh::as_root("mv", &[]).arg(&partial).arg(&base))?;
    Ok(base)
}

/// Where this system's packages come from, and which release it is.
fn origin() -> Result<(String, String)> {
    let mut apt = Command::new("apt-get");
    let targets =
        sh::ask(apt.args(["indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"]));
    let targets =
        targets.context("apt-get tells no origin of packages: the trial takes a system with apt")?;
    let os = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    match first_of_release(&targets, &os) {
        Some((mirror, suite)) => Ok((mirror.to_owned(), suite.to_owned())),
        None => bail!("none of apt's sources is this system's release"),
    }
}

fn first_of_release<'a>(targets: &'a str, os_release: &str) -> Option<(&'a str, &'a str)> {
    let codename = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    let mut targets = targets.lines().filter_map(|line| line.split_once(' '));
    targets.find(|(_, suite)| *suite == codename)
}

/// Removes a root, which is root's.
fn remove_root(root: &Path) -> Result<()> {
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
        let targets = "http://a/security/ bookworm-security\nhttp://b/debian/ bookworm\nhttp://b/debian/ bookworm-updates\n";
        let os = "ID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(first_of_release(targets, os), Some(("http://b/debian/", "bookworm")));
        assert_eq!(first_of_release(targets, "VERSION_CODENAME=trixie\n"), None);
    }
}
