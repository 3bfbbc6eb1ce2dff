//! `cargo xtask build`: the release binary.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::setup::{self, Purpose};
use crate::sh;

/// Runs the command.
pub fn command() -> Result<()> {
    let binary = release()?;
    let size = fs::metadata(&binary).with_context(|| format!("no {}", binary.display()))?.len();
    println!("{} ({:.1} MB)", binary.display(), size as f64 / 1e6);
    Ok(())
}

/// Builds the release binary, after the setup that it needs, and tells where it is.
pub fn release() -> Result<PathBuf> {
    setup::ready(Purpose::Build)?;
    sh::run(sh::cargo().args(["build", "--release", "--package", "tcpclose"]))?;
    binary()
}

fn binary() -> Result<PathBuf> {
    Ok(target_folder()?.join("release/tcpclose"))
}

/// Cargo's target folder, in which xtask itself lies below a profile: true wherever CARGO_TARGET_DIR or cargo's
/// configuration have put it.
pub fn target_folder() -> Result<PathBuf> {
    let xtask = env::current_exe().context("cannot tell where xtask itself is")?;
    let target = xtask.ancestors().nth(2).context("xtask was not started by cargo")?;
    Ok(target.to_path_buf())
}
