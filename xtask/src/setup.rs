//! `cargo xtask setup`: finds what building and testing need, and installs what is missing.

use std::io::IsTerminal;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::sh;
use crate::toolchain::{self, CompilerLack, MIN_RUSTC, Missing, Release, Toolchain};

/// Find or install what building and testing need
#[derive(clap::Args)]
pub struct Arguments {
    /// What it should be ready for
    #[arg(long = "for", value_name = "PURPOSE", value_enum, default_value_t = Purpose::All)]
    purpose: Purpose,
    /// Where Debian's packages do not exist: run rustup and cargo install, instead of printing how
    #[arg(long)]
    rustup: bool,
}

/// What the machine is made ready for.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// Building the agent and the probe
    Build,
    /// Running the tests, live ones included
    Test,
    /// Both
    All,
}

/// The LLVM of the packages below: the one that Debian's rustc-web is built with, since the linker must read what
/// that rustc writes.
const DEBIAN_LLVM: u32 = 22;
/// Debian's current rustc, beside the release's older `rustc`, with the sources of `core`; and the LLVM that
/// bpf-linker links with.
const DEBIAN_TOOLCHAIN: &[&str] = &["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev"];
/// The linker that was tried with the packages above.
const LINKER_VERSION: &str = "0.13.0";

/// What the live tests run besides the agent.
struct Tool {
    program: &'static str,
    package: &'static str,
    /// What the tests do with it.
    why: &'static str,
}

const TEST_TOOLS: &[Tool] = &[
    Tool { program: "ip", package: "iproute2", why: "makes network namespaces" },
    Tool { program: "ss", package: "iproute2", why: "is what the gauges are compared with" },
    Tool { program: "nginx", package: "nginx", why: "is the server under load" },
    Tool { program: "prometheus", package: "prometheus", why: "scrapes the agent" },
    Tool { program: "promtool", package: "prometheus", why: "lints the metrics" },
    Tool { program: "wrk", package: "wrk", why: "makes the load" },
];

/// Runs the command.
pub fn setup(arguments: &Arguments) -> Result<()> {
    let Arguments { purpose, rustup } = *arguments;
    let done = match ready(purpose, rustup)? {
        Work::Nothing => "nothing to do",
        Work::Installed => "ready",
    };
    let Toolchain { compiler, linker } = toolchain::find()?;
    let (rustc, release, linker) =
        (compiler.rustc.display(), compiler.version.release, linker.path.display());
    let tests = if purpose == Purpose::Build { "" } else { " and the tests' tools" };
    println!("{done}: found {rustc} ({release}), {linker}{tests}");
    Ok(())
}

/// Whether anything had to be installed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Nothing,
    Installed,
}

/// Makes the machine ready for a purpose, quietly where it is. Runs rustup only if told to.
pub fn ready(purpose: Purpose, rustup: bool) -> Result<Work> {
    let toolchain = toolchain::find().err();
    let mut tools = Vec::new();
    if purpose != Purpose::Build {
        check_components()?;
        tools.extend(TEST_TOOLS.iter().filter(|tool| sh::find(tool.program).is_none()));
    }
    if toolchain.is_none() && tools.is_empty() {
        return Ok(Work::Nothing);
    }

    if let Some(missing) = &toolchain {
        eprintln!("missing: {missing}");
    }
    for tool in &tools {
        eprintln!("missing: {}, which {}", tool.program, tool.why);
    }
    let apt = Apt::updated()?;
    if let Some(missing) = toolchain {
        install_toolchain(apt.as_ref(), &missing, rustup)?;
        toolchain::find().context("that did not make the eBPF toolchain complete")?;
    }
    if !tools.is_empty() {
        install_tools(apt.as_ref(), &tools)?;
    }
    Ok(Work::Installed)
}

