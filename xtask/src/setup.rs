//! `cargo xtask setup`: finds what building and testing need, and installs what is missing.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::apt::{self, Apt};
use crate::sh;
use crate::tools::{self, Group};
use crate::vm;
use crate::vm::kit::{Kernel, Part};
use tcpclose_common::progress;
use tcpclose_common::toolchain::{self, CompilerLack, MIN_RUSTC, Missing, Release, Toolchain};

/// Install what building and testing need
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask setup\n  cargo xtask setup --for build")]
pub struct Arguments {
    /// Purpose to set up for
    #[arg(long = "for", value_name = "PURPOSE", value_enum, default_value_t = Purpose::All)]
    purpose: Purpose,
    /// Run rustup and cargo install if the system has no packages of the toolchain (default: print the commands)
    #[arg(long)]
    rustup: bool,
}

/// What the machine is set up for.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// Building the agent and the probe
    Build,
    /// Running the agent in guests with other kernels
    Vm,
    /// Running all tests, including live tests and guests
    Test,
    /// Running all tests of `cargo xtask test --all`
    TestAll,
    /// Measuring what the agent costs
    Bench,
    /// Making packages
    Package,
    /// Making packages and trying them
    Trial,
    /// Fuzzing
    Fuzz,
    /// All of these
    All,
}

/// The LLVM of the packages below, which must be the one that their rustc is built with: the linker reads what rustc writes.
const DEBIAN_LLVM: u32 = 22;
/// Debian's current rustc with the sources of `core`, and the LLVM that bpf-linker links with: in stable releases beside their
/// own older `rustc`, in sid under the plain names.
const DEBIAN_TOOLCHAINS: [[&str; 4]; 2] = [
    ["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev"],
    ["rustc", "cargo", "rust-src", "llvm-22-dev"],
];
/// The linker that was tried with the packages above.
const LINKER_VERSION: &str = "0.13.0";

/// Runs the command.
pub fn setup(arguments: &Arguments) -> Result<()> {
    let Arguments { purpose, rustup } = *arguments;
    let done = prepare(purpose, &Kernel::EVERY, rustup)?;
    let Toolchain { compiler, linker } = toolchain::find()?;
    let (rustc, release, linker) =
        (compiler.rustc.display(), compiler.version.release, linker.path.display());
    let work = if done.anything { "ready" } else { "nothing to do" };
    let tests = match purpose {
        Purpose::Build => "",
        Purpose::Vm => " and the guests' tools",
        Purpose::Test | Purpose::TestAll => ", and the tools of tests and guests",
        Purpose::Bench => " and the tools that benchmarks compare with",
        Purpose::Fuzz => " and the tools that build libFuzzer",
        Purpose::Package => " and the packaging tools",
        Purpose::Trial => " and the tools that make and test packages",
        Purpose::All => ", and the tools of tests, benchmarks, packages and guests",
    };
    let but = match done.lacking.len() {
        0 => String::new(),
        _ => format!(", all but {}", done.lacking.join("; ")),
    };
    println!("{work}: found {rustc} ({release}), {linker}{tests}{but}");
    Ok(())
}

/// Sets the machine up for a purpose; prints nothing if it is set up.
pub fn ready(purpose: Purpose) -> Result<()> {
    prepare(purpose, &Kernel::QUICK, false).map(drop)
}

/// The same, for guests with these kernels.
pub fn ready_with(purpose: Purpose, kernels: &[Kernel]) -> Result<()> {
    prepare(purpose, kernels, false).map(drop)
}

/// Result of a set-up.
#[derive(Default)]
struct Done {
    /// Something had to be installed or unpacked.
    anything: bool,
    /// What is still missing.
    lacking: Vec<String>,
}

impl Done {
    fn lacks(&mut self, what: &str, without: &str, why: &anyhow::Error) {
        eprintln!(
            "note: {what} is missing: {why:#} ({without} without it; install it by hand or run setup again)"
        );
        self.lacking.push(what.to_owned());
    }
}

/// Installs as much as it can. The agent's toolchain must be complete in the end; anything else that is missing is named,
/// with what is skipped without it. Runs rustup only if `rustup` is set.
fn prepare(purpose: Purpose, kernels: &[Kernel], rustup: bool) -> Result<Done> {
    let toolchain = toolchain::find().err();
    let mut groups = groups(purpose);
    groups.retain(|group| !group.missing().is_empty());
    let parts = if takes_guests(purpose) { Part::missing(kernels)? } else { Vec::new() };
    let mut done = Done::default();
    if matches!(purpose, Purpose::Test | Purpose::TestAll | Purpose::All)
        && let Err(why) = check_components()
    {
        done.lacks("rustfmt or clippy", "the steps fmt and clippy fail", &why);
    }
    if toolchain.is_none() && groups.is_empty() && parts.is_empty() {
        return Ok(done);
    }

    if let Some(missing) = &toolchain {
        eprintln!("missing: {missing}");
    }
    for group in &groups {
        eprintln!("missing: {}, for {}", group.missing().join(", "), group.needed_for());
    }
    for part in &parts {
        eprintln!("missing: {}", part.describe());
    }
    done.anything = true;
    let mut steps = Steps::new(usize::from(toolchain.is_some()) + groups.len() + parts.len());
    let apt = if toolchain.is_some() || !groups.is_empty() { Apt::updated() } else { None };
    let mut built = Ok(());
    if let Some(missing) = toolchain {
        steps.next("what builds the probe");
        built = install_toolchain(apt.as_ref(), &missing, rustup)
            .and_then(|()| toolchain::find().map(drop).context("the eBPF toolchain is still incomplete"));
    }
    for group in groups {
        steps.next(group.name());
        if let Err(why) = group.provide(apt.as_ref()) {
            done.lacks(&group.name(), &format!("{} are skipped", group.needed_for()), &why);
        }
    }
    for part in parts {
        steps.next(part.describe());
        if let Err(why) = part.fetch() {
            done.lacks(&part.name(), part.without(), &why);
        }
    }
    built.map(|()| done)
}

