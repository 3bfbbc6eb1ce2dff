//! The binary of the packages: one for every distribution.
//!
//! Linked statically with glibc. A binary of the glibc that happens to be here would ask for its newest symbols (2.34
//! moved even `__libc_start_main`), an older one would take a second distribution to link with, and musl a second
//! standard library, an allocator that gives nothing back (agent/malloc_trim.rs), and tests that nobody runs: the guests run
//! this same kind of binary in every `cargo xtask test`. What does not work in a static glibc is what it loads at run
//! time, names of hosts and users by NSS, and the agent asks for neither.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Source, mib, remove};
use crate::archive::Architecture;
use crate::cross::Builder;
use tcpclose_common::toolchain;

use crate::{sh, test};

/// Size limit of the binary. Two MiB of it read debugging information and demangle names (blazesym, gimli, cpp_demangle).
const LIMIT: u64 = 12 << 20;

/// Builds it. Cargo's own target folder is not used: other builds there have other flags.
pub fn build(source: &Source) -> Result<PathBuf> {
    let builder = Builder::of(source.architecture)?;
    if builder.is_native() {
        has_static_libc()?;
    }
    let (target, cargo_target) = (builder.target(), source.work.join("cargo"));
    let mut flags = builder.flags();
    flags.extend(toolchain::remapped(&source.folder));
    // The last one that fits holds.
    flags.push(toolchain::remap(&cargo_target, "/target"));
    // As configuration, in which a path may have a blank. What JSON writes for a list of texts, TOML reads.
    let flags: Vec<_> = flags.iter().map(|flag| flag.to_string_lossy()).collect();
    let flags = serde_json::to_string(&flags)?;
    let mut command = builder.cargo();
    command
        .current_dir(&source.folder)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        // A seventh smaller than with the settings of `cargo xtask build`: 7.3 MiB for 8.5.
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("SOURCE_DATE_EPOCH", source.epoch.to_string())
        .args(["build", "--locked", "--release", "--package", "tcpclose", "--bin", "tcpclose"])
        // Named outright, for build scripts and procedural macros cannot be static.
        .args(["--target", &target, "--config", &format!("target.{target}.rustflags={flags}")])
        .arg("--target-dir")
        .arg(&cargo_target);
    sh::run(&mut command)?;
    let binary = cargo_target.join(target).join("release/tcpclose");
    check(&binary)?;
    Ok(binary)
}

/// Has the binary write its manual, its completions and its configuration, and tells where they are. One for another
/// architecture does not run here: then this machine's own does it, as the tests build it.
pub fn generate(source: &Source, binary: &Path) -> Result<PathBuf> {
    let made = source.work.join("made");
    remove(&made)?;
    if source.architecture == Architecture::host()? {
        sh::run(Command::new(binary).arg("generate").arg(&made))?;
    } else {
        let mut command = test::static_cargo("run")?;
        command.args(["--locked", "--package", "tcpclose", "--bin", "tcpclose", "--", "generate"]);
        sh::run(command.arg(&made))?;
    }
    Ok(made)
}

fn has_static_libc() -> Result<()> {
    // Answers with the name alone where there is none.
    let answer = sh::ask(Command::new("cc").arg("-print-file-name=libc.a")).context("cannot start cc")?;
    if !Path::new(answer.trim()).is_absolute() {
        bail!("no static C library, libc.a (install libc6-dev or glibc-static)");
    }
    Ok(())
}

/// Fails unless it runs anywhere and is small enough.
fn check(binary: &Path) -> Result<()> {
    let size = fs::metadata(binary).with_context(|| format!("no {}", binary.display()))?.len();
    let headers =
        Command::new("readelf").args(["--wide", "--program-headers", "--dynamic"]).arg(binary).output();
    let headers = headers.context("cannot start readelf (install binutils)")?;
    if !headers.status.success() {
        bail!("readelf cannot read {}", binary.display());
    }
    let headers = String::from_utf8_lossy(&headers.stdout);
    let needed = needs(&headers);
    if !needed.is_empty() {
        bail!("{} is not portable: it needs {}", binary.display(), needed.join(", "));
    }
    println!("{} ({} of at most {}; static)", binary.display(), mib(size), mib(LIMIT));
    if size > LIMIT {
        bail!("the binary has {}, more than the limit of {}", mib(size), mib(LIMIT));
    }
    Ok(())
}

/// The loader and the libraries that readelf's headers name.
fn needs(headers: &str) -> Vec<&str> {
    let named =
        headers.lines().filter(|line| line.contains("(NEEDED)") || line.contains("program interpreter"));
    named.filter_map(|line| line.split_once('[')?.1.split_once(']').map(|(name, _)| name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_binary_needs_is_read_from_its_headers() {
        let dynamic = "  INTERP         0x000318 0x0000000000000318 0x0000000000000318 0x00001c 0x00001c R   0x1\n      \
            [Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]\n 0x0000000000000001 (NEEDED)             \
            Shared library: [libc.so.6]\n 0x000000000000001e (FLAGS)              BIND_NOW\n";
        assert_eq!(
            needs(dynamic),
            ["Requesting program interpreter: /lib64/ld-linux-x86-64.so.2", "libc.so.6"]
        );
        assert!(
            needs("  LOAD           0x000000 0x0000000000000000\n (FLAGS_1)            Flags: NOW PIE\n")
                .is_empty()
        );
    }
}
