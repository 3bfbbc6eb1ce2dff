//! `cargo xtask crates`: the two crates that `cargo install tcpclose` takes, with the built probe in them, and a trial: the agent is
//! installed from a local registry directory that has nothing but these two and what Cargo.lock names: on this machine, and in a root of
//! Debian that has Debian's Rust alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tcpclose_common::toolchain::{self, Machine, PROBE};

use crate::archive::Suite;
use crate::debian::{self, Origin};
use crate::roots::{self, Mount};
use crate::setup::{self, Purpose};
use crate::{build, sh};

/// In the order that they are published.
const CRATES: [&str; 2] = ["tcpclose-common", "tcpclose"];

/// Package the crates for `cargo install`, and install the agent from them
#[derive(clap::Args)]
#[command(after_help = "Example: cargo xtask crates")]
pub struct Arguments {
    /// Only make them
    #[arg(long)]
    no_trial: bool,
}

impl Arguments {
    /// Make them, and install the agent from them.
    pub fn with_trial() -> Self {
        Self { no_trial: false }
    }
}

/// Runs the command.
pub fn command(arguments: &Arguments) -> Result<()> {
    setup::ready(Purpose::Build)?;
    let work = build::target_folder()?.join("crates");
    let object = put_object(&work)?;
    let mut package = sh::cargo();
    // Compiling them is the trial's part. The object is no part of the repository.
    package.args(["package", "--locked", "--allow-dirty", "--no-verify", "--target-dir"]).arg(&work);
    sh::run(package.args(CRATES.iter().flat_map(|name| ["--package", name])))?;
    if arguments.no_trial {
        return Ok(());
    }
    let registry = make_registry(&work)?;
    let root = work.join("root");
    install(&work, &registry, &root)?;
    let binary = root.join("bin/tcpclose");
    let installed = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    if !installed.windows(object.len()).any(|window| window == object) {
        bail!("{} does not have the probe in it", binary.display());
    }
    sh::run(Command::new(&binary).args(["stuck", "--no-agent", "--older-than", "0s"]))?;
    println!("{}: installed from its crates, with the probe", binary.display());
    if !sh::can_be_root() {
        eprintln!("SKIPPED: the trial in a root of Debian {DEBIAN}, which needs root");
        return Ok(());
    }
    install_in_debian(&registry)
}

/// The release whose Rust the trial uses, and its packages.
const DEBIAN: &str = Suite::Bookworm.name();
const DEBIANS_RUST: &str = "rustc-web cargo-web";

/// Installs the agent in a root that has no Rust but Debian's, no eBPF toolchain and no network for cargo.
fn install_in_debian(registry: &Path) -> Result<()> {
    let folder = build::target_folder()?.join("roots");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let root = folder.join("crates");
    Origin::of(DEBIAN)?.make(&root, "ca-certificates,gcc,libc6-dev")?;
    let script = format!(
        "apt-get --quiet --quiet update
        apt-get --quiet --quiet install --yes --no-install-recommends {DEBIANS_RUST} >/dev/null
        rustc --version
        cd /
        cargo install tcpclose --locked --offline --root /usr/local \\
            --config 'source.crates-io.replace-with=\"local\"' --config 'source.local.local-registry=\"/registry\"'
        /usr/local/bin/tcpclose --version
        /usr/local/bin/tcpclose stuck --no-agent --older-than 0s"
    );
    let mount = Mount { source: registry, target: "/registry", writable: false };
    roots::run_in(&root, DEBIAN, &script, &[mount])
        .with_context(|| format!("installing with {DEBIANS_RUST} fails; the root is {}", root.display()))?;
    debian::remove(&root)?;
    println!("Debian {DEBIAN}: cargo install works with {DEBIANS_RUST} alone");
    Ok(())
}

/// Builds the probe to where `cargo package` finds it, and returns it.
fn put_object(work: &Path) -> Result<Vec<u8>> {
    let toolchain = toolchain::find().map_err(|missing| anyhow::anyhow!("{missing}"))?;
    let machine =
        Machine { big_endian: cfg!(target_endian = "big"), arch: std::env::consts::ARCH.to_owned() };
    let target_dir = work.join("ebpf");
    sh::run(&mut toolchain.build_probe(&sh::workspace(), &target_dir, &machine, PROBE))?;
    let (built, packaged) =
        (machine.object(&target_dir, PROBE), sh::workspace().join("tcpclose-userspace/ebpf"));
    let object = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    fs::create_dir_all(&packaged).with_context(|| format!("cannot make {}", packaged.display()))?;
    let packaged = packaged.join(PROBE);
    fs::write(&packaged, &object).with_context(|| format!("cannot write {}", packaged.display()))?;
    Ok(object)
}

