//! One agent a directory, and one a socket.

use super::*;

#[test]
#[ignore = "needs root"]
fn a_directory_that_will_not_do_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("file"), "").unwrap();
    fs::create_dir(path("open")).unwrap();
    fs::set_permissions(path("open"), PermissionsExt::from_mode(0o777)).unwrap();
    fs::create_dir(path("theirs")).unwrap();
    std::os::unix::fs::chown(path("theirs"), Some(65534), None).unwrap();
    for (name, why) in [
        ("file", "it is not a directory; choose another directory with --state-dir"),
        ("missing/x", "missing does not exist; make it"),
        ("open", "other users may write there; chmod go-w it"),
        ("theirs", "it belongs to user 65534; chown it"),
    ] {
        let output = Command::new(BINARY)
            .args(["agent", "--listen", "127.0.0.1:0", "--socket"])
            .arg(path("tcpclose.sock"))
            .arg("--state-dir")
            .arg(path(name))
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        print!("{printed}");
        assert_eq!(output.status.code(), Some(2), "{printed}");
        assert!(printed.starts_with("tcpclose: cannot keep state in ") && printed.contains(why), "{printed}");
        assert_eq!(printed.lines().count(), 1);
    }
    // In a directory that is fit it makes one more, for itself.
    let mut agent = Agent::begin_in(&path("new"), &[]);
    agent.until_ready().unwrap();
    assert_eq!(fs::metadata(path("new")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
#[ignore = "needs root"]
fn a_second_agent_waits_for_the_directory_and_takes_over() {
    let folder = tempfile::tempdir().unwrap();
    let port = Port::new();
    let mut first = Agent::begin_in(folder.path(), &[]);
    first.until_ready().unwrap();
    let stayed = port.close_waits(3);

    let mut refused = Agent::begin_in(folder.path(), &["--wait", "0s"]);
    let printed = refused.until_ready().unwrap_err();
    let holder = format!(
        "another agent (pid {}) has it; stop it, or give this one a directory of its own",
        first.pid()
    );
    assert!(printed.contains("exit status: 2") && printed.contains(&holder), "{printed}");

    let mut second = Agent::begin_in(folder.path(), &["--wait", "1h"]);
    let start = Instant::now();
    while second.printed().is_empty() {
        assert!(start.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10));
    }
    // It says so once.
    sleep(Duration::from_millis(500));
    let printed = second.printed();
    assert!(
        printed.contains("waiting up to 1h: another agent (pid ") && printed.lines().count() == 1,
        "{printed}"
    );
    assert!(!second.socket().exists());
    assert!(first.end(Signal::TERM).success());
    second.until_ready().unwrap();
    let answer = port.ask(&second, Phase::CloseWait);
    assert!(stayed.iter().all(|connection| answer.holds(connection)));

    // One that is killed leaves no lock behind.
    second.end(Signal::KILL);
    let mut third = Agent::begin_in(folder.path(), &["--wait", "0s"]);
    third.until_ready().unwrap();
    let answer = port.ask(&third, Phase::CloseWait);
    assert_eq!(answer.sockets.len(), stayed.len());
}

/// Two agents that find a dead one's socket at the same moment: one has it, and it is served there.
#[test]
#[ignore = "needs root"]
fn of_agents_that_start_at_once_one_has_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("tcpclose.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    // As an agent does that is between its look and its bind.
    let looking = fs::File::open(folder.path()).unwrap();
    rustix::fs::flock(&looking, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let start = |n: usize| {
        Command::new(BINARY)
            .args(["agent", "--listen", "127.0.0.1:0", "--wait", "0s", "--socket"])
            .arg(&socket)
            .arg("--state-dir")
            .arg(folder.path().join(format!("state.{n}")))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut agents = Started((0..4).map(start).collect());
    let begun = Instant::now();
    sleep(Duration::from_secs(1));
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_err(), "one of them has not waited");
    drop(looking);
    let running = |Started(agents): &mut Started| {
        agents.iter_mut().map(|agent| usize::from(agent.try_wait().unwrap().is_none())).sum::<usize>()
    };
    while running(&mut agents) > 1 {
        assert!(begun.elapsed() < PATIENCE, "{} agents have one socket", running(&mut agents));
        sleep(Duration::from_millis(20));
    }
    while !try_get_unix(&socket, "/readyz").is_ok_and(|(status, _)| status == 200) {
        assert!(begun.elapsed() < PATIENCE && running(&mut agents) == 1);
        sleep(Duration::from_millis(20));
    }
    for agent in &mut agents.0 {
        if agent.try_wait().unwrap().is_none() {
            rustix::process::kill_process(rustix::process::Pid::from_child(agent), Signal::TERM).unwrap();
            assert!(agent.wait().unwrap().success());
        }
    }
    assert!(!socket.exists());
}
