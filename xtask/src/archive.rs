//! Packages of any Debian suite and architecture, unpacked into folders of their own and never installed.
//!
//! apt-get runs with its own lists, sources, cache and empty package database below target/, so it neither reads nor changes
//! the host's. It needs no root.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::{build, sh};
use files::{Listed, captured, extract, make, partial, remove, write_if_changed};
use tcpclose_common::progress::Ticker;

mod files;

/// The variable that names another mirror than the host's apt sources.
const MIRROR: &str = "DEBIAN_MIRROR";
/// Age at which lists are fetched again.
const FRESH: Duration = Duration::from_secs(12 * 3600);
/// Which packages a complete folder holds.
const STAMP: &str = ".packages";
const KEYRINGS: &[&str] =
    &["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// A release of Debian, or what is backported to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    Bullseye,
    Bookworm,
    Trixie,
    TrixieBackports,
    Sid,
    /// What the host's own sources name: for packages that must have the version of installed ones.
    Host,
}

impl Suite {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::TrixieBackports => "trixie-backports",
            Self::Sid => "sid",
            Self::Host => "host",
        }
    }

    /// The suites that it takes its packages from: backports need what they were made for.
    fn sources(self) -> Vec<&'static str> {
        let name = self.name();
        if self == Self::Host {
            return Vec::new();
        }
        name.strip_suffix("-backports").into_iter().chain([name]).collect()
    }
}

/// The architecture of packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// This machine's; `None` if it is neither.
    pub const fn of_this_machine() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::Amd64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Arm64)
        } else {
            None
        }
    }
}

/// The packages of a suite for an architecture.
pub struct Archive {
    folder: PathBuf,
    suite: Suite,
    architecture: Architecture,
    /// Held while in use, since two users would see each other's unfinished downloads.
    _lock: File,
}

impl Archive {
    /// With fresh lists, or the existing ones if there is no network.
    pub fn open(suite: Suite, architecture: Architecture) -> Result<Self> {
        for program in ["apt-get", "dpkg-deb", "tar", "sha256sum", "sha512sum"] {
            if sh::find(program).is_none() {
                bail!("{program} is missing, which fetches Debian's packages");
            }
        }
        let folder = folder()?.join(format!("{}-{}", suite.name(), architecture.name()));
        for below in
            ["etc/apt.conf.d", "etc/preferences.d", "etc/trusted.gpg.d", "lists/partial", "none/partial"]
        {
            make(&folder.join(below))?;
        }
        make(&folder.join("archives/partial"))?;
        let lock = folder.join("lock");
        let lock = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
        // Ends with the process, however that ends.
        flock(&lock, FlockOperation::LockExclusive).context("cannot lock the folder of packages")?;
        let archive = Self { folder, suite, architecture, _lock: lock };
        archive.configure()?;
        archive.update()?;
        Ok(archive)
    }

