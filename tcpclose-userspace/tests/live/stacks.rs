//! The line of code: programs that leak from one of five functions, and what the agent says of each socket.

use crate::common;

mod answers;
mod files;
mod hostile;
pub mod runtimes;
mod ways;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY};
use tcpclose::linux::stacks::frames::Stack;
use tcpclose::names::Side;
use tcpclose::report::sockets::{SocketsDocument, StuckSocket};
use tcpclose::report::stacks::{Place, in_words, place};
use tcpclose_common::stack::Moment;

const PATIENCE: Duration = Duration::from_secs(60);

/// Sockets that a program leaks.
const COUNT: usize = 100;

/// A program that leaks; ended when dropped.
struct Leaker {
    child: Child,
    port: u16,
    stdin: ChildStdin,
}

impl Leaker {
    fn start(program: &Path) -> Self {
        Self::start_by(Command::new(program), COUNT)
    }

    fn start_by(mut command: Command, count: usize) -> Self {
        let mut child =
            command.arg(count.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap_or_else(|_| panic!("{command:?} prints {line:?}"));
        Self { port, stdin: child.stdin.take().unwrap(), child }
    }

    /// Lets one go on that waits for a line.
    fn go(&mut self) {
        self.stdin.write_all(b"\n").unwrap();
    }

    /// Opens connections and closes this side of them.
    fn leak(&self) {
        for _ in 0..COUNT {
            drop(TcpStream::connect(("127.0.0.1", self.port)).unwrap());
        }
    }
}

impl Drop for Leaker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Compiles with `command`, which the source and `-o PROGRAM` are added to.
fn compile(mut command: Command, source: &str, folder: &Path) -> PathBuf {
    let program = folder.join("leaker");
    let status = command.arg(fixture(source)).arg("-o").arg(&program).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
    program
}

/// The path of a source.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/live/stacks").join(name)
}

fn c(flags: &[&str]) -> Command {
    let mut command = Command::new("cc");
    command.args(["-O2", "-g"]).args(flags);
    command
}

/// Whether a socket was accepted at `port`: another test's client may have been given the same number.
fn is_at(port: u16) -> impl Fn(&StuckSocket) -> bool {
    move |socket| socket.side == Side::Server && socket.port == port
}

/// What the agent says of the sockets at `port`, when it has the stacks of all of them.
fn document(agent: &Agent, port: u16) -> SocketsDocument {
    document_of(agent, COUNT, Moment::EndRead, is_at(port))
}

/// What the agent says of `count` sockets, when it has the stacks of all of them at this moment.
fn document_of(
    agent: &Agent,
    count: usize,
    moment: Moment,
    is_ours: impl Fn(&StuckSocket) -> bool,
) -> SocketsDocument {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut document = answer(agent);
        document.sockets.retain(&is_ours);
        let have = |socket: &&StuckSocket| socket.stacks.is_some_and(|stacks| stacks.get(moment).is_some());
        let with = document.sockets.iter().filter(have).count();
        if with == count {
            return document;
        }
        let sockets = document.sockets.len();
        assert!(
            Instant::now() < until,
            "{with} of {sockets} sockets have stacks: {:?}\n{}",
            document.stacks.first(),
            agent.printed()
        );
        sleep(Duration::from_millis(200));
    }
}