fn takes_guests(purpose: Purpose) -> bool {
    matches!(purpose, Purpose::Vm | Purpose::Test | Purpose::TestAll | Purpose::All) && vm::POSSIBLE
}

/// The programs that a purpose needs, each once.
fn groups(purpose: Purpose) -> Vec<&'static Group> {
    let all = purpose == Purpose::All;
    let mut groups: Vec<&Group> = Vec::new();
    for (wanted, more) in [
        (all || matches!(purpose, Purpose::Test | Purpose::TestAll), tools::TEST),
        (all || purpose == Purpose::TestAll, tools::TEST_ALL),
        (all || purpose == Purpose::Bench, tools::BENCH),
        (all || matches!(purpose, Purpose::Package | Purpose::Trial), tools::PACKAGE),
        (all || purpose == Purpose::Trial, tools::TRIAL),
        (all || purpose == Purpose::Fuzz, tools::FUZZ),
        (takes_guests(purpose), tools::VM),
    ] {
        groups.extend(more.iter().filter(|_| wanted));
    }
    groups
}

/// The progress, in a word.
struct Steps {
    done: usize,
    all: usize,
}

impl Steps {
    const fn new(all: usize) -> Self {
        Self { done: 0, all }
    }

    fn next(&mut self, what: impl std::fmt::Display) {
        self.done += 1;
        progress::note(&format!("step {} of {}: {what}", self.done, self.all));
    }
}

fn install_toolchain(apt: Option<&Apt>, missing: &Missing, rustup: bool) -> Result<()> {
    if let Some(apt) = apt
        && let Some(packages) = DEBIAN_TOOLCHAINS.iter().find(|packages| offers(apt, *packages))
    {
        let absent: Vec<&str> = packages.iter().copied().filter(|name| !apt::is_installed(name)).collect();
        if !absent.is_empty() {
            apt.install(&absent)?;
        }
        // With the packages there, what is still missing can only be the linker.
        return match toolchain::find() {
            Ok(_) => Ok(()),
            Err(_) => sh::run(&mut debian_linker()),
        };
    }

    let mut steps = rustup_way(missing);
    if rustup {
        return steps.iter_mut().try_for_each(sh::run);
    }
    eprintln!("This system has no packages of the toolchain. Commands to install it with rustup:");
    steps.iter().for_each(sh::show);
    eprintln!(
        "`cargo install bpf-linker` needs LLVM's development files; `cargo binstall bpf-linker` needs none."
    );
    bail!("nothing was installed; `cargo xtask setup --rustup` runs these commands")
}

/// True if all of a toolchain's packages can be had, with a rustc that is new enough; the first of them is rustc.
fn offers(apt: &Apt, packages: &[&str]) -> bool {
    let offered = apt.offered(packages);
    // apt-cache leaves out packages that it does not know.
    let version =
        |package: &str| offered.iter().find(|(name, _)| name == package).map(|(_, version)| version);
    let rustc =
        packages.first().and_then(|package| version(package)).and_then(|version| Release::parse(version));
    rustc.is_some_and(|release| release >= MIN_RUSTC)
        && packages.iter().all(|package| version(package).is_some())
}

/// Bpf-linker with Debian's LLVM, whose llvm-config is not on PATH. Forced, since cargo otherwise trusts its list of what
/// it once installed.
fn debian_linker() -> Command {
    let mut command = sh::cargo();
    command
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{DEBIAN_LLVM}"))
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{DEBIAN_LLVM}")]);
    command
}

/// The commands that install what the system has no packages of.
fn rustup_way(missing: &Missing) -> Vec<Command> {
    let linker_too_old = missing.compiler.iter().any(|lack| matches!(lack, CompilerLack::LlvmTooNew(_)));
    let mut steps = Vec::new();
    // A compiler that only the linker cannot follow needs no other compiler.
    if !missing.compiler.is_empty() && !linker_too_old {
        let mut nightly = Command::new("rustup");
        nightly.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
        steps.push(nightly);
    }
    if missing.linker.is_some() || linker_too_old {
        let mut linker = sh::cargo();
        // The project's own advice: its releases carry the LLVM they need.
        match sh::find("cargo-binstall") {
            Some(_) => linker.args(["binstall", "--no-confirm", "--force", "bpf-linker"]),
            None => linker.args(["install", "bpf-linker", "--locked", "--force"]),
        };
        steps.push(linker);
    }
    steps
}

/// Rustfmt and clippy belong to the toolchain that builds the workspace.
fn check_components() -> Result<()> {
    let missing: Vec<&str> = [("rustfmt", "fmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(_, command)| sh::ask(sh::cargo().args([command, "--version"])).is_none())
        .map(|(component, _)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    bail!("{names} is missing (run `rustup component add {names}`, or install the packages of that name)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linker_with_an_old_llvm_is_replaced_and_the_compiler_kept() {
        let missing = Missing { compiler: vec![CompilerLack::LlvmTooNew("/r".into())], linker: None };
        let steps = rustup_way(&missing);
        assert_eq!(steps.len(), 1);
        assert!(steps[0].get_args().any(|argument| argument == "bpf-linker"));
    }
}
