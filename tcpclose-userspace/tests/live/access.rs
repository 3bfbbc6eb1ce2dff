//! The unix socket: whose it is, who may connect, and who may have sockets destroyed through it.

use crate::common;
use crate::kill::stage;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::{Command, Output, Stdio};

use common::nobody::Nobody;
use common::{Agent, BINARY, listen};
use stage::{BOUND, Pair, grow_old, refusal, text, through};

/// Users and groups of nobody's, by number.
const USER: u32 = 64_200;
const GROUP: u32 = 64_300;

/// The folder of an agent's socket is its owner's alone; for others, who may reach the socket.
fn start(arguments: &[&str]) -> Agent {
    Agent::try_start_as(0, Command::new(BINARY), arguments).unwrap()
}

/// `tcpclose` as the user `uid` with this group and these supplementary ones.
fn as_user(user: &Nobody, uid: u32, gid: u32, groups: &[u32]) -> Command {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={uid}"), &format!("--regid={gid}")]);
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    match groups.is_empty() {
        true => command.arg("--clear-groups"),
        false => command.arg(format!("--groups={}", groups.join(","))),
    };
    command.arg(user.folder().join("tcpclose")).stdin(Stdio::null());
    command
}

/// `tcpclose kill --yes` by `command`, through `agent`.
fn killed_by(mut command: Command, agent: &Agent, port: u16) -> Output {
    command.args([
        "kill",
        "--yes",
        "--half-closed",
        "--older-than",
        BOUND,
        "--port",
        &port.to_string(),
        "--socket",
    ]);
    command.arg(agent.socket()).output().unwrap()
}

#[test]
#[ignore = "needs root"]
fn who_may_destroy_is_decided_by_the_agent() {
    let user = Nobody::new();
    let (listener, port) = listen();
    let group = GROUP.to_string();
    let open = ["--socket-mode", "0666", "--allow-kill", "--log-level", "info"];
    let roots = start(&open);
    let groups = start(&[&open[..], &["--kill-group", &group]].concat());
    let mut pair = Pair::new(&listener, port, b"");
    grow_old();

    // Whoever may connect may look, and no more.
    let output = as_user(&user, USER, USER, &[])
        .args(["kill", "--half-closed", "--older-than", BOUND, "--port", &port.to_string(), "--socket"])
        .arg(roots.socket())
        .output()
        .unwrap();
    assert!(text(&output).contains("Would destroy 1 socket"));
    let printed = refusal(&killed_by(as_user(&user, USER, USER, &[GROUP]), &roots, port));
    let words =
        "only root (there is no --kill-group) may destroy sockets through this agent; the caller is pid ";
    assert!(printed.contains(words) && printed.contains(&format!(" uid {USER} gid {USER}; ")), "{printed}");
    let printed = refusal(&killed_by(as_user(&user, USER, USER, &[GROUP + 1]), &groups, port));
    assert!(printed.contains(&format!("only root and members of the group {GROUP} may")), "{printed}");
    pair.assert_alive();
    groups.until_it_says(&format!("uid {USER} gid {USER}"));

    // By a supplementary group, by its own, and as root.
    for (uid, gid, more) in [(USER, USER, vec![4, GROUP]), (USER, GROUP, vec![]), (0, 0, vec![])] {
        let done = killed_by(as_user(&user, uid, gid, &more), &groups, port);
        assert!(text(&done).contains("destroyed 1 of 1"), "{done:?}");
        pair.assert_destroyed();
        groups.until_it_says_line(|line| {
            line.contains("destroyed 127.0.0.1:") && line.ends_with(&format!(" uid {uid} gid {gid}"))
        });
        let printed = groups.printed();
        assert!(printed.contains("POST /v1/kill asked by pid "), "{printed}");
        assert!(!printed.contains("GET /v1/sockets asked by"), "not at info: {printed}");
        pair = Pair::new(&listener, port, b"");
        grow_old();
    }
    assert!(text(&through(&roots, port, &["--yes"])).contains("destroyed 1 of 1"));
    pair.assert_destroyed();
}

#[test]
#[ignore = "needs root"]
fn the_group_can_change_while_it_runs() {
    let user = Nobody::new();
    let (listener, port) = listen();
    let file = user.folder().join("tcpclose.toml");
    let settings = "allow-kill = true\nsocket-mode = \"0666\"\n";
    fs::write(&file, settings).unwrap();
    let agent = start(&["--config", file.to_str().unwrap()]);
    let mut pair = Pair::new(&listener, port, b"");
    grow_old();
    let ask = || killed_by(as_user(&user, USER, GROUP, &[]), &agent, port);
    assert!(refusal(&ask()).contains("there is no --kill-group"));
    let more = format!("{settings}kill-group = {GROUP}\nsocket-group = {GROUP}\n");
    // What it said of the refusal comes first.
    agent.until_it_says("refused POST /v1/kill: ");
    let printed = agent.reloaded(|| fs::write(&file, more).unwrap());
    assert_eq!(printed, "tcpclose: reloaded: kill-group; restart the agent to apply socket-group");
    assert!(text(&ask()).contains("destroyed 1 of 1"));
    pair.assert_destroyed();
    agent.until_it_says("destroyed 127.0.0.1:");
    let none = agent.reloaded(|| fs::write(&file, format!("kill-group = {GROUP}\n")).unwrap());
    assert!(none.contains("allow-kill") && none.contains("kill-group has no effect: "), "{none}");
}

