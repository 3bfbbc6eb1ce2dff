//! A real agent on this host's kernel, and what a test asks of it.
//!
//! Agents run side by side: each has a socket and state in a folder of its own and a TCP port that the kernel chose. A
//! test reads
//! `/metrics` on the agent's unix socket, so that reading makes no TCP connections to be counted.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test program uses its part; clippy's leave for tests does not reach helpers of one"
)]

pub mod apart;
pub mod bpf;
pub mod dump_gaps;
pub mod left_out;
pub mod nobody;
pub mod podman;
pub mod prometheus;
pub mod reader;
pub mod rounds;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use tcpclose::linux::sock_diag;
use tcpclose::names::Flow;
use tcpclose_common::state::TcpState;
use tempfile::TempDir;

pub const BINARY: &str = env!("CARGO_BIN_EXE_tcpclose");

/// The state hooks that every live test runs on: their `--state-hook`.
pub const HOOKS: [&str; 2] = ["btf", "tracepoint"];

/// Whether this kernel is known to refuse `what`, a state hook or a time-wait backend: `TCPCLOSE_LACKING` says so, and `cases`
/// proves it.
pub fn is_lacking(what: &str) -> bool {
    let lacking = std::env::var("TCPCLOSE_LACKING").unwrap_or_default();
    lacking.split(',').any(|one| one == what)
}

/// The ports with names of their own that a test's agent has, unless the test says how many.
const MANY_NAMES: &str = "1000";

/// A running agent; told to end, and waited for, when dropped.
pub struct Agent {
    child: Child,
    folder: TempDir,
    /// What it has written to standard error so far.
    printed: Arc<Mutex<String>>,
}

