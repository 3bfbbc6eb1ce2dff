//! What tcpclose costs, side by side with the floor under it and with what people use now: `cargo xtask bench`.
//!
//! * [`rate`], [`closers`], [`program`], [`stacks`], [`idle`], [`stuck`], [`owners`], [`dump`], [`memory`], [`scrape`],
//!   [`throughput`], [`growth`], [`long`]: one figure each.
//! * [`contender`]: who is measured; [`load`]: what by; [`process`]: how; [`place`]: where.
//! * [`report`]: medians and quartiles, as a table and as JSON.
//!
//! Runs of different contenders take turns, since a machine's speed drifts; each is compared with what ran next to it.

#![allow(clippy::unwrap_used, reason = "the test helpers that are used here may")]

#[path = "../../tests/live/common/mod.rs"]
mod common;
#[allow(dead_code, reason = "tests use the rest")]
#[path = "../../tests/live/cases/place.rs"]
mod place;

mod closers;
mod contender;
mod dump;
mod events;
mod floor;
mod growth;
mod idle;
mod load;
mod long;
mod memory;
mod owners;
mod process;
mod program;
mod rate;
mod report;
mod scrape;
mod stacks;
mod stuck;
mod throughput;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use report::Figure;
use tcpclose_common::progress;
use tcpclose_common::progress::Ticker;

/// Measure what tcpclose costs
#[derive(Parser)]
#[command(name = "bench", bin_name = "cargo xtask bench")]
struct Arguments {
    /// Only these figures; without it, all but long
    #[arg(long, value_name = "NAME", value_enum, num_args = 1..)]
    only: Vec<Name>,
    /// How often contenders take turns
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// How long each runs at a time, in the figures that are rates [default: 1; long: 1800]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<f64>,
    /// Folder for the results
    #[arg(long, value_name = "FOLDER", hide = true)]
    out: PathBuf,
    /// The eBPF object of the floors
    #[arg(long, value_name = "FILE", hide = true)]
    floor: PathBuf,
    /// What cargo bench says to every benchmark
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

/// Long enough for a scrape, and short enough for 15 turns of everybody in some minutes.
const SECONDS: f64 = 1.0;

/// How much is to be done.
pub struct Setting {
    pub pairs: usize,
    pub seconds: f64,
    pub floor: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    Rate,
    Closers,
    Program,
    Stacks,
    Idle,
    Stuck,
    Owners,
    Dump,
    Memory,
    Scrape,
    Throughput,
    Growth,
    Long,
}

impl Name {
    fn measure(self, setting: &Setting) -> Result<Figure> {
        match self {
            Self::Rate => rate::measure(setting),
            Self::Closers => closers::measure(setting),
            Self::Program => program::measure(setting),
            Self::Stacks => stacks::measure(setting),
            Self::Idle => idle::measure(setting),
            Self::Stuck => stuck::measure(setting),
            Self::Owners => owners::measure(setting),
            Self::Dump => dump::measure(setting),
            Self::Memory => memory::measure(setting),
            Self::Scrape => scrape::measure(setting),
            Self::Throughput => throughput::measure(setting),
            Self::Growth => growth::measure(setting),
            Self::Long => long::measure(setting),
        }
    }
}

fn main() -> ExitCode {
    // A process of our own that holds sockets: no argument of the bench.
    if let Some(held) = load::asked_to_hold() {
        return load::hold(held);
    }
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    anyhow::ensure!(rustix::process::geteuid().is_root(), "the measurements need root");
    process::show_tracefs().context("no tracefs for libbpf-tools")?;
    let others = program::on_the_hook()?.len();
    if others > 0 {
        eprintln!(
            "note: {others} programs of others hang on the hook (agents that run?): they cost everybody"
        );
    }
    report::commit();
    let Arguments { only, pairs, seconds, out, floor, .. } = arguments;
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let names: Vec<Name> = match only.is_empty() {
        true => Name::value_variants().iter().copied().filter(|name| *name != Name::Long).collect(),
        false => only,
    };
    for (at, &name) in names.iter().enumerate() {
        let default = if name == Name::Long { long::SECONDS } else { SECONDS };
        let seconds = seconds.unwrap_or(default);
        let setting = Setting { pairs: pairs as usize, seconds, floor: floor.clone() };
        let begun = std::time::Instant::now();
        let ticker = Ticker::start(format!("figure {} of {}", at + 1, names.len()));
        let figure = name.measure(&setting)?;
        drop(ticker);
        figure.save(&out)?;
        progress::note(&format!("{} took {:.0} s", figure.name, begun.elapsed().as_secs_f64()));
    }
    Ok(())
}

fn seconds(text: &str) -> Result<f64, &'static str> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds; write for example 1")?;
    if (0.1..=86_400.0).contains(&seconds) { Ok(seconds) } else { Err("it must lie between 0.1 and 86400") }
}
