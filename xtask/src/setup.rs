//! `cargo xtask setup`: finds what building and testing need, and installs what is missing.

use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;

use crate::apt::{self, Apt};
use crate::progress::{self, Ticker};
use crate::sh;
use crate::toolchain::{self, CompilerLack, MIN_RUSTC, Missing, Release, Toolchain};
use crate::vm::{self, kit::Part};

/// Find or install what building and testing need
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask setup\n  cargo xtask setup --for build")]
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
    /// Running the agent in guests with other kernels
    Vm,
    /// Running the tests, live ones and guests included
    Test,
    /// Measuring what the agent costs
    Bench,
    /// Making packages
    Package,
    /// Making packages, and trying them
    Trial,
    /// Fuzzing
    Fuzz,
    /// All of these
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

/// What the live tests and the guests run besides the agent.
struct Tool {
    program: &'static str,
    package: &'static str,
    /// What is done with it.
    why: &'static str,
}

const TEST_TOOLS: &[Tool] = &[
    Tool { program: "ip", package: "iproute2", why: "makes network namespaces" },
    Tool { program: "ss", package: "iproute2", why: "is what the gauges are compared with" },
    Tool { program: "nginx", package: "nginx", why: "is the server under load" },
    Tool { program: "prometheus", package: "prometheus", why: "scrapes the agent" },
    Tool { program: "promtool", package: "prometheus", why: "lints the metrics" },
    Tool { program: "podman", package: "podman", why: "runs a container" },
    Tool { program: "runc", package: "runc", why: "runs it where cgroups are hybrid" },
    Tool { program: "busybox", package: "busybox-static", why: "is all that is in it" },
    Tool { program: "chromium", package: "chromium", why: "looks at the agent's page" },
    Tool { program: "wrk", package: "wrk", why: "makes the load" },
    Tool { program: "curl", package: "curl", why: "asks for the agent's pages" },
    Tool { program: "openssl", package: "openssl", why: "makes certificates" },
    Tool { program: "systemd-socket-activate", package: "systemd", why: "passes sockets to the agent" },
    Tool { program: "systemd-analyze", package: "systemd", why: "judges the unit" },
    Tool { program: "tmux", package: "tmux", why: "is the terminal that top is tested in" },
];

/// What benchmarks compare with.
const BENCH_TOOLS: &[Tool] = &[
    Tool { program: "ss", package: "iproute2", why: "lists sockets" },
    Tool { program: "tcpstates", package: "libbpf-tools", why: "watches TCP states" },
    Tool { program: "tcplife", package: "libbpf-tools", why: "watches connections" },
    Tool {
        program: "prometheus-node-exporter",
        package: "prometheus-node-exporter",
        why: "is scraped side by side with the agent",
    },
];

/// What makes packages.
const PACKAGE_TOOLS: &[Tool] = &[
    Tool { program: "dpkg-deb", package: "dpkg", why: "makes the .deb" },
    Tool { program: "rpmbuild", package: "rpm", why: "makes the .rpm" },
    Tool { program: "readelf", package: "binutils", why: "tells what a binary needs" },
    Tool { program: "xz", package: "xz-utils", why: "packs the tarball" },
];

/// What tries them.
const TRIAL_TOOLS: &[Tool] = &[
    Tool { program: "lintian", package: "lintian", why: "checks the .deb" },
    Tool { program: "debootstrap", package: "debootstrap", why: "makes roots to try packages in" },
    Tool { program: "ip", package: "iproute2", why: "has a network namespace up" },
];
/// What the fuzzer takes besides the agent's toolchain.
const FUZZ_TOOLS: &[Tool] = &[Tool { program: "c++", package: "g++", why: "builds libFuzzer" }];

