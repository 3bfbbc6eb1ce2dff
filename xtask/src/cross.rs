//! Building for another architecture than this machine's: static arm64 programs on x86-64.
//!
//! * The standard library: of the toolchain that is in use, if rustup has added the target to it; else Debian's, for
//!   Debian's rustc, in a sysroot of its own below target/, which leaves the host's as it is.
//! * The linker, the C compiler and the static C library: the host's cross compiler, or Debian's, unpacked below target/.

use std::env;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::archive::{Architecture, Archive, Suite};
use crate::{build, sh};

/// Debian's standard library for its rustc-web.
const LIBRARY: &str = "libstd-rust-web-dev";
/// Links a program without shared libraries.
const STATIC: [&str; 2] = ["-C", "target-feature=+crt-static"];

impl Architecture {
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// This machine's.
    pub fn host() -> Result<Self> {
        match Self::of_this_machine() {
            Some(architecture) => Ok(architecture),
            None => {
                bail!("unsupported architecture {} (x86_64 and aarch64 are supported)", env::consts::ARCH)
            }
        }
    }

    /// As rustc, rpm and the kernel call it.
    pub const fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// Rustc's name of the target.
    pub fn target(self) -> String {
        format!("{}-unknown-linux-gnu", self.machine())
    }

    /// The GNU tools' name of it.
    fn triplet(self) -> String {
        format!("{}-linux-gnu", self.machine())
    }
}

impl ValueEnum for Architecture {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

/// The tools that build static programs for an architecture.
pub struct Builder {
    architecture: Architecture,
    /// Cargo and its rustc, where it is not the one in use.
    compiler: Option<(PathBuf, PathBuf)>,
    /// The sysroot with the standard library, where it is not the compiler's own.
    sysroot: Option<PathBuf>,
    /// The GNU tools, where they are not the host's own.
    tools: Option<Tools>,
}

/// The cross compiler and its archiver.
struct Tools {
    gcc: PathBuf,
    ar: PathBuf,
    /// Cargo's, apart from the one in which the host's own rustc builds.
    target_folder: PathBuf,
}

impl Builder {
    /// Finds the tools, and fetches missing ones.
    pub fn of(architecture: Architecture) -> Result<Self> {
        let host = Architecture::host()?;
        if architecture == host {
            return Ok(Self { architecture, compiler: None, sysroot: None, tools: None });
        }
        if host != Architecture::Amd64 {
            bail!("programs for {} are built on x86_64 or natively", architecture.name());
        }
        let tools = Some(Tools::find(architecture)?);
        if builds(sh::rustc(), architecture, None) {
            return Ok(Self { architecture, compiler: None, sysroot: None, tools });
        }
        let (rustc, cargo) = (PathBuf::from("/usr/bin/rustc"), PathBuf::from("/usr/bin/cargo"));
        if !rustc.exists() || !cargo.exists() {
            let target = architecture.target();
            bail!(
                "no Rust standard library for {}: `rustup target add {target}`, or install Debian's rustc-web and cargo-web",
                architecture.name()
            );
        }
        let sysroot = Some(sysroot(architecture, &rustc)?);
        Ok(Self { architecture, compiler: Some((cargo, rustc)), sysroot, tools })
    }

    /// True if nothing needs to be fetched.
    pub fn is_there(architecture: Architecture) -> bool {
        if Some(architecture) == Architecture::of_this_machine() {
            return true;
        }
        let Ok(folder) = folder() else { return false };
        let library = || {
            builds(sh::rustc(), architecture, None)
                || builds(Command::new("/usr/bin/rustc"), architecture, Some(&folder.join("sysroot")))
        };
        (Tools::hosts(architecture).is_some() || Archive::is_complete(&folder.join("gcc"))) && library()
    }

    /// True if cargo builds for this machine anyway.
    pub fn is_native(&self) -> bool {
        self.tools.is_none()
    }

