//! `tcpclose verify` against real agents: clean at rest and under load; a lie and a loss are told apart.
//!
//! It compares every network namespace, so whatever else runs on this host takes part.

use crate::common;
pub mod elsewhere;
use crate::namespaces::named;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use common::{Agent, BINARY, free_port, listen};
use named::{Named, Service};
use rustix::process::Signal;
use serde_json::Value;
use socket2::SockRef;

/// What a namespace that comes during a run counted before is unknown, which makes a loss in that run look possible: a test
/// that makes namespaces and one that waits for a loss go one after the other.
static NAMESPACES: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    NAMESPACES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn verify(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("verify").arg("--socket").arg(socket).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The document, which is printed; nothing may have gone wrong but the comparison.
fn document(output: &Output) -> Value {
    assert!(output.stderr.is_empty(), "{output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    for row in document["rows"].as_array().unwrap() {
        println!(
            "{:<60} {:>20} {:>20} {} {}",
            row["what"], row["agent"], row["kernel"], row["verdict"], row["why"]
        );
    }
    println!("lost {}, counted {}, {}", document["lost"], document["counters"], document["incomplete"]);
    document
}

fn row<'a>(document: &'a Value, what: &str) -> &'a Value {
    let mut rows = document["rows"].as_array().unwrap().iter();
    rows.find(|row| row["what"].as_str().unwrap().contains(what)).unwrap()
}

fn flagged(document: &Value) -> Vec<&str> {
    let rows = document["rows"].as_array().unwrap().iter();
    rows.filter(|row| row["verdict"] == "differs").map(|row| row["what"].as_str().unwrap()).collect()
}

