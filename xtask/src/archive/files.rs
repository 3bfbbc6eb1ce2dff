//! The files that packages are, and the folders that they become.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A file that apt-get would fetch.
#[derive(Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    /// The program that adds it up, and the sum.
    pub sum: (&'static str, String),
}

impl Listed {
    /// A line of --print-uris: address, file, size, sum.
    pub fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, name, _, sum] = words[..] else { return None };
        let (kind, sum) = sum.split_once(':')?;
        let program = match kind {
            "SHA256" => "sha256sum",
            "SHA512" => "sha512sum",
            _ => return None,
        };
        Some(Self { name: name.to_owned(), sum: (program, sum.to_owned()) })
    }

    pub fn is_whole(&self, path: &Path) -> Result<bool> {
        let (program, sum) = &self.sum;
        let printed = captured(Command::new(program).arg("--").arg(path))?;
        Ok(printed.split_ascii_whitespace().next() == Some(sum))
    }
}

/// An empty folder beside `folder`, for what is to become it: what an earlier run left there is removed.
pub fn partial(folder: &Path) -> Result<PathBuf> {
    let mut partial = folder.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    remove(&partial)?;
    make(&partial)?;
    Ok(partial)
}

pub fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// Unpacks one package. `dpkg -x` would put folders in place of the links that a merged /usr is made of.
pub fn extract(package: &Path, folder: &Path) -> Result<()> {
    let mut unpack = Command::new("dpkg-deb");
    unpack
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut unpack = unpack.spawn().context("cannot start dpkg-deb")?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--keep-directory-symlink", "--directory"]).arg(folder);
    let extracted = unpack.stdout.take().map(|tarball| printed(&mut tar, tarball.into()));
    let status = unpack.wait().context("cannot wait for dpkg-deb")?;
    extracted.transpose()?;
    if !status.success() {
        bail!("dpkg-deb cannot read {}", package.display());
    }
    Ok(())
}

/// Removes a folder if it is there.
pub fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(why) if why.kind() != ErrorKind::NotFound => {
            Err(why).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

pub fn write_if_changed(file: &Path, content: &str) -> Result<()> {
    if fs::read_to_string(file).is_ok_and(|there| there == content) {
        return Ok(());
    }
    fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))
}

/// What a command writes; its failure is one line, the first that it complains in.
pub fn captured(command: &mut Command) -> Result<String> {
    printed(command, Stdio::null())
}

fn printed(command: &mut Command, input: Stdio) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(input).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let printed = String::from_utf8_lossy(&output.stderr);
    bail!("{program}: {}", complaint(&printed).unwrap_or("failed without a message"))
}

/// The line in which apt or dpkg says what is wrong.
pub fn complaint(printed: &str) -> Option<&str> {
    let lines = || printed.lines().map(str::trim).filter(|line| !line.is_empty());
    lines().find_map(|line| line.strip_prefix("E: ")).or_else(|| lines().next_back())
}
