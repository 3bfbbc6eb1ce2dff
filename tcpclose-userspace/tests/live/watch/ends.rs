//! How a watch ends, and that it can do without an agent.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::closes::Stage;
use super::common::nobody::Nobody;
use super::common::reader::{Reader, steps_of};
use super::common::{Agent, BINARY, free_port};
use super::{ACTIVE, PASSIVE, PATIENCE};

#[test]
#[ignore = "needs root"]
fn a_reader_that_goes_away_is_a_clean_end_whether_something_comes_or_not() {
    let agent = Agent::start(&[]);
    for something in [false, true] {
        let port = free_port();
        let mut child = Command::new(BINARY)
            .args(["watch", "--json", "--port", &port.to_string(), "--socket"])
            .arg(agent.socket())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let stage = Stage::at(port);
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if something {
                stage.graceful(Duration::ZERO);
            }
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "it goes on");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(0));
    }
}

#[test]
#[ignore = "needs root"]
fn an_agent_that_ends_is_one_clear_line() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut agent = Agent::start(&[]);
        let mut reader = Reader::json(&agent, &[]);
        agent.end(signal);
        assert_eq!(reader.end().code(), Some(2));
        let printed = reader.printed();
        let line = printed.lines().last().unwrap();
        assert_eq!(printed.lines().count(), 2, "{printed}");
        assert!(
            line.contains(
                "it closed the connection in the middle of its stream; restart the agent, or add --no-agent"
            ),
            "{line}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn without_an_agent_it_attaches_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = folder.path().join("nobody.sock");
    let port = free_port();
    let mut reader = Reader::at(&nobody, &["--json", "--port", &port.to_string()]);
    let printed = reader.printed();
    assert!(printed.contains("no agent at ") && printed.lines().count() == 1, "{printed}");
    let stage = Stage::at(port);
    let close = stage.graceful(Duration::from_millis(20));
    let client = reader.steps_when(PATIENCE, &close.client, |steps| steps.len() >= 3);
    let server = reader.steps_when(PATIENCE, &close.server, |steps| steps.len() >= 3);
    assert_eq!(
        (steps_of(&client), steps_of(&server)),
        (ACTIVE.map(String::from).into(), PASSIVE.map(String::from).into())
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing stays behind");
}

#[test]
#[ignore = "needs root"]
fn without_an_agent_and_without_privileges_it_says_what_it_lacks() {
    let user = Nobody::new();
    let refusal = |socket: &Path| {
        let done = user.command().arg("watch").env("TCPCLOSE_SOCKET", socket).output().unwrap();
        let printed = String::from_utf8(done.stderr).unwrap();
        assert_eq!((done.status.code(), printed.lines().count()), (Some(2), 1), "{printed}");
        printed
    };
    let printed = refusal(Path::new("/nonexistent/tcpclose.sock"));
    assert!(printed.contains("CAP_BPF") && printed.contains("run it as root"), "{printed}");
    let agent = Agent::start(&[]);
    let printed = refusal(&agent.socket());
    assert!(printed.contains("this user is not allowed to connect to it"), "{printed}");
}
