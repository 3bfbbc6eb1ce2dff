//! The files of the packages, as they are installed.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::{Source, remove};
use crate::sh;

/// What has been built.
pub struct Parts {
    pub binary: PathBuf,
    /// Where the binary wrote its manual, its completions and its configuration.
    pub made: PathBuf,
    /// The licences of the crates in the binary.
    pub third_parties: String,
}

/// Where a distribution wants files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Completions of packages apart from the system's; `copyright` and changelogs for licences, added by the caller.
    Debian,
    /// As Fedora and SUSE have it.
    Other,
}

impl Habit {
    fn zsh(self) -> &'static str {
        match self {
            Self::Debian => "usr/share/zsh/vendor-completions/_tcpclose",
            Self::Other => "usr/share/zsh/site-functions/_tcpclose",
        }
    }
}

/// A folder with files as they are to be below `/`.
pub struct Tree {
    pub folder: PathBuf,
}

impl Tree {
    /// An empty one, in place of what is there.
    pub fn new(folder: PathBuf) -> Result<Self> {
        remove(&folder)?;
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// Adds the files of every package.
    pub fn fill(&self, source: &Source, parts: &Parts, habit: Habit) -> Result<()> {
        let made = &parts.made;
        self.put("usr/bin/tcpclose", fs::read(&parts.binary)?)?;
        set_mode(&self.folder.join("usr/bin/tcpclose"), 0o755)?;
        self.copy("etc/tcpclose/tcpclose.toml", &made.join("tcpclose.toml"))?;
        for page in entries(&made.join("man"))? {
            let name = file_name(&page);
            self.put_packed(&format!("usr/share/man/man1/{name}"), fs::read(&page)?)?;
        }
        let completions = made.join("completions");
        self.copy("usr/share/bash-completion/completions/tcpclose", &completions.join("tcpclose.bash"))?;
        self.copy(habit.zsh(), &completions.join("_tcpclose"))?;
        self.copy("usr/share/fish/vendor_completions.d/tcpclose.fish", &completions.join("tcpclose.fish"))?;

        for file in entries(&source.path("deploy/systemd"))? {
            let name = file_name(&file);
            let to = match name.rsplit_once('.') {
                Some((_, "service" | "socket")) => format!("usr/lib/systemd/system/{name}"),
                Some((base, "sysusers")) => format!("usr/lib/sysusers.d/{base}.conf"),
                // What a host may want, and copies.
                _ => format!("usr/share/tcpclose/systemd/{name}"),
            };
            self.copy(&to, &file)?;
        }
        for (from, to) in [("deploy/prometheus", "prometheus"), ("deploy/grafana", "grafana")] {
            for file in entries(&source.path(from))? {
                self.copy(&format!("usr/share/tcpclose/{to}/{}", file_name(&file)), &file)?;
            }
        }
        self.documents(source)?;
        if habit == Habit::Other {
            for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
                self.copy(&format!("usr/share/licenses/tcpclose/{name}"), &source.path(name))?;
            }
            self.put("usr/share/licenses/tcpclose/THIRD-PARTY.txt", parts.third_parties.clone())?;
            self.copy("usr/share/doc/tcpclose/CHANGELOG.md", &source.path("CHANGELOG.md"))?;
        }
        Ok(())
    }

    /// In the folders of the workspace, so that links between documents hold.
    fn documents(&self, source: &Source) -> Result<()> {
        for name in ["README.md", "SECURITY.md", "deploy/README.md"] {
            self.copy(&format!("usr/share/doc/tcpclose/{name}"), &source.path(name))?;
        }
        let book = Tree { folder: source.path("docs/src") };
        for file in book.files()? {
            self.copy(&format!("usr/share/doc/tcpclose/docs/src/{file}"), &book.folder.join(&file))?;
        }
        Ok(())
    }

    pub fn copy(&self, to: &str, from: &Path) -> Result<()> {
        self.put(to, fs::read(from).with_context(|| format!("cannot read {}", from.display()))?)
    }

    pub fn put(&self, to: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.folder.join(to);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The same, by gzip without a name and a time: `to` gets `.gz` at its end.
    pub fn put_packed(&self, to: &str, content: impl AsRef<[u8]>) -> Result<()> {
        self.put(to, content)?;
        let path = self.folder.join(to);
        let status = Command::new("gzip").args(["-9", "--no-name", "--force"]).arg(&path).status();
        if !status.context("cannot start gzip")?.success() {
            bail!("gzip failed on {}", path.display());
        }
        Ok(())
    }

    /// Makes a script of `to`.
    pub fn executable(&self, to: &str) -> Result<()> {
        set_mode(&self.folder.join(to), 0o755)
    }

    /// Every file, without folders, as paths below this one. In order.
    pub fn files(&self) -> Result<Vec<String>> {
        let mut files = Vec::new();
        for path in self.walk()? {
            if !path.is_dir() {
                let below = path.strip_prefix(&self.folder).unwrap_or(&path);
                files.push(below.to_string_lossy().into_owned());
            }
        }
        Ok(files)
    }

    /// Sets fixed modes and times, whatever the umask.
    pub fn settle(&self, source: &Source) -> Result<()> {
        let time = UNIX_EPOCH + Duration::from_secs(source.epoch);
        // What is deepest first: a change in a folder changes its time.
        for path in self.walk()?.iter().rev() {
            let is_program = fs::metadata(path)?.permissions().mode() & 0o111 != 0;
            set_mode(path, if is_program { 0o755 } else { 0o644 })?;
            File::open(path)?
                .set_modified(time)
                .with_context(|| format!("the time of {}", path.display()))?;
        }
        Ok(())
    }

    /// Everything, folders before what is in them.
    fn walk(&self) -> Result<Vec<PathBuf>> {
        let mut found = vec![self.folder.clone()];
        let mut next = 0;
        while let Some(path) = found.get(next).cloned() {
            next += 1;
            if path.is_dir() {
                found.extend(entries(&path)?);
            }
        }
        found.sort();
        Ok(found)
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("cannot change the mode of {}", path.display()))
}

/// What is in a folder, in order.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    super::name(path)
}

/// Bytes in all files below a folder, in KiB and rounded up, as Installed-Size has it.
pub fn kib(tree: &Tree) -> Result<u64> {
    let sizes =
        tree.files()?.into_iter().map(|file| Ok(fs::metadata(tree.folder.join(file))?.len().div_ceil(1024)));
    sizes.sum()
}

/// `text` with each `@NAME@` in it filled in.
pub fn filled(text: &str, values: &[(&str, &str)]) -> Result<String> {
    let filled =
        values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value));
    // A name without a value.
    let left = filled
        .split('@')
        .skip(1)
        .step_by(2)
        .find(|word| !word.is_empty() && word.chars().all(|letter| letter.is_ascii_uppercase()));
    match left {
        Some(name) => bail!("no value for @{name}@"),
        None => Ok(filled),
    }
}

/// What `date` writes for the source's time.
pub fn date(source: &Source, format: &str) -> Result<String> {
    let mut date = Command::new("date");
    let printed = date.env("LC_ALL", "C").args(["--utc", &format!("--date=@{}", source.epoch), format]);
    Ok(sh::ask(printed).context("date failed")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_and_none_is_left() {
        let values = [("VERSION", "1"), ("MAINTAINER", "A <a@b.c>")];
        assert_eq!(filled("V: @VERSION@\nM: @MAINTAINER@\n", &values).unwrap(), "V: 1\nM: A <a@b.c>\n");
        assert!(filled("@VERSION@ @ARCH@", &values).is_err());
    }
}
