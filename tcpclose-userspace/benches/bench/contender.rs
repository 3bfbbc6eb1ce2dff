//! Who is measured: the agent on each hook, the floors under it, and libbpf-tools.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::common::{BINARY, Metrics};
use crate::floor::Floor;
use crate::process;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// Nobody watches.
    Bare,
    /// An empty tp_btf program.
    Empty,
    /// The probe's filter alone.
    Filter,
    /// The filter and a 64-byte record, drained each 20 ms.
    Record,
    /// An empty program at the classic tracepoint.
    EmptyClassic,
    /// [`Self::Record`] at the classic tracepoint.
    RecordClassic,
    /// The agent by tp_btf.
    Btf,
    /// The agent by the classic tracepoint.
    Tracepoint,
    Tcplife,
    Tcpstates,
}

impl Contender {
    /// All but [`Self::Bare`].
    pub const WATCHERS: [Self; 9] = [
        Self::Empty,
        Self::Filter,
        Self::Record,
        Self::EmptyClassic,
        Self::RecordClassic,
        Self::Btf,
        Self::Tracepoint,
        Self::Tcplife,
        Self::Tcpstates,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Empty => "empty tp_btf program",
            Self::Filter => "filter only",
            Self::Record => "bare 64-byte record, drained each 20 ms",
            Self::EmptyClassic => "empty program, classic tracepoint",
            Self::RecordClassic => "bare record, classic tracepoint",
            Self::Btf => "tcpclose agent, tp_btf",
            Self::Tracepoint => "tcpclose agent, classic tracepoint",
            Self::Tcplife => "tcplife >/dev/null",
            Self::Tcpstates => "tcpstates >/dev/null",
        }
    }

    /// Starts it in the calling thread's network namespace, and waits until it watches.
    pub fn start(self, floor: &Path) -> Result<Running> {
        let running = match self {
            Self::Bare => Ok(Running::Bare),
            Self::Empty => Floor::attach(floor, "empty").map(Running::Floor),
            Self::Filter => Floor::attach(floor, "filter").map(Running::Floor),
            Self::Record => Floor::attach(floor, "record").map(Running::Floor),
            Self::EmptyClassic => Floor::attach(floor, "empty_classic").map(Running::Floor),
            Self::RecordClassic => Floor::attach(floor, "record_classic").map(Running::Floor),
            Self::Btf => Agent::start(&["--state-hook", "btf"]).map(Running::Agent),
            Self::Tracepoint => Agent::start(&["--state-hook", "tracepoint"]).map(Running::Agent),
            Self::Tcplife => Tool::start("tcplife").map(Running::Tool),
            Self::Tcpstates => Tool::start("tcpstates").map(Running::Tool),
        };
        running.with_context(|| format!("cannot start {}", self.name()))
    }
}

/// A contender at work; ended when dropped.
pub enum Running {
    Bare,
    Floor(Floor),
    Agent(Agent),
    Tool(Tool),
}

impl Running {
    /// The process that has the programs and does the work; for a floor it is this one.
    pub fn pid(&self) -> u32 {
        match self {
            Self::Bare | Self::Floor(_) => std::process::id(),
            Self::Agent(agent) => agent.pid(),
            Self::Tool(tool) => tool.child.id(),
        }
    }
}

/// An agent with its defaults, but for its socket.
pub struct Agent {
    child: Child,
    folder: TempDir,
}

impl Agent {
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let printed = File::create(folder.path().join("stderr"))?;
        let socket = folder.path().join("tcpclose.sock");
        let child = Command::new(BINARY)
            .args(["agent", "--socket"])
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(printed)
            .spawn()?;
        let mut agent = Self { child, folder };
        let until = Instant::now() + Duration::from_secs(30);
        while !agent.get("/readyz").is_ok_and(|answer| answer.starts_with("ready")) {
            let printed = || fs::read_to_string(agent.folder.path().join("stderr")).unwrap_or_default();
            if let Some(status) = agent.child.try_wait()? {
                anyhow::bail!("it ended ({status}): {}", printed());
            }
            ensure!(Instant::now() < until, "it is not ready: {}", printed());
            sleep(Duration::from_millis(10));
        }
        Ok(agent)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("tcpclose.sock")
    }

    fn get(&self, path: &str) -> Result<String> {
        exchange(UnixStream::connect(self.socket())?, "GET", path)
    }

    pub fn post(&self, path: &str) -> Result<String> {
        exchange(UnixStream::connect(self.socket())?, "POST", path)
    }

    /// By its socket, which makes no TCP connection to be watched.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.get("/metrics")?))
    }

    /// As Prometheus does.
    pub fn scrape(&self) -> Result<String> {
        get("127.0.0.1:9923", "/metrics")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// `GET path` over TCP: the body.
pub fn get(address: &str, path: &str) -> Result<String> {
    exchange(TcpStream::connect(address)?, "GET", path)
}

fn exchange(mut stream: impl Read + Write, method: &str, path: &str) -> Result<String> {
    write!(stream, "{method} {path} HTTP/1.0\r\nhost: bench\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}

/// One of libbpf-tools, with its output thrown away.
pub struct Tool {
    child: Child,
    complaints: PathBuf,
    _folder: TempDir,
}

impl Tool {
    pub fn start(program: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let complaints = folder.path().join("stderr");
        // Debian has them where only root's PATH leads.
        let path = format!("/usr/sbin:{}", std::env::var("PATH").unwrap_or_default());
        let child = Command::new(program)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&complaints)?)
            .spawn()
            .context("install libbpf-tools (cargo xtask setup --for bench)")?;
        let mut tool = Self { child, complaints, _folder: folder };
        process::wait_until_attached(&mut tool.child).with_context(|| {
            format!("{program} says: {}", fs::read_to_string(&tool.complaints).unwrap_or_default())
        })?;
        Ok(tool)
    }

    /// The samples that it says it lost.
    pub fn lost(&self) -> Result<u64> {
        Ok(lost_samples(&fs::read_to_string(&self.complaints)?))
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The numbers in `lost 12 events on CPU #1!`, which is how libbpf-tools complain.
fn lost_samples(complaints: &str) -> u64 {
    let words: Vec<&str> = complaints.split_whitespace().collect();
    let lost = words.windows(2).filter(|pair| pair[0].eq_ignore_ascii_case("lost"));
    lost.filter_map(|pair| pair[1].parse::<u64>().ok()).sum()
}

fn end(child: &mut Child) {
    if child.try_wait().is_ok_and(|ended| ended.is_none()) {
        let _ = kill_process(Pid::from_child(child), Signal::TERM);
        let _ = child.wait();
    }
}
