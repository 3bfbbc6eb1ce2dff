//! Debian's package tools.

use std::io::IsTerminal;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh;

/// Debian's package tools, with fresh lists: old ones name packages that are gone.
pub struct Apt;

/// The effect of installing packages on others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    pub removed: Vec<String>,
    pub upgraded: Vec<String>,
}

impl Apt {
    /// None if the system has no apt. Without network or root the existing lists are used.
    pub fn updated() -> Option<Self> {
        sh::find("apt-get")?;
        if !sh::can_be_root() {
            eprintln!("note: updating apt's lists needs root; using the existing ones");
        } else if let Err(why) = sh::run(apt_get().arg("update")) {
            eprintln!("note: {why:#}; using apt's existing lists");
        }
        Some(Self)
    }

    /// The effect of installing these on other packages. The error is the reason why they cannot be installed.
    pub fn effect(&self, packages: &[&str]) -> Result<Effect> {
        let mut command = Command::new("apt-get");
        command.args(["--simulate", "--quiet", "--quiet", "--yes", "--no-install-recommends", "install"]);
        let output = command.args(packages).env("LC_ALL", "C").output().context("cannot start apt-get")?;
        if !output.status.success() {
            let printed = String::from_utf8_lossy(&output.stderr);
            let why = printed.lines().find_map(|line| line.strip_prefix("E: ")).unwrap_or("it fails");
            bail!("apt-get cannot install {}: {why}", packages.join(", "));
        }
        Ok(effect(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Those of `packages` that are available, with their versions.
    pub fn offered(&self, packages: &[&str]) -> Vec<(String, String)> {
        let policy = sh::ask(Command::new("apt-cache").arg("policy").args(packages).env("LC_ALL", "C"));
        candidates(&policy.unwrap_or_default())
    }

    pub fn install(&self, packages: &[&str]) -> Result<()> {
        let mut command = apt_get();
        // --no-remove: a package that is in the way is its user's to remove; and one that is there stays as it is.
        command.args(["install", "--yes", "--no-install-recommends", "--no-remove", "--no-upgrade"]);
        command.args(packages);
        sh::run(&mut command)?;
        if Path::new("/run/systemd/system").exists() {
            eprintln!(
                "note: services among these were not started now; systemd will start them at the next boot"
            );
        }
        Ok(())
    }
}

/// Apt-get that asks nothing and starts no services, since tests start their own: systemctl ignores `start` if SYSTEMD_OFFLINE
/// is set, and invoke-rc.d starts nothing in runlevel 1.
fn apt_get() -> Command {
    let environment = [("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1"), ("SYSTEMD_OFFLINE", "1")];
    let mut command = sh::as_root("apt-get", &environment);
    if !std::io::stderr().is_terminal() {
        // Without a terminal of its own dpkg does not count the files of its database either.
        command.args(["--quiet", "--option", "Dpkg::Use-Pty=0"]);
    }
    command
}

/// True if it is installed, by dpkg.
pub fn is_installed(package: &str) -> bool {
    sh::ask(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_some_and(|status| status == "installed")
}

/// The packages that `apt-cache policy` can install, with their versions.
fn candidates(policy: &str) -> Vec<(String, String)> {
    let mut package = "";
    let mut found = Vec::new();
    for line in policy.lines() {
        if !line.starts_with(' ') {
            package = line.trim_end_matches(':');
        } else if let Some(version) = line.trim().strip_prefix("Candidate: ")
            && version != "(none)"
        {
            found.push((package.to_owned(), version.to_owned()));
        }
    }
    found
}

/// What `apt-get --simulate install` says it would remove, and upgrade: `Inst login [old] (new …)`.
fn effect(simulated: &str) -> Effect {
    let mut effect = Effect::default();
    for line in simulated.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("Remv" | "Purg"), Some(package), _) => effect.removed.push(package.to_owned()),
            (Some("Inst"), Some(package), Some(version)) if version.starts_with('[') => {
                effect.upgraded.push(package.to_owned());
            }
            _ => {}
        }
    }
    effect
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_offers_what_has_a_candidate() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n     \
            1.96.0+dfsg1-1~deb12u2 500\nllvm-22-dev:\n  Installed: 1:22.1.8-1\n  Candidate: 1:22.1.8-1\n\
            virtual:\n  Installed: (none)\n  Candidate: (none)\n";
        let offered = candidates(policy);
        let expected = [("rustc-web", "1.96.0+dfsg1-1~deb12u2"), ("llvm-22-dev", "1:22.1.8-1")];
        assert_eq!(offered, expected.map(|(name, version)| (name.to_owned(), version.to_owned())));
        assert!(candidates("").is_empty());
    }

    #[test]
    fn what_apt_would_do_to_others_is_reported() {
        let simulated = "Remv qemu-utils [1:10.0.2]\nInst login [1:4.13-1] (1:4.13-2 Debian:12.15/oldstable [amd64])\n\
            Inst conmon (2.1.6 Debian:12.15/oldstable [amd64])\nConf conmon (2.1.6 Debian:12.15/oldstable [amd64])\n";
        let (removed, upgraded) = (vec!["qemu-utils".to_owned()], vec!["login".to_owned()]);
        assert_eq!(effect(simulated), Effect { removed, upgraded });
        assert_eq!(effect(""), Effect::default());
    }
}
