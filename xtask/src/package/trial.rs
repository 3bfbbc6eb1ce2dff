//! Installs, runs and removes each package in a root of its own: trial.sh, from outside of that root, in a mount and a
//! network namespace that end with it.
//!
//! The roots of the .deb and the .rpm are copies of one made with debootstrap: of this system's release, from where its
//! own packages come. They are booted as well, for only systemd shows what an upgrade does to an agent that runs. The tarball's is an empty folder, which proves that its binary needs nothing of a system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Packages, VERSION, name};
use crate::debian::{self, Origin};
use crate::setup::{self, Purpose};
use crate::{build, sh};

const SCRIPT: &str = include_str!("trial.sh");

/// What the root has besides a smallest Debian: what the packages ask for, and what reads manuals, completions and .rpm.
const INCLUDED: &str = "systemd,man-db,rpm,zsh,fish";

/// Has lintian read the .deb, and tries all three.
pub fn run(packages: &Packages) -> Result<()> {
    setup::ready(Purpose::Trial)?;
    lint(&packages.deb)?;
    let folder = build::target_folder()?.join("package");
    let base = base(&folder)?;
    let script = folder.join("trial.sh");
    fs::write(&script, SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
    for (kind, package) in [("deb", &packages.deb), ("rpm", &packages.rpm), ("tarball", &packages.tarball)] {
        let root = folder.join(format!("root-{kind}"));
        debian::remove(&root)?;
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
        debian::remove(&root)?;
    }
    Ok(())
}

/// Has lintian read the .deb.
pub fn lint(deb: &Path) -> Result<()> {
    let mut lintian = Command::new("lintian");
    lintian.env("LC_ALL", "C").args(["--allow-root", "--fail-on", "error,warning"]);
    sh::run(lintian.args(["--tag-display-limit", "0"]).arg(deb))?;
    println!("lintian accepts {} (except overridden tags)", name(deb));
    Ok(())
}

/// The root that others are copies of. It appears when everything is in it.
fn base(folder: &Path) -> Result<PathBuf> {
    let origin = Origin::of_this_system()?;
    let base = folder.join(format!("root-of-{}", origin.suite));
    // A newer list of what is in it makes another root.
    let stamp = base.join("included");
    if fs::read_to_string(&stamp).is_ok_and(|included| included == INCLUDED) {
        return Ok(base);
    }
    debian::remove(&base)?;
    let partial = folder.join("root.partial");
    origin.make(&partial, INCLUDED)?;
    sh::run(
        sh::as_root("sh", &[])
            .args(["-c", "printf %s \"$1\" >\"$2\"", "sh", INCLUDED])
            .arg(partial.join("included")),
    )?;
    sh::run(sh::as_root("mv", &[]).arg(&partial).arg(&base))?;
    Ok(base)
}