/// Connections on one port that end in every way, some hundred a second, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Load {
    fn start() -> Self {
        Self::start_in(None)
    }

    /// In a network namespace, or in this one.
    fn start_in(netns: Option<&Named>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let reported = Arc::clone(&stop);
        let netns = netns.map(Named::file);
        let thread = std::thread::spawn(move || {
            if let Some(netns) = netns {
                named::enter(&netns);
            }
            let listener = listen().0;
            let mut made = 0;
            // It ends by itself, should nobody stop it.
            while made < 20_000 && !reported.load(Ordering::Relaxed) {
                one_close(&listener, made);
                made += 1;
                sleep(Duration::from_millis(3));
            }
            made
        });
        Self { stop, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn one_close(listener: &TcpListener, kind: u64) {
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut server = listener.accept().unwrap().0;
    match kind % 5 {
        // The client closes first, the server at once.
        0 | 1 => {
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            drop(server);
        }
        // The server closes first, with linger 0.
        2 => {
            SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
            drop(server);
        }
        // It closes with data unread.
        3 => {
            client.write_all(b"never read").unwrap();
            while server.peek(&mut [0; 16]).unwrap() < 10 {}
            drop(server);
        }
        // Its FIN comes late: the client's minisocket waits in FIN-WAIT-2.
        _ => {
            drop(client);
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            sleep(Duration::from_millis(20));
            drop(server);
            return;
        }
    }
    let _ = client.read(&mut [0]);
}

#[test]
#[ignore = "needs root"]
fn at_rest_and_under_load_nothing_differs() {
    let agents = Agent::on_each_hook(&[]);
    for (hook, agent) in &agents {
        let output = verify(&agent.socket(), &["--for", "1s"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{hook}\n{text}");
        assert!(text.contains("no metric differs without a known cause"), "{output:?}");
        assert_eq!(output.status.code(), Some(0));
    }
    let load = Load::start();
    let running: Vec<_> = agents
        .iter()
        .map(|(hook, agent)| (hook, verify(&agent.socket(), &["--for", "6s", "--json"]).spawn().unwrap()))
        .collect();
    let outputs: Vec<_> =
        running.into_iter().map(|(hook, child)| (hook, child.wait_with_output().unwrap())).collect();
    let made = load.end();
    println!("{made} connections");
    assert!(made > 100);
    for (hook, output) in outputs {
        println!("{hook}");
        let document = document(&output);
        assert_eq!(flagged(&document), [""; 0], "{hook}");
        assert_eq!(output.status.code(), Some(0));
        assert!(document["seconds"].as_f64().unwrap() >= 6.0);
        let kernel = |what| row(&document, what)["kernel"]["min"].as_i64().unwrap();
        assert!(kernel("EstabResets") > 20 && kernel("TW + TWKilled") > 20 && kernel("TCPAbortOnClose") > 5);
        if document["rungs"]["time_wait"] == "diag" {
            assert_eq!(row(&document, "TWRecycled")["verdict"], "not_told");
        }
    }
}

/// Serves what `agent` serves, with `alter` done to its metrics, for as long as the test runs.
fn liar(
    agent: &Agent,
    folder: &Path,
    alter: impl Fn(String) -> String + Send + 'static,
) -> std::path::PathBuf {
    let path = folder.join("liar.sock");
    let (listener, truth) = (UnixListener::bind(&path).unwrap(), agent.socket());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap() == 0 {
                    break;
                }
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let (method, rest) = head.split_once(' ').unwrap();
            let path = rest.split(' ').next().unwrap();
            let mut agent = UnixStream::connect(&truth).unwrap();
            write!(agent, "{method} {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            agent.read_to_string(&mut answer).unwrap();
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            let body = if path == "/metrics" { alter(body.to_owned()) } else { body.to_owned() };
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    path
}

#[test]
#[ignore = "needs root"]
fn an_agent_that_says_what_is_not_is_flagged() {
    let agent = Agent::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    // More than come and go on a host between two dumps.
    let socket = liar(&agent, folder.path(), |body| {
        body + "\ntcpclose_sockets{state=\"close_wait\",side=\"server\",port=\"1\"} -100000\n"
    });
    let output = verify(&socket, &["--for", "1s", "--json"]).output().unwrap();
    let lied = document(&output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(flagged(&lied), ["sockets in close_wait"]);
    let text = verify(&socket, &["--for", "1s"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("DIFFERS") && text.contains("1 of "), "{text}");
}

/// How long it is tried.
const PATIENCE: Duration = Duration::from_secs(180);

/// Namespaces that other tests take away meanwhile are an excuse that is said; without them there is none.
fn without_departures(mut ask: impl FnMut() -> Output) -> Output {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let output = ask();
        let printed = String::from_utf8_lossy(&output.stdout);
        if !["disappeared during the comparison", "no process, file in /run/netns"]
            .iter()
            .any(|excuse| printed.contains(excuse))
        {
            return output;
        }
        println!("a network namespace has gone meanwhile, or nothing leads there any more: again");
    }
    panic!("network namespaces come and go all the time, for {PATIENCE:?}");
}

#[test]
#[ignore = "needs root"]
fn every_namespace_is_added_up_and_none_is_an_excuse() {
    let _alone = alone();
    let (blue, red) = (Named::new("blue"), Named::new("red"));
    let agents = Agent::on_each_hook(&[]);
    let own_only = Agent::start(&["--netns", "current"]);
    let mut leak = Service::listen(&red, free_port());
    let loads = [Load::start_in(Some(&blue)), Load::start_in(Some(&red)), Load::start()];
    // These hold nothing of the namespace up: they are there at both looks.
    leak.close(&red, 7, 3);
    let all = agents.iter().map(|(hook, agent)| (*hook, agent)).chain([("own only", &own_only)]);
    let running: Vec<_> = all
        .map(|(hook, agent)| (hook, verify(&agent.socket(), &["--for", "6s", "--json"]).spawn().unwrap()))
        .collect();
    let outputs: Vec<_> =
        running.into_iter().map(|(hook, child)| (hook, child.wait_with_output().unwrap())).collect();
    let made = loads.map(Load::end);
    println!("{made:?} connections");
    assert!(made.iter().all(|made| *made > 60));
    for (hook, output) in outputs {
        println!("{hook}");
        let document = document(&output);
        assert_eq!(flagged(&document), [""; 0], "{hook}");
        assert_eq!(output.status.code(), Some(0));
        for named in [&blue, &red] {
            let part = |what| {
                let mut parts = row(&document, what)["namespaces"].as_array().unwrap().iter();
                parts.find(|part| part["netns"] == named.inum).unwrap().clone()
            };
            let resets = part("EstabResets");
            assert_eq!(resets["netns_name"], named.name.as_str());
            assert!(resets["kernel"]["min"].as_i64().unwrap() > 10, "{resets}");
            assert!(part("TW + TWKilled")["kernel"]["max"].as_i64().unwrap() > 10);
        }
        let close_waits = row(&document, "sockets in close_wait");
        let least = if hook == "own only" { 0 } else { 7 };
        assert!(close_waits["kernel"]["min"].as_i64().unwrap() >= least, "{close_waits}");
        assert!(close_waits["agent"]["min"].as_i64().unwrap() >= 7, "{close_waits}");
        let printed = document["incomplete"].to_string();
        assert_eq!(
            printed.contains("does not dump every network namespace"),
            hook == "own only",
            "{printed}"
        );
    }

    // It says more than there is in all of them, which another namespace would have excused.
    let folder = tempfile::tempdir().unwrap();
    let more = |body| body + "\ntcpclose_sockets{state=\"close_wait\",side=\"server\",port=\"1\"} 5000\n";
    let socket = liar(&agents[0].1, folder.path(), more);
    let output = without_departures(|| verify(&socket, &["--for", "1s", "--json"]).output().unwrap());
    let lied = document(&output);
    // A flood of somebody else's may make more differ.
    assert!(flagged(&lied).contains(&"sockets in close_wait"));
    assert_eq!(output.status.code(), Some(1));
    let mine = listen().0;
    let _half_closed = common::half_closed_client(mine.local_addr().unwrap().port(), b"");
    let text = without_departures(|| verify(&socket, &["--for", "1s"]).output().unwrap());
    let text = String::from_utf8(text.stdout).unwrap().replace('\n', " ");
    println!("{text}");
    assert!(
        text.contains("sockets in close_wait: ") && text.contains(&format!(" in {}", red.name)),
        "{text}"
    );
    leak.abort();
}

#[test]
#[ignore = "needs root"]
fn events_that_were_lost_explain_what_is_missing() {
    let _alone = alone();
    // A ring of some sixty records.
    let agent = Agent::start(&["--ring-size", "4K"]);
    let listener = listen().0;
    let folder = tempfile::tempdir().unwrap();
    let (asked, answers) = std::sync::mpsc::channel();
    let socket = liar(&agent, folder.path(), move |body| {
        if body.contains("tcpclose_events_lost_total") {
            // Nobody waits for the later ones.
            let _ = asked.send(());
        }
        body
    });
    let running = verify(&socket, &["--for", "8s", "--json"]).spawn().unwrap();
    answers.recv().unwrap();
    // The first look ends with one more at the kernel.
    sleep(Duration::from_millis(1500));
    agent.signal(Signal::STOP);
    for kind in 0..300 {
        one_close(&listener, 2 + kind % 2);
    }
    agent.signal(Signal::CONT);
    let output = running.wait_with_output().unwrap();
    let document = document(&output);
    let lost = document["lost"].as_i64().unwrap();
    assert!(lost > 100, "{lost} lost");
    let resets = row(&document, "EstabResets");
    assert_eq!(resets["verdict"], "explained");
    assert!(resets["why"].as_str().unwrap().contains("lost events"));
    assert_eq!(flagged(&document), [""; 0]);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
#[ignore = "needs root"]
fn without_an_agent_that_answers_it_is_one_line() {
    let refusal = |socket: &Path| {
        let output = verify(socket, &["--for", "1s"]).output().unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        println!("{printed}");
        assert_eq!(
            (output.status.code(), output.stdout.len(), printed.lines().count()),
            (Some(2), 0, 1),
            "{printed}"
        );
        printed
    };
    let folder = tempfile::tempdir().unwrap();
    assert!(refusal(&folder.path().join("none.sock")).contains("no agent is running there; start one"));
    let agent = Agent::start(&[]);
    agent.signal(Signal::STOP);
    let began = Instant::now();
    let printed = refusal(&agent.socket());
    agent.signal(Signal::CONT);
    assert!(printed.contains("no answer within 10s"), "{printed} after {:?}", began.elapsed());
}
