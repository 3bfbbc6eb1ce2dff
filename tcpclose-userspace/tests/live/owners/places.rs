//! Cgroups and names, as units, containers and whoever means harm make them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{Command, Stdio};

use super::PATIENCE;
use super::cgroups::Cgroups;
use super::common::Agent;
use super::stage::{Askers, Child, Server, only};

#[test]
#[ignore = "needs root"]
fn units_containers_and_pods_are_known_by_real_cgroups() {
    let askers = Askers::start();
    let id = "0123456789abcdef".repeat(4);
    let uid = "2c48913c-b29f-4d4b-8d4c-5e0bb5c3a6f1";
    let pod = format!("kubepods-pod{}.slice/cri-containerd-{id}.scope", uid.replace('-', "_"));
    for mut cgroups in Cgroups::of_each_hierarchy() {
        println!("in {}", cgroups.root.display());
        let server = Server::new();
        let pair = server.pair();
        let container = Child::holding(Command::new("sleep").arg("1000"), &pair.server);
        let unit = Child::holding(Command::new("sleep").arg("1000"), &pair.server);
        cgroups.take(container.pid(), OsStr::new(&pod));
        cgroups.take(unit.pid(), OsStr::new("api@7.service/workers"));
        for (asker, document) in askers.ask(server.port()) {
            let owner = |pid| only(&document).owners.iter().find(|owner| owner.pid == pid).unwrap();
            let contained = owner(container.pid());
            assert_eq!(contained.place.container_id, Some(format!("containerd://{id}")), "{asker}");
            assert_eq!(
                (contained.place.pod_uid.as_deref(), &contained.place.unit),
                (Some(uid), &None),
                "{asker}"
            );
            let served = owner(unit.pid());
            assert_eq!(served.place.unit.as_deref(), Some("api@7.service"), "{asker}");
            assert_eq!((&served.place.container_id, &served.place.pod_uid), (&None, &None), "{asker}");
        }
        drop((container, unit));
    }
}

#[test]
#[ignore = "needs root"]
fn hostile_names_break_neither_table_nor_json_nor_exposition() {
    let _alone = super::stage::alone();
    const HOSTILE: &[u8] = b"a\n\"\\\x1b[31m\xff\r}";
    let directory = tempfile::tempdir().unwrap();
    // A path of almost 4 KiB, each part as nasty as a name may be; and a longer one, which /proc cannot show.
    let part = OsString::from_vec([HOSTILE, &[b'x'; 230]].concat());
    let mut folder = directory.path().to_owned();
    while folder.as_os_str().len() + part.len() < 4000 {
        folder.push(&part);
        fs::create_dir(&folder).unwrap();
    }
    let program = folder.join(OsStr::from_bytes(HOSTILE));
    fs::copy("/bin/sleep", &program).unwrap();

    let server = Server::new();
    let pair = server.pair();
    let child = Child::holding(Command::new(&program).arg("1000"), &pair.server);
    // The child alone holds it.
    let _client = pair.client;
    drop(pair.server);
    // A newline no cgroup may have (kernel/cgroup/cgroup.c, cgroup_mkdir()).
    let name = OsString::from_vec([b"\"\\\x1b[31m\xff\r", &[b'y'; 200][..], b".service"].concat());
    let mut cgroups = Cgroups::of_each_hierarchy();
    cgroups.iter_mut().for_each(|cgroups| cgroups.take(child.pid(), &name));

    let agent = Agent::start(&["--stuck-after", "1s", "--owner-interval", "100ms"]);
    let port = server.port().to_string();
    let ask = |more: &[&str]| {
        let output = agent.stuck(&[&["--older-than", "0s", "--port", &port], more].concat());
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    for layout in [&[][..], &["--sockets"], &["--by", "unit"], &["--by", "container"], &["--by", "peer"]] {
        let text = ask(layout);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        let row = text.lines().filter(|line| line.contains("not_read")).count();
        assert_eq!(row, 1, "{text}");
    }
    assert!(ask(&[]).contains(r#"a\n"\\\u{1b}[31m"#) || ask(&[]).contains(r"\u{1b}[31m"), "{}", ask(&[]));
    let document: tcpclose::report::sockets::SocketsDocument =
        serde_json::from_str(&ask(&["--json"])).unwrap();
    let owner = &only(&document).owners[0];
    assert_eq!((owner.pid, &*owner.comm), (child.pid(), "a\n\"\\\u{1b}[31m\u{fffd}\r}"));
    assert!(owner.exe.as_ref().is_some_and(|exe| exe.len() > 3800), "{:?}", owner.exe);
    assert_eq!((&owner.place.unit, &owner.place.container_id), (&None, &None));

    let metrics = agent.metrics_when(PATIENCE, "a count by owner", |metrics| {
        metrics.text.contains("tcpclose_stuck_owner_sockets{comm=\"a")
    });
    let line = metrics.text.lines().find(|line| line.contains("owner_sockets{comm=\"a")).unwrap();
    println!("{line}");
    assert!(!line.chars().any(char::is_control));
    let mut promtool =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(metrics.text.as_bytes()).unwrap();
    // 3 is for complaints of style only.
    assert!(matches!(promtool.wait().unwrap().code(), Some(0 | 3)));
    drop(child);
}
