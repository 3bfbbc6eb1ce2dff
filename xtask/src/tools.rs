//! The programs that tests, benchmarks and packages need, in groups that are installed one by one.
//!
//! apt-get installs a group if that removes and upgrades nothing of this system. Otherwise the group is unpacked below
//! target/tools with everything it depends on. A script in target/tools/bin, which is on PATH of all that xtask starts, runs
//! each program over this system's /usr in a mount namespace of its own.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, Effect};
use crate::archive::{Architecture, Archive, Suite};
use crate::{build, sh};

/// Packages that are installed together, and what they are for.
pub struct Group {
    /// Debian's.
    packages: &'static [&'static str],
    /// Those of their programs that are used.
    programs: &'static [&'static str],
    /// Those of their files that are used, if no program is.
    files: &'static [&'static str],
    /// What is skipped without them.
    needed_for: &'static str,
    /// The release that they are unpacked from.
    suite: Suite,
    /// Their programs must start: a version manager has a script of that name for each version that it knows, and may have no such
    /// version.
    must_start: bool,
}

const fn group(
    packages: &'static [&'static str],
    programs: &'static [&'static str],
    needed_for: &'static str,
) -> Group {
    Group { packages, programs, files: &[], needed_for, suite: SUITE, must_start: false }
}

/// Needed by the live tests.
pub const TEST: &[Group] = &[
    group(&["iproute2"], &["ip", "ss"], "most live tests"),
    group(&["curl"], &["curl"], "the tests of the agent's pages"),
    group(&["openssl"], &["openssl"], "the tests of TLS"),
    group(&["systemd"], &["systemd-socket-activate", "systemd-analyze"], "the tests of the systemd unit"),
    group(&["tmux"], &["tmux"], "the tests of top in a terminal"),
    group(&["nginx"], &["nginx"], "the test with nginx under load"),
    group(&["haproxy"], &["haproxy"], "the test of chains through proxies"),
    Group {
        files: &["/usr/lib/nginx/modules/ngx_stream_module.so"],
        ..group(&["libnginx-mod-stream"], &[], "the test of chains through proxies")
    },
    group(&["wrk"], &["wrk"], "the test with nginx under load"),
    group(&["prometheus"], &["prometheus", "promtool"], "the tests of metrics, rules and alerts"),
    group(&["busybox-static"], &["busybox"], "the tests with containers"),
    // runc runs where cgroups are hybrid.
    group(&["podman", "runc"], &["podman", "runc"], "the tests with containers"),
    group(&["chromium"], &["chromium"], "the tests of the agent's page in a browser"),
    group(&["g++"], &["g++"], "the test of stacks in C++"),
    group(&["binutils"], &["objcopy", "strip", "readelf"], "the tests of stacks of stripped programs"),
    group(&["golang-go"], &["go"], "the test of stacks in Go"),
    group(&["openjdk-17-jdk-headless"], &["java", "javac", "jcmd"], "the tests of stacks in Java"),
    Group {
        files: &["/usr/share/java/netty-transport.jar"],
        ..group(&["libnetty-java"], &[], "the test of stacks with Netty")
    },
    group(&["nodejs"], &["node"], "the test of stacks in Node.js"),
    // Python lists its functions since 3.12, which Debian 12 does not have.
    Group {
        suite: Suite::Trixie,
        must_start: true,
        ..group(&["python3.13"], &["python3.13"], "the tests of stacks in Python")
    },
];

/// Needed by the live tests that only `cargo xtask test --all` runs.
pub const TEST_ALL: &[Group] = &[
    group(&["redis-server"], &["redis-server"], "the verdicts on real programs"),
    Group {
        files: &["/usr/lib/python3/dist-packages/requests/__init__.py"],
        ..group(
            &["gunicorn", "python3-requests", "python3-aiohttp", "python3-redis"],
            &["gunicorn"],
            "the verdicts on real programs",
        )
    },
    Group {
        files: &["/usr/share/java/commons-pool2.jar", "/usr/share/java/httpclient.jar"],
        ..group(&["libcommons-pool2-java", "libhttpclient-java"], &[], "the verdicts on real programs")
    },
];

