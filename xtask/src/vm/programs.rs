//! The programs of a guest, built without shared libraries.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::archive::Architecture;
use crate::cross::Builder;
use crate::{live, sh, test};

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
    /// More words for the kernel's command line.
    pub append: String,
}

impl Job {
    pub fn new(name: impl Into<String>, words: Vec<String>) -> Self {
        Self { name: name.into(), words, append: String::new() }
    }
}

/// The agent and the live tests, static, as the tests on this machine run them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    pub agent: PathBuf,
    pub live: PathBuf,
}

impl Built {
    /// Both, by the names that they have in a guest.
    pub fn programs(self) -> Vec<Program> {
        let program = |name: &str, file| Program { name: name.to_owned(), file };
        vec![program("tcpclose", self.agent), program(live::PROGRAM, self.live)]
    }
}

/// Builds the agent and the live tests for an architecture.
pub fn build(architecture: Architecture) -> Result<Built> {
    let mut command = cargo_test(architecture)?;
    command.arg("--no-run").arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    sh::show(&command);
    let output = command.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cannot build the live tests");
    }
    let built = executables(&String::from_utf8_lossy(&output.stdout));
    let find = |name: &str| {
        let found = built.iter().find(|program| program.name == name);
        found.map(|program| program.file.clone()).with_context(|| format!("cargo built no {name}"))
    };
    Ok(Built { agent: find("tcpclose")?, live: find(live::PROGRAM)? })
}

/// `cargo test` for an architecture. For this machine's it selects the packages that all steps of the tests select: with
/// fewer, cargo unifies other features and compiles everything again.
fn cargo_test(architecture: Architecture) -> Result<Command> {
    if Some(architecture) == Architecture::of_this_machine() {
        return test::all_tests();
    }
    let builder = Builder::of(architecture)?;
    let mut command = builder.cargo();
    // Cargo takes the flags of the environment in place of those of its configuration; so does this. They are passed
    // encoded: a path with a blank in it survives.
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let mut flags: Vec<OsString> = flags.split_whitespace().map(OsString::from).collect();
    flags.extend(builder.flags());
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join(OsStr::new("\x1f"))).env_remove("RUSTFLAGS");
    command.args(["test", "--target", &builder.target(), "--package", "tcpclose", "--test", live::PROGRAM]);
    Ok(command)
}

/// A program of this machine that is there already.
pub fn given(file: &Path) -> Result<Program> {
    let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    if content.starts_with(b"\x7fELF") && has_interpreter(&content) {
        bail!("{} needs shared libraries, which guests do not have", file.display());
    }
    let name = file.file_name().with_context(|| format!("{} is not a program", file.display()))?;
    Ok(Program { name: name.to_string_lossy().into_owned(), file: file.to_path_buf() })
}

/// True if the program asks for a dynamic loader, which Debian and all others keep below /lib or /lib64. The name lies
/// in the first page.
fn has_interpreter(program: &[u8]) -> bool {
    let page = &program[..program.len().min(4096)];
    page.split(|byte| *byte == 0)
        .any(|string| string.starts_with(b"/lib") && string.windows(3).any(|w| w == b"ld-"))
}

/// The binaries and the integration tests among cargo's messages, without the unit tests of libraries and binaries: target
/// names and paths.
fn executables(messages: &str) -> Vec<Program> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let programs = messages.filter_map(|message| {
        let file = message["executable"].as_str()?;
        let is_integration_test = message["target"]["kind"][0] == "test";
        if message["profile"]["test"] == true && !is_integration_test {
            return None;
        }
        let name = message["target"]["name"].as_str()?;
        Some(Program { name: name.to_owned(), file: file.into() })
    });
    programs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_reports_where_it_put_binaries_and_integration_tests() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"tcpclose"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"live"},"profile":{"test":true},"executable":"/t/debug/deps/live-1f"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"tcpclose"},"profile":{"test":true},"executable":"/t/debug/deps/tcpclose-2e"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"tcpclose"},"profile":{"test":false},"executable":"/t/debug/tcpclose"}"#,
            "\nnot json\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let live = Program { name: "live".to_owned(), file: "/t/debug/deps/live-1f".into() };
        let agent = Program { name: "tcpclose".to_owned(), file: "/t/debug/tcpclose".into() };
        assert_eq!(executables(messages), [live, agent]);
        assert!(executables("").is_empty());
    }

    #[test]
    fn a_program_with_a_dynamic_loader_is_known() {
        assert!(has_interpreter(b"\x7fELF\0\0/lib64/ld-linux-x86-64.so.2\0"));
        assert!(!has_interpreter(b"\x7fELF\0\0/lib/modules\0"));
    }
}
