//! Forty programs with the servers, clients and pools that people use, half of which leak: what is said of each.

use std::any::Any;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tcpclose::names::Verdict;

use super::{Program, groups, serve, text};
use crate::chain::{haproxy, local, nginx};
use crate::common::{Agent, free_port};

/// Time limit of a batch.
const PATIENCE: Duration = Duration::from_secs(240);
/// A verdict must stay for so long.
const STAYS: Duration = Duration::from_secs(15);
/// Programs at a time.
const AT_ONCE: usize = 14;

/// What a program is to be told to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    Leak,
    /// A pool that leaves what the server has closed as it is.
    Pool,
    /// It closes in time; whatever is stuck for a moment is no leak.
    Fine,
    Other(Verdict),
}

impl Truth {
    fn is(self, given: Option<Verdict>) -> bool {
        match self {
            Self::Leak => given == Some(Verdict::Leak),
            Self::Pool => given == Some(Verdict::StalePool),
            Self::Fine => matches!(given, None | Some(Verdict::Undecided)),
            Self::Other(verdict) => given == Some(verdict),
        }
    }

    /// The mistakes that lead to the wrong program.
    fn is_confused(self, given: Verdict) -> bool {
        match self {
            Self::Leak => given == Verdict::StalePool,
            _ => given == Verdict::Leak,
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// Our clients, which send a request and close.
    Clients,
    /// Our server of HTTP, which closes without a request.
    Http,
    /// redis-server with a time-out of a second.
    Redis,
}

/// Language, way, peer, truth.
const RUNS: [(&str, &str, Peer, Truth); 38] = [
    ("python", "leaking_server", Peer::Clients, Truth::Leak),
    ("python", "leaking_asyncio_server", Peer::Clients, Truth::Leak),
    ("python", "leaking_threads", Peer::Clients, Truth::Leak),
    ("python", "leaking_parent", Peer::Clients, Truth::Leak),
    ("python", "hung_server", Peer::Clients, Truth::Other(Verdict::Hung)),
    ("python", "stopped_server", Peer::Clients, Truth::Other(Verdict::Hung)),
    ("python", "forgetful_server", Peer::Clients, Truth::Other(Verdict::OneOff)),
    ("python", "slow_reader", Peer::Clients, Truth::Other(Verdict::SlowReader)),
    ("python", "leaking_client", Peer::Http, Truth::Leak),
    ("python", "requests_leak", Peer::Http, Truth::Leak),
    ("python", "requests_stream_leak", Peer::Http, Truth::Leak),
    ("python", "urllib3_leak", Peer::Http, Truth::Leak),
    ("python", "redis_leak", Peer::Redis, Truth::Leak),
    ("python", "idle_pool", Peer::Http, Truth::Pool),
    ("python", "used_pool", Peer::Http, Truth::Pool),
    ("python", "requests_pool", Peer::Http, Truth::Pool),
    ("python", "urllib3_pool", Peer::Http, Truth::Pool),
    ("python", "aiohttp_pool", Peer::Http, Truth::Fine),
    ("python", "redis_pool", Peer::Redis, Truth::Pool),
    ("gunicorn", "hangs", Peer::Clients, Truth::Other(Verdict::Hung)),
    ("gunicorn", "answers", Peer::Clients, Truth::Fine),
    ("go", "leaking_server", Peer::Clients, Truth::Leak),
    ("go", "hijacking_server", Peer::Clients, Truth::Leak),
    ("go", "server", Peer::Clients, Truth::Fine),
    ("go", "leaking_client", Peer::Http, Truth::Leak),
    ("go", "pool", Peer::Http, Truth::Fine),
    ("java", "leaking_server", Peer::Clients, Truth::Leak),
    ("java", "forgetful_server", Peer::Clients, Truth::Other(Verdict::OneOff)),
    ("java", "leaking_client", Peer::Http, Truth::Leak),
    ("java", "apache_leak", Peer::Http, Truth::Leak),
    ("java", "apache_pool", Peer::Http, Truth::Pool),
    ("java", "commons_pool", Peer::Http, Truth::Pool),
    ("java", "jdk_pool", Peer::Http, Truth::Fine),
    ("node", "leaking_server", Peer::Clients, Truth::Leak),
    ("node", "server", Peer::Clients, Truth::Fine),
    ("node", "leaking_client", Peer::Http, Truth::Leak),
    ("node", "pool", Peer::Http, Truth::Fine),
    ("perl", "leaking_server", Peer::Clients, Truth::Leak),
];

const JARS: &str = "/usr/share/java/commons-pool2.jar:/usr/share/java/httpclient.jar:/usr/share/java/httpcore.jar:\
    /usr/share/java/commons-logging.jar:/usr/share/java/commons-codec.jar";

/// The programs, compiled.
struct Programs {
    folder: tempfile::TempDir,
}

impl Programs {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut go = Command::new("go");
        go.args(["build", "-o"]).arg(folder.path().join("programs")).arg(source("programs.go"));
        go.current_dir(folder.path()).env("GOCACHE", folder.path().join("cache"));
        go.env("GOFLAGS", "-mod=mod").env("GOTOOLCHAIN", "local");
        let mut java = Command::new("javac");
        java.args(["-cp", JARS, "-d"]).arg(folder.path()).arg(source("Programs.java"));
        for mut compiler in [go, java] {
            assert!(compiler.status().unwrap().success(), "{compiler:?}");
        }
        Self { folder }
    }

    fn command(&self, language: &str, way: &str, port: u16) -> Command {
        let mut command = match language {
            // With Debian's libraries.
            "python" => with("/usr/bin/python3", &[source("programs.py")]),
            "go" => Command::new(self.folder.path().join("programs")),
            "java" => {
                let classes = format!("{}:{JARS}", self.folder.path().display());
                let mut command = Command::new("java");
                command.args(["-Xmx64m", "-XX:+UseSerialGC", "-cp", &classes, "Programs"]);
                command
            }
            "node" => with("node", &[source("programs.js")]),
            "perl" => {
                let mut command = with("perl", &[source("server.pl")]);
                command.arg(port.to_string());
                return command;
            }
            "gunicorn" => {
                let mut command = with("gunicorn", &[]);
                command.args(["--workers", "1", "--timeout", "0", "--bind", &format!("127.0.0.1:{port}")]);
                command.arg("--chdir").arg(source("")).arg(format!("app:{way}"));
                return command;
            }
            _ => unreachable!("{language}"),
        };
        command.args([way, &port.to_string()]);
        command
    }
}

fn with(program: &str, files: &[PathBuf]) -> Command {
    let mut command = Command::new(program);
    command.args(files);
    command
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/live/verdicts").join(name)
}

/// A server that says nothing when it is ready; it ends with its children when this is dropped.
struct Silent(Child);

impl Silent {
    fn start(mut command: Command, port: u16) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let child = command.spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(local(port)).is_err() {
            assert!(Instant::now() < until, "{command:?} does not listen");
            sleep(Duration::from_millis(50));
        }
        Self(child)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// Something that runs until it is dropped.
type Running = Box<dyn Any>;

/// What is said of a port.
struct Watched {
    name: String,
    truth: Truth,
    given: Option<Verdict>,
    evidence: Vec<String>,
}

/// Sends a request and half-closes, then closes.
fn load(port: u16) {
    let Ok(mut client) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return };
    let padding = "x".repeat(2000);
    let request = format!("GET / HTTP/1.1\r\nHost: test\r\nX-Padding: {padding}\r\n\r\n");
    // A full queue resets it.
    let _ = client.write_all(request.as_bytes());
    let _ = client.shutdown(Shutdown::Write);
}

#[test]
#[ignore = "needs root"]
fn long_forty_programs_are_judged_right() {
    let programs = Programs::new();
    let mut result = (Vec::new(), Vec::new());
    for runs in RUNS.chunks(AT_ONCE) {
        let start = |batch: &mut Batch| runs.iter().for_each(|run| batch.start(&programs, *run));
        play(start, &mut result);
    }
    // Proxies in front of what leaks: each is told apart from the program that it waits for.
    play(
        |batch| {
            for (name, proxy) in [("haproxy", haproxy as fn(&Path, u16, _) -> _), ("nginx", nginx)] {
                let (front, app) = (free_port(), free_port());
                batch.start_at(&programs, ("python", "leaking_server", Peer::Clients, Truth::Leak), app);
                batch.loads.retain(|port| *port != app);
                let folder = tempfile::tempdir().unwrap();
                batch.running.push(Box::new(proxy(folder.path(), front, local(app))));
                batch.watch(front, name, Truth::Other(Verdict::ProxyHalfClose));
                batch.loads.push(front);
                batch.folders.push(folder);
            }
        },
        &mut result,
    );
    let (right, wrong) = result;
    println!("{} right, {} wrong:\n{}\n{}", right.len(), wrong.len(), right.join("\n"), wrong.join("\n"));
    assert!(
        right.len() + wrong.len() >= 40 && right.len() * 20 >= (right.len() + wrong.len()) * 19,
        "{wrong:#?}"
    );
}

#[derive(Default)]
struct Batch {
    running: Vec<Running>,
    folders: Vec<tempfile::TempDir>,
    watched: BTreeMap<u16, Watched>,
    /// Ports that our clients load.
    loads: Vec<u16>,
}

impl Batch {
    fn start(&mut self, programs: &Programs, run: (&str, &str, Peer, Truth)) {
        self.start_at(programs, run, free_port());
    }

