//! Setup as a stranger meets it: in the smallest roots of Debian 12, 13 and sid, `cargo xtask setup --for build` must lead
//! to `cargo xtask build`, and that to a `tcpclose stuck --no-agent` that works.
//!
//! What a root has besides the smallest Debian is what Rust itself takes (a C linker, certificates). Its cargo is this
//! machine's toolchain, mounted read-only, as the workspace is; the release is built with little optimisation, since it is
//! to run once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tcpclose_common::toolchain;

use crate::archive::{self, Suite};
use crate::debian::{self, Origin};
use crate::{build, sh};

const CHROOT: &str = include_str!("chroot.sh");
const SCRIPT: &str = "
    mkdir -p /root/.cargo
    cp -r /cargo-settings/. /root/.cargo/
    cd /tcpclose
    cargo xtask setup --for build
    cargo xtask build
    /target/release/tcpclose stuck --no-agent --older-than 0s";
const SUITES: &[&str] = &[Suite::Bookworm.name(), Suite::Trixie.name(), Suite::Sid.name()];
const INCLUDED: &str = "ca-certificates,gcc,libc6-dev";

/// Try setup and build in minimal Debian roots (needs root)
#[derive(clap::Args)]
pub struct Arguments {
    /// Releases to try
    #[arg(value_name = "SUITE", default_values = SUITES)]
    suites: Vec<String>,
}

impl Arguments {
    /// Every release.
    pub fn all() -> Self {
        Self { suites: SUITES.iter().map(|suite| (*suite).to_owned()).collect() }
    }
}

/// Runs the command.
pub fn command(arguments: &Arguments) -> Result<()> {
    let folder = build::target_folder()?.join("roots");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for suite in &arguments.suites {
        let root = folder.join(suite);
        Origin::of(suite)?.make(&root, INCLUDED)?;
        try_in(&root, suite)
            .with_context(|| format!("Debian {suite} fails; its root is {}", root.display()))?;
        debian::remove(&root)?;
        println!("Debian {suite}: setup, build and a snapshot work");
    }
    Ok(())
}

fn try_in(root: &Path, suite: &str) -> Result<()> {
    let sysroot =
        sh::ask(Command::new("rustc").args(["--print", "sysroot"])).context("rustc has no sysroot")?;
    // What cargo fetched for this machine need not be fetched again.
    let cargo = cargo_home()?;
    let registry = cargo.join("registry");
    fs::create_dir_all(&registry).with_context(|| format!("cannot make {}", registry.display()))?;
    let settings = build::target_folder()?.join("roots/cargo-settings");
    fs::create_dir_all(&settings).with_context(|| format!("cannot make {}", settings.display()))?;
    for name in ["config.toml", "config"] {
        let (from, to) = (cargo.join(name), settings.join(name));
        if from.is_file() {
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    let mounts = [
        Mount { source: &sh::workspace(), target: "/tcpclose", writable: false },
        Mount { source: Path::new(sysroot.trim()), target: "/toolchain", writable: false },
        Mount { source: &settings, target: "/cargo-settings", writable: false },
        Mount { source: &registry, target: "/root/.cargo/registry", writable: true },
    ];
    run_in(root, suite, SCRIPT, &mounts)
}

/// A folder of this machine in a root.
pub struct Mount<'a> {
    pub source: &'a Path,
    pub target: &'static str,
    pub writable: bool,
}

/// Runs a shell script in a root of a release, with that release's package sources. Takes root.
pub fn run_in(root: &Path, suite: &str, script: &str, mounts: &[Mount<'_>]) -> Result<()> {
    let chroot = build::target_folder()?.join("roots/chroot.sh");
    fs::write(&chroot, CHROOT).with_context(|| format!("cannot write {}", chroot.display()))?;
    let sources = root.join("etc/apt/sources.list");
    let write = format!("printf %s \"$1\" >{}", sh::quote(&sources.to_string_lossy()));
    sh::run(sh::as_root("sh", &[]).args(["-c", &write, "sh", &sources_of(suite)?]))?;
    let mut unshare = sh::as_root("unshare", &[]);
    unshare.args(["--mount", "--propagation", "private", "sh"]).arg(chroot).arg(root).arg(script);
    for mount in mounts {
        let mode = if mount.writable { "rw" } else { "ro" };
        unshare.arg(mount.source).arg(mount.target).arg(mode);
    }
    sh::run(&mut unshare)
}

/// The sources of a release with its updates; sid has none.
fn sources_of(suite: &str) -> Result<String> {
    let mirror = archive::mirror()?;
    let mut sources = format!("deb {mirror} {suite} main\n");
    if suite != Suite::Sid.name() {
        sources += &format!("deb {mirror} {suite}-updates main\n");
        sources += &format!("deb {} {suite}-security main\n", archive::security_mirror()?);
    }
    Ok(sources)
}

/// Cargo's cache, which the roots share.
fn cargo_home() -> Result<PathBuf> {
    match toolchain::home("CARGO_HOME", ".cargo").filter(|home| home.is_absolute()) {
        Some(home) => Ok(home),
        None => bail!("cannot find cargo's cache: neither CARGO_HOME nor HOME is set"),
    }
}