/// Makes a local registry, as cargo's source replacement takes it: the crates of Cargo.lock, ours among them, and an index.
fn make_registry(work: &Path) -> Result<PathBuf> {
    let registry = work.join("registry");
    if registry.exists() {
        fs::remove_dir_all(&registry).with_context(|| format!("cannot remove {}", registry.display()))?;
    }
    let metadata = metadata()?;
    let mut index: BTreeMap<String, Vec<String>> = BTreeMap::new();
    fs::create_dir_all(&registry).with_context(|| format!("cannot make {}", registry.display()))?;
    for package in array(&metadata["packages"]) {
        let (name, version) = (text(&package["name"]), text(&package["version"]));
        let file = format!("{name}-{version}.crate");
        let source = match package["source"].as_str() {
            Some(_) => cached(package, &file)?,
            None if CRATES.contains(&name) => work.join("package").join(&file),
            None => continue,
        };
        let copied = registry.join(&file);
        fs::copy(&source, &copied).with_context(|| format!("cannot copy {}", source.display()))?;
        let line = json!({
            "name": name,
            "vers": version,
            "deps": array(&package["dependencies"]).iter().map(dependency).collect::<Vec<_>>(),
            "cksum": sha256(&copied)?,
            "features": {},
            "features2": package["features"],
            "links": package["links"],
            "yanked": false,
            "v": 2,
        });
        index.entry(name.to_owned()).or_default().push(line.to_string());
    }
    for (name, lines) in index {
        let file = registry.join("index").join(index_path(&name));
        let folder = file.parent().context("an index has folders")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::write(&file, lines.join("\n") + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(registry)
}

fn metadata() -> Result<Value> {
    let text = sh::ask(sh::cargo().args(["metadata", "--locked", "--format-version", "1"]))
        .context("cargo metadata fails")?;
    serde_json::from_str(&text).context("cargo metadata writes no JSON")
}

/// The file that cargo fetched: beside the folder that it unpacked it to, `registry/src/NAME/…` and `registry/cache/NAME/…`.
fn cached(package: &Value, file: &str) -> Result<PathBuf> {
    let manifest = Path::new(text(&package["manifest_path"]));
    let source = manifest.ancestors().nth(2).context("a manifest is in a folder of its own")?;
    let name = source.file_name().context("registry/src has named folders")?;
    let home = source.ancestors().nth(2).context("cargo's registry is in a folder")?;
    Ok(home.join("cache").join(name).join(file))
}

/// A dependency as an index has it, from what `cargo metadata` says.
fn dependency(of: &Value) -> Value {
    let renamed = of["rename"].as_str();
    json!({
        "name": renamed.unwrap_or(text(&of["name"])),
        "package": renamed.map(|_| text(&of["name"])),
        "req": of["req"],
        "features": of["features"],
        "optional": of["optional"],
        "default_features": of["uses_default_features"],
        "target": of["target"],
        "kind": of["kind"].as_str().unwrap_or("normal"),
    })
}

/// Where an index keeps a crate (doc.rust-lang.org/cargo/reference/registry-index.html, "Index files").
fn index_path(name: &str) -> String {
    match name.len() {
        1 => format!("1/{name}"),
        2 => format!("2/{name}"),
        3 => format!("3/{}/{name}", &name[..1]),
        _ => format!("{}/{}/{name}", &name[..2], &name[2..4]),
    }
}

fn sha256(file: &Path) -> Result<String> {
    let printed = sh::ask(Command::new("sha256sum").arg("--").arg(file)).context("sha256sum fails")?;
    printed.split_ascii_whitespace().next().map(str::to_owned).context("sha256sum prints no sum")
}

/// Installs the agent as a stranger would, but from `registry` and little optimised.
fn install(work: &Path, registry: &Path, root: &Path) -> Result<()> {
    let registry = registry.to_str().context("the target folder's path is not UTF-8")?;
    let source = format!("source.local.local-registry={}", json!(registry));
    let mut command = sh::cargo();
    command
        // Outside of the workspace, whose settings are not a stranger's.
        .current_dir(work)
        .args(["install", "tcpclose", "--locked", "--force", "--offline", "--root"])
        .arg(root)
        .args(["--config", "source.crates-io.replace-with=\"local\"", "--config", &source])
        .env("CARGO_TARGET_DIR", work.join("install"))
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    sh::run(&mut command)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_keeps_short_names_apart() {
        assert_eq!(
            ["a", "ab", "abc", "abcd", "tcpclose"].map(index_path),
            ["1/a", "2/ab", "3/a/abc", "ab/cd/abcd", "tc/pc/tcpclose"]
        );
    }
}