    fn start_at(
        &mut self,
        programs: &Programs,
        (language, way, peer, truth): (&str, &str, Peer, Truth),
        port: u16,
    ) {
        match peer {
            Peer::Clients => self.loads.push(port),
            Peer::Http => serve(port),
            Peer::Redis => {
                let mut server = Command::new("redis-server");
                server.args(["--port", &port.to_string(), "--save", "", "--timeout", "1"]);
                self.running.push(Box::new(Silent::start(server, port)));
            }
        }
        let command = programs.command(language, way, port);
        self.running.push(match language {
            "gunicorn" => Box::new(Silent::start(command, port)),
            _ => Box::new(Program::start_by(command)),
        });
        self.watch(port, &format!("{language} {way}"), truth);
    }

    fn watch(&mut self, port: u16, name: &str, truth: Truth) {
        let watched = Watched { name: name.to_owned(), truth, given: None, evidence: Vec::new() };
        self.watched.insert(port, watched);
    }
}

/// Runs what `start` starts until all is judged right and stays so, or for so long; adds what was right and what was not.
fn play(start: impl FnOnce(&mut Batch), (right, wrong): &mut (Vec<String>, Vec<String>)) {
    let agent = Agent::start(&["--stuck-after", "2s,12s", "--owner-interval", "1s"]);
    let mut batch = Batch::default();
    start(&mut batch);
    let began = Instant::now();
    let mut right_since = None;
    while began.elapsed() < PATIENCE && right_since.is_none_or(|since: Instant| since.elapsed() < STAYS) {
        batch.loads.iter().for_each(|port| load(*port));
        for (port, watched) in &mut batch.watched {
            let groups = groups(&agent, *port);
            // A worker has what it accepted, and shares the queue with others: most sockets are in one of the two.
            let group = groups.iter().max_by_key(|group| (group.verdict != Verdict::Undecided, group.stuck));
            let given = group.map(|group| group.verdict);
            if given != watched.given {
                let evidence = group.map(|group| group.evidence.clone()).unwrap_or_default();
                println!("{}: {given:?} after {:?}: {evidence:?}", watched.name, began.elapsed());
                (watched.given, watched.evidence) = (given, evidence);
            }
            for group in &groups {
                let Watched { name, truth, .. } = &*watched;
                assert!(!truth.is_confused(group.verdict), "{name}: {group:?}\n{}", text(&agent));
            }
        }
        let all_right = batch.watched.values().all(|watched| watched.truth.is(watched.given));
        right_since = if all_right { right_since.or(Some(Instant::now())) } else { None };
        sleep(Duration::from_millis(400));
    }
    for Watched { name, truth, given, evidence } in batch.watched.into_values() {
        let line = format!("{name}: {given:?}: {}", evidence.join("; "));
        if truth.is(given) { right.push(line) } else { wrong.push(line) }
    }
}
