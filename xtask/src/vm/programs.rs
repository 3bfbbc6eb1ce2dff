//! The programs that a guest runs, built without shared libraries: a guest has none.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::sh;

/// A target named outright makes cargo build scripts and procedural macros apart, which cannot be static.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "-C target-feature=+crt-static";

/// A static program of this machine, and the name it is called by in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub name: String,
    pub file: PathBuf,
}

/// What is to be run in a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its name in the summary: the program's.
    pub name: String,
    /// Program and arguments.
    pub words: Vec<String>,
}

/// True if `name` is a test program of the agent's package.
pub fn is_test(name: &str) -> bool {
    let tests = sh::workspace().join("tcpclose-userspace/tests");
    tests.join(format!("{name}.rs")).is_file() || tests.join(name).join("main.rs").is_file()
}

/// Builds the agent and these test programs, in the profile that the live tests have. The agent comes first.
pub fn build(tests: &[&str]) -> Result<Vec<Program>> {
    let mut command = sh::cargo();
    // cargo takes the flags of the environment in place of those of its configuration; so does this.
    let mut flags = std::env::var_os("RUSTFLAGS").map_or_else(OsString::new, |mut flags| {
        flags.push(" ");
        flags
    });
    flags.push(STATIC);
    command.env("RUSTFLAGS", flags).env_remove("CARGO_ENCODED_RUSTFLAGS");
    if tests.is_empty() {
        command.args(["build", "--bin", "tcpclose"]);
    } else {
        command.args(["test", "--no-run"]);
        command.args(tests.iter().flat_map(|test| ["--test", test]));
    }
    command
        .args(["--package", "tcpclose-userspace", "--target", TARGET])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    sh::show(&command);
    let output = command.output().context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("the guests' programs do not build");
    }
    let built = executables(&String::from_utf8_lossy(&output.stdout));
    let mut programs = Vec::new();
    for name in ["tcpclose"].iter().chain(tests) {
        match built.iter().find(|program| program.name == **name) {
            Some(program) => programs.push(program.clone()),
            None => bail!("cargo built no {name}"),
        }
    }
    Ok(programs)
}

/// A program of this machine that is there already.
pub fn given(file: &Path) -> Result<Program> {
    let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    if content.starts_with(b"\x7fELF") && has_interpreter(&content) {
        bail!("{} needs shared libraries, and a guest has none", file.display());
    }
    let name = file.file_name().with_context(|| format!("{} is no program", file.display()))?;
    Ok(Program { name: name.to_string_lossy().into_owned(), file: file.to_path_buf() })
}

/// True if the program asks for a dynamic loader, which Debian and all others keep below /lib or /lib64. The name lies
/// in the first page.
fn has_interpreter(program: &[u8]) -> bool {
    let page = &program[..program.len().min(4096)];
    page.split(|byte| *byte == 0)
        .any(|string| string.starts_with(b"/lib") && string.windows(3).any(|w| w == b"ld-"))
}

/// The executables among cargo's messages: target names and paths.
fn executables(messages: &str) -> Vec<Program> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let programs = messages.filter_map(|message| {
        let file = message["executable"].as_str()?;
        let name = message["target"]["name"].as_str()?;
        Some(Program { name: name.to_owned(), file: file.into() })
    });
    programs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_tells_where_it_put_what_it_built() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"tcpclose_userspace"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"closes"},"executable":"/t/release/deps/closes-1f"}"#,
            "\nnot json\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let closes = Program { name: "closes".to_owned(), file: "/t/release/deps/closes-1f".into() };
        assert_eq!(executables(messages), [closes]);
        assert!(executables("").is_empty());
    }

    #[test]
    fn a_program_with_a_dynamic_loader_is_known() {
        assert!(has_interpreter(b"\x7fELF\0\0/lib64/ld-linux-x86-64.so.2\0"));
        assert!(!has_interpreter(b"\x7fELF\0\0/lib/modules\0"));
    }
}