#[test]
#[ignore = "needs root"]
fn a_group_that_may_do_nothing_is_a_warning() {
    let agent = start(&["--kill-group", "root"]);
    agent
        .until_it_says("kill-group has no effect: no socket is destroyed through this agent (add allow-kill");
    let agent = start(&["--kill-group", "root", "--allow-kill"]);
    assert!(!agent.printed().contains("no effect"), "{}", agent.printed());
}

#[test]
#[ignore = "needs root"]
fn everybody_who_asks_is_logged_at_debug() {
    let agent = start(&["--log-level", "debug"]);
    assert!(agent.stuck(&["--json"]).status.success());
    agent.until_it_says_line(|line| {
        line.contains("GET /v1/sockets asked by pid ") && line.ends_with(" uid 0 gid 0")
    });
}

#[test]
#[ignore = "needs root"]
fn the_socket_is_whose_it_is_reported_to_be() {
    let user = Nobody::new();
    let file = |agent: &Agent| {
        let file = fs::metadata(agent.socket()).unwrap();
        assert!(file.file_type().is_socket());
        (file.mode() & 0o7777, file.uid(), file.gid())
    };
    assert_eq!(file(&start(&[])), (0o600, 0, 0));
    assert_eq!(file(&start(&["--socket-mode", "0666"])), (0o666, 0, 0));
    let (owner, group) = (USER.to_string(), GROUP.to_string());
    assert_eq!(file(&start(&["--socket-owner", &owner])), (0o600, USER, 0));
    let mut agent = start(&["--socket-mode", "0660", "--socket-group", &group]);
    assert_eq!(file(&agent), (0o660, 0, GROUP));
    let asks = |groups: &[u32]| {
        let mut command = as_user(&user, USER, USER, groups);
        command.args(["ports", "--socket"]).arg(agent.socket()).output().unwrap()
    };
    assert!(asks(&[GROUP]).status.success());
    // Nobody else gets in, and `ports` says that it looked by itself.
    let other = asks(&[]);
    let printed =
        String::from_utf8_lossy(&other.stdout).into_owned() + &String::from_utf8_lossy(&other.stderr);
    assert!(!printed.contains("source: agent"), "{printed}");
    let path = agent.socket();
    agent.end(rustix::process::Signal::TERM);
    assert!(!path.exists(), "it is removed at the end");
    // By name.
    let agent = start(&["--socket-mode", "0660", "--socket-owner", "nobody", "--socket-group", "adm"]);
    assert_eq!(file(&agent), (0o660, 65534, 4));
}

#[test]
fn what_cannot_be_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |mut command: Command, arguments: &[&str]| {
        command.args(["agent", "--listen", "127.0.0.1:0", "--socket"]).arg(folder.path().join("s"));
        refusal(&command.arg("--state-dir").arg(folder.path()).args(arguments).output().unwrap())
    };
    for (arguments, words) in [
        (
            ["--socket-owner", "no-such-user"],
            "--socket-owner \"no-such-user\": no such user in /etc/passwd; ",
        ),
        (["--socket-group", "no-such-group"], "no such group in /etc/group; "),
        (["--kill-group", "no-such-group"], "no such group in /etc/group; "),
        (["--socket-mode", "rw-rw----"], "not a mode; write it in octal"),
        (["--socket-mode", "0999"], "not a mode; write it in octal"),
    ] {
        let printed = refused(Command::new(BINARY), &arguments);
        assert!(printed.contains(words), "{printed}");
    }
    // To give a file away takes a capability that the agent's own user has not.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-chown", "--inh-caps=-chown", "--", BINARY]);
    let printed = refused(command, &["--socket-group", &GROUP.to_string()]);
    assert!(printed.contains(": its group cannot be 64300: ") && printed.contains("CAP_CHOWN"), "{printed}");
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-chown", "--inh-caps=-chown", "--", BINARY]);
    let printed = refused(command, &["--socket-owner", &USER.to_string()]);
    assert!(printed.contains(": its owner cannot be 64200: ") && printed.contains("CAP_CHOWN"), "{printed}");
    assert!(!folder.path().join("s").exists(), "nothing stays behind");
}
