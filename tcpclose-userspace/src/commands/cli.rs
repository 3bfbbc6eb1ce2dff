//! The commands.

use clap::Parser;

use crate::commands::agent;
use crate::commands::doctor;
use crate::commands::exhaustion;
use crate::commands::generate;
use crate::commands::idle;
use crate::commands::kill;
use crate::commands::ports;
use crate::commands::stuck;
#[cfg(feature = "tui")]
use crate::commands::top;
use crate::commands::verify;
use crate::commands::watch;

/// A live monitor of how TCP connections end on a Linux host.
#[derive(Debug, Parser)]
#[command(name = "tcpclose", version, about, infer_long_args = false)]
#[command(after_help = "Example: tcpclose stuck --older-than 10m")]
pub enum Cli {
    // Boxed, since it has by far the most settings.
    Agent(Box<agent::Agent>),
    Stuck(stuck::Stuck),
    Kill(kill::Kill),
    Ports(ports::Ports),
    Exhaustion(exhaustion::Exhaustion),
    Idle(idle::Idle),
    #[cfg(feature = "tui")]
    Top(top::Top),
    Verify(verify::Verify),
    Watch(watch::Watch),
    Doctor(doctor::Doctor),
    Generate(generate::Generate),
}
