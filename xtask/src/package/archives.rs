//! The .deb, the .rpm and the tarball, each by its usual tool, with fixed times, owners and order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::tree::{self, Habit, Parts, Tree};
use super::{MAINTAINER, Packages, REVISION, Source, VERSION, remove};
use crate::sh;

/// Makes them all.
pub fn make(source: &Source, parts: &Parts) -> Result<Packages> {
    fs::create_dir_all(&source.work).with_context(|| format!("cannot make {}", source.work.display()))?;
    Ok(Packages {
        architecture: source.architecture,
        binary: parts.binary.clone(),
        deb: deb(source, parts)?,
        rpm: rpm(source, parts)?,
        tarball: tarball(source, parts)?,
    })
}

/// A tool whose output has the source's time.
fn tool(program: &str, source: &Source) -> Command {
    let mut command = Command::new(program);
    command.env("SOURCE_DATE_EPOCH", source.epoch.to_string()).env("LC_ALL", "C");
    command
}

fn deb(source: &Source, parts: &Parts) -> Result<PathBuf> {
    let machine = source.architecture.name();
    let tree = Tree::new(source.work.join("deb"))?;
    tree.fill(source, parts, Habit::Debian)?;
    let read = |name: &str| source.read(&format!("deploy/packages/deb/{name}"));

    // An indented text, in which a line with a full stop is an empty one.
    let licence = source.read("LICENSE-MIT")?;
    let licence: Vec<String> =
        licence.trim().lines().map(|line| format!(" {}", if line.is_empty() { "." } else { line })).collect();
    let copyright = tree::filled(&read("copyright")?, &[("MIT", &licence.join("\n"))])?;
    tree.put("usr/share/doc/tcpclose/copyright", copyright)?;
    tree.put("usr/share/doc/tcpclose/THIRD-PARTY.txt", &parts.third_parties)?;
    tree.put_packed("usr/share/doc/tcpclose/changelog", source.read("CHANGELOG.md")?)?;
    let version = format!("{VERSION}-{REVISION}");
    let date = tree::date(source, "--rfc-email")?;
    let changes = format!(
        "tcpclose ({version}) unstable; urgency=medium\n\n  * See changelog.gz for the changes.\n\n -- {MAINTAINER}  {date}\n"
    );
    tree.put_packed("usr/share/doc/tcpclose/changelog.Debian", changes)?;
    tree.put("usr/share/lintian/overrides/tcpclose", read("lintian-overrides")?)?;

    let installed = tree.files()?;
    let mut sums = Command::new("md5sum");
    let sums = sh::ask(
        sums.current_dir(&tree.folder).args(installed.iter().filter(|file| !file.starts_with("etc/"))),
    );
    let size = tree::kib(&tree)?.to_string();
    let values =
        [("VERSION", version.as_str()), ("ARCH", machine), ("MAINTAINER", MAINTAINER), ("SIZE", &size)];
    tree.put("DEBIAN/control", tree::filled(&read("control")?, &values)?)?;
    tree.put("DEBIAN/conffiles", read("conffiles")?)?;
    tree.put("DEBIAN/md5sums", sums.context("md5sum failed")?)?;
    for script in ["postinst", "prerm", "postrm"] {
        tree.put(&format!("DEBIAN/{script}"), read(script)?)?;
        tree.executable(&format!("DEBIAN/{script}"))?;
    }
    tree.settle(source)?;

    let file = source.work.join(format!("tcpclose_{version}_{machine}.deb"));
    let mut command = tool("dpkg-deb", source);
    sh::run(command.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree.folder).arg(&file))?;
    Ok(file)
}

