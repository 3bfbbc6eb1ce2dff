//! The unit and its drop-ins, as systemd reads and judges them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The unit in a folder of its own, with `drop_ins`.
struct Unit {
    folder: TempDir,
}

impl Unit {
    fn with(drop_ins: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = workspace().join("deploy/systemd");
        fs::copy(source.join("tcpclose.service"), folder.path().join("tcpclose.service")).unwrap();
        let below = folder.path().join("tcpclose.service.d");
        fs::create_dir(&below).unwrap();
        for name in drop_ins {
            fs::copy(source.join(name), below.join(name)).unwrap();
        }
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("tcpclose.service")
    }

    /// What `systemd-analyze security` thinks of it: the overall exposure, and the checks that it does not pass.
    fn exposure(&self) -> (f64, Vec<String>) {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(self.path())
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        println!("{text}");
        let (_, overall) = text.rsplit_once("tcpclose.service: ").unwrap();
        let overall = overall.split_whitespace().next().unwrap().parse().unwrap();
        let left = text.lines().filter_map(|line| line.strip_prefix("✗ "));
        let left: Vec<String> = left.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
        assert!(!left.is_empty());
        (overall, left)
    }
}

#[test]
fn the_unit_exposes_little_and_each_point_left_is_explained() {
    let document = fs::read_to_string(workspace().join("docs/src/privileges.md")).unwrap();
    // As a table has it.
    let document = document.replace("\\|", "|");
    for (drop_ins, most) in [
        (&[][..], 3.0),
        (&["netns-current.conf"], 2.5),
        (&["allow-kill.conf"], 3.0),
        (&["allow-kill.conf", "netns-current.conf"], 2.5),
    ] {
        let (exposure, left) = Unit::with(drop_ins).exposure();
        assert!(exposure <= most, "{drop_ins:?}: {exposure}");
        for check in left {
            assert!(
                document.contains(&format!("`{check}`")),
                "docs/src/privileges.md does not explain {check}"
            );
        }
    }
}

#[test]
fn systemd_understands_every_line() {
    for drop_ins in [&[][..], &["netns-current.conf"], &["allow-kill.conf"]] {
        let unit = Unit::with(drop_ins);
        // It looks whether the program is there.
        let text = fs::read_to_string(unit.path()).unwrap();
        fs::write(unit.path(), text.replace("/usr/bin/tcpclose", env!("CARGO_BIN_EXE_tcpclose"))).unwrap();
        let output =
            Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(unit.path()).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !printed.contains("tcpclose.service"), "{drop_ins:?}: {printed}");
    }
}

#[test]
fn a_drop_in_takes_one_capability_away_or_adds_one() {
    let lists = |name: &str| {
        let text = fs::read_to_string(workspace().join("deploy/systemd").join(name)).unwrap();
        ["CapabilityBoundingSet=", "AmbientCapabilities="].map(|key| {
            let last = text.lines().filter_map(|line| line.strip_prefix(key)).next_back().unwrap();
            last.split_whitespace().map(str::to_owned).collect::<Vec<String>>()
        })
    };
    let [bounding, ambient] = lists("tcpclose.service");
    assert_eq!(bounding, ambient);
    let less: Vec<String> = bounding.iter().filter(|name| *name != "CAP_SYS_ADMIN").cloned().collect();
    assert_eq!(less.len() + 1, bounding.len());
    assert_eq!(lists("netns-current.conf"), [less.clone(), less]);
    let kill = vec!["CAP_NET_ADMIN".to_owned()];
    assert_eq!(lists("allow-kill.conf"), [kill.clone(), kill]);
    assert!(!bounding.contains(&"CAP_NET_ADMIN".to_owned()));
}
