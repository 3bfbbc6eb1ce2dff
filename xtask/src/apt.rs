//! Debian's package tools.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh;

/// Debian's package tools, with lists of today: a fresh machine has none, and old ones name packages that are gone.
pub struct Apt;

impl Apt {
    /// None where the system has no apt.
    pub fn updated() -> Result<Option<Self>> {
        if sh::find("apt-get").is_none() {
            return Ok(None);
        }
        sh::run(apt_get().arg("update"))?;
        Ok(Some(Self))
    }

    /// Those of `packages` that can be had, with their versions.
    pub fn offered(&self, packages: &[&str]) -> Vec<(String, String)> {
        let policy = sh::ask(Command::new("apt-cache").arg("policy").args(packages).env("LC_ALL", "C"));
        candidates(&policy.unwrap_or_default())
    }

    /// What `package` depends on; nothing where there is no such package.
    pub fn dependencies(&self, package: &str) -> Vec<String> {
        let command = &mut Command::new("apt-cache");
        let answer = sh::ask(command.args(["depends", "--important", package]).env("LC_ALL", "C"));
        dependencies(&answer.unwrap_or_default())
    }

    pub fn install(&self, packages: &[&str]) -> Result<()> {
        let mut command = apt_get();
        // --no-remove: a package that is in the way is its user's to remove.
        command.args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(packages);
        sh::run(&mut command)?;
        if Path::new("/run/systemd/system").exists() {
            eprintln!(
                "note: services among these were not started now; systemd will start them at the next boot"
            );
        }
        Ok(())
    }

    /// Fetches a package into an empty folder, and tells where it is.
    pub fn download(&self, package: &str, folder: &Path) -> Result<PathBuf> {
        let mut command = Command::new("apt-get");
        command.current_dir(folder).args(["--quiet", "--quiet"]);
        // As root it would rather write as another user, who may not write here, and warn.
        command.args(["--option", "APT::Sandbox::User=root", "download", package]);
        sh::run(&mut command)?;
        let files = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut files = files.filter_map(Result::ok).map(|entry| entry.path());
        match files.find(|file| file.extension().is_some_and(|extension| extension == "deb")) {
            Some(archive) => Ok(archive),
            None => bail!("apt-get download {package} left nothing in {}", folder.display()),
        }
    }
}

/// Apt-get, asking nothing and starting no services: the tests start their own nginx and Prometheus, on ports of
/// their own. systemctl ignores `start` where SYSTEMD_OFFLINE is set, invoke-rc.d starts nothing in runlevel 1, and
/// neither leaves anything behind to undo.
fn apt_get() -> Command {
    let environment = [("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1"), ("SYSTEMD_OFFLINE", "1")];
    let mut command = sh::as_root("apt-get", &environment);
    if !std::io::stderr().is_terminal() {
        // Without a terminal of its own dpkg does not count the files of its database either.
        command.args(["--quiet", "--option", "Dpkg::Use-Pty=0"]);
    }
    command
}

/// True if dpkg knows it as installed.
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

/// The packages named by `apt-cache depends`.
fn dependencies(depends: &str) -> Vec<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(|name| name.trim().to_owned()).collect()
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
    fn a_metapackage_names_the_one_it_stands_for() {
        let depends =
            "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: doc\n";
        assert_eq!(dependencies(depends), ["linux-image-6.1.0-56-cloud-amd64"]);
        assert!(dependencies("").is_empty());
    }
}