    /// The names of packages with this prefix.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache");
        let names = captured(command.args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Unpacks these packages alone into `folder`, in place of what is there, unless they are there already.
    pub fn unpack(&self, packages: &[&str], folder: &Path) -> Result<()> {
        self.unpack_listed(&[&["download"], packages].concat(), folder)
    }

    /// Unpacks packages and all that they depend on: a root, of which no package's scripts have run. `?essential` stands
    /// for what every Debian has.
    pub fn unpack_closure(&self, packages: &[&str], folder: &Path) -> Result<()> {
        let install = ["install", "--yes", "--no-install-recommends", "--download-only"];
        self.unpack_listed(&[&install, packages].concat(), folder)
    }

    /// True if `folder` is complete and was made of these packages.
    pub fn is_unpacked(packages: &[&str], folder: &Path) -> bool {
        let stamp = fs::read_to_string(folder.join(STAMP)).unwrap_or_default();
        stamp.lines().next() == Some(packages.join(" ").as_str())
    }

    /// True if all that was to be unpacked into `folder` is there.
    pub fn is_complete(folder: &Path) -> bool {
        folder.join(STAMP).is_file()
    }

    /// Unpacks what apt-get fetches when it is told `words`. The folder appears when everything is in it.
    fn unpack_listed(&self, words: &[&str], folder: &Path) -> Result<()> {
        let wanted: Vec<&str> = words[1..].iter().copied().filter(|word| !word.starts_with("--")).collect();
        if Self::is_unpacked(&wanted, folder) {
            return Ok(());
        }
        let _ticker = Ticker::start(format!("fetching {}", wanted.join(" ")));
        let files = self.fetch(words)?;
        let partial = partial(folder)?;
        for below in ["bin", "lib", "lib64", "sbin"].iter().filter(|_| words[0] == "install") {
            // Older releases leave these links to a script.
            make(&partial.join("usr").join(below))?;
            std::os::unix::fs::symlink(format!("usr/{below}"), partial.join(below))
                .with_context(|| format!("cannot link {below} in {}", partial.display()))?;
        }
        for file in &files {
            extract(&self.file(file), &partial)?;
        }
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        let stamp = format!("{}\n{}\n", wanted.join(" "), names.join("\n"));
        fs::write(partial.join(STAMP), stamp)
            .with_context(|| format!("cannot write in {}", partial.display()))?;
        remove(folder)?;
        fs::rename(&partial, folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for file in &files {
            // Another package's closure fetches it again.
            let _ = fs::remove_file(self.file(file));
        }
        Ok(())
    }

    /// Has apt-get fetch the files. A damaged file is fetched again, once.
    fn fetch(&self, words: &[&str]) -> Result<Vec<Listed>> {
        let mut files = self.list(words);
        if files.is_err() {
            // Perhaps the lists are older than the package.
            self.refresh()?;
            files = self.list(words);
        }
        let files = files?;
        self.remove_damaged(&files)?;
        let download = || {
            let mut command = self.command("apt-get");
            // `download` writes to where it runs.
            command.current_dir(self.folder.join("archives")).args(["--quiet", "--quiet"]).args(words);
            sh::show(&command);
            captured(&mut command)
        };
        let complete = || files.iter().all(|file| self.file(file).is_file());
        if !complete() && download().is_err() {
            // Perhaps the lists name what is gone.
            self.refresh()?;
            download()?;
        }
        match self.remove_damaged(&files)?.first() {
            None if complete() => Ok(files),
            None => bail!("apt-get fetched another version than it announced (run the command again)"),
            Some(damaged) => bail!("{damaged} is damaged (run the command again)"),
        }
    }

    /// The files that apt-get would fetch.
    fn list(&self, words: &[&str]) -> Result<Vec<Listed>> {
        let mut command = self.command("apt-get");
        // Apt leaves out what it has already, and knows it by its size only: it is shown a folder with nothing in it.
        command.current_dir(self.folder.join("none"));
        command.arg("--option").arg(format!("Dir::Cache::archives={}", self.folder.join("none").display()));
        let uris = captured(command.args(["--quiet", "--quiet", "--print-uris"]).args(words))?;
        let files = uris.lines().map(Listed::parse).collect::<Option<Vec<_>>>();
        match files {
            Some(files) if !files.is_empty() => Ok(files),
            _ => bail!("apt-get --print-uris {} names no files", words.join(" ")),
        }
    }

    /// Removes files that do not match the signed lists. Returns their names.
    fn remove_damaged(&self, files: &[Listed]) -> Result<Vec<String>> {
        let mut damaged = Vec::new();
        for file in files {
            let path = self.file(file);
            if path.is_file() && !file.is_whole(&path)? {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
                damaged.push(file.name.clone());
            }
        }
        Ok(damaged)
    }

    fn file(&self, file: &Listed) -> PathBuf {
        self.folder.join("archives").join(&file.name)
    }

    /// Writes apt's sources and settings.
    fn configure(&self) -> Result<()> {
        let (folder, architecture) = (self.folder.display(), self.architecture.name());
        let Some(keyring) = KEYRINGS.iter().find(|file| Path::new(file).is_file()) else {
            bail!("the keys of Debian's archive are missing (install debian-archive-keyring)");
        };
        let mut sources = String::new();
        for suite in self.suite.sources() {
            let mirror = mirror()?;
            sources += &format!("deb [arch={architecture} signed-by={keyring}] {mirror} {suite} main\n");
        }
        // A mirror may stand still for weeks: signatures count, not dates.
        let mut settings = format!(
            "Dir \"{folder}\";\nDir::State \"{folder}\";\nDir::State::lists \"{folder}/lists\";\n\
             Dir::State::status \"{folder}/status\";\nDir::Cache \"{folder}\";\nDir::Etc \"{folder}/etc\";\n\
             Dir::Etc::sourcelist \"{folder}/sources.list\";\nDir::Log \"{folder}\";\n\
             APT::Architecture \"{architecture}\";\nAPT::Architectures {{ \"{architecture}\"; }};\n\
             APT::Sandbox::User \"root\";\nAPT::Update::Error-Mode \"any\";\nAcquire::Languages \"none\";\n\
             Acquire::ForceHash \"SHA256\";\nAcquire::Retries \"1\";\n\
             Acquire::Check-Valid-Until \"false\";\n"
        );
        if self.suite.sources().len() > 1 {
            settings += &format!("APT::Default-Release \"{}\";\n", self.suite.name());
        }
        if self.suite == Suite::Host {
            settings += &hosts_sources()?;
        }
        // The way to the network is the host's.
        let host = sh::ask(Command::new("apt-config").args(["dump", "--format", "%F \"%v\";%n"]));
        for line in host.unwrap_or_default().lines().filter(|line| line.starts_with("Acquire::http")) {
            settings += line;
            settings.push('\n');
        }
        for (name, content) in [("sources.list", sources.as_str()), ("apt.conf", &settings), ("status", "")] {
            write_if_changed(&self.folder.join(name), content)?;
        }
        Ok(())
    }

    fn update(&self) -> Result<()> {
        let stamp = self.stamp();
        let age = |file: &Path| fs::metadata(file).and_then(|stamp| stamp.modified()).ok();
        let (updated, sources) = (age(&stamp), age(&self.folder.join("sources.list")));
        let is_fresh =
            updated.is_some_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age < FRESH));
        if is_fresh && updated >= sources {
            return Ok(());
        }
        match self.refresh() {
            Err(why) if updated >= sources && updated.is_some() => {
                eprintln!("note: {why:#}; using the existing lists");
                Ok(())
            }
            refreshed => refreshed,
        }
    }