impl Agent {
    /// Starts an agent with `arguments` (besides `--listen`, `--socket` and `--state-dir`) and waits until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_by(Command::new(BINARY), arguments)
    }

    /// Starts an agent through `command`, to which `agent` and its arguments are added.
    pub fn start_by(command: Command, arguments: &[&str]) -> Self {
        Self::try_start_by(command, arguments).unwrap_or_else(|printed| panic!("the agent ended: {printed}"))
    }

    /// As [`Self::start_by`]; an agent that ends instead of getting ready is an error: what it said.
    pub fn try_start_by(command: Command, arguments: &[&str]) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().to_owned();
        let mut agent = Self::spawn(command, folder, &state, arguments);
        agent.until_ready().map(|()| agent)
    }

    /// As [`Self::try_start_by`], in a folder of the user `uid`, whom `command` is to become.
    pub fn try_start_as(uid: u32, command: Command, arguments: &[&str]) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        chown(folder.path(), Some(uid), Some(uid)).unwrap();
        let state = folder.path().to_owned();
        let mut agent = Self::spawn(command, folder, &state, arguments);
        agent.until_ready().map(|()| agent)
    }

    /// Starts an agent that keeps its state in `state`, and does not wait for it.
    pub fn begin_in(state: &Path, arguments: &[&str]) -> Self {
        Self::spawn(Command::new(BINARY), tempfile::tempdir().unwrap(), state, arguments)
    }

    fn spawn(mut command: Command, folder: TempDir, state: &Path, arguments: &[&str]) -> Self {
        let socket = folder.path().join("tcpclose.sock");
        // Other tests have ports, too, and an agent sees them all.
        let names: &[&str] =
            if arguments.contains(&"--max-ports") { &[] } else { &["--max-ports", MANY_NAMES] };
        command
            .arg("agent")
            .args(["--listen", "127.0.0.1:0", "--socket"])
            .arg(&socket)
            .arg("--state-dir")
            .arg(state)
            .args(names)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let printed = Arc::new(Mutex::new(String::new()));
        let (stderr, heard) = (child.stderr.take().unwrap(), Arc::clone(&printed));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("agent: {line}");
                heard.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        Self { child, folder, printed }
    }

    /// Returns when it is ready; an agent that ends instead is an error: what it said.
    pub fn until_ready(&mut self) -> Result<(), String> {
        // Linux 5.10 in an emulated guest, on a host with other work, takes longer than 90 s for it.
        let until = Instant::now() + Duration::from_secs(300);
        while !self.is_ready() {
            if let Some(status) = self.child.try_wait().unwrap() {
                // Its last words may still be on their way.
                sleep(Duration::from_millis(100));
                return Err(format!("{status}: {}", self.printed()));
            }
            assert!(Instant::now() < until, "the agent is not ready: {}", self.printed());
            sleep(Duration::from_millis(20));
        }
        // It answers before it has printed what it is ready for, and that has to be read, too.
        let until = Instant::now() + Duration::from_secs(30);
        while !self.printed().contains("\n  try ") && Instant::now() < until {
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// One agent a state hook that this kernel has, all watching the same traffic.
    pub fn on_each_hook(arguments: &[&str]) -> Vec<(&'static str, Self)> {
        HOOKS
            .into_iter()
            .filter(|hook| !is_lacking(hook))
            .map(|hook| (hook, Self::start(&[arguments, &["--state-hook", hook]].concat())))
            .collect()
    }

    /// An agent that is starting may end in the middle of this.
    fn is_ready(&self) -> bool {
        try_get_unix(&self.socket(), "/readyz").is_ok_and(|(status, _)| status == 200)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("tcpclose.sock")
    }

    /// What it has written to standard error.
    pub fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// The address of its metrics, as its summary prints it: `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let printed = self.printed();
            // `http://127.0.0.1:PORT/metrics`, or with https.
            let line = printed.lines().find_map(|line| line.strip_prefix("  metrics "));
            if let Some((_, rest)) = line.and_then(|line| line.split_once("://")) {
                return rest.split('/').next().unwrap().to_owned();
            }
            assert!(Instant::now() < until, "no address in {printed}");
            sleep(Duration::from_millis(10));
        }
    }

    /// `GET path` on its unix socket: status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        get_unix(&self.socket(), path)
    }

    /// All samples of `/metrics`.
    pub fn metrics(&self) -> Metrics {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        Metrics::parse(&text)
    }

    /// Asks again until `done` holds, and returns those metrics; fails after `patience`.
    pub fn metrics_when(&self, patience: Duration, what: &str, done: impl Fn(&Metrics) -> bool) -> Metrics {
        let until = Instant::now() + patience;
        loop {
            let metrics = self.metrics();
            if done(&metrics) {
                return metrics;
            }
            assert!(Instant::now() < until, "not within {patience:?}: {what}\n{}", metrics.text);
            sleep(Duration::from_millis(100));
        }
    }

    /// `tcpclose stuck` with `arguments`, asking this agent.
    pub fn stuck(&self, arguments: &[&str]) -> Output {
        Command::new(BINARY).arg("stuck").arg("--socket").arg(self.socket()).args(arguments).output().unwrap()
    }

    /// Resident memory, bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Resident memory that it has allocated, bytes: without the pages of its own file, of which the kernel maps as many as it likes.
    pub fn allocated(&self) -> u64 {
        self.memory("RssAnon:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Returns when it has said `words`.
    pub fn until_it_says(&self, words: &str) {
        self.until_it_says_line(|line| line.contains(words));
    }

    /// Returns when it has said a line that `fits`.
    pub fn until_it_says_line(&self, fits: impl Fn(&str) -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !self.printed().lines().any(&fits) {
            assert!(Instant::now() < until, "it has not said so: {}", self.printed());
            sleep(Duration::from_millis(10));
        }
    }

    /// Has it reload what `change` makes of its settings, and returns what it says.
    pub fn reloaded(&self, change: impl FnOnce()) -> String {
        let before = self.printed().lines().count();
        change();
        self.signal(rustix::process::Signal::HUP);
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(line) = self.printed().lines().nth(before) {
                return line.to_owned();
            }
            assert!(Instant::now() < until, "it says nothing of a reload");
            sleep(Duration::from_millis(20));
        }
    }

    /// Sends `signal` and waits for the end.
    pub fn end(&mut self, signal: rustix::process::Signal) -> ExitStatus {
        self.signal(signal);
        self.child.wait().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_losses();
        }
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.end(rustix::process::Signal::TERM);
        }
    }
}

