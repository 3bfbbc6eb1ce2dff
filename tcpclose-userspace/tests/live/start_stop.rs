//! SIGTERM and SIGINT at any moment of a start, of agents and of commands: the process ends soon and leaves nothing behind.
//!
//! Needs nothing but a shell, so that guests can run it.

use crate::common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use common::{Agent, BINARY, HOOKS, fence, try_get_unix};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

/// The moments of a start that are tried, besides the one right after exec().
const MOMENTS: u32 = 20;

/// How many RCU grace periods the kernel may wait for when it detaches the programs of a process that ends
/// (tracepoint_synchronize_unregister() in kernel/trace/trace_event_perf.c, perf_trace_event_unreg(), for one). They are long
/// where the machine has much else to do.
const GRACE_PERIODS: u32 = 8;

/// How long an end may take, without the time for which the machine let it wait for a CPU.
fn bound() -> Duration {
    Duration::from_secs(if std::env::var_os("TCPCLOSE_EMULATED").is_some() { 5 } else { 2 })
}

/// A process that is under way. Killed and waited for when dropped.
struct Started {
    child: Child,
    printed: Option<JoinHandle<String>>,
    mark: String,
}

/// How one ended.
struct Ended {
    status: ExitStatus,
    printed: String,
}

impl Started {
    fn new(mut command: Command) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mark = format!("START_STOP={}.{number}", std::process::id());
        let (name, value) = mark.split_once('=').unwrap();
        let mut child =
            command.env(name, value).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let printed = std::thread::spawn(move || {
            let mut printed = String::new();
            stderr.read_to_string(&mut printed).unwrap();
            printed
        });
        Self { child, printed: Some(printed), mark }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has blocked `signal` on its first thread, as an agent does that hears it on another.
    fn hears(&self, signal: Signal) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        let mask = mask.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap());
        mask & 1 << (signal.as_raw() - 1) != 0
    }

    /// Returns when it hears `signal`.
    fn until_it_hears(&self, signal: Signal) {
        let until = Instant::now() + Duration::from_secs(90);
        while !self.hears(signal) {
            assert!(Instant::now() < until, "it does not hear {signal:?}");
            sleep(Duration::from_millis(1));
        }
    }

    /// Sends `signal`, and sees that it ends in time and leaves no process.
    fn end(mut self, signal: Signal) -> Ended {
        let (start, own, its) = (Instant::now(), own_delay(), delays(self.pid()));
        let mut last = its.clone();
        let _ = kill_process(Pid::from_child(&self.child), signal);
        let status = loop {
            last.extend(delays(self.pid()));
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < Duration::from_secs(180), "{signal:?}: no end");
            sleep(Duration::from_millis(5));
        };
        let took = start.elapsed();
        let rcu = Instant::now();
        fence();
        let rcu = GRACE_PERIODS * rcu.elapsed();
        let delay =
            |(tid, now): (&u32, &Duration)| now.saturating_sub(its.get(tid).copied().unwrap_or_default());
        let delayed = last.iter().map(delay).max().unwrap_or_default() + (own_delay() - own);
        let waited = took.saturating_sub(delayed);
        assert!(
            waited < bound() + rcu,
            "{signal:?}: took {took:?}, of which {delayed:?} for want of a CPU and at most {rcu:?} for RCU"
        );
        // What still holds its standard error would keep this from its end; so would a process that it left.
        let printed = self.printed.take().unwrap().join().unwrap();
        let left: Vec<String> = processes_with(&self.mark);
        assert!(left.is_empty(), "{left:?} is left of it");
        Ended { status, printed }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For how long each thread of a process has waited for a CPU. Nothing where the kernel does not count that.
fn delays(pid: u32) -> BTreeMap<u32, Duration> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return BTreeMap::new() };
    let of = |thread: fs::DirEntry| {
        let tid = thread.file_name().to_str()?.parse().ok()?;
        Some((tid, delay(&thread.path().join("schedstat"))?))
    };
    threads.flatten().filter_map(of).collect()
}

fn own_delay() -> Duration {
    delay(Path::new("/proc/thread-self/schedstat")).unwrap_or_default()
}