/// Needed by the benchmarks, for comparison.
pub const BENCH: &[Group] = &[
    group(&["iproute2"], &["ss"], "the benchmarks against ss"),
    group(&["libbpf-tools"], &["tcpstates", "tcplife"], "the benchmarks against libbpf-tools"),
    group(
        &["prometheus-node-exporter"],
        &["prometheus-node-exporter"],
        "the benchmarks of a scrape against node_exporter",
    ),
];

/// Needed to make packages.
pub const PACKAGE: &[Group] = &[
    group(&["dpkg"], &["dpkg-deb"], "the .deb"),
    group(&["rpm"], &["rpmbuild"], "the .rpm"),
    group(&["binutils"], &["readelf"], "the packages (readelf checks the binary)"),
    group(&["xz-utils"], &["xz"], "the tarball"),
];

/// Needed to try packages.
pub const TRIAL: &[Group] = &[
    group(&["lintian"], &["lintian"], "the check of the .deb"),
    group(&["iproute2"], &["ip"], "the trial of the packages"),
];

/// Needed by the fuzzer, besides the agent's toolchain.
pub const FUZZ: &[Group] = &[group(&["g++"], &["c++"], "the fuzzer (it builds libFuzzer)")];

/// Needed to start guests.
pub const VM: &[Group] = &[group(&["util-linux"], &["setpriv"], "the guests (setpriv ends them with xtask)")];

/// The release that most groups are unpacked from, on every system.
const SUITE: Suite = Suite::Bookworm;

impl Group {
    /// Those of its programs that are not on PATH, and of its files that are not there.
    pub fn missing(&self) -> Vec<&'static str> {
        let files = self.files.iter().copied().filter(|file| !Path::new(file).exists());
        self.missing_programs().chain(files).collect()
    }

    fn missing_programs(&self) -> impl Iterator<Item = &'static str> {
        let is_there = |program: &str| {
            sh::find(program).is_some()
                && (!self.must_start || sh::ask(Command::new(program).arg("--version")).is_some())
        };
        self.programs.iter().copied().filter(move |program| !is_there(program))
    }

    pub const fn needed_for(&self) -> &'static str {
        self.needed_for
    }

    pub fn name(&self) -> String {
        self.packages.join(", ")
    }

    /// Installs it, or unpacks it if installing would change this system. The error is the reason why neither works.
    pub fn provide(&self, apt: Option<&Apt>) -> Result<()> {
        let Some(apt) = apt else { bail!("this system has no apt-get") };
        if !sh::can_be_root() {
            bail!("installing needs root");
        }
        match apt.effect(self.packages) {
            Ok(Effect { removed, upgraded }) if removed.is_empty() && upgraded.is_empty() => {
                return apt.install(self.packages);
            }
            Ok(Effect { removed, upgraded }) => {
                let touched: Vec<String> = removed.into_iter().chain(upgraded).collect();
                eprintln!(
                    "note: apt-get would remove or upgrade {} for {}, which is unpacked below target/tools instead",
                    touched.join(", "),
                    self.name()
                );
            }
            Err(why) => eprintln!("note: {why:#}; {} is unpacked below target/tools instead", self.name()),
        }
        self.unpack()
    }

    fn unpack(&self) -> Result<()> {
        if !self.files.is_empty() {
            bail!("its files must be installed");
        }
        let machine = Architecture::of_this_machine();
        let machine = machine.context("no Debian packages for this architecture")?;
        if !["/bin", "/lib", "/sbin"].iter().all(|folder| Path::new(folder).is_symlink()) {
            bail!(
                "cannot run unpacked programs: /bin, /lib and /sbin are not symlinks to /usr on this system"
            );
        }
        let root = folder()?.join(self.packages.join("-"));
        let packages = [self.packages, &["?essential"]].concat();
        Archive::open(self.suite, machine)?.unpack_closure(&packages, &root)?;
        for program in self.missing_programs() {
            let folders = ["usr/bin", "usr/sbin"];
            let Some(below) = folders.into_iter().find(|below| root.join(below).join(program).is_file())
            else {
                bail!("no {program} in Debian's {}", self.name());
            };
            write_script(&bin()?, program, &script(&root, &format!("/{below}/{program}"))?)?;
        }
        Ok(())
    }
}