impl Agent {
    /// Prints what the agent has lost, which it may not have logged yet: the suite runs a test again whose agents lost records.
    fn tell_losses(&self) {
        let Ok((200, text)) = try_get_unix(&self.socket(), "/metrics") else { return };
        let metrics = Metrics::parse(&text);
        let lost = metrics.sum("tcpclose_events_lost_total", &[]);
        if lost > 0.0 {
            println!("agent: {lost} records lost, by its metrics");
        }
        let families =
            ["tcpclose_events_lost_total", "tcpclose_reconcile_corrections_total", "tcpclose_unseen"];
        let is_told =
            |line: &&str| families.iter().any(|family| line.starts_with(family)) && !line.ends_with(" 0");
        text.lines().filter(is_told).for_each(|line| println!("agent: {line}"));
    }
}

/// `GET path` over the unix socket at `socket`: status and body.
pub fn get_unix(socket: &Path, path: &str) -> (u16, String) {
    try_get_unix(socket, path).unwrap()
}

pub fn try_get_unix(socket: &Path, path: &str) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
}

/// The samples of one scrape.
pub struct Metrics {
    pub text: String,
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Metrics {
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels =
                labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()).map(|label| {
                    let (key, value) = label.split_once('=').unwrap();
                    (key.to_owned(), value.trim_matches('"').to_owned())
                });
            (name.to_owned(), labels.collect(), value.parse().unwrap())
        });
        Self { text: text.to_owned(), samples: samples.collect() }
    }

    /// The samples of `name` that have all of `labels`: their labels and values.
    pub fn select<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a BTreeMap<String, String>, f64)> {
        self.samples
            .iter()
            .filter(move |(n, l, _)| {
                n == name && labels.iter().all(|(key, value)| l.get(*key).is_some_and(|v| v == value))
            })
            .map(|(_, labels, value)| (labels, *value))
    }

    /// The sum of the samples of `name` that have all of `labels`; 0 where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|(_, value)| value).sum()
    }

    /// A quantile of the durations with these labels: the middle of what their buckets and their sum prove, for equal shares of a bucket.
    pub fn duration_quantile(&self, labels: &[(&str, &str)], q: f64) -> Option<f64> {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (labels, count) in self.select("tcpclose_state_duration_seconds_bucket", labels) {
            let bound = labels["le"].parse().unwrap_or(f64::INFINITY);
            match buckets.iter_mut().find(|(le, _)| *le == bound) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
        buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let sum = self.sum("tcpclose_state_duration_seconds_sum", labels);
        let rank = (q * buckets.last()?.1).ceil();
        if rank == 0.0 {
            return None;
        }
        // The least and the most that each sample can be, in order.
        let (mut from, mut below) = (0.0, 0.0);
        let mut samples: Vec<(f64, f64)> = Vec::new();
        for (to, count) in buckets {
            samples.extend((0..(count - below) as usize).map(|_| (from, to)));
            (from, below) = (to, count);
        }
        let (from, to) = samples[rank as usize - 1];
        let inside = samples.iter().filter(|sample| **sample == (from, to)).count() as f64;
        let nth = rank - samples.iter().filter(|sample| sample.0 < from).count() as f64;
        let others = || samples.iter().filter(|sample| **sample != (from, to));
        let least: f64 = others().map(|sample| sample.0).sum();
        let most: f64 = others().map(|sample| sample.1).sum();
        let upper = ((sum - least - (nth - 1.0) * from) / (inside - nth + 1.0)).min(to).max(from);
        let lower = if to.is_finite() { (sum - most - (inside - nth) * to) / nth } else { from };
        let lower = lower.max(from).min(upper);
        Some(lower + (upper - lower) * nth / inside)
    }

    /// Every sample that has all of `labels`: name, labels, value.
    pub fn with<'a>(
        &'a self,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a str, &'a BTreeMap<String, String>, f64)> {
        self.samples
            .iter()
            .filter(move |(_, l, _)| {
                labels.iter().all(|(key, value)| l.get(*key).is_some_and(|v| v == value))
            })
            .map(|(name, labels, value)| (name.as_str(), labels, *value))
    }

    /// How many events the kernel did not run the probe for, by what the agent itself says of it: those that the kernel
    /// counted (an interrupt's, in the middle of another's run on that CPU), and phases that are unseen for a lost step.
    /// The second kind has no count on some kernels: this project's machines run no program at all for an interrupt
    /// that falls on certain tasks, while ftrace shows the event. Everything that can be lost on our own way must not be.
    pub fn missed_by_the_kernel(&self) -> usize {
        for stage in ["ring", "decode"] {
            assert!(self.has("tcpclose_events_lost_total", &[("stage", stage)]));
            assert_eq!(self.sum("tcpclose_events_lost_total", &[("stage", stage)]), 0.0, "{stage}");
        }
        assert!(self.has("tcpclose_events_lost_total", &[("stage", "recursion")]));
        let counted = self.sum("tcpclose_events_lost_total", &[("stage", "recursion")]);
        let unseen = self.sum("tcpclose_unseen_phases_total", &[("why", "lost")]);
        let missed = (counted + unseen) as usize;
        if missed > 0 {
            println!("THE KERNEL LEFT THE PROBE OUT: {counted} times counted, {unseen} phases unseen for it");
        }
        missed
    }

    /// Whether there is a sample of `name` that has all of `labels`.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.select(name, labels).next().is_some()
    }
}

