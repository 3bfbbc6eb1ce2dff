//! What builds the probe: a rustc that can compile `core` for the BPF machine, its cargo, and bpf-linker.
//!
//! The agent's build script and `cargo xtask setup` share it, so that they never disagree about what is there.
//!
//! `core` for BPF is in no distribution, so it is compiled from the library sources (`-Z build-std`). That takes
//! either a nightly, or any other rustc with `RUSTC_BOOTSTRAP=1`, as Debian's.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The oldest rustc that builds the probe; the workspace's `rust-version`.
pub const MIN_RUSTC: Release = Release { major: 1, minor: 88, patch: 0 };

/// The rustc that distributions install. Behind rustup's on PATH, so it is asked for by name.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

/// A version `major.minor.patch`; orders as versions do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Release {
    /// Reads the three numbers that `text` starts with; what follows them (`-nightly`, `+dfsg1-1`) is ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(3, '.');
        let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let patch = leading_number(parts.next()?)?;
        Some(Self { major, minor, patch })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// What `rustc -vV` says, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RustcVersion {
    pub release: Release,
    /// True where `-Z` flags are allowed without `RUSTC_BOOTSTRAP`.
    pub unstable: bool,
    /// Major version of the LLVM that writes its bitcode.
    pub llvm: Option<u32>,
}

impl RustcVersion {
    /// Reads the output of `rustc -vV`.
    pub fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let release = field("release:")?;
        Some(Self {
            release: Release::parse(release)?,
            unstable: release.ends_with("-nightly") || release.ends_with("-dev"),
            llvm: field("LLVM version:").and_then(leading_number),
        })
    }
}

/// A rustc with its cargo and its library sources.
#[derive(Clone, Debug)]
pub struct Compiler {
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    pub version: RustcVersion,
}

/// A bpf-linker that starts.
#[derive(Clone, Debug)]
pub struct Linker {
    pub path: PathBuf,
    /// Major version of its LLVM, where it can be told.
    pub llvm: Option<u32>,
}

impl Linker {
    /// False if its LLVM is known to be older than the one that wrote `rustc`'s bitcode: LLVM reads what older
    /// versions wrote, not what newer ones did.
    pub fn reads(&self, rustc: &RustcVersion) -> bool {
        match (self.llvm, rustc.llvm) {
            (Some(linker), Some(rustc)) => rustc <= linker,
            _ => true,
        }
    }
}

/// A compiler and a linker that fit.
#[derive(Clone, Debug)]
pub struct Toolchain {
    pub compiler: Compiler,
    pub linker: Linker,
}

/// Why a compiler cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompilerLack {
    /// Rustup is not there, or has no nightly.
    NoNightly,
    /// The file is not there.
    NotThere(PathBuf),
    /// It does not start, or says nothing that is understood.
    Broken(PathBuf),
    TooOld(PathBuf, Release),
    /// No cargo beside it.
    NoCargo(PathBuf),
    /// Its sysroot has no library sources.
    NoSources(PathBuf),
    /// The linker that is here cannot read its bitcode.
    LlvmTooNew(PathBuf),
}

impl fmt::Display for CompilerLack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNightly => write!(f, "rustup has no nightly"),
            Self::NotThere(rustc) => write!(f, "{} is not there", rustc.display()),
            Self::Broken(rustc) => write!(f, "{} does not work", rustc.display()),
            Self::TooOld(rustc, release) => {
                write!(f, "{} is {release}, older than {MIN_RUSTC}", rustc.display())
            }
            Self::NoCargo(rustc) => write!(f, "{} has no cargo beside it", rustc.display()),
            Self::NoSources(rustc) => write!(f, "{} has no library sources", rustc.display()),
            Self::LlvmTooNew(rustc) => {
                write!(
                    f,
                    "{} has a newer LLVM than bpf-linker, which cannot read its output",
                    rustc.display()
                )
            }
        }
    }
}

/// Why bpf-linker cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkerLack {
    NotThere,
    /// It does not start; as when its libLLVM was removed.
    Broken(PathBuf),
}

impl fmt::Display for LinkerLack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere => write!(f, "no bpf-linker"),
            Self::Broken(path) => write!(f, "{} does not start", path.display()),
        }
    }
}

