//! Checks the workflows of .github with zizmor, which pip installs below target/.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::{build, sh};

/// The version that the workflows were last checked with.
const ZIZMOR: &str = "zizmor==1.32.0";

/// Runs zizmor over the workspace's workflows. The inner error is the reason why it is missing.
pub fn check() -> Result<Result<(), &'static str>> {
    let Some(zizmor) = zizmor()? else {
        return Ok(Err("cannot install zizmor (it needs python3 with venv, and PyPI)"));
    };
    let folder = sh::workspace().join(".github/workflows");
    sh::run(&mut command(&zizmor, &folder))?;
    Ok(Ok(()))
}

/// All checks that need no network.
fn command(zizmor: &Path, folder: &Path) -> Command {
    let mut command = Command::new(zizmor);
    command.args(["--offline", "--no-progress", "--pedantic"]).arg(folder);
    command
}

/// Finds or installs it.
fn zizmor() -> Result<Option<PathBuf>> {
    let venv = build::target_folder()?.join("zizmor");
    let zizmor = venv.join("bin/zizmor");
    let is_there = || {
        sh::ask(Command::new(&zizmor).arg("--version"))
            .is_some_and(|printed| ZIZMOR.ends_with(printed.trim().trim_start_matches("zizmor ")))
    };
    if is_there() {
        return Ok(Some(zizmor));
    }
    if sh::find("python3").is_none() {
        return Ok(None);
    }
    let made = sh::run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["--quiet", "--disable-pip-version-check", "install", "--only-binary", ":all:", ZIZMOR]);
    if made.and_then(|()| sh::run(&mut pip)).is_err() {
        return Ok(None);
    }
    if !is_there() {
        bail!("{} does not start, or is not {ZIZMOR}", zizmor.display());
    }
    Ok(Some(zizmor))
}