/// A script that runs `program` (its path in `root`) over this system: a merged /usr is replaced, /etc gains what it lacks,
/// everything else stays this system's. The mounts end with the program, which is the caller's child.
fn script(root: &Path, program: &str) -> Result<String> {
    let root = root.to_str().context("the path of target/ is not UTF-8")?;
    if root.contains([':', ',', '\\']) {
        bail!(
            "the path of target/ contains a colon, a comma or a backslash, which an overlay cannot have: {root}"
        );
    }
    let (root, program) = (sh::quote(root), sh::quote(program));
    Ok(format!(
        "#!/bin/sh\n\
         # Made by `cargo xtask setup`.\n\
         export TCPCLOSE_TOOL_ROOT={root}\n\
         [ \"$(id -u)\" = 0 ] || {{ echo \"$0: this unpacked program takes root\" >&2; exit 126; }}\n\
         exec unshare --mount --propagation slave -- sh -c '\n\
         mount -t overlay -o \"ro,lowerdir=/etc:$TCPCLOSE_TOOL_ROOT/etc\" overlay /etc &&\n\
         mount --bind \"$TCPCLOSE_TOOL_ROOT/usr\" /usr || exit 126\n\
         unset TCPCLOSE_TOOL_ROOT\n\
         export PATH=/usr/sbin:/usr/bin\n\
         exec \"$0\" \"$@\"' {program} \"$@\"\n"
    ))
}

fn write_script(bin: &Path, name: &str, content: &str) -> Result<()> {
    fs::create_dir_all(bin).with_context(|| format!("cannot make {}", bin.display()))?;
    let file = bin.join(name);
    fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", file.display()))
}

fn folder() -> Result<PathBuf> {
    Ok(build::target_folder()?.join("tools"))
}

fn bin() -> Result<PathBuf> {
    Ok(folder()?.join("bin"))
}

/// Xtask again, with the unpacked programs on PATH; `None` if they are on it.
pub fn with_path() -> Result<Option<Command>> {
    let (bin, path) = (bin()?, env::var_os("PATH").unwrap_or_default());
    if env::split_paths(&path).any(|folder| folder == bin) {
        return Ok(None);
    }
    let Ok(path) = env::join_paths([bin].into_iter().chain(env::split_paths(&path))) else { return Ok(None) };
    let mut again = Command::new(env::current_exe().context("cannot find the path of xtask itself")?);
    again.args(env::args_os().skip(1)).env("PATH", path);
    Ok(Some(again))
}

/// The PATH of this process, since sudo sets another one.
pub fn path() -> OsString {
    env::var_os("PATH").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_survives_its_folders_name() {
        let script = script(Path::new("/a folder/tools/podman"), "/usr/bin/podman").unwrap();
        assert!(script.contains("TOOL_ROOT='/a folder/tools/podman'\n"), "{script}");
        assert!(script.ends_with("' /usr/bin/podman \"$@\"\n"), "{script}");
        let folder = env::temp_dir().join(format!("tcpclose-script-{}", std::process::id()));
        write_script(&folder, "podman", &script).unwrap();
        // What a shell makes of it, without running it.
        let parsed = Command::new("sh").arg("-n").arg(folder.join("podman")).status();
        fs::remove_dir_all(&folder).unwrap();
        assert!(parsed.unwrap().success());
    }

    #[test]
    fn an_overlay_is_not_misled_by_a_folders_name() {
        assert!(script(Path::new("/a:b"), "/usr/bin/podman").is_err());
    }
}