    /// Cargo, in the workspace's folder, about to build for the architecture. The caller adds the command and the flags.
    pub fn cargo(&self) -> Command {
        let mut command = match &self.compiler {
            None => sh::cargo(),
            Some((cargo, rustc)) => {
                let mut command = sh::cargo_at(cargo);
                command.env("RUSTC", rustc).env_remove("RUSTUP_TOOLCHAIN");
                command
            }
        };
        if let Some(tools) = &self.tools {
            let target = self.architecture.target().replace('-', "_");
            let linker = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase());
            command.env(linker, &tools.gcc).env(format!("CC_{target}"), &tools.gcc);
            command.env(format!("AR_{target}"), &tools.ar).env("CARGO_TARGET_DIR", &tools.target_folder);
        }
        command
    }

    /// Rustc's flags for the architecture's own code, but not for build scripts.
    pub fn flags(&self) -> Vec<OsString> {
        let mut flags: Vec<OsString> = STATIC.map(OsString::from).into();
        if let Some(sysroot) = &self.sysroot {
            let mut flag = OsString::from("--sysroot=");
            flag.push(sysroot);
            flags.push(flag);
        }
        flags
    }

    /// Rustc's name of the target.
    pub fn target(&self) -> String {
        self.architecture.target()
    }
}

/// Everything of this module.
fn folder() -> Result<PathBuf> {
    Ok(build::target_folder()?.join("cross"))
}

/// True if this rustc has a standard library for the architecture, which it can read.
fn builds(mut rustc: Command, architecture: Architecture, sysroot: Option<&Path>) -> bool {
    // Into a folder of our own: rustc replaces its output, so root would lose /dev/null by naming that.
    let Ok(folder) = folder() else { return false };
    rustc.args(["--target", &architecture.target(), "--crate-name=empty", "--crate-type=lib"]);
    rustc.arg("--emit=metadata").arg("--out-dir").arg(folder).arg("-");
    if let Some(sysroot) = sysroot {
        rustc.arg("--sysroot").arg(sysroot);
    }
    // An empty crate needs std all the same.
    sh::ask(rustc.stdin(Stdio::null())).is_some()
}

/// Debian's standard library for Debian's rustc, as a sysroot. It is of the host's own sources, for it must have the
/// version of the rustc that was installed from them.
fn sysroot(architecture: Architecture, rustc: &Path) -> Result<PathBuf> {
    let folder = folder()?;
    let (library, sysroot) = (folder.join("std"), folder.join("sysroot"));
    let target = architecture.target();
    let rustlib = sysroot.join("lib/rustlib");
    fs::create_dir_all(&rustlib).with_context(|| format!("cannot make {}", rustlib.display()))?;
    let link = rustlib.join(&target);
    if !link.is_symlink() {
        symlink(library.join("usr/lib/rustlib").join(&target), &link)
            .with_context(|| format!("cannot make {}", link.display()))?;
    }
    let is_fit = || builds(Command::new(rustc), architecture, Some(&sysroot));
    for _ in 0..2 {
        Archive::open(Suite::Host, architecture)?
            .unpack(&[LIBRARY], &library)
            .with_context(|| format!("cannot fetch the Rust standard library for {}", architecture.name()))?;
        if is_fit() {
            return Ok(sysroot);
        }
        // Of an older rustc-web than there is now.
        fs::remove_dir_all(&library).with_context(|| format!("cannot remove {}", library.display()))?;
    }
    bail!(
        "{} cannot read Debian's newest {LIBRARY}: `apt-get install rustc-web` brings both to one version",
        rustc.display()
    )
}

impl Tools {
    /// The host's, or Debian's.
    fn find(architecture: Architecture) -> Result<Self> {
        let folder = folder()?;
        let (triplet, target_folder) = (architecture.triplet(), folder.join("cargo"));
        if let Some((gcc, ar)) = Self::hosts(architecture) {
            return Ok(Self { gcc, ar, target_folder });
        }
        let root = folder.join("gcc");
        let packages = [
            format!("gcc-{}", triplet.replace('_', "-")),
            format!("libc6-dev-{}-cross", architecture.name()),
        ];
        Archive::open(Suite::Host, Architecture::Amd64)?
            .unpack_closure(&packages.each_ref().map(String::as_str), &root)
            .with_context(|| format!("cannot fetch a C compiler for {}", architecture.name()))?;
        let libraries = libraries(&root, &folder.join("libraries"))?;
        let started =
            |tool: &str| starter(&root, &libraries, &folder.join("bin"), &format!("{triplet}-{tool}"));
        let tools = Self { gcc: started("gcc")?, ar: started("ar")?, target_folder };
        if !has_static_libc(&tools.gcc) {
            bail!("{} does not work (remove {} and try again)", tools.gcc.display(), folder.display());
        }
        Ok(tools)
    }

