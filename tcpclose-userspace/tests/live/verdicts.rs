//! Real programs that leave connections open, and the verdicts on them: no pool is called a leak, and no leak a pool. [`matrix`]: all
//! that `--all` plays.

mod matrix;

use crate::common::{Agent, BINARY, free_port};
use crate::stacks::runtimes::python;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tcpclose::names::Verdict;
use tcpclose::report::sockets::SocketsDocument;
use tcpclose::report::verdict_group::VerdictGroup;

const PATIENCE: Duration = Duration::from_secs(180);
/// After so long without a request the server of clients closes.
const KEEP_ALIVE: Duration = Duration::from_millis(700);

/// A program of `programs.py`; it ends when this is dropped.
struct Program(Child);

impl Program {
    fn start(python: &str, way: &str, port: u16) -> Self {
        let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/live/verdicts/programs.py");
        let mut command = Command::new(python);
        command.arg(programs).args([way, &port.to_string()]);
        Self::start_by(command)
    }

    /// Starts one that says when it is ready.
    fn start_by(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n", "{command:?}");
        Self(child)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server of HTTP that answers each request, and closes connections without one: an idle time-out as all servers have.
fn serve(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || answer(stream.unwrap()));
        }
    });
}

fn answer(mut stream: TcpStream) {
    stream.set_read_timeout(Some(KEEP_ALIVE)).unwrap();
    let mut request = [0; 4096];
    while stream.read(&mut request).is_ok_and(|n| n > 0) {
        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
            return;
        }
    }
}

fn groups(agent: &Agent, port: u16) -> Vec<VerdictGroup> {
    let (status, text) = agent.get("/v1/sockets?state=close_wait");
    assert_eq!(status, 200, "{text}");
    let document: SocketsDocument = serde_json::from_str(&text).unwrap();
    document.groups.into_iter().filter(|group| group.port == port).collect()
}

#[test]
#[ignore = "needs root"]
fn real_programs_are_judged_by_what_they_do() {
    let Some(python) = python() else { return };
    let agent = Agent::start(&["--stuck-after", "2s,12s", "--owner-interval", "1s"]);
    let servers = [
        ("leaking_server", Verdict::Leak),
        ("hung_server", Verdict::Hung),
        ("forgetful_server", Verdict::OneOff),
    ];
    let clients = [
        ("leaking_client", Verdict::Leak),
        ("idle_pool", Verdict::StalePool),
        ("used_pool", Verdict::StalePool),
    ];
    let mut programs = Vec::new();
    let mut wanted = BTreeMap::new();
    let mut loads = Vec::new();
    for (way, verdict) in servers {
        let port = free_port();
        programs.push(Program::start(python, way, port));
        wanted.insert(port, (way, verdict, Verdict::Undecided));
        loads.push(port);
    }
    for (way, verdict) in clients {
        let port = free_port();
        serve(port);
        programs.push(Program::start(python, way, port));
        wanted.insert(port, (way, verdict, Verdict::Undecided));
    }
    let began = Instant::now();
    while wanted.values().any(|(_, verdict, given)| verdict != given) {
        assert!(began.elapsed() < PATIENCE, "{wanted:?}\n{}", text(&agent));
        // A request, and the client's FIN.
        for port in &loads {
            let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).unwrap();
            client.write_all(b"question").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        }
        for (port, (way, verdict, given)) in &mut wanted {
            // A process that is loaded late may be in two groups.
            for group in groups(&agent, *port) {
                let now = group.verdict;
                if now != Verdict::Undecided {
                    assert!(!group.evidence.is_empty() && group.advice.is_some(), "{group:?}");
                    // The few that are forgotten come at once, and look like the begin of a leak until none follows.
                    assert_eq!(now, *verdict, "{way} after {:?}: {group:?}", began.elapsed());
                }
                if now != *given {
                    println!("{way}: {} after {:?}: {:?}", now.name(), began.elapsed(), group.evidence);
                }
                *given = now;
            }
        }
        thread::sleep(Duration::from_millis(400));
    }
    let text = text(&agent);
    println!("{text}");
    assert!(text.contains(": stale pool: ") && text.contains("what to do: give the pool"), "{text}");
    let metrics = agent.metrics();
    let of = |verdict: Verdict| metrics.sum("tcpclose_stuck_verdict_sockets", &[("verdict", verdict.name())]);
    for (_, verdict, _) in wanted.values() {
        assert!(of(*verdict) > 0.0, "{}", metrics.text);
    }
}

fn text(agent: &Agent) -> String {
    let output = Command::new(BINARY).args(["stuck", "--socket"]).arg(agent.socket()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}
