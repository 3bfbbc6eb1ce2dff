//! `cargo xtask test`: what CI runs.

use std::env;
use std::io::{self, IsTerminal};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

use crate::archive::Architecture;
use crate::setup::{self, Purpose};
use crate::vm::programs;
use crate::{docs as book, fuzz, live, package, roots, sh, tools, vm, workflows};

/// Set up, then fmt, clippy, unit tests, live tests, and those that tell kernels apart in guests
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --all\n  cargo xtask test --step fmt --step clippy"
)]
pub struct Arguments {
    /// Also what takes long: a fuzzer, torture, floods, guests of all kernels and of arm64, the packages, the workflows
    #[arg(long)]
    all: bool,
    /// Run this step alone; can be given more than once
    #[arg(long = "step", value_name = "STEP", value_parser = PossibleValuesParser::new(STEPS.map(|(name, _)| name)))]
    steps: Vec<String>,
}

impl Arguments {
    /// Whether a step is to be run.
    fn want(&self, name: &str) -> bool {
        match self.steps.as_slice() {
            [] => self.all || !LONG_STEPS.contains(&name),
            steps => steps.iter().any(|step| step == name),
        }
    }
}

/// How a step ended that did not fail.
enum Outcome {
    Passed,
    /// Why it was not run.
    Skipped(&'static str),
}

type Step = fn(&Arguments) -> Result<Outcome>;

/// In the order of what fails fastest.
const STEPS: [(&str, Step); 12] = [
    ("setup", setup),
    ("fmt", fmt),
    ("docs", docs),
    ("workflows", workflows),
    ("clippy", clippy),
    ("build", build),
    ("unit", unit),
    ("fuzz", fuzz),
    ("live", live),
    ("guests", guests),
    ("packages", packages),
    ("roots", roots),
];
/// Those that take `--all`, or to be asked for.
const LONG_STEPS: &[&str] = &["workflows", "fuzz", "packages", "roots"];

/// Runs the command: stops at the first step that fails.
pub fn test(arguments: &Arguments) -> Result<()> {
    let mut summary = Vec::new();
    let mut failure = Ok(());
    for (name, step) in STEPS.iter().filter(|(name, _)| arguments.want(name)) {
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

fn docs(_: &Arguments) -> Result<Outcome> {
    book::check()?;
    Ok(Outcome::Passed)
}

fn workflows(_: &Arguments) -> Result<Outcome> {
    match workflows::check()? {
        Ok(()) => Ok(Outcome::Passed),
        Err(why) => Ok(skipped("workflows", why)),
    }
}

fn clippy(_: &Arguments) -> Result<Outcome> {
    let deny = ["--", "--deny", "warnings"];
    let mut command = static_cargo("clippy")?;
    sh::run(command.args(["--workspace", "--exclude", "tcpclose-ebpf", "--all-targets"]).args(deny))?;
    // The probe is linted for the host, since the rustc that builds it for BPF need not have a clippy. As a program
    // without std it cannot unwind, which the host does unless told otherwise.
    passed(
        sh::cargo()
            .env("CARGO_PROFILE_DEV_PANIC", "abort")
            .args(["clippy", "--package", "tcpclose-ebpf"])
            .args(deny),
    )
}

/// Everything that the steps after it run, at once: cargo then has work for all processors until the end.
fn build(_: &Arguments) -> Result<Outcome> {
    passed(all_tests()?.arg("--no-run"))
}

/// Cargo about to do `what` as all steps do it: one profile, one target and one set of flags, so that nothing is compiled
/// twice. Programs are static, as the packaged one is, and as guests need them.
pub fn static_cargo(what: &str) -> Result<Command> {
    let mut command = sh::cargo();
    // Cargo takes the flags of the environment in place of those of its configuration; so does this.
    let mut flags = env::var_os("RUSTFLAGS").unwrap_or_default();
    if !flags.to_string_lossy().contains(STATIC) {
        flags.push(if flags.is_empty() { "" } else { " " });
        flags.push(STATIC);
    }
    command.env("RUSTFLAGS", flags).env_remove("CARGO_ENCODED_RUSTFLAGS");
    // A target named outright makes cargo build scripts and procedural macros apart, which cannot be static.
    command.arg(what).arg("--target").arg(host()?);
    Ok(command)
}

const STATIC: &str = "-C target-feature=+crt-static";

fn all_tests() -> Result<Command> {
    let mut command = static_cargo("test")?;
    command.args(["--workspace", "--exclude", "tcpclose-ebpf", "--lib", "--bins", "--test", live::PROGRAM]);
    Ok(command)
}

/// How many histories the property tests try: some seconds' worth, or minutes'.
const CASES: &str = "PROPTEST_CASES";
const MANY_CASES: &str = "10000";

fn unit(arguments: &Arguments) -> Result<Outcome> {
    let mut command = static_cargo("test")?;
    command.args(["--workspace", "--exclude", "tcpclose-ebpf", "--lib", "--bins"]);
    if arguments.all && env::var_os(CASES).is_none() {
        command.env(CASES, MANY_CASES);
    }
    passed(&mut command)
}

/// Their corpus is played by the unit tests.
fn fuzz(_: &Arguments) -> Result<Outcome> {
    fuzz::command(&fuzz::Arguments::usual())?;
    Ok(Outcome::Passed)
}

/// Real sockets, the kernel's own tracepoint: nearly all of it needs root.
fn live(arguments: &Arguments) -> Result<Outcome> {
    if !(sh::is_root() || can_sudo()) {
        return Ok(skipped("live tests", "need root"));
    }
    let programs = programs::build(Architecture::host()?)?;
    let tally = live::run(&programs.live, arguments.all)?;
    let live::Tally { passed, failed, skipped } = &tally;
    eprintln!("\nlive: {passed} passed, {failed} failed, {} skipped", skipped.len());
    if *failed > 0 {
        bail!("{failed} live tests failed");
    }
    // What a kernel refuses is nobody's fault. What a machine of CI lacks, setup has not installed.
    let lacking: Vec<&String> = skipped.iter().filter(|what| !what.contains("kernel refuses")).collect();
    if let Some(first) = lacking.first()
        && env::var_os("CI").is_some()
    {
        bail!("{} live tests were skipped on CI; the first: {first}", lacking.len());
    }
    Ok(Outcome::Passed)
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

/// The packages: the same from two builds, and each installed, run and removed; those of the other architecture made once,
/// and their binary run in a guest.
fn packages(_: &Arguments) -> Result<Outcome> {
    let host = Architecture::host()?;
    let packages = package::make(host, true)?;
    for other in Architecture::ALL.into_iter().filter(|other| *other != host && host == Architecture::Amd64) {
        package::test(&package::make(other, false)?)?;
    }
    if !(sh::is_root() || can_sudo()) {
        return Ok(skipped("trying the packages", "needs root"));
    }
    package::test(&packages)?;
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
        assert_eq!(line("live", 123_400), "live        123.4 s  ok");
    }
}