/// What is missing. Shown as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Why each compiler that was looked at is unfit; empty if one fits.
    pub compiler: Vec<CompilerLack>,
    pub linker: Option<LinkerLack>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.compiler.is_empty() {
            let why: Vec<String> = self.compiler.iter().map(ToString::to_string).collect();
            write!(f, "no usable rustc ({})", why.join("; "))?;
        }
        match &self.linker {
            Some(linker) if self.compiler.is_empty() => write!(f, "{linker}"),
            Some(linker) => write!(f, ", {linker}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Missing {}

/// Looks for a toolchain: rustup's nightly first, then the system's rustc. Starts a handful of processes and
/// takes some 0.1 s.
pub fn find() -> Result<Toolchain, Missing> {
    let linker = find_linker();
    let mut lacks = Vec::new();
    for candidate in [rustup_nightly, system_compiler] {
        match (candidate(), &linker) {
            (Err(lack), _) => lacks.push(lack),
            (Ok(compiler), Ok(linker)) if !linker.reads(&compiler.version) => {
                lacks.push(CompilerLack::LlvmTooNew(compiler.rustc));
            }
            (Ok(compiler), Ok(linker)) => return Ok(Toolchain { compiler, linker: linker.clone() }),
            (Ok(_), Err(lack)) => return Err(Missing { compiler: Vec::new(), linker: Some(lack.clone()) }),
        }
    }
    Err(Missing { compiler: lacks, linker: linker.err() })
}

fn rustup_nightly() -> Result<Compiler, CompilerLack> {
    // `rustup which` reads no more than its settings; `rustup run` would start rustc for the same answer. A rustup
    // that may install what is asked for must not do so behind a build.
    let answer = output(
        Command::new("rustup")
            .args(["which", "--toolchain", "nightly", "rustc"])
            .env("RUSTUP_AUTO_INSTALL", "0"),
    );
    let rustc = PathBuf::from(answer.ok_or(CompilerLack::NoNightly)?.trim());
    match rustc.parent().and_then(Path::parent) {
        Some(sysroot) => compiler_in(sysroot),
        None => Err(CompilerLack::Broken(rustc)),
    }
}

fn system_compiler() -> Result<Compiler, CompilerLack> {
    let rustc = PathBuf::from(SYSTEM_RUSTC);
    if !rustc.exists() {
        return Err(CompilerLack::NotThere(rustc));
    }
    // Where a distribution packages rustup, /usr/bin/rustc is rustup's proxy; its sysroot is the real one's.
    match output(Command::new(&rustc).args(["--print", "sysroot"])) {
        Some(sysroot) => compiler_in(Path::new(sysroot.trim())),
        None => Err(CompilerLack::Broken(rustc)),
    }
}

fn compiler_in(sysroot: &Path) -> Result<Compiler, CompilerLack> {
    let rustc = sysroot.join("bin/rustc");
    let cargo = sysroot.join("bin/cargo");
    let text = output(Command::new(&rustc).arg("-vV"));
    let Some(version) = text.as_deref().and_then(RustcVersion::parse) else {
        return Err(CompilerLack::Broken(rustc));
    };
    if version.release < MIN_RUSTC {
        return Err(CompilerLack::TooOld(rustc, version.release));
    }
    if !cargo.exists() {
        return Err(CompilerLack::NoCargo(rustc));
    }
    if !sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists() {
        return Err(CompilerLack::NoSources(rustc));
    }
    Ok(Compiler { rustc, cargo, version })
}

fn find_linker() -> Result<Linker, LinkerLack> {
    let path = linker_path().ok_or(LinkerLack::NotThere)?;
    let Some(version) = output(Command::new(&path).arg("--version")) else {
        return Err(LinkerLack::Broken(path));
    };
    // `--version` tells the linker's own version only (0.13). A linker with a shared libLLVM names it when the
    // dynamic loader is asked, as ldd does, to list and not to run; with a static one this is `--version` again.
    let libraries = output(Command::new(&path).arg("--version").env("LD_TRACE_LOADED_OBJECTS", "1"));
    let llvm = linker_llvm(&version).or_else(|| libraries.as_deref().and_then(linker_llvm));
    Ok(Linker { path, llvm })
}

/// Finds the major version after `LLVM`, `libLLVM-` or `libLLVM.so.`.
fn linker_llvm(text: &str) -> Option<u32> {
    text.split("LLVM").skip(1).find_map(|rest| {
        let rest = rest.trim_start_matches(".so.").trim_start_matches(['-', ' ']);
        leading_number(rest)
    })
}

fn linker_path() -> Option<PathBuf> {
    // cargo install puts it in CARGO_HOME, which a login through sudo or a service does not have on PATH.
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(home("CARGO_HOME", ".cargo").map(|home| home.join("bin")))
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())
}

/// The folder that `variable` names, else `folder` in the user's home: CARGO_HOME, `.cargo`; RUSTUP_HOME, `.rustup`.
pub fn home(variable: &str, folder: &str) -> Option<PathBuf> {
    let named = env::var_os(variable).map(PathBuf::from);
    named.or_else(|| env::home_dir().map(|home| home.join(folder)))
}

/// Rustc's flags for an object that does not say where it was built: paths are written down for panics, and in the
/// probe's line information.
pub fn remapped(workspace: &Path) -> Vec<OsString> {
    // One folder a registry, whose name is the registry's host.
    let registries = home("CARGO_HOME", ".cargo").and_then(|home| home.join("registry/src").read_dir().ok());
    let mut registries: Vec<PathBuf> =
        registries.into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path()).collect();
    registries.sort();
    let mut flags = vec![remap(workspace, "/tcpclose")];
    flags.extend(registries.iter().map(|folder| remap(folder, "/crates")));
    flags
}