fn install_toolchain(apt: Option<&Apt>, missing: &Missing, rustup: bool) -> Result<()> {
    if let Some(apt) = apt
        && apt.has_toolchain()
    {
        let absent: Vec<&str> = DEBIAN_TOOLCHAIN.iter().copied().filter(|name| !is_installed(name)).collect();
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
    eprintln!("This system has no packages of it. With rustup it takes:");
    steps.iter().for_each(sh::show);
    eprintln!(
        "`cargo install bpf-linker` needs LLVM's development files; `cargo binstall bpf-linker` needs none."
    );
    bail!("nothing was installed; `cargo xtask setup --rustup` runs these commands")
}

/// Bpf-linker with Debian's LLVM, whose llvm-config is not on PATH. Forced: cargo would otherwise take its own list
/// of what it once installed for the truth.
fn debian_linker() -> Command {
    let mut command = sh::cargo();
    command
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{DEBIAN_LLVM}"))
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{DEBIAN_LLVM}")]);
    command
}

/// The commands that install what is missing where the system's packages do not.
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

fn install_tools(apt: Option<&Apt>, missing: &[&Tool]) -> Result<()> {
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.dedup();
    match apt {
        Some(apt) => apt.install(&packages),
        None => bail!("install these, by whatever names they have here: {}", packages.join(" ")),
    }
}

/// Debian's package tools, with lists of today: a fresh machine has none, and old ones name packages that are gone.
struct Apt;

impl Apt {
    /// None where the system has no apt.
    fn updated() -> Result<Option<Self>> {
        if sh::find("apt-get").is_none() {
            return Ok(None);
        }
        sh::run(apt_get().arg("update"))?;
        Ok(Some(Self))
    }

    /// True if all the toolchain's packages can be had, with a rustc that is new enough.
    fn has_toolchain(&self) -> bool {
        let policy =
            sh::ask(Command::new("apt-cache").arg("policy").args(DEBIAN_TOOLCHAIN).env("LC_ALL", "C"));
        let offered = candidates(&policy.unwrap_or_default());
        // Debian knows nothing of a package it does not list; asked for four, it may answer for three.
        let version = |package| offered.iter().find(|(name, _)| name == package).map(|(_, version)| version);
        let rustc = version("rustc-web").and_then(|version| Release::parse(version));
        rustc.is_some_and(|release| release >= MIN_RUSTC)
            && DEBIAN_TOOLCHAIN.iter().all(|package| version(package).is_some())
    }

    fn install(&self, packages: &[&str]) -> Result<()> {
        let mut command = apt_get();
        // --no-remove: a package that is in the way is its user's to remove.
        command.args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(packages);
        sh::run(&mut command)?;
        if Path::new("/run/systemd/system").exists() {
            eprintln!(
                "note: services among these were not started now; systemd will start them at the next boot"
            );
        }
        Ok(())
    }
}

/// Apt-get, asking nothing and starting no services: the tests start their own nginx and Prometheus, on ports of
/// their own. systemctl ignores `start` where SYSTEMD_OFFLINE is set, invoke-rc.d starts nothing in runlevel 1, and
/// neither leaves anything behind to undo.
fn apt_get() -> Command {
    let environment = [("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1"), ("SYSTEMD_OFFLINE", "1")];
    let mut command = sh::as_root("apt-get", &environment);
    if !std::io::stderr().is_terminal() {
        // Without a terminal of its own dpkg does not count the files of its database either.
        command.args(["--quiet", "--option", "Dpkg::Use-Pty=0"]);
    }
    command
}

/// The packages that `apt-cache policy` can install, with their versions.
fn candidates(policy: &str) -> Vec<(String, String)> {
    let mut package = "";
    let mut found = Vec::new();
    for line in policy.lines() {
        if !line.starts_with(' ') {
            package = line.trim_end_matches(':');
        } else if let Some(version) = line.trim().strip_prefix("Candidate: ")
            && version != "(none)"
        {
            found.push((package.to_owned(), version.to_owned()));
        }
    }
    found
}

fn is_installed(package: &str) -> bool {
    sh::ask(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_some_and(|status| status == "installed")
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
    bail!("no {names}: `rustup component add {names}`, or this system's packages of that name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_offers_what_has_a_candidate() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n     \
            1.96.0+dfsg1-1~deb12u2 500\nllvm-22-dev:\n  Installed: 1:22.1.8-1\n  Candidate: 1:22.1.8-1\n\
            virtual:\n  Installed: (none)\n  Candidate: (none)\n";
        let offered = candidates(policy);
        let names: Vec<&str> = offered.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["rustc-web", "llvm-22-dev"]);
        assert_eq!(Release::parse(&offered[0].1), Release::parse("1.96.0"));
        assert!(candidates("").is_empty());
    }

    #[test]
    fn a_linker_with_an_old_llvm_is_replaced_and_the_compiler_kept() {
        let missing = Missing { compiler: vec![CompilerLack::LlvmTooNew("/r".into())], linker: None };
        let steps = rustup_way(&missing);
        assert_eq!(steps.len(), 1);
        assert!(steps[0].get_args().any(|argument| argument == "bpf-linker"));
    }
}