    /// Fetches the lists, whose signatures apt-get checks.
    fn refresh(&self) -> Result<()> {
        let mut command = self.command("apt-get");
        command.args(["--quiet", "--quiet", "update"]);
        sh::show(&command);
        captured(&mut command)
            .with_context(|| format!("cannot fetch the package lists of Debian {}", self.suite.name()))?;
        let stamp = self.stamp();
        fs::write(&stamp, "").with_context(|| format!("cannot write {}", stamp.display()))
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join("updated")
    }

    /// One of apt's programs, with these settings in place of the host's.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.folder.join("apt.conf")).env("LC_ALL", "C");
        command
    }
}

/// A program of an unpacked root, as words of a command: started through the root's own loader, it takes neither root nor
/// this system's libraries.
pub fn through_loader(root: &Path, program: &str) -> Vec<String> {
    let (loader, triplet) = match Architecture::of_this_machine() {
        Some(Architecture::Arm64) => ("lib/ld-linux-aarch64.so.1", "aarch64-linux-gnu"),
        _ => ("lib64/ld-linux-x86-64.so.2", "x86_64-linux-gnu"),
    };
    let path = |below: &str| root.join(below).display().to_string();
    vec![path(loader), "--library-path".to_owned(), path(&format!("usr/lib/{triplet}")), path(program)]
}

/// The settings that name the host's own sources and keys.
fn hosts_sources() -> Result<String> {
    const FILES: [(&str, &str); 4] =
        [("sourcelist", "f"), ("sourceparts", "d"), ("trusted", "f"), ("trustedparts", "d")];
    let mut command = Command::new("apt-config");
    command.arg("shell");
    for (name, kind) in FILES {
        command.arg(name).arg(format!("Dir::Etc::{name}/{kind}"));
    }
    let printed = captured(&mut command)?;
    // As a shell would set them: NAME='PATH'.
    let paths = printed.lines().filter_map(|line| line.split_once('='));
    Ok(paths.map(|(name, path)| format!("Dir::Etc::{name} \"{}\";\n", path.trim_matches('\''))).collect())
}

/// This module's folder.
fn folder() -> Result<PathBuf> {
    Ok(build::target_folder()?.join("debian"))
}

/// Debian's mirror: from the variable, or the host's.
pub fn mirror() -> Result<String> {
    if let Some(mirror) = env::var(MIRROR).ok().filter(|mirror| !mirror.is_empty()) {
        return Ok(mirror);
    }
    // The first are known without lists; the last are not.
    let format = "$(REPO_URI) $(RELEASE) $(ORIGIN):$(LABEL)";
    let targets =
        sh::ask(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]));
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let mirror = mirror_in(&targets.unwrap_or_default(), &os).map(str::to_owned);
    mirror.with_context(|| format!("apt's sources name no mirror of Debian (set {MIRROR} to one)"))
}

/// The mirror of Debian's security updates, beside the release.
pub fn security_mirror() -> Result<String> {
    Ok(format!("{}-security/", mirror()?.trim_end_matches('/')))
}

fn mirror_in<'a>(targets: &'a str, os_release: &str) -> Option<&'a str> {
    let mut targets = targets.lines().filter_map(|line| {
        let mut words = line.splitn(3, ' ');
        Some((words.next()?, words.next()?, words.next()?))
    });
    let value = |name: &str| os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let release = value("VERSION_CODENAME").filter(|_| value("ID") == Some("debian"));
    let of_debian = |&(_, suite, label): &(&str, &str, &str)| {
        label == "Debian:Debian"
            || (release == Some(suite) && !label.starts_with(|c: char| c.is_alphanumeric()))
    };
    targets.find(of_debian).map(|(mirror, _, _)| mirror)
}

#[cfg(test)]
mod tests;
