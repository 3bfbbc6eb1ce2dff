//! Running other programs: each is shown before it runs, as a line that could be typed.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use tcpclose_common::progress;

/// The workspace's folder, as cargo gives it at run time: it may have moved since xtask was compiled.
pub fn workspace() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map(Path::to_path_buf).unwrap_or(package)
}

/// Cargo, in the workspace's folder.
pub fn cargo() -> Command {
    cargo_at(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()).as_ref())
}

/// This cargo, in the workspace's folder.
pub fn cargo_at(cargo: &Path) -> Command {
    let mut command = Command::new(cargo);
    command.current_dir(workspace());
    // What `cargo xtask` was told about the package xtask is none of another build's business.
    for (name, _) in env::vars_os() {
        let ours = |prefix| name.to_str().is_some_and(|name| name.starts_with(prefix));
        if ours("CARGO_PKG_") || ours("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    // Nothing is built twice on CI, where what it takes to do so faster would take longer.
    if env::var_os("CI").is_some() && env::var_os("CARGO_INCREMENTAL").is_none() {
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

/// The rustc that [`cargo`] runs.
pub fn rustc() -> Command {
    Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

/// A command as root: itself for root, through sudo for anybody else. `environment` is set for the command, since
/// sudo passes on none.
pub fn as_root(program: impl AsRef<OsStr>, environment: &[(&str, &str)]) -> Command {
    if is_root() {
        let mut command = Command::new(program);
        command.envs(environment.iter().copied());
        return command;
    }
    let mut command = Command::new("sudo");
    if !environment.is_empty() {
        command.arg("env").args(environment.iter().map(|(name, value)| format!("{name}={value}")));
    }
    command.arg(program);
    command
}

/// True if this process runs as root.
pub fn is_root() -> bool {
    // procfs shows the effective user as the owner, which spares a crate for geteuid.
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// True if this process runs as root, or sudo needs no password, or a user can enter it.
pub fn can_be_root() -> bool {
    is_root()
        || ask(Command::new("sudo").args(["-n", "true"])).is_some()
        || (io::stdin().is_terminal()
            && env::var_os("CI").is_none()
            && run(Command::new("sudo").arg("-v")).is_ok())
}

/// Shows the command and runs it; fails unless it succeeds.
pub fn run(command: &mut Command) -> Result<()> {
    show(command);
    let program = name(command.get_program());
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("`{}` failed ({status})", short(command));
    }
    Ok(())
}

/// The standard output of a command that only asks, so it is not shown. None if it fails.
pub fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Writes the command to standard error.
pub fn show(command: &Command) {
    progress::clear();
    eprintln!("$ {}", line(command));
}

/// Finds a program on PATH, or in the folders for root's programs.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The command with its environment, quoted where a shell needs it.
fn line(command: &Command) -> String {
    let environment = command.get_envs().filter_map(|(key, value)| {
        value.map(|value| format!("{}={}", key.to_string_lossy(), quote(&value.to_string_lossy())))
    });
    let arguments = command.get_args().map(|argument| quote(&argument.to_string_lossy()));
    let mut words: Vec<String> = environment.collect();
    words.push(name(command.get_program()));
    words.extend(arguments);
    words.join(" ")
}

/// The command's first two words, for a message.
fn short(command: &Command) -> String {
    let words = command.get_args().take(1).map(|argument| argument.to_string_lossy().into_owned());
    [name(command.get_program())].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

/// The program as one would type it: cargo by its name.
fn name(program: &OsStr) -> String {
    let path = Path::new(program);
    match path.file_name() {
        Some(file) if file == "cargo" => "cargo".to_owned(),
        _ => quote(&path.to_string_lossy()),
    }
}

/// The word as a shell reads it.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+:,./@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("/somewhere/bin/cargo");
        command.env("LLVM_PREFIX", "/usr/lib/llvm").env_remove("RUSTFLAGS").args(["test", "--test", "*"]);
        assert_eq!(line(&command), "LLVM_PREFIX=/usr/lib/llvm cargo test --test '*'");
        assert_eq!(short(&command), "cargo test");
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quote("--listen=[::1]:9923"), "'--listen=[::1]:9923'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }
}
