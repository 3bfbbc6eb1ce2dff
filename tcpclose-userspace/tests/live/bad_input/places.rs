//! Addresses, sockets and folders that are taken, stale or no such thing.

use super::*;

#[test]
#[ignore = "needs root"]
fn an_address_that_is_not_to_be_had_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("tcpclose.sock");
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = occupied.local_addr().unwrap().to_string();
    let at = |listen: &str| {
        let mut command = tcpclose(&["agent", "--listen", "127.0.0.1:0", "--listen", listen, "--socket"]);
        command.arg(&socket).arg("--state-dir").arg(folder.path());
        command
    };
    refuses(
        &mut at(&address),
        &[&format!("cannot listen on {address}: the address is in use"), "ss -ltnp", "--listen"],
    );
    refuses(&mut at("192.0.2.1:9923"), &["192.0.2.1:9923", "no such address", "--listen"]);
    assert!(!socket.exists());

    let mut command = with_capabilities("-all,+bpf,+perfmon");
    command.args(["agent", "--listen", "127.0.0.1:81", "--socket"]).arg(&socket);
    refuses(&mut command, &["127.0.0.1:81", "above 1023", "CAP_NET_BIND_SERVICE"]);
}

#[test]
#[ignore = "needs root"]
fn a_path_that_is_not_for_a_socket_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    refuses(&mut agent_at(&file), &["a file that is not a socket", "--socket"]);
    refuses(&mut agent_at(&file.join("x")), &["is not a directory", "--socket"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    refuses(&mut agent_at(&link), &["a file that is not a socket"]);
    assert_eq!(fs::read_link(&link).unwrap(), file);
    refuses(&mut agent_at(folder.path()), &["it is a directory", "--socket"]);

    let missing = folder.path().join("missing");
    refuses(
        &mut agent_at(&missing.join("tcpclose.sock")),
        &["missing does not exist", "make it", "--socket"],
    );
    assert!(!missing.exists());
}

#[test]
fn a_command_says_what_stands_in_place_of_the_agents_socket() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let ask = |command: &str, path: &Path| {
        let mut ask = tcpclose(&[command, "--socket"]);
        ask.arg(path);
        ask
    };
    for command in ["stuck", "kill", "ports", "exhaustion", "idle", "watch", "verify"] {
        refuses(&mut ask(command, &file), &["this is a regular file, not a Unix socket", "--socket"]);
        refuses(&mut ask(command, folder.path()), &["this is a directory, not a Unix socket"]);
        let none = refusal(&mut ask(command, &folder.path().join("none")));
        assert!(none.contains("no agent is running there; start one"), "{none}");
        // Only what the command can do.
        assert_eq!(none.contains("--no-agent"), command != "verify", "{none}");
        assert_eq!(
            none.contains("snapshot"),
            ["stuck", "ports", "exhaustion", "idle"].contains(&command),
            "{none}"
        );
        assert_eq!(none.contains("destroy the sockets"), command == "kill", "{none}");
    }
}

#[test]
#[ignore = "needs root"]
fn sockets_that_nobody_passed_are_refused() {
    for fds in ["many", "-1", "", "1000"] {
        let script = format!("export LISTEN_PID=$$ LISTEN_FDS={fds}; exec \"$@\"");
        let mut command = Command::new("sh");
        refuses(
            command.args(["-c", &script, "sh", BINARY, "agent"]),
            &["sockets passed by systemd", "LISTEN_FDS"],
        );
    }
}

#[test]
#[ignore = "needs root"]
fn the_default_directory_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = after_mounts("mount -t tmpfs none /run;");
    command.args(["agent", "--listen", "127.0.0.1:0"]);
    let printed = folder.path().join("said");
    let mut agent = Running::spawn(&mut command, PathBuf::new(), printed);
    agent.socket = format!("/proc/{}/root/run/tcpclose/tcpclose.sock", agent.child.id()).into();
    agent.wait_until_ready();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&agent.socket), 0o600);
    let folder = agent.socket.parent().unwrap();
    assert_eq!(mode(folder), 0o700);
    assert_eq!(mode(&folder.join("state")), 0o600);
    assert!(agent.end(Signal::TERM).success());
}

