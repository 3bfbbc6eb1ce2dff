//! `cargo xtask package`: a .deb, an .rpm and a tarball around one static binary, in target/package.
//!
//! * [`binary`]: builds it, the same wherever that is done, and makes sure that it runs anywhere.
//! * [`tree`]: its files as they are installed; [`licences`]: whose work is in it.
//! * [`archives`]: the three files.
//! * [`trial`]: installs, runs and removes each.
//!
//! All three hold the same files, but for where each kind of system keeps licences and zsh's completions.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::archive::Architecture;
use crate::setup::{self, Purpose};
use crate::{build, sh, vm};

mod archives;
mod binary;
mod licences;
mod tree;
pub mod trial;

/// Make a .deb, an .rpm and a tarball in target/package
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask package\n  cargo xtask package --arch all --twice --test")]
pub struct Arguments {
    /// Architecture of the packages [default: this machine's]
    #[arg(long = "arch", value_name = "ARCHITECTURE", value_enum)]
    architecture: Option<For>,
    /// Build everything twice, in two folders, and fail unless the files are identical
    #[arg(long)]
    twice: bool,
    /// Check the .deb with lintian; install, run and remove each package in its own chroot (needs root)
    #[arg(long)]
    test: bool,
}

/// The architectures that packages are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum For {
    Amd64,
    Arm64,
    /// Both
    All,
}

impl For {
    fn architectures(self) -> &'static [Architecture] {
        match self {
            Self::Amd64 => &[Architecture::Amd64],
            Self::Arm64 => &[Architecture::Arm64],
            Self::All => &Architecture::ALL,
        }
    }
}

/// Its version is the workspace's.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The revision of the packaging.
pub const REVISION: &str = "1";
pub const MAINTAINER: &str = "The tcpclose maintainers <maintainers@tcpclose.example>";

/// The source of the packages, and the working folder.
pub struct Source {
    /// The workspace.
    pub folder: PathBuf,
    /// The working folder.
    pub work: PathBuf,
    /// The time of all files, in seconds since 1970: the commit's.
    pub epoch: u64,
    /// The architecture of the packages.
    pub architecture: Architecture,
}

impl Source {
    /// A file of the workspace.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    pub fn read(&self, file: &str) -> Result<String> {
        let path = self.path(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

/// The .deb, the .rpm and the tarball.
pub struct Packages {
    pub architecture: Architecture,
    /// The binary in them.
    pub binary: PathBuf,
    pub deb: PathBuf,
    pub rpm: PathBuf,
    pub tarball: PathBuf,
}

impl Packages {
    fn all(&self) -> [&Path; 3] {
        [&self.deb, &self.rpm, &self.tarball]
    }
}

/// Runs the command.
pub fn command(arguments: &Arguments) -> Result<()> {
    let architectures = match arguments.architecture {
        Some(chosen) => chosen.architectures().to_vec(),
        None => vec![Architecture::host()?],
    };
    for architecture in architectures {
        let packages = make(architecture, arguments.twice)?;
        if arguments.test {
            test(&packages)?;
        }
    }
    Ok(())
}

/// Tries packages of this architecture; of another one the binary, in a guest.
pub fn test(packages: &Packages) -> Result<()> {
    if packages.architecture == Architecture::host()? {
        return trial::run(packages);
    }
    setup::ready(Purpose::Trial)?;
    trial::lint(&packages.deb)?;
    vm::try_binary(packages.architecture, &packages.binary)
}

/// Makes and prints the packages for an architecture.
pub fn make(architecture: Architecture, twice: bool) -> Result<Packages> {
    setup::ready(Purpose::Package)?;
    let work = build::target_folder()?.join("package");
    let source = Source { folder: sh::workspace(), work, epoch: epoch()?, architecture };
    let packages = once(&source)?;
    let sums = sums(&packages)?;
    for (file, sum) in packages.all().into_iter().zip(&sums) {
        let size = fs::metadata(file).with_context(|| format!("no {}", file.display()))?.len();
        println!("{} ({})\n  sha256 {sum}", file.display(), mib(size));
    }
    if twice {
        compare(&source, &sums)?;
    }
    Ok(packages)
}

fn once(source: &Source) -> Result<Packages> {
    let binary = binary::build(source)?;
    let made = binary::generate(source, &binary)?;
    let third_parties = licences::collect(source)?;
    archives::make(source, &tree::Parts { binary, made, third_parties })
}

/// Builds everything again elsewhere, from a copy of the same files.
fn compare(source: &Source, sums: &[String]) -> Result<()> {
    // Paths of another length show what writes them down.
    let again = source.work.join("again/in-a-folder-with-another-name");
    remove(&source.work.join("again"))?;
    let folder = again.join("workspace");
    copy_sources(&source.folder, &folder)?;
    let second = Source { folder, work: again.join("made"), ..*source };
    let second_packages = once(&second)?;
    let second_sums = self::sums(&second_packages)?;
    let mut different = Vec::new();
    println!("built in {} and in {}:", source.folder.display(), second.folder.display());
    for ((file, first), second) in second_packages.all().into_iter().zip(sums).zip(&second_sums) {
        let name = name(file);
        let word = if first == second { "the same" } else { "DIFFERENT" };
        println!("  {name}: {word}\n    sha256 {first}\n    sha256 {second}");
        if first != second {
            different.push(name);
        }
    }
    if !different.is_empty() {
        bail!(
            "two builds differ in {}; `diffoscope` shows where: see {}",
            different.join(", "),
            second.work.display()
        );
    }
    remove(&source.work.join("again"))
}

/// Every file that git tracks or would add.
fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    let list = sh::ask(Command::new("git").current_dir(from).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ]));
    let list = list.context("git cannot list the sources (--twice needs a git work tree)")?;
    for name in list.split('\0').filter(|name| !name.is_empty()) {
        let (old, new) = (from.join(name), to.join(name));
        // Removed, but not yet for git.
        if !old.exists() {
            continue;
        }
        let folder = new.parent().unwrap_or(to);
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::copy(&old, &new).with_context(|| format!("cannot copy to {}", new.display()))?;
    }
    Ok(())
}

/// The time of all files.
fn epoch() -> Result<u64> {
    let reported = match env::var("SOURCE_DATE_EPOCH") {
        Ok(reported) => reported,
        Err(_) => {
            let mut git = Command::new("git");
            let commit = sh::ask(git.current_dir(sh::workspace()).args(["log", "-1", "--format=%ct"]));
            commit.context(
                "git tells no time of the last commit; set SOURCE_DATE_EPOCH to seconds since 1970",
            )?
        }
    };
    let reported = reported.trim();
    reported
        .parse()
        .ok()
        .with_context(|| format!("SOURCE_DATE_EPOCH: {reported:?} is not a number of seconds"))
}

fn sums(packages: &Packages) -> Result<Vec<String>> {
    packages.all().into_iter().map(sha256).collect()
}

fn sha256(file: &Path) -> Result<String> {
    let printed = sh::ask(Command::new("sha256sum").arg(file)).context("sha256sum failed")?;
    printed.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}

/// Removes a folder, if it is there.
pub fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn name(file: &Path) -> String {
    file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A size for people.
pub fn mib(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}
