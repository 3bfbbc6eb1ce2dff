//! Others that die, fall silent, or take nothing.

use super::*;

#[test]
#[ignore = "needs root"]
fn an_agent_that_dies_mid_answer_and_others_that_are_none_are_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tcpclose.sock");
    let ask = || {
        let mut command = tcpclose(&["stuck", "--socket"]);
        command.arg(&path);
        command
    };
    // A real one, stopped so that it is in the middle for sure.
    let mut agent = running(&folder, "tcpclose.sock");
    kill_process(Pid::from_child(&agent.child), Signal::STOP).unwrap();
    let asking = std::thread::spawn({
        let mut ask = ask();
        move || refusal(&mut ask)
    });
    let start = Instant::now();
    while callers(&path) == 0 {
        assert!(start.elapsed() < SOON);
        sleep(Duration::from_millis(20));
    }
    agent.end(Signal::KILL);
    let line = asking.join().unwrap();
    assert!(
        line.contains("it closed the connection in the middle of its answer; restart the agent"),
        "{line}"
    );
    assert!(line.contains("--no-agent"), "{line}");

    // No HTTP.
    fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").unwrap();
        let _ = stream.read(&mut [0; 1024]);
    });
    refuses(&mut ask(), &["does not speak HTTP", "--no-agent"]);
    stranger.join().unwrap();
}

#[test]
#[ignore = "needs root"]
fn silence_and_a_full_queue_end_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tcpclose.sock");
    let silent = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    silent.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    silent.listen(0).unwrap();
    let ask = || {
        let mut command = tcpclose(&["stuck", "--socket"]);
        command.arg(&path);
        command
    };
    // The one who asks takes the only place.
    let line = refusal_within(Duration::from_secs(15), &mut ask());
    assert!(line.contains("no answer within 10s; restart the agent"), "{line}");
    // And leaves it taken: nobody has accepted the call.
    refuses(&mut ask(), &["does not accept connections", "--no-agent"]);
    refuses(agent_at(&path).args(["--wait", "0s"]), &["another agent is serving there"]);
}

#[test]
fn output_that_nobody_takes() {
    let ask = || tcpclose(&["stuck", "--no-agent"]);
    // `| head -0`
    for arguments in [&["stuck", "--no-agent"][..], &["--help"], &["agent", "--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = tcpclose(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty());
    }
    for json in [&[][..], &["--json"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = ask().args(json).stdout(full).output().unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{printed}");
        assert!(printed.starts_with("tcpclose: writing to standard output: No space left"), "{printed}");
        assert_eq!(printed.lines().count(), 1);
    }
}

#[test]
#[ignore = "needs root"]
fn an_agent_whose_summary_nobody_takes_serves_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("tcpclose.sock");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let child = agent_at(&socket).args(["--log-level", "debug"]).stderr(full).spawn().unwrap();
    let mut agent = Running { child, socket, printed: "/dev/null".into() };
    agent.wait_until_ready();
    assert_eq!(get_unix(&agent.socket, "/metrics").0, 200);
    assert!(agent.end(Signal::TERM).success());
}
