//! `cargo xtask test`: what CI runs.

use std::env;
use std::fs;
use std::io::{self, IsTerminal};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::setup::{self, Purpose};
use crate::{fuzz, package, roots, sh, tools, vm};

/// Set up, then fmt, clippy, unit tests, live tests, and those that tell kernels apart in guests
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --all")]
pub struct Arguments {
    /// Also what takes long: a fuzzer, torture, floods, here and in guests, and the packages
    #[arg(long)]
    all: bool,
}

/// How a step ended that did not fail.
enum Outcome {
    Passed,
    /// Why it was not run.
    Skipped(&'static str),
}

type Step = fn(&Arguments) -> Result<Outcome>;

/// In the order of what fails fastest.
const STEPS: &[(&str, Step)] = &[
    ("setup", setup),
    ("fmt", fmt),
    ("clippy", clippy),
    ("unit tests", unit),
    ("fuzz", fuzz),
    ("live tests", live),
    ("guests", guests),
    ("packages", packages),
    ("roots", roots),
];

/// Runs the command: stops at the first step that fails.
pub fn test(arguments: &Arguments) -> Result<()> {
    let mut summary = Vec::new();
    let mut failure = Ok(());
    for (name, step) in STEPS.iter().filter(|(name, _)| arguments.all || !["fuzz", "roots"].contains(name)) {
        let start = Instant::now();
        let result = step(arguments);
        let word = match &result {
            Ok(Outcome::Passed) => "ok".to_owned(),
            Ok(Outcome::Skipped(why)) => format!("SKIPPED: {why}"),
            Err(_) => "FAILED".to_owned(),
        };
        summary.push(summary_line(name, start.elapsed(), &word));
        if let Err(why) = result {
            failure = Err(why.context(format!("{name} failed")));
            break;
        }
    }
    eprintln!("\n{}", summary.join("\n"));
    failure
}

fn summary_line(name: &str, took: Duration, word: &str) -> String {
    format!("{name:<10} {:>6.1} s  {word}", took.as_secs_f64())
}

fn setup(arguments: &Arguments) -> Result<Outcome> {
    // Who cannot run the live tests needs none of their tools, and could not install them either.
    let purpose = if sh::is_root() || can_sudo() { Purpose::Test } else { Purpose::Build };
    setup::ready_with(purpose, vm::kernels(arguments.all))?;
    Ok(Outcome::Passed)
}

fn fmt(_: &Arguments) -> Result<Outcome> {
    passed(sh::cargo().args(["fmt", "--all", "--check"]))
}

fn clippy(_: &Arguments) -> Result<Outcome> {
    let deny = ["--", "--deny", "warnings"];
    sh::run(
        sh::cargo().args(["clippy", "--workspace", "--exclude", "tcpclose-ebpf", "--all-targets"]).args(deny),
    )?;
    // The probe is linted for the host, since the rustc that builds it for BPF need not have a clippy. As a program
    // without std it cannot unwind, which the host does unless told otherwise.
    passed(
        sh::cargo()
            .env("CARGO_PROFILE_DEV_PANIC", "abort")
            .args(["clippy", "--package", "tcpclose-ebpf"])
            .args(deny),
    )
}

/// How many histories the property tests try: some seconds' worth, or minutes'.
const CASES: &str = "PROPTEST_CASES";
const MANY_CASES: &str = "10000";

fn unit(arguments: &Arguments) -> Result<Outcome> {
    let mut command = sh::cargo();
    command.args(["test", "--workspace", "--exclude", "tcpclose-ebpf", "--lib", "--bins"]);
    if arguments.all && env::var_os(CASES).is_none() {
        command.env(CASES, MANY_CASES);
    }
    passed(with_long(&mut command, arguments))
}

/// Their corpus is played by the unit tests.
fn fuzz(_: &Arguments) -> Result<Outcome> {
    fuzz::command(&fuzz::Arguments::usual())?;
    Ok(Outcome::Passed)
}

/// The integration tests: real sockets, the kernel's own tracepoint. All of it needs root.
fn live(arguments: &Arguments) -> Result<Outcome> {
    let folder = sh::workspace().join("tcpclose-userspace/tests");
    if fs::read_dir(folder).map_or(0, Iterator::count) == 0 {
        // Cargo takes a pattern that fits no test for an error.
        return Ok(skipped("live tests", "there are none"));
    }
    let Some(mut command) = live_tests("*")? else { return Ok(skipped("live tests", "need root")) };
    passed(with_long(&mut command, arguments))
}

/// Cargo, about to run these integration tests as root; `None` for a user who cannot.
pub fn live_tests(pattern: &str) -> Result<Option<Command>> {
    let mut command = with_root()?;
    if let Some(command) = &mut command {
        command.args(["test", "--profile", "live", "--package", "tcpclose-userspace", "--test", pattern]);
    }
    Ok(command)
}

/// Cargo, which is to run what it builds as root; `None` for a user who cannot.
pub fn with_root() -> Result<Option<Command>> {
    let mut command = sh::cargo();
    if !sh::is_root() {
        if !can_sudo() {
            return Ok(None);
        }
        // Built by the user, run by root: cargo starts each program through its runner.
        // sudo has a PATH of its own.
        command.env(runner_variable()?, format!("sudo -E env PATH={}", tools::path().to_string_lossy()));
    }
    Ok(Some(command))
}

/// The live tests that tell kernels apart, on other kernels than this machine's. That takes no root.
fn guests(arguments: &Arguments) -> Result<Outcome> {
    match vm::test(arguments.all)? {
        Ok(()) => Ok(Outcome::Passed),
        Err(why) => Ok(skipped("guests", why)),
    }
}

/// The packages: the same from two builds, and each installed, run and removed.
fn packages(arguments: &Arguments) -> Result<Outcome> {
    if !arguments.all {
        return Ok(Outcome::Skipped("they take --all"));
    }
    let packages = package::make(true)?;
    if !(sh::is_root() || can_sudo()) {
        return Ok(skipped("trying the packages", "needs root"));
    }
    package::trial::run(&packages)?;
    Ok(Outcome::Passed)
}

/// Setup and build in the smallest roots of other releases.
fn roots(_: &Arguments) -> Result<Outcome> {
    if !(sh::is_root() || can_sudo()) {
        return Ok(skipped("setup in minimal roots", "needs root"));
    }
    roots::command(&roots::Arguments::all())?;
    Ok(Outcome::Passed)
}

/// Tells tests that they may take long.
pub const LONG: &str = "TCPCLOSE_TEST_LONG";
/// What runs the tests that are marked as taking long.
pub const LONG_ARGUMENTS: &[&str] = &["--include-ignored"];

/// With `--all`: the tests marked `#[ignore]` as well, and a word to those that can do more.
fn with_long<'a>(command: &'a mut Command, arguments: &Arguments) -> &'a mut Command {
    if arguments.all {
        command.env(LONG, "1").arg("--").args(LONG_ARGUMENTS);
    }
    command
}