fn rpm(source: &Source, parts: &Parts) -> Result<PathBuf> {
    let machine = source.architecture.machine();
    let tree = Tree::new(source.work.join("rpm"))?;
    tree.fill(source, parts, Habit::Other)?;
    tree.settle(source)?;

    let top = source.work.join("rpmbuild");
    remove(&top)?;
    fs::create_dir_all(&top).with_context(|| format!("cannot make {}", top.display()))?;
    let stage = tree.folder.to_string_lossy();
    let files = rpm_files(&tree.files()?);
    let values =
        [("VERSION", VERSION), ("MAINTAINER", MAINTAINER), ("STAGE", &*stage), ("FILES", files.as_str())];
    let spec = top.join("tcpclose.spec");
    fs::write(&spec, tree::filled(&source.read("deploy/packages/rpm/tcpclose.spec")?, &values)?)?;

    let mut command = tool("rpmbuild", source);
    let defined = [
        format!("_topdir {}", top.display()),
        // No build id, no stripping, no packing of what is packed: the files are as they are to be.
        "_build_id_links none".to_owned(),
        "debug_package %{nil}".to_owned(),
        "__os_install_post %{nil}".to_owned(),
        "_binary_payload w6.xzdio".to_owned(),
        "_buildhost tcpclose".to_owned(),
        "use_source_date_epoch_as_buildtime 1".to_owned(),
        "clamp_mtime_to_source_date_epoch 1".to_owned(),
        "source_date_epoch_from_changelog 0".to_owned(),
    ];
    for define in &defined {
        command.arg("--define").arg(define);
    }
    sh::run(command.args(["--quiet", "-bb", "--target"]).arg(format!("{machine}-linux")).arg(&spec))?;
    let name = format!("tcpclose-{VERSION}-{REVISION}.{machine}.rpm");
    let file = source.work.join(&name);
    let built = top.join("RPMS").join(machine).join(&name);
    fs::rename(&built, &file).with_context(|| format!("rpmbuild left no {}", built.display()))?;
    Ok(file)
}

/// The spec's list: each file by its kind, and the package's own folders.
fn rpm_files(files: &[String]) -> String {
    let mut lines = vec![
        "%defattr(-,root,root,-)".to_owned(),
        "%dir /etc/tcpclose".to_owned(),
        "%dir /usr/share/doc/tcpclose".to_owned(),
        "%dir /usr/share/licenses/tcpclose".to_owned(),
        "%dir /usr/share/tcpclose".to_owned(),
    ];
    let mut folders: Vec<&str> = Vec::new();
    for file in files {
        let kind = match file.as_str() {
            config if config.starts_with("etc/") => "%config(noreplace) ",
            licence if licence.starts_with("usr/share/licenses/") => "%license ",
            document if document.starts_with("usr/share/doc/") || document.starts_with("usr/share/man/") => {
                "%doc "
            }
            _ => "",
        };
        let mut above: Vec<&str> = Path::new(file).ancestors().skip(1).filter_map(Path::to_str).collect();
        above.reverse();
        for folder in above {
            let is_ours = ["usr/share/doc/tcpclose/", "usr/share/tcpclose/"]
                .iter()
                .any(|ours| folder.starts_with(ours));
            if is_ours && !folders.contains(&folder) {
                folders.push(folder);
                lines.push(format!("%dir /{folder}"));
            }
        }
        lines.push(format!("{kind}/{file}"));
    }
    lines.join("\n")
}

fn tarball(source: &Source, parts: &Parts) -> Result<PathBuf> {
    let name = format!("tcpclose-{VERSION}-{}-linux", source.architecture.machine());
    let above = Tree::new(source.work.join("tarball"))?;
    let tree = Tree::new(above.folder.join(&name))?;
    tree.fill(source, parts, Habit::Other)?;
    tree.settle(source)?;
    let file = source.work.join(format!("{name}.tar.xz"));
    let mut command = tool("tar", source);
    command
        .args([
            "--create",
            "--sort=name",
            "--format=gnu",
            "--owner=root:0",
            "--group=root:0",
            "--numeric-owner",
        ])
        .arg(format!("--mtime=@{}", source.epoch))
        // One thread: xz writes other bytes with more.
        .args(["--use-compress-program", "xz -6 --threads=1"])
        .arg("--directory")
        .arg(&above.folder)
        .arg("--file")
        .args([&file, Path::new(&name)]);
    sh::run(&mut command)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_lists_each_file_for_what_it_is() {
        let files =
            ["etc/tcpclose/tcpclose.toml", "usr/bin/tcpclose", "usr/share/doc/tcpclose/docs/src/metrics.md"];
        let list = rpm_files(&files.map(str::to_owned));
        assert!(
            list.contains("\n%config(noreplace) /etc/tcpclose/tcpclose.toml\n/usr/bin/tcpclose\n"),
            "{list}"
        );
        assert!(
            list.ends_with(
                "\n%dir /usr/share/doc/tcpclose/docs\n%dir /usr/share/doc/tcpclose/docs/src\n\
                 %doc /usr/share/doc/tcpclose/docs/src/metrics.md"
            ),
            "{list}"
        );
    }
}
