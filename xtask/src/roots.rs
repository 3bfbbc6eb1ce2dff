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

const SCRIPT: &str = include_str!("roots.sh");
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
    let script = folder.join("roots.sh");
    fs::write(&script, SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
    for suite in &arguments.suites {
        let root = folder.join(suite);
        Origin::of(suite)?.make(&root, INCLUDED)?;
        try_in(&root, suite, &script)
            .with_context(|| format!("Debian {suite} fails; its root is {}", root.display()))?;
        debian::remove(&root)?;
        println!("Debian {suite}: setup, build and a snapshot work");
    }
    Ok(())
}

fn try_in(root: &Path, suite: &str, script: &Path) -> Result<()> {
    let sources = root.join("etc/apt/sources.list");
    let write = format!("printf %s \"$1\" >{}", sh::quote(&sources.to_string_lossy()));
    sh::run(sh::as_root("sh", &[]).args(["-c", &write, "sh", &sources_of(suite)?]))?;
    let sysroot =
        sh::ask(Command::new("rustc").args(["--print", "sysroot"])).context("rustc has no sysroot")?;
    let mut unshare = sh::as_root("unshare", &[]);
    unshare.args(["--mount", "--propagation", "private", "sh"]).arg(script).arg(root);
    sh::run(unshare.arg(sh::workspace()).arg(sysroot.trim()).arg(cargo_home()?))
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