/// The second number of a schedstat, nanoseconds (Documentation/scheduler/sched-stats).
fn delay(schedstat: &Path) -> Option<Duration> {
    let text = fs::read_to_string(schedstat).ok()?;
    Some(Duration::from_nanos(text.split_whitespace().nth(1)?.parse().ok()?))
}

/// The processes that have this in their environment.
fn processes_with(mark: &str) -> Vec<String> {
    let has = |folder: &Path| {
        let environment = fs::read(folder.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let folders = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    folders.filter(|folder| has(folder)).map(|folder| folder.display().to_string()).collect()
}

/// Where tracefs is mounted in this mount namespace.
fn tracefs_mounts() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().filter(|line| line.contains(" tracefs ")).map(str::to_owned).collect()
}

/// An agent that keeps state and socket in `folder`, and waits for no other.
fn agent_in(folder: &Path, hook: &str) -> Command {
    let mut command = Command::new(BINARY);
    add_arguments(&mut command, folder, hook, "0s");
    command
}

fn add_arguments(command: &mut Command, folder: &Path, hook: &str, wait: &str) {
    command
        .args(["agent", "--listen", "127.0.0.1:0", "--log-level", "info", "--wait", wait])
        .args(["--state-hook", hook, "--socket"])
        .arg(folder.join("socket"))
        .arg("--state-dir")
        .arg(folder)
        .stdin(Stdio::null());
}

/// Waits until it serves.
fn until_ready(agent: &mut Started, socket: &Path) {
    let until = Instant::now() + Duration::from_secs(300);
    while !try_get_unix(socket, "/readyz").is_ok_and(|(status, _)| status == 200) {
        if let Some(status) = agent.child.try_wait().unwrap() {
            panic!("it ended instead: {status}: {}", agent.printed.take().unwrap().join().unwrap());
        }
        assert!(Instant::now() < until, "not ready");
        sleep(Duration::from_millis(5));
    }
}

/// Sees that the agent ended as it should: `heard` if it had begun to hear signals by then.
fn check(ended: &Ended, signal: Signal, heard: bool) {
    let Ended { status, printed } = ended;
    let by_signal = !heard && status.signal() == Some(signal.as_raw());
    assert!(status.success() || by_signal, "{status}: {printed}");
    let (summary, words): (Vec<&str>, Vec<&str>) =
        printed.lines().partition(|line| line.starts_with("tcpclose ") || line.starts_with("  "));
    assert!(words.iter().all(|line| line.contains(" INFO ")), "{printed}");
    let name = if signal == Signal::TERM { "SIGTERM" } else { "SIGINT" };
    let reported = words.iter().filter(|line| line.contains(name)).count();
    assert_eq!(reported, usize::from(!by_signal), "{printed}");
    assert!(words.len() == reported || !summary.is_empty(), "{printed}");
}

/// Sees that nothing in `folder` is in the way of another agent.
fn check_folder(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(["lock", "state"].contains(&&*name), "{name} stays behind");
    }
    for path in [folder.to_owned(), folder.join("lock")] {
        let Ok(file) = File::open(&path) else { continue };
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        assert!(locked.is_ok(), "{} is locked", path.display());
    }
}

/// An agent on this hook and the hook, or on the classic tracepoint where the kernel has no better one.
fn beside(hook: &'static str) -> (Agent, &'static str) {
    match Agent::try_start_by(Command::new(BINARY), &["--state-hook", hook]) {
        Ok(agent) => (agent, hook),
        // Linux below 5.12.
        Err(printed) if printed.contains("unknown func bpf_get_socket_cookie") => {
            (Agent::start(&["--state-hook", "tracepoint"]), "tracepoint")
        }
        Err(printed) => panic!("the agent ended: {printed}"),
    }
}