/// Returns when every softirq that runs now is over, on every CPU: what a look sees is one half of a step of which the
/// other half may still be to come. A minisocket is hashed and a socket unhashed before the tracepoint tells of it
/// (tcp_time_wait, tcp_set_state), a timer's handler is entered before it unhashes (tw_timer_handler; 5.8 to 6.18), and
/// an emulated processor can stand still for milliseconds in between. All of it runs with softirqs disabled, which an
/// RCU grace period waits for, and that is what this system call is (sys_membarrier in kernel/sched/membarrier.c).
pub fn fence() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: a system call with two numbers and no pointer.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0) };
    assert_eq!(done, 0, "membarrier: {}", std::io::Error::last_os_error());
}

/// Lets this process open so many files, where its limit is lower.
pub fn raise_open_files(wanted: u64) {
    let now = getrlimit(Resource::Nofile);
    if now.current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: now.maximum }).unwrap();
    }
}

/// A listener on a [`free_port`].
pub fn listen() -> (TcpListener, u16) {
    let port = free_port();
    (TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap(), port)
}

/// The ports that [`free_port`] gives out. Each run of a module begins at a block of its own, so that none meets the
/// TIME-WAITs of the one before.
const PORTS: Range<u16> = 20_000..32_000;
const BLOCK: u16 = 150;
const BLOCKS: u16 = (PORTS.end - PORTS.start) / BLOCK;
/// From the block of a run to that of the next one: no divisor of their number, and far enough for a module that needs more
/// ports than a block has.
const STRIDE: u16 = 7;

/// A TCP port outside the local port range (a pair of such a port has a name at once) on which nobody listens, and
/// that no other test was given.
pub fn free_port() -> u16 {
    static NEXT: Mutex<Option<u16>> = Mutex::new(None);
    let mut next = NEXT.lock().unwrap();
    // The number of this run of a module. A process that somebody starts alone begins anywhere.
    let run = std::env::var("TCPCLOSE_TEST_RUN").ok().and_then(|run| run.parse::<u32>().ok());
    let block = run.unwrap_or_else(std::process::id) % u32::from(BLOCKS) * u32::from(STRIDE);
    let mut port = next.unwrap_or(PORTS.start + block as u16 % BLOCKS * BLOCK);
    loop {
        port = if port + 1 >= PORTS.end { PORTS.start } else { port + 1 };
        if can_bind((Ipv4Addr::UNSPECIFIED, port).into()) && can_bind((Ipv6Addr::UNSPECIFIED, port).into()) {
            *next = Some(port);
            return port;
        }
    }
}

/// Whether a listener could have this address. Asked without one: a child that another test starts at this moment has it
/// for as long as it takes to exec, and a listener would be in the way until then.
fn can_bind(address: SocketAddr) -> bool {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).is_ok()
}

/// A client that has sent `data` and its FIN, and the server's kernel has taken both.
pub fn half_closed_client(port: u16, data: &[u8]) -> TcpStream {
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    // The server may close at once.
    let flow = Flow::new(client.peer_addr().unwrap(), client.local_addr().unwrap());
    client.write_all(data).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let before = [TcpState::SynRecv, TcpState::Established];
    // Behind CLOSE-WAIT the server has closed meanwhile.
    while sock_diag::lookup(&flow, 0, None).unwrap().is_some_and(|socket| before.contains(&socket.state)) {}
    client
}
