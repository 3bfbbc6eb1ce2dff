//! `cargo xtask test`: what CI runs.

use std::env;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

use crate::archive::Architecture;
use crate::live::Selection;
use crate::setup::{self, Purpose};
use crate::vm::programs;
use crate::{crates as cargo_crates, docs as book, fuzz, live, package, roots, sh, tools, vm, workflows};

/// Set up, then run format, docs, clippy, unit tests, live tests, and tests on other kernels in guests
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --all\n  cargo xtask test --step fmt --step clippy"
)]
pub struct Arguments {
    /// Also run the slow steps: fuzzing, stress tests, floods, guests with all kernels and arm64, packages, workflows
    #[arg(long)]
    all: bool,
    /// Run this step only; can be repeated
    #[arg(long = "step", value_name = "STEP", value_parser = PossibleValuesParser::new(STEPS.map(|(name, _)| name)))]
    steps: Vec<String>,
}

impl Arguments {
    /// True if a step is to run.
    fn want(&self, name: &str) -> bool {
        match self.steps.as_slice() {
            [] => self.all || !LONG_STEPS.contains(&name),
            steps => steps.iter().any(|step| step == name),
        }
    }
}

/// The result of a step that did not fail.
enum Outcome {
    Passed,
    /// The reason.
    Skipped(&'static str),
}

type Step = fn(&Arguments) -> Result<Outcome>;

/// What fails fastest comes first.
const STEPS: [(&str, Step); 14] = [
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
    ("features", features),
    ("crates", crates),
    ("roots", roots),
];
/// Steps that run only with `--all` or by name.
const LONG_STEPS: &[&str] = &["workflows", "fuzz", "packages", "features", "crates", "roots"];

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
    // A user without root can neither run the live tests nor install their tools.
    let purpose = match sh::can_be_root() {
        true if arguments.all => Purpose::TestAll,
        true => Purpose::Test,
        false => Purpose::Build,
    };
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
    // The probe is linted for the host, since the rustc that builds it for BPF may have no clippy. A program without std
    // cannot unwind.
    passed(
        sh::cargo()
            .env("CARGO_PROFILE_DEV_PANIC", "abort")
            .args(["clippy", "--package", "tcpclose-ebpf"])
            .args(deny),
    )
}

/// Everything that later steps run, at once, so that cargo uses all processors.
fn build(_: &Arguments) -> Result<Outcome> {
    passed(all_tests()?.arg("--no-run"))
}

/// Cargo for `what` with the one profile, target and set of flags of all steps, so that nothing is compiled twice. Programs
/// are static, like the packaged one, since guests need that.
pub fn static_cargo(what: &str) -> Result<Command> {
    let mut command = sh::cargo();
    // As cargo does, the environment's flags replace those of the configuration.
    let mut flags = env::var_os("RUSTFLAGS").unwrap_or_default();
    if !flags.to_string_lossy().contains(STATIC) {
        flags.push(if flags.is_empty() { "" } else { " " });
        flags.push(STATIC);
    }
    command.env("RUSTFLAGS", flags).env_remove("CARGO_ENCODED_RUSTFLAGS");
    // With an explicit target cargo builds scripts and procedural macros apart; those cannot be static.
    command.arg(what).arg("--target").arg(host()?);
    Ok(command)
}

const STATIC: &str = "-C target-feature=+crt-static";

/// `cargo test` for the unit tests and the live tests.
pub fn all_tests() -> Result<Command> {
    let mut command = static_cargo("test")?;
    command.args(["--workspace", "--exclude", "tcpclose-ebpf", "--lib", "--bins", "--test", live::PROGRAM]);
    Ok(command)
}

/// Number of histories that the property tests try.
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

/// Unit tests play the corpus.
fn fuzz(_: &Arguments) -> Result<Outcome> {
    fuzz::command(&fuzz::Arguments::usual())?;
    Ok(Outcome::Passed)
}

