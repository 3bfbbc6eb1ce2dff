//! What is asked of stacks on the command line: by stack, as a flame graph, and who accepted.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::{Agent, BINARY};
use tcpclose::report::sockets::SocketsDocument;
use tcpclose::report::stacks::{Place, place};
use tcpclose_common::stack::Moment;

use super::{COUNT, Leaker, PATIENCE, c, compile, is_at, leak, post};

#[test]
#[ignore = "needs root"]
fn groups_by_stack_and_a_flame_graph() {
    let agent = Agent::start(&["--stacks", "ask", "--stuck-after", "1s"]);
    let folder = tempfile::tempdir().unwrap();
    let (leaker, _) = leak(&agent, &compile(c(&[]), "leak.c", folder.path()));
    let pid = leaker.child.id().to_string();
    let stuck = |arguments: &[&str]| {
        let output = agent.stuck(&[&["--pid", &pid, "--older-than", "0s"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = stuck(&["--by", "stack"]);
    let rows = text.lines().filter(|line| line.contains("end of stream read in leak_")).count();
    assert!(text.contains("CODE") && rows >= 5, "{text}");

    let svg = folder.path().join("leak.svg");
    stuck(&["--flame", svg.to_str().unwrap()]);
    let svg = std::fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<?xml") && svg.contains("leak_3 (leak.c:"), "{svg}");
    let folded = folder.path().join("leak.folded");
    stuck(&["--flame", folded.to_str().unwrap()]);
    let folded = std::fs::read_to_string(folded).unwrap();
    let sum = |function: &str| -> usize {
        let of = folded.lines().filter(|line| line.contains(function));
        of.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
    };
    assert!(folded.starts_with("leaker;end of stream read;"), "{folded}");
    for nth in 0..5 {
        assert_eq!(sum(&format!("leak_{nth} (")), COUNT / 5, "{folded}");
    }

    let nobody = agent.stuck(&["--port", "1", "--flame", "/dev/null"]);
    assert_eq!(nobody.status.code(), Some(2));
    let why = String::from_utf8(nobody.stderr).unwrap();
    assert!(why.contains("no listed socket has a stack") && why.lines().count() == 1, "{why}");
}

#[test]
#[ignore = "needs root"]
fn who_accepted_is_named_where_that_is_asked_for() {
    let agent = Agent::start(&["--stacks", "ask", "--stuck-after", "1s"]);
    let folder = tempfile::tempdir().unwrap();
    let leaker = Leaker::start(&compile(c(&[]), "leak.c", folder.path()));
    let pid = leaker.child.id();
    let (status, text) = post(&agent, &format!("/v1/stacks?pid={pid}&for=60s&accept=true"));
    assert_eq!(status, 200, "{text}");
    leaker.leak();
    let until = Instant::now() + PATIENCE;
    let document = loop {
        let (_, text) = agent.get("/v1/sockets?state=close_wait");
        let mut document: SocketsDocument = serde_json::from_str(&text).unwrap();
        document.sockets.retain(is_at(leaker.port));
        let accepted = |document: &SocketsDocument| {
            let of = document.sockets.iter().filter_map(|socket| socket.stacks?.get(Moment::Accepted));
            of.count()
        };
        if accepted(&document) == COUNT {
            break document;
        }
        assert!(Instant::now() < until, "{} of {COUNT}", accepted(&document));
        sleep(Duration::from_millis(200));
    };
    for socket in &document.sockets {
        let stack = &document.stacks[socket.stacks.unwrap().get(Moment::Accepted).unwrap() as usize];
        let Place::Code(frame) = place(stack) else { panic!("{stack:?}") };
        assert_eq!(frame.function.as_deref(), Some("serve"), "{stack:?}");
    }

    // Not for everybody, and not for long.
    assert_eq!(post(&agent, &format!("/v1/stacks?pid={pid}&for=64s&accept=true")).0, 400);
    let output = Command::new(BINARY)
        .args(["stuck", "--stacks", "--accept", "--for", "61s", "--pid", &pid.to_string()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let agent = Agent::start(&["--stacks", "ask", "--socket-mode", "0666"]);
    let output = Command::new("setpriv")
        .args(["--reuid=64124", "--clear-groups", "curl", "-s", "-X", "POST", "--unix-socket"])
        .arg(agent.socket())
        .arg(format!("http://localhost/v1/stacks?pid={pid}&for=1s&accept=true"))
        .output()
        .unwrap();
    let why = String::from_utf8(output.stdout).unwrap();
    assert!(why.contains("only root and --kill-group may take them"), "{why}");
}