/// The flag that has rustc write `name` for `folder`.
pub fn remap(folder: &Path, name: &str) -> OsString {
    let mut flag = OsString::from("--remap-path-prefix=");
    flag.push(folder);
    flag.push("=");
    flag.push(name);
    flag
}

/// Standard output of a command that succeeded; its standard error is discarded.
fn output(command: &mut Command) -> Option<String> {
    // Rustup adds a backtrace to its plain errors if asked to, which costs as much as all the rest.
    let out =
        command.env_remove("RUST_BACKTRACE").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    if !out.status.success() {
        return None;
    }
    String::from_utf8(out.stdout).ok()
}

fn leading_number(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..digits].parse().ok()
}

/// The machine whose kernel will run the probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// As in `CARGO_CFG_TARGET_ENDIAN`: the BPF machine has the byte order of its host.
    pub big_endian: bool,
    /// As in `CARGO_CFG_TARGET_ARCH`.
    pub arch: String,
}

/// The object that the agent embeds.
pub const PROBE: &str = "tcpclose-ebpf";

impl Machine {
    /// rustc's name of the target.
    pub fn target(&self) -> &'static str {
        if self.big_endian { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
    }

    /// Where [`Toolchain::build_probe`] leaves the object `name`.
    pub fn object(&self, target_dir: &Path, name: &str) -> PathBuf {
        target_dir.join(self.target()).join("release").join(name)
    }
}

impl Toolchain {
    /// The command that builds the eBPF object `name` of `workspace` into `target_dir`, which no other cargo may hold
    /// locked. The caller decides where its output goes.
    pub fn build_probe(&self, workspace: &Path, target_dir: &Path, machine: &Machine, name: &str) -> Command {
        let mut command = Command::new(&self.compiler.cargo);
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(belongs_to_outer_cargo) {
                command.env_remove(name);
            }
        }
        // Flags are passed encoded: a path with a blank in it survives.
        let mut flags = OsString::from("-Clinker=");
        flags.push(&self.linker.path);
        // debuginfo is what --btf is made of. aya-ebpf picks its bindings by bpf_target_arch; left alone it would
        // take the build host's.
        flags.push("\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf");
        flags.push(format!("\x1f--cfg=bpf_target_arch=\"{}\"", bpf_arch(&machine.arch)));
        for remapped in remapped(workspace) {
            flags.push("\x1f");
            flags.push(remapped);
        }
        if !self.compiler.version.unstable {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
            .current_dir(workspace)
            .env("RUSTC", &self.compiler.rustc)
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            // The lock file is the outer cargo's to write; another cargo must not touch it.
            .args(["build", "--locked", "--release", "--package", "tcpclose-ebpf", "--bin", name])
            .args(["-Zbuild-std=core", "--target", machine.target()])
            .arg("--target-dir")
            .arg(target_dir);
        command
    }
}

fn bpf_arch(arch: &str) -> &str {
    if arch.starts_with("riscv64") { "riscv64" } else { arch }
}

