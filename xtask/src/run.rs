//! `cargo xtask run`: from a fresh clone to a serving agent.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use anyhow::{Result, anyhow};

use crate::{build, sh};

/// Set up, build and run `tcpclose agent`, with sudo if needed
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask run\n  cargo xtask run -- --listen 0.0.0.0:9923 --stuck-after 30s,10m"
)]
pub struct Arguments {
    /// Arguments of the agent
    #[arg(last = true, value_name = "ARGS")]
    agent: Vec<OsString>,
}

/// Runs the command. Returns only if it fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    let binary = build::release()?;
    let mut agent = sh::as_root(&binary, &[]);
    agent.arg("agent").args(&arguments.agent);
    sh::show(&agent);
    // In place of xtask, which is in place of cargo: Ctrl-C and SIGTERM reach the agent (or sudo, which passes them
    // on) and its exit status is this command's.
    let why = agent.exec();
    Err(anyhow!(why).context(format!("cannot start {}", agent.get_program().display())))
}