    /// The host's compiler and archiver, if they can make a static program.
    fn hosts(architecture: Architecture) -> Option<(PathBuf, PathBuf)> {
        let tool = |name: &str| sh::find(&format!("{}-{name}", architecture.triplet()));
        Some((tool("gcc").filter(|gcc| has_static_libc(gcc))?, tool("ar")?))
    }
}

fn has_static_libc(gcc: &Path) -> bool {
    // Answers with the name alone where there is none.
    sh::ask(Command::new(gcc).arg("-print-file-name=libc.a"))
        .is_some_and(|answer| Path::new(answer.trim()).is_file())
}

/// Links to those shared libraries of `root` that the host does not have: with its own C library come its own loader's
/// private symbols.
fn libraries(root: &Path, folder: &Path) -> Result<PathBuf> {
    const BELOW: &str = "usr/lib/x86_64-linux-gnu";
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let there = root.join(BELOW);
    let entries = fs::read_dir(&there).with_context(|| format!("cannot read {}", there.display()))?;
    for entry in entries {
        let entry = entry?;
        let (name, link) = (entry.file_name(), folder.join(entry.file_name()));
        let is_hosts = Path::new("/").join(BELOW).join(&name).exists()
            || Path::new("/lib/x86_64-linux-gnu").join(&name).exists();
        if !is_hosts && name.to_string_lossy().contains(".so") && !link.is_symlink() {
            symlink(entry.path(), &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
    }
    Ok(folder.to_path_buf())
}

/// A script that starts a program of `root` with its libraries. Cargo passes on no variables to a linker alone.
fn starter(root: &Path, libraries: &Path, folder: &Path, program: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH={} exec {} \"$@\"\n",
        sh::quote(&libraries.to_string_lossy()),
        sh::quote(&root.join("usr/bin").join(program).to_string_lossy())
    );
    let file = folder.join(program);
    if fs::read_to_string(&file).is_ok_and(|there| there == script) {
        return Ok(file);
    }
    fs::write(&file, script).with_context(|| format!("cannot write {}", file.display()))?;
    fs::set_permissions(&file, Permissions::from_mode(0o755))
        .with_context(|| format!("cannot change the mode of {}", file.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_project_has_a_name_of_its_own_for_an_architecture() {
        let arm64 = Architecture::Arm64;
        assert_eq!(arm64.target(), "aarch64-unknown-linux-gnu");
        assert_eq!(
            (arm64.name(), arm64.machine(), arm64.triplet().as_str()),
            ("arm64", "aarch64", "aarch64-linux-gnu")
        );
        assert_eq!(Architecture::from_str("amd64", false), Ok(Architecture::Amd64));
        assert!(Architecture::from_str("riscv64", false).is_err());
    }

    #[test]
    fn another_architecture_gets_its_own_linker_and_library() {
        let builder = Builder {
            architecture: Architecture::Arm64,
            compiler: Some(("/c/cargo".into(), "/c/rustc".into())),
            sysroot: Some("/t/sys root".into()),
            tools: Some(Tools { gcc: "/t/gcc".into(), ar: "/t/ar".into(), target_folder: "/t/cargo".into() }),
        };
        assert_eq!(builder.flags(), ["-C", "target-feature=+crt-static", "--sysroot=/t/sys root"]);
        let cargo = builder.cargo();
        let value = |name: &str| cargo.get_envs().find(|(key, _)| *key == name).and_then(|(_, value)| value);
        assert_eq!(value("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER"), Some("/t/gcc".as_ref()));
        assert_eq!(value("CC_aarch64_unknown_linux_gnu"), Some("/t/gcc".as_ref()));
        assert_eq!(value("RUSTC"), Some("/c/rustc".as_ref()));
    }
}