/// Real sockets and the kernel's own tracepoint, which need root.
fn live(arguments: &Arguments) -> Result<Outcome> {
    if !sh::can_be_root() {
        return Ok(skipped("live tests", "need root"));
    }
    let with_guests = vm::POSSIBLE && arguments.want("guests");
    live_modules(arguments.all, if with_guests { Selection::WithoutWaiting } else { Selection::All })?;
    Ok(Outcome::Passed)
}

fn live_modules(all: bool, selection: Selection) -> Result<()> {
    let programs = programs::build(Architecture::host()?)?;
    let tally = live::run(&programs.live, all, selection)?;
    let live::Tally { passed, failed, skipped } = &tally;
    eprintln!("\nlive: {passed} passed, {failed} failed, {} skipped", skipped.len());
    if *failed > 0 {
        bail!("{failed} live tests failed");
    }
    // A kernel may refuse something; but setup should have installed everything else on CI.
    let lacking: Vec<&String> = skipped.iter().filter(|what| !what.contains("kernel refuses")).collect();
    if let Some(first) = lacking.first()
        && env::var_os("CI").is_some()
    {
        bail!("{} live tests were skipped on CI; the first: {first}", lacking.len());
    }
    Ok(())
}

/// Cargo that runs what it builds as root; `None` if the user cannot.
pub fn with_root() -> Result<Option<Command>> {
    let mut command = sh::cargo();
    if !sh::is_root() {
        if !sh::can_be_root() {
            return Ok(None);
        }
        // Built by the user, run by root: cargo starts each program through its runner.
        // sudo has a PATH of its own.
        command.env(runner_variable()?, format!("sudo -E env PATH={}", tools::path().to_string_lossy()));
    }
    Ok(Some(command))
}

/// Live tests on other kernels than this machine's, which need no root; and on this one those that mostly wait.
fn guests(arguments: &Arguments) -> Result<Outcome> {
    let with_live = vm::POSSIBLE && sh::can_be_root() && arguments.want("live");
    let (guests, live) = thread::scope(|threads| {
        let waiting = || if with_live { live_modules(arguments.all, Selection::Waiting) } else { Ok(()) };
        let waiting = threads.spawn(waiting);
        let guests = vm::test(arguments.all);
        (guests, waiting.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    live?;
    match guests? {
        Ok(()) => Ok(Outcome::Passed),
        Err(why) => Ok(skipped("guests", why)),
    }
}

/// The packages: identical from two builds, each installed, run and removed; those of the other architecture made once, and
/// their binary run in a guest.
fn packages(_: &Arguments) -> Result<Outcome> {
    let host = Architecture::host()?;
    let packages = package::make(host, true)?;
    for other in Architecture::ALL.into_iter().filter(|other| *other != host && host == Architecture::Amd64) {
        package::test(&package::make(other, false)?)?;
    }
    if !sh::can_be_root() {
        return Ok(skipped("trying the packages", "needs root"));
    }
    package::test(&packages)?;
    Ok(Outcome::Passed)
}

/// The agent without its optional features, which compile apart.
fn features(_: &Arguments) -> Result<Outcome> {
    let package = ["--package", "tcpclose", "--no-default-features"];
    for feature in ["", "tls", "tui"] {
        let mut command = static_cargo("clippy")?;
        command.args(package).args(["--features", feature, "--lib", "--bins", "--", "--deny", "warnings"]);
        sh::run(&mut command)?;
    }
    passed(static_cargo("test")?.args(package).args(["--lib", "--", "agent::server::web"]))
}

/// The crates that `cargo install` takes, and the agent installed from them.
fn crates(_: &Arguments) -> Result<Outcome> {
    cargo_crates::command(&cargo_crates::Arguments::with_trial())?;
    Ok(Outcome::Passed)
}

/// Setup and build in the smallest roots of other releases.
fn roots(_: &Arguments) -> Result<Outcome> {
    if !sh::can_be_root() {
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

/// The variable with cargo's runner for the host.
fn runner_variable() -> Result<String> {
    Ok(format!("CARGO_TARGET_{}_RUNNER", host()?.to_uppercase().replace(['-', '.'], "_")))
}

/// The target that cargo builds for by default.
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
