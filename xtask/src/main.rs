//! `cargo xtask`: all tasks of this workspace, one file per command.
//!
//! It builds without the eBPF toolchain, which it installs.

use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

mod accuracy;
mod apt;
mod archive;
mod bench;
mod build;
mod crates;
mod cross;
mod debian;
mod demo;
mod docs;
mod fuzz;
#[cfg(test)]
mod imports;
mod live;
mod package;
mod roots;
mod run;
mod setup;
mod sh;
mod test;
mod tools;
mod vm;
mod workflows;

/// Set up, build, run and test tcpclose
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = "Example: cargo xtask run")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Arguments),
    /// Build the release binary, target/release/tcpclose, with the eBPF object in it
    #[command(after_help = "Example:\n  cargo xtask build && target/release/tcpclose stuck")]
    Build,
    Run(run::Arguments),
    Test(test::Arguments),
    Vm(vm::Arguments),
    Accuracy(accuracy::Arguments),
    Bench(bench::Arguments),
    Demo(demo::Arguments),
    Package(package::Arguments),
    Fuzz(fuzz::Arguments),
    Crates(crates::Arguments),
    Docs(docs::Arguments),
    #[command(hide = true)]
    Roots(roots::Arguments),
    #[command(hide = true)]
    DemoPlayer(demo::stage::Arguments),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Not through Debug: that prints a backtrace where RUST_BACKTRACE is set.
            eprintln!("error: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let command = Arguments::parse().command;
    if let Some(mut again) = tools::with_path()? {
        return Err(again.exec()).context("cannot restart xtask");
    }
    match command {
        Command::Setup(arguments) => setup::setup(&arguments),
        Command::Build => build::command(),
        Command::Run(arguments) => run::run(&arguments),
        Command::Test(arguments) => test::test(&arguments),
        Command::Vm(arguments) => vm::command(&arguments),
        Command::Accuracy(arguments) => accuracy::command(&arguments),
        Command::Bench(arguments) => bench::command(&arguments),
        Command::Demo(arguments) => demo::command(&arguments),
        Command::Package(arguments) => package::command(&arguments),
        Command::Fuzz(arguments) => fuzz::command(&arguments),
        Command::Crates(arguments) => crates::command(&arguments),
        Command::Docs(arguments) => docs::command(&arguments),
        Command::Roots(arguments) => roots::command(&arguments),
        Command::DemoPlayer(arguments) => demo::stage::play(&arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent_and_every_help_shows_an_example() {
        let mut command = Arguments::command();
        command.clone().debug_assert();
        assert!(command.render_long_help().to_string().contains("Example"));
        for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set())
        {
            assert!(sub.render_long_help().to_string().contains("Example"), "{}", sub.get_name());
        }
    }
}