fn passed(command: &mut Command) -> Result<Outcome> {
    sh::run(command)?;
    Ok(Outcome::Passed)
}

fn skipped(what: &str, why: &'static str) -> Outcome {
    eprintln!("\nSKIPPED: {what}: {why}\n");
    Outcome::Skipped(why)
}

/// True if sudo asks no password, or there is somebody to ask.
pub fn can_sudo() -> bool {
    let quiet = sh::ask(Command::new("sudo").args(["-n", "true"])).is_some();
    quiet
        || (io::stdin().is_terminal()
            && env::var_os("CI").is_none()
            && sh::run(Command::new("sudo").arg("-v")).is_ok())
}

/// The variable by which cargo is told how to start what it builds for the host.
fn runner_variable() -> Result<String> {
    Ok(format!("CARGO_TARGET_{}_RUNNER", host()?.to_uppercase().replace(['-', '.'], "_")))
}

/// The machine that cargo builds for unless told otherwise, as it calls it.
pub fn host() -> Result<String> {
    let version = sh::ask(sh::cargo().arg("-vV")).context("cargo -vV failed")?;
    host_in(&version).map(str::to_owned).context("cargo -vV names no host")
}

fn host_in(version: &str) -> Option<&str> {
    version.lines().find_map(|line| line.strip_prefix("host:")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_names_its_host() {
        let text = "cargo 1.95.0\nrelease: 1.95.0\nhost: x86_64-unknown-linux-gnu\nos: Debian\n";
        assert_eq!(host_in(text), Some("x86_64-unknown-linux-gnu"));
        assert_eq!(host_in("cargo 1.95.0\n"), None);
    }

    #[test]
    fn the_summary_lines_up() {
        let line = |name, seconds| summary_line(name, Duration::from_millis(seconds), "ok");
        assert_eq!(line("fmt", 900), "fmt           0.9 s  ok");
        assert_eq!(line("live tests", 123_400), "live tests  123.4 s  ok");
    }
}
