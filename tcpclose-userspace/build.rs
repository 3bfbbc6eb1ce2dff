//! Builds the probe and puts the object where `include_bytes_aligned!` finds it: `$OUT_DIR/tcpclose-ebpf`.
//!
//! aya-build does the same job but asks rustup for a toolchain by name, so that a machine whose usable rustc is the
//! distribution's would need a `rustup toolchain link` or a PATH without rustup. What is found here works with
//! rustup's nightly and with Debian's rustc, whether rustup is installed or not. It also says in one line what is
//! missing.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

// Shared with xtask, which installs what this finds missing; it has no dependencies for that reason.
#[path = "../xtask/src/toolchain.rs"]
#[allow(dead_code, reason = "xtask reads more of it than the build does")]
mod toolchain;

/// All that the object is made of, seen from this package's folder.
const INPUTS: &[&str] = &[
    "../Cargo.lock",
    "../Cargo.toml",
    "../tcpclose-common/Cargo.toml",
    "../tcpclose-common/src",
    "../tcpclose-ebpf/Cargo.toml",
    "../tcpclose-ebpf/src",
    "../xtask/src/toolchain.rs",
    "build.rs",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Told(message)) => {
            // Cargo shows this line alone if the script itself succeeds, and stops all the same.
            println!("cargo::error={message}");
            ExitCode::SUCCESS
        }
        Err(Failure::Compiler(output)) => {
            eprintln!("the eBPF probe (tcpclose-ebpf) does not compile:\n{output}");
            ExitCode::FAILURE
        }
    }
}

enum Failure {
    /// One line that says everything.
    Told(String),
    /// What the compiler of the probe said.
    Compiler(String),
}

fn build() -> Result<(), Failure> {
    let toolchain = toolchain::find().map_err(|missing| {
        Failure::Told(format!("the eBPF probe cannot be built here: {missing}. Run `cargo xtask setup`."))
    })?;
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = package.parent().unwrap_or(&package);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let machine = toolchain::Machine {
        big_endian: variable("CARGO_CFG_TARGET_ENDIAN")? == "big",
        arch: variable("CARGO_CFG_TARGET_ARCH")?,
    };

    let target_dir = probe_target_dir(&out_dir);
    let mut command = toolchain.build_probe(workspace, &target_dir, &machine, toolchain::PROBE);
    let run = command.arg("--quiet").stdin(Stdio::null()).output();
    let run = run.map_err(|why| {
        Failure::Told(format!("{} cannot be started: {why}", toolchain.compiler.cargo.display()))
    })?;
    if !run.status.success() {
        return Err(Failure::Compiler(String::from_utf8_lossy(&run.stderr).into_owned()));
    }

    let object = machine.object(&target_dir, toolchain::PROBE);
    let embedded = out_dir.join("tcpclose-ebpf");
    fs::copy(&object, &embedded).map_err(|why| {
        Failure::Told(format!("cannot copy {} to {}: {why}", object.display(), embedded.display()))
    })?;

    // Last, so that a failure shows none of it; a script that failed is run again in any case.
    for input in INPUTS {
        println!("cargo::rerun-if-changed={input}");
    }
    Ok(())
}

/// Where the probe is compiled: `ebpf` in cargo's target folder, which cargo marks with a CACHEDIR.TAG. The debug and
/// release builds of the agent embed the same object, and compiling `core` for each would double a fresh build's
/// time. It must not be the folder that the outer cargo has locked, or both wait for ever.
fn probe_target_dir(out_dir: &Path) -> PathBuf {
    // At target/<triple>/<profile>/build/<package>/out; above that, a CACHEDIR.TAG is somebody else's.
    let target = out_dir.ancestors().take(6).find(|folder| folder.join("CACHEDIR.TAG").exists());
    target.unwrap_or(out_dir).join("ebpf")
}

fn variable(name: &str) -> Result<String, Failure> {
    env::var(name).map_err(|_| Failure::Told(format!("{name} is not set; build with cargo")))
}