#[test]
#[ignore = "needs root"]
fn a_live_agents_socket_is_waited_for() {
    let mut first = Agent::start(&[]);
    let (socket, address) = (first.socket(), first.address());
    refuses(
        agent_at(&socket).args(["--wait", "0s"]),
        &["cannot listen at", "another agent is serving there", "--socket"],
    );

    // The next agent has the same configuration, address and all, and takes over when the first ends.
    let folder = tempfile::tempdir().unwrap();
    let mut command = tcpclose(&["agent", "--wait", "10s", "--listen", &address, "--socket"]);
    command.arg(&socket).arg("--state-dir").arg(folder.path());
    let mut second = Running::spawn(&mut command, socket.clone(), folder.path().join("said"));
    sleep(Duration::from_millis(500));
    assert!(second.child.try_wait().unwrap().is_none(), "{}", second.printed());
    let printed = second.printed();
    assert!(
        printed.contains("waiting up to 10s: another agent listens at") && printed.lines().count() == 1,
        "{printed}"
    );
    // The folder of the socket goes with `first`, which therefore stays.
    assert!(first.end(Signal::TERM).success());
    second.wait_until_ready();
    assert!(second.printed().contains(&format!("http://{address}/metrics")));

    // Told to end while it waits, it goes and leaves the socket to its owner.
    let printed = folder.path().join("third");
    let mut third = Running::spawn(agent_at(&socket).args(["--wait", "1h"]), socket.clone(), printed);
    sleep(Duration::from_millis(500));
    let start = Instant::now();
    assert!(third.end(Signal::TERM).success());
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(get_unix(&socket, "/readyz").0, 200);
    assert!(second.end(Signal::TERM).success());
    assert!(!socket.exists());
}

#[test]
#[ignore = "needs root"]
fn a_dead_agents_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = running(&folder, "tcpclose.sock");
    let socket = agent.socket.clone();
    let inode = || fs::symlink_metadata(&socket).unwrap();
    agent.end(Signal::KILL);
    let stale = inode();
    assert!(stale.file_type().is_socket());
    // Nobody is there: a snapshot.
    let output = run_within(SOON, tcpclose(&["stuck", "--json"]).env("TCPCLOSE_SOCKET", &socket));
    assert!(
        output.status.success()
            && String::from_utf8_lossy(&output.stdout).contains("\"source\":\"snapshot\"")
    );

    refuses(tcpclose(&["stuck", "--check", "--socket"]).arg(&socket), &["no agent is running there"]);

    let mut next = running(&folder, "tcpclose.sock");
    assert_eq!(get_unix(&socket, "/healthz").0, 200);
    // Whoever removes its file and puts another agent there: the first takes only its own away.
    fs::remove_file(&socket).unwrap();
    let other = running(&folder, "tcpclose.sock");
    let made = inode().ino();
    assert!(next.end(Signal::TERM).success());
    assert_eq!(inode().ino(), made);
    assert_eq!(get_unix(&socket, "/healthz").0, 200);
    drop(other);
    assert!(!socket.exists());
}

#[test]
#[ignore = "needs root"]
fn agents_with_sockets_of_their_own_run_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let mut agents = [running(&folder, "one.sock"), running(&folder, "two.sock")];
    for agent in &agents {
        let output = run_within(SOON, tcpclose(&["stuck", "--json", "--socket"]).arg(&agent.socket));
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("\"source\":\"agent\""));
    }
    assert!(agents[0].end(Signal::TERM).success());
    assert!(!agents[0].socket.exists());
    assert_eq!(get_unix(&agents[1].socket, "/readyz").0, 200);
}

#[test]
#[ignore = "needs root"]
fn asked_to_end_while_it_starts_an_agent_ends_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let mut agent = stopped_while_it_starts(&folder);
        let pid = Pid::from_child(&agent.child);
        let reported = Instant::now();
        kill_process(pid, signal).unwrap();
        let status = agent.end(Signal::CONT);
        assert!(status.success(), "{status}: {}", agent.printed());
        assert!(reported.elapsed() < Duration::from_secs(2));
        assert!(!agent.socket.exists());
    }
}

/// An agent that has made its socket and is not ready, stopped there.
fn stopped_while_it_starts(folder: &TempDir) -> Running {
    // It may be ready before this test gets a CPU again.
    for _ in 0..20 {
        let socket = folder.path().join("tcpclose.sock");
        let mut agent = Running::spawn(&mut agent_at(&socket), socket, folder.path().join("said"));
        let start = Instant::now();
        while !agent.socket.exists() {
            assert!(start.elapsed() < SOON, "{}", agent.printed());
            sleep(Duration::from_micros(200));
        }
        kill_process(Pid::from_child(&agent.child), Signal::STOP).unwrap();
        if agent.printed().is_empty() {
            return agent;
        }
        kill_process(Pid::from_child(&agent.child), Signal::CONT).unwrap();
        assert!(agent.end(Signal::TERM).success());
    }
    panic!("it always was ready already");
}
