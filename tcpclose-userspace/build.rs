//! Puts the probe, an eBPF object, where `include_bytes_aligned!` finds it: `$OUT_DIR/tcpclose-ebpf`.
//!
//! It is, in this order:
//! 1. the object at `TCPCLOSE_EBPF_OBJECT`; `none` embeds no probe, and the agent says so when it starts;
//! 2. the object in this package, where the workspace is not around it: crates carry one, since field offsets come from the
//!    running kernel's BTF and one object serves all kernels;
//! 3. built from `../tcpclose-ebpf`. Where the eBPF toolchain is missing, a release build fails; any other build embeds no
//!    probe and warns, so that `cargo check`, `clippy`, `doc` and `test --lib` take stable Rust alone.
//!
//! aya-build asks rustup for a toolchain by name, so that a machine whose usable rustc is the distribution's would need a
//! `rustup toolchain link`. What is found here works with rustup's nightly and with Debian's rustc.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use tcpclose_common::toolchain::{self, Machine, PROBE};

/// All that the object is made of, relative to this package.
const INPUTS: &[&str] = &[
    "../Cargo.lock",
    "../Cargo.toml",
    "../tcpclose-common/Cargo.toml",
    "../tcpclose-common/src",
    "../tcpclose-ebpf/Cargo.toml",
    "../tcpclose-ebpf/src",
    "build.rs",
];

/// An object instead of the one that is built, or `none`.
const OBJECT: &str = "TCPCLOSE_EBPF_OBJECT";

/// The object that `cargo package` puts into the crate (`cargo xtask crates`).
const PACKAGED: &str = "ebpf/tcpclose-ebpf";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Message(message)) => {
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
    /// One line.
    Message(String),
    /// The output of the probe's compiler.
    Compiler(String),
}

fn build() -> Result<(), Failure> {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let embedded = PathBuf::from(variable("OUT_DIR")?).join(PROBE);
    println!("cargo::rerun-if-env-changed={OBJECT}");
    let given = env::var(OBJECT).ok().filter(|given| !given.is_empty());
    match given.as_deref() {
        Some("none") => return embed_nothing(&embedded),
        Some(given) => {
            println!("cargo::rerun-if-changed={given}");
            return embed(Path::new(given), &embedded);
        }
        None => {}
    }
    if !package.join("../tcpclose-ebpf/Cargo.toml").is_file() {
        let object = package.join(PACKAGED);
        check_byte_order(&object)?;
        return embed(&object, &embedded);
    }
    match toolchain::find() {
        Ok(toolchain) => embed(&compile(&toolchain, &package)?, &embedded)?,
        Err(missing) if variable("PROFILE")? == "release" => {
            return Err(Failure::Message(format!(
                "the eBPF probe cannot be built here: {missing}. Run `cargo xtask setup`, or set {OBJECT} to an object, or \
                 to none."
            )));
        }
        Err(missing) => {
            println!(
                "cargo::warning=no eBPF probe is embedded: {missing}. `cargo xtask setup` installs what builds it."
            );
            embed_nothing(&embedded)?;
            watch_for_toolchain();
        }
    }
    // Last, so that a failure shows none of it; a script that failed is run again in any case.
    for input in INPUTS {
        println!("cargo::rerun-if-changed={input}");
    }
    Ok(())
}

/// Has cargo run this script again when a toolchain was installed: folders that then have a new entry. (A path that does not
/// exist would make cargo run it each time.)
fn watch_for_toolchain() {
    println!("cargo::rerun-if-env-changed=PATH");
    let cargo = toolchain::home("CARGO_HOME", ".cargo").map(|home| home.join("bin"));
    let rustup = toolchain::home("RUSTUP_HOME", ".rustup").map(|home| home.join("update-hashes"));
    for folder in [Some(PathBuf::from("/usr/bin")), cargo, rustup].into_iter().flatten() {
        if folder.is_dir() {
            println!("cargo::rerun-if-changed={}", folder.display());
        }
    }
}

/// # Errors
/// When the object that the crate carries is of the other byte order: crates are made on little-endian machines.
fn check_byte_order(object: &Path) -> Result<(), Failure> {
    /// ELF's EI_DATA: 1 is little-endian, 2 is big-endian.
    const EI_DATA: usize = 5;
    let bytes = fs::read(object)
        .map_err(|why| Failure::Message(format!("cannot read {}: {why}", object.display())))?;
    let wanted = if variable("CARGO_CFG_TARGET_ENDIAN")? == "big" { 2 } else { 1 };
    match bytes.get(EI_DATA) {
        Some(order) if *order == wanted => Ok(()),
        _ => Err(Failure::Message(format!(
            "the eBPF probe in this crate is for the other byte order: set {OBJECT} to an object for this one, built from \
             the repository"
        ))),
    }
}

fn embed(object: &Path, embedded: &Path) -> Result<(), Failure> {
    // Not the mode, which may forbid to write it again.
    fs::read(object).and_then(|object| fs::write(embedded, object)).map_err(|why| {
        Failure::Message(format!("cannot copy {} to {}: {why}", object.display(), embedded.display()))
    })
}

fn embed_nothing(embedded: &Path) -> Result<(), Failure> {
    fs::write(embedded, "")
        .map_err(|why| Failure::Message(format!("cannot write {}: {why}", embedded.display())))
}

/// Compiles the probe, and returns the path of the object.
fn compile(toolchain: &toolchain::Toolchain, package: &Path) -> Result<PathBuf, Failure> {
    let workspace = package.parent().unwrap_or(package);
    let machine = Machine {
        big_endian: variable("CARGO_CFG_TARGET_ENDIAN")? == "big",
        arch: variable("CARGO_CFG_TARGET_ARCH")?,
    };
    let target_dir = probe_target_dir(Path::new(&variable("OUT_DIR")?));
    let mut command = toolchain.build_probe(workspace, &target_dir, &machine, PROBE);
    let run = command.arg("--quiet").stdin(Stdio::null()).output();
    let run = run.map_err(|why| {
        Failure::Message(format!("{} cannot be started: {why}", toolchain.compiler.cargo.display()))
    })?;
    if !run.status.success() {
        return Err(Failure::Compiler(String::from_utf8_lossy(&run.stderr).into_owned()));
    }
    Ok(machine.object(&target_dir, PROBE))
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
    env::var(name).map_err(|_| Failure::Message(format!("{name} is not set; build with cargo")))
}
