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

/// Sets up and builds the release binary. Returns its path.
pub fn release() -> Result<PathBuf> {
    setup::ready(Purpose::Build)?;
    sh::run(sh::cargo().args(["build", "--release", "--package", "tcpclose"]))?;
    binary()
}

fn binary() -> Result<PathBuf> {
    Ok(target_folder()?.join("release/tcpclose"))
}

/// Cargo's target folder: xtask itself is in a profile's folder below it.
pub fn target_folder() -> Result<PathBuf> {
    let xtask = env::current_exe().context("cannot find the path of xtask itself")?;
    let target = xtask.ancestors().nth(2).context("xtask was not started by cargo")?;
    Ok(target.to_path_buf())
}