fn answer(agent: &Agent) -> SocketsDocument {
    let (status, text) = agent.get("/v1/sockets?state=close_wait&older_than=1s");
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The stacks of the sockets at a moment.
fn stacks(document: &SocketsDocument, moment: Moment) -> impl Iterator<Item = &Stack> {
    let index = move |socket: &StuckSocket| socket.stacks?.get(moment);
    document.sockets.iter().filter_map(index).map(|index| &document.stacks[index as usize])
}

/// How many sockets are from which place, in words, the most frequent first.
fn places(document: &SocketsDocument, moment: Moment) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for stack in stacks(document, moment) {
        *counts.entry(in_words(&place(stack))).or_default() += 1;
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// At least 95 of 100 sockets are from one of the five functions, which the most frequent places are; and none is from another one.
fn expect_named(who: &str, document: &SocketsDocument, moment: Moment) {
    let all = document.sockets.len();
    let is_leak = |stack: &&Stack| matches!(place(stack), Place::Code(frame) if leaking(frame.function.as_deref().unwrap()).is_some());
    let named = stacks(document, moment).filter(is_leak).count();
    let places = places(document, moment);
    println!("{who}: {named} of {all} sockets are from a leaking function, {moment:?}: {places:?}");
    assert!(named * 100 >= all * 95, "{who}: {:?}", stacks(document, moment).find(|stack| !is_leak(stack)));
    assert!(places.len() >= 5 && places[..5].iter().all(|(at, _)| at.contains("leak_")), "{who}: {places:?}");
    for stack in stacks(document, moment) {
        // A runtime's own frames may be said to be that, a function of the program must be the one.
        if let Place::Code(frame) = place(stack) {
            assert!(leaking(frame.function.as_deref().unwrap()).is_some(), "{who}: {stack:?}");
        }
    }
}

/// Which of the five a function is.
fn leaking(function: &str) -> Option<usize> {
    let at = function.find("leak_")?;
    function[at + 5..].chars().next()?.to_digit(10).map(|nth| nth as usize)
}

/// Counts the sockets of each leaking function.
fn expect_five(document: &SocketsDocument) {
    let mut counts = [0; 5];
    for socket in &document.sockets {
        let index =
            socket.stacks.and_then(|stacks| stacks.get(Moment::EndRead)).expect("no stack of the read");
        let stack = &document.stacks[index as usize];
        let Place::Code(frame) = place(stack) else { panic!("{stack:?}") };
        let function = frame.function.as_deref().unwrap();
        counts[leaking(function).unwrap_or_else(|| panic!("{stack:?}"))] += 1;
        assert!(frame.line.is_some() && frame.build_id.is_some(), "{frame:?}");
    }
    assert_eq!(counts, [COUNT / 5; 5]);
}

/// Runs a leaker while it is armed. Returns it, and what the agent says.
fn leak(agent: &Agent, program: &Path) -> (Leaker, SocketsDocument) {
    leak_by(agent, Command::new(program))
}

/// Runs a leaker by `command` while it is armed.
fn leak_by(agent: &Agent, command: Command) -> (Leaker, SocketsDocument) {
    let leaker = Leaker::start_by(command, COUNT);
    arm(agent, &leaker);
    leaker.leak();
    let document = document(agent, leaker.port);
    (leaker, document)
}

fn arm(agent: &Agent, leaker: &Leaker) {
    let (status, text) = post(agent, &format!("/v1/stacks?pid={}&for=60s", leaker.child.id()));
    assert_eq!(status, 200, "{text}");
}

/// An agent that takes stacks of whom it is asked to.
fn asked_agent() -> Agent {
    Agent::start(&["--stacks", "ask", "--stuck-after", "1s"])
}

fn post(agent: &Agent, path: &str) -> (u16, String) {
    let answer = Command::new("curl")
        .args(["-s", "-X", "POST", "-w", "\n%{http_code}", "--unix-socket"])
        .arg(agent.socket())
        .arg(format!("http://localhost{path}"))
        .output()
        .unwrap();
    let text = String::from_utf8(answer.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

#[test]
#[ignore = "needs root"]
fn who_reads_the_end_and_does_not_close_is_named() {
    let agent = Agent::start(&["--stacks", "ask", "--stuck-after", "1s"]);
    let folder = tempfile::tempdir().unwrap();
    let rust = || {
        let mut command = Command::new("rustc");
        command.args(["-O", "-g", "--edition", "2024"]);
        command
    };
    let compilers: [(&str, Command, &str); 4] = [
        ("with frame pointers", c(&["-fno-omit-frame-pointer"]), "leak.c"),
        ("without", c(&["-fomit-frame-pointer"]), "leak.c"),
        ("static", c(&["-static", "-fomit-frame-pointer"]), "leak.c"),
        ("Rust", rust(), "leak.rs"),
    ];
    for (name, command, source) in compilers {
        eprintln!("{name}");
        let (_leaker, document) = leak(&agent, &compile(command, source, folder.path()));
        expect_five(&document);
    }
}

/// The stacks of a process that has ended, and whose executable is gone, have names still.
#[test]
#[ignore = "needs root"]
fn what_was_named_stays_named() {
    let agent = Agent::start(&["--stacks", "ask", "--stuck-after", "1s"]);
    let folder = tempfile::tempdir().unwrap();
    let program = compile(c(&[]), "leak.c", folder.path());
    let (leaker, _) = leak(&agent, &program);
    std::fs::remove_file(&program).unwrap();
    expect_five(&document(&agent, leaker.port));
    let stuck = |arguments: &[&str]| {
        let pid = leaker.child.id().to_string();
        let output = agent.stuck(&[&["--pid", &pid, "--older-than", "1s"], arguments].concat());
        String::from_utf8(output.stdout).unwrap()
    };
    let text = stuck(&[]);
    assert!(
        text.contains("end of stream read in leak_") && text.contains(", never closed: 20 of 100 sockets"),
        "{text}"
    );
    let text = stuck(&["--stacks"]);
    assert!(text.contains(": end of stream read, 20 sockets:") && text.contains("serve (leak.c:"), "{text}");
}

/// A process whose stuck sockets grow in number is armed by itself.
#[test]
#[ignore = "needs root"]
fn a_growing_leak_is_armed_by_itself() {
    let agent = Agent::start(&[
        "--stacks",
        "auto",
        "--stacks-after",
        "20",
        "--stuck-after",
        "500ms",
        "--owner-interval",
        "500ms",
        "--reconcile-max",
        "1s",
    ]);
    let folder = tempfile::tempdir().unwrap();
    let program = compile(c(&[]), "leak.c", folder.path());
    // Counts are as far apart as they cost, up to --reconcile-max, and that depends on what else this machine leaks.
    let leaker = Leaker::start_by(Command::new(&program), 10_000);
    let until = Instant::now() + 2 * PATIENCE;
    let mut named = 0;
    while named < 20 {
        assert!(Instant::now() < until, "only {named} sockets have a stack: {}", agent.printed());
        drop(TcpStream::connect(("127.0.0.1", leaker.port)).unwrap());
        sleep(Duration::from_millis(100));
        let output =
            agent.stuck(&["--json", "--older-than", "500ms", "--pid", &leaker.child.id().to_string()]);
        let document: SocketsDocument = serde_json::from_slice(&output.stdout).unwrap();
        named = document.sockets.iter().filter(|socket| socket.stacks.is_some()).count();
    }
}

#[test]
#[ignore = "needs root"]
fn an_agent_without_privileges_takes_stacks_of_other_users_processes() {
    let mut command = Command::new("setpriv");
    let kept = "-all,+bpf,+perfmon,+sys_ptrace,+dac_read_search";
    command.args([&format!("--bounding-set={kept}"), "--no-new-privs", BINARY]);
    let agent = Agent::start_by(command, &["--stacks", "ask", "--stuck-after", "1s", "--netns", "current"]);
    let folder = tempfile::tempdir().unwrap();
    let program = compile(c(&[]), "leak.c", folder.path());
    // No path for others leads to it.
    let set_mode =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    set_mode(&program, 0o755);
    let mut leaker = Command::new("setpriv");
    leaker.args(["--reuid=64124", "--clear-groups"]).arg(&program);
    set_mode(folder.path(), 0o711);
    let leaker = Leaker::start_by(leaker, COUNT);
    set_mode(folder.path(), 0o700);
    let (status, text) = post(&agent, &format!("/v1/stacks?pid={}&for=60s", leaker.child.id()));
    assert_eq!(status, 200, "{text}");
    leaker.leak();
    expect_five(&document(&agent, leaker.port));
}

#[test]
#[ignore = "needs root"]
fn what_cannot_be_asked_says_why() {
    let off = Agent::start(&["--stacks", "off"]);
    let (status, text) = post(&off, &format!("/v1/stacks?pid={}&for=1s", std::process::id()));
    assert_eq!((status, text.trim()), (409, "no program that takes stacks is loaded"));
    let agent = Agent::start(&["--stacks", "ask"]);
    for (query, expected) in [("pid=0", 409), ("pid=x", 400), ("pid=4194305", 409), ("", 400)] {
        assert_eq!(post(&agent, &format!("/v1/stacks?{query}")).0, expected, "{query}");
    }
    let output = Command::new(BINARY)
        .args(["stuck", "--stacks", "--for", "1s", "--pid", "1", "--no-agent"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}