/// True for what cargo, clippy or rustup set for the build that this one runs inside of, and for the flags that its
/// user meant for the host. Where to fetch crates from, how to write to the terminal and the job server stay.
fn belongs_to_outer_cargo(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "CARGO",
        "CARGO_ENCODED_RUSTDOCFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_INCREMENTAL",
        "CARGO_PRIMARY_PACKAGE",
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC",
        "RUSTC_BOOTSTRAP",
        "RUSTC_LINKER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUST_RECURSION_COUNT",
        "TARGET",
    ];
    const PREFIXES: &[&str] = &[
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
        commit-hash: ac68faa20c58cbccd01ee7208bf3b6e93a7d7f96\ncommit-date: 2026-05-25\n\
        host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    fn release(text: &str) -> Release {
        Release::parse(text).unwrap()
    }

    #[test]
    fn releases_order_by_number_not_by_text() {
        assert!(release("1.100.0") > release("1.99.9"));
        assert!(release("1.9.0") < release("1.10.0"));
        assert!(release("2.0.0") > release("1.999.0"));
        assert!(release("1.88.1") > MIN_RUSTC);
        assert!(release("1.63.0+dfsg1-2") < MIN_RUSTC);
    }

    #[test]
    fn releases_end_where_distributions_add_to_them() {
        assert_eq!(release("1.96.0+dfsg1-1~deb12u2").to_string(), "1.96.0");
        assert_eq!(release("1.97.0-nightly").to_string(), "1.97.0");
        for text in ["", "1", "1.96", "1.x.0", "(none)", "-1.2.3"] {
            assert_eq!(Release::parse(text), None, "{text}");
        }
    }

    #[test]
    fn rustc_tells_release_channel_and_llvm() {
        let stable = RustcVersion::parse(STABLE).unwrap();
        assert_eq!((stable.release, stable.unstable, stable.llvm), (release("1.96.0"), false, Some(22)));
        let nightly = RustcVersion::parse("release: 1.97.0-nightly\nLLVM version: 23.0.1\n").unwrap();
        assert_eq!((nightly.unstable, nightly.llvm), (true, Some(23)));
        let other_backend = RustcVersion::parse("release: 1.97.0-dev\n").unwrap();
        assert_eq!((other_backend.unstable, other_backend.llvm), (true, None));
        assert_eq!(RustcVersion::parse("rustc 1.96.0\n"), None);
    }

    #[test]
    fn the_linkers_llvm_is_found_where_it_is_set() {
        assert_eq!(linker_llvm("bpf-linker 0.13.0\n"), None);
        assert_eq!(linker_llvm("bpf-linker 0.14.0 (LLVM 23.1.0)\n"), Some(23));
        assert_eq!(linker_llvm("\tlibLLVM.so.22.1 => /lib/libLLVM.so.22.1 (0x1)\n"), Some(22));
        assert_eq!(linker_llvm("\tlibLLVM-19.so.1 => not found\n"), Some(19));
    }

    #[test]
    fn a_linker_reads_bitcode_of_its_own_llvm_and_older() {
        let linker = |llvm| Linker { path: PathBuf::new(), llvm };
        let rustc = RustcVersion::parse(STABLE).unwrap();
        assert!(linker(Some(22)).reads(&rustc));
        assert!(linker(Some(23)).reads(&rustc));
        assert!(!linker(Some(21)).reads(&rustc));
        assert!(linker(None).reads(&rustc));
    }

    #[test]
    fn what_is_missing_is_one_line() {
        let rustc = PathBuf::from("/r");
        let missing = Missing {
            compiler: vec![CompilerLack::NoNightly, CompilerLack::NoSources(rustc)],
            linker: Some(LinkerLack::NotThere),
        };
        assert_eq!(
            missing.to_string(),
            "no usable rustc (rustup has no nightly; /r has no library sources), no bpf-linker"
        );
        let missing = Missing { compiler: Vec::new(), linker: Some(LinkerLack::NotThere) };
        assert_eq!(missing.to_string(), "no bpf-linker");
    }

    #[test]
    fn the_outer_build_does_not_leak_into_the_probes() {
        for name in
            ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "CARGO_BUILD_TARGET", "CLIPPY_ARGS"]
        {
            assert!(belongs_to_outer_cargo(name), "{name}");
        }
        for name in
            ["PATH", "CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR", "HTTPS_PROXY"]
        {
            assert!(!belongs_to_outer_cargo(name), "{name}");
        }
    }

    #[test]
    fn the_target_has_the_hosts_byte_order() {
        let machine = |big_endian| Machine { big_endian, arch: "any".to_owned() };
        assert_eq!(machine(false).target(), "bpfel-unknown-none");
        assert_eq!(
            machine(true).object(Path::new("/t"), PROBE),
            Path::new("/t/bpfeb-unknown-none/release/tcpclose-ebpf")
        );
    }
}