const VM_TOOLS: &[Tool] = &[
    Tool { program: vm::QEMU, package: "qemu-system-x86", why: "is the machine of the guests" },
    Tool { program: "setpriv", package: "util-linux", why: "ends a guest with its xtask" },
    Tool { program: "debootstrap", package: "debootstrap", why: "makes the root that systemd boots in" },
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
    let tests = match purpose {
        Purpose::Build => "",
        Purpose::Vm => " and what guests take",
        Purpose::Test => ", the tests' tools and what guests take",
        Purpose::Bench => " and what benchmarks compare with",
        Purpose::Fuzz => " and what builds libFuzzer",
        Purpose::Package => " and what makes packages",
        Purpose::Trial => " and what makes and tries packages",
        Purpose::All => ", the tests', benchmarks' and packages' tools and what guests take",
    };
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
    let mut tools: Vec<&Tool> = Vec::new();
    let mut parts = Vec::new();
    if matches!(purpose, Purpose::Test | Purpose::All) {
        check_components()?;
        tools.extend(TEST_TOOLS);
    }
    if matches!(purpose, Purpose::Bench | Purpose::All) {
        tools.extend(BENCH_TOOLS);
    }
    if matches!(purpose, Purpose::Package | Purpose::Trial | Purpose::All) {
        tools.extend(PACKAGE_TOOLS);
    }
    if matches!(purpose, Purpose::Trial | Purpose::All) {
        tools.extend(TRIAL_TOOLS);
    }
    if matches!(purpose, Purpose::Fuzz | Purpose::All) {
        tools.extend(FUZZ_TOOLS);
    }
    if matches!(purpose, Purpose::Vm | Purpose::Test | Purpose::All) && vm::POSSIBLE {
        tools.extend(VM_TOOLS);
        parts = Part::missing()?;
    }
    tools.retain(|tool| sh::find(tool.program).is_none());
    if toolchain.is_none() && tools.is_empty() && parts.is_empty() {
        return Ok(Work::Nothing);
    }

    if let Some(missing) = &toolchain {
        eprintln!("missing: {missing}");
    }
    for tool in &tools {
        eprintln!("missing: {}, which {}", tool.program, tool.why);
    }
    for part in &parts {
        eprintln!("missing: {}", part.describe());
    }
    let apt = Apt::updated()?;
    let mut steps =
        Steps::new(usize::from(toolchain.is_some()) + usize::from(!tools.is_empty()) + parts.len());
    if let Some(missing) = toolchain {
        steps.next("what builds the probe");
        install_toolchain(apt.as_ref(), &missing, rustup)?;
        toolchain::find().context("that did not make the eBPF toolchain complete")?;
    }
    if !tools.is_empty() {
        steps.next("programs");
        install_tools(apt.as_ref(), &tools)?;
    }
    for part in parts {
        steps.next(part.describe());
        let _ticker = Ticker::start(format!("fetching {}", part.describe()));
        let fetched = match &apt {
            Some(apt) => part.fetch(apt),
            None => Err(anyhow!("it comes from Debian's packages, and there is no apt-get here")),
        };
        let fetched = fetched.with_context(|| format!("cannot fetch {}", part.describe()));
        match fetched {
            // Every other test runs on systems that have none of Debian's kernels.
            Err(why) if purpose != Purpose::Vm => eprintln!("note: guests will not run here: {why:#}"),
            fetched => fetched?,
        }
    }
    Ok(Work::Installed)
}

/// How far it is, for who waits.
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
        && offers_toolchain(apt)
    {
        let absent: Vec<&str> =
            DEBIAN_TOOLCHAIN.iter().copied().filter(|name| !apt::is_installed(name)).collect();
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

/// True if all the toolchain's packages can be had, with a rustc that is new enough.
fn offers_toolchain(apt: &Apt) -> bool {
    let offered = apt.offered(DEBIAN_TOOLCHAIN);
    // Debian knows nothing of a package it does not list; asked for four, it may answer for three.
    let version = |package| offered.iter().find(|(name, _)| name == package).map(|(_, version)| version);
    let rustc = version("rustc-web").and_then(|version| Release::parse(version));
    rustc.is_some_and(|release| release >= MIN_RUSTC)
        && DEBIAN_TOOLCHAIN.iter().all(|package| version(package).is_some())
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
    packages.sort_unstable();
    packages.dedup();
    match apt {
        Some(apt) => apt.install(&packages),
        None => bail!("install these, by whatever names they have here: {}", packages.join(" ")),
    }
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
    fn a_linker_with_an_old_llvm_is_replaced_and_the_compiler_kept() {
        let missing = Missing { compiler: vec![CompilerLack::LlvmTooNew("/r".into())], linker: None };
        let steps = rustup_way(&missing);
        assert_eq!(steps.len(), 1);
        assert!(steps[0].get_args().any(|argument| argument == "bpf-linker"));
    }
}