#[test]
#[ignore = "needs root"]
fn a_signal_at_any_moment_of_the_start_ends_the_agent_and_nothing_is_left() {
    for (hook, first) in HOOKS.into_iter().zip([Signal::TERM, Signal::INT]) {
        let (_beside, hook) = beside(hook);
        let folder = tempfile::tempdir().unwrap();
        let (folder, socket) = (folder.path(), folder.path().join("socket"));
        let start = Instant::now();
        let mut whole = Started::new(agent_in(folder, hook));
        until_ready(&mut whole, &socket);
        let length = start.elapsed();
        println!("{hook}: a start takes {length:?}");
        check(&whole.end(Signal::TERM), Signal::TERM, true);
        let mounts = tracefs_mounts();
        let mut before_it_heard = 0;
        for moment in 0..=MOMENTS {
            // Every moment meets both, one in each round.
            let signal =
                if (moment % 2 == 0) == (first == Signal::TERM) { Signal::TERM } else { Signal::INT };
            let agent = Started::new(agent_in(folder, hook));
            sleep(length * moment / MOMENTS);
            let heard = agent.hears(signal);
            before_it_heard += u32::from(!heard);
            check(&agent.end(signal), signal, heard);
            check_folder(folder);
            assert_eq!(tracefs_mounts(), mounts);
        }
        // It hears from the first thing on that it does.
        assert!(before_it_heard < MOMENTS / 2, "{before_it_heard} signals came before it heard any");
        let mut last = Started::new(agent_in(folder, hook));
        until_ready(&mut last, &socket);
        check(&last.end(Signal::INT), Signal::INT, true);
        check_folder(folder);
    }
}

#[test]
#[ignore = "needs root"]
fn a_socket_of_systemd_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passed");
    let listener = UnixListener::bind(&path).unwrap();
    for pause in [0, 50, 200] {
        let mut command = Command::new("sh");
        let script = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\" 3<&0 </dev/null";
        command.args(["-c", script, "sh", BINARY]);
        add_arguments(&mut command, folder.path(), "tracepoint", "0s");
        command.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
        let agent = Started::new(command);
        agent.until_it_hears(Signal::TERM);
        sleep(Duration::from_millis(pause));
        check(&agent.end(Signal::TERM), Signal::TERM, true);
        drop(UnixStream::connect(&path).unwrap());
        listener.accept().unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn an_agent_that_waits_for_another_one_ends_and_the_other_stays() {
    let folder = tempfile::tempdir().unwrap();
    let beside = Agent::begin_in(folder.path(), &[]);
    let lock = folder.path().join("lock");
    let until = Instant::now() + Duration::from_secs(90);
    while !fs::read_to_string(&lock).is_ok_and(|pid| pid.trim() == beside.pid().to_string()) {
        assert!(Instant::now() < until, "no agent has the lock");
        sleep(Duration::from_millis(5));
    }
    for signal in [Signal::TERM, Signal::INT] {
        let mut command = Command::new(BINARY);
        add_arguments(&mut command, folder.path(), "tracepoint", "1h");
        let agent = Started::new(command);
        agent.until_it_hears(signal);
        sleep(Duration::from_millis(300));
        let Ended { status, printed } = agent.end(signal);
        assert!(status.success(), "{status}: {printed}");
        let others = printed.lines().filter(|line| !line.contains("waiting up to"));
        assert!(
            others.clone().count() == 1 && others.clone().all(|line| line.contains(" INFO ")),
            "{printed}"
        );
        assert!(!folder.path().join("socket").exists());
        assert_eq!(fs::read_to_string(&lock).unwrap().trim(), beside.pid().to_string());
    }
}

#[test]
#[ignore = "needs root"]
fn a_command_ends_on_either_signal() {
    let beside = Agent::start(&[]);
    let socket = beside.socket();
    let socket = socket.to_str().unwrap();
    let commands: &[&[&str]] = &[
        &["watch", "--no-agent"],
        &["watch", "--socket", socket],
        &["stuck", "--no-agent"],
        &["idle", "--no-agent"],
        &["exhaustion", "--no-agent", "--for", "1h"],
        &["verify", "--for", "1h", "--socket", socket],
    ];
    for words in commands {
        for (signal, pause) in [(Signal::INT, 0), (Signal::TERM, 100), (Signal::INT, 1000)] {
            let mut command = Command::new(BINARY);
            command.args(*words).stdin(Stdio::null());
            let command = Started::new(command);
            sleep(Duration::from_millis(pause));
            let Ended { status, printed } = command.end(signal);
            // Neither is caught: a shell sees that it was ended by a signal.
            let ended = status.success() || status.signal() == Some(signal.as_raw());
            assert!(ended, "{words:?}: {status}: {printed}");
            assert!(!printed.contains("WARN") && !printed.contains("panicked"), "{words:?}: {printed}");
        }
    }
    assert_eq!(beside.get("/readyz").0, 200);
}
