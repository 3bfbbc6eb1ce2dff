//! What the command line says when it cannot do what it was told: one line, exit status 2, nothing on standard output,
//! and soon. And that an agent which can be started is, beside others and after those that died.

mod arguments;
use crate::common;
mod host;
mod places;
mod talk;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::nobody::Nobody;
use common::{Agent, BINARY, get_unix};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// No refusal takes longer, on a machine with much else to do either: what takes longer hangs.
const SOON: Duration = Duration::from_secs(60);

/// Runs `command` to its end, which must come within `patience`. What it writes is read meanwhile, for a pipe holds only
/// so much.
fn run_within(patience: Duration, command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    ended.recv_timeout(patience).map(Result::unwrap).unwrap_or_else(|_| {
        kill_process(pid, Signal::KILL).unwrap();
        panic!("still running after {patience:?}: {command:?}");
    })
}

/// The one line that `command` has to say, when it can do nothing else.
fn refusal_within(patience: Duration, command: &mut Command) -> String {
    let output = run_within(patience, command);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{printed}");
    assert_eq!(output.status.code(), Some(2), "{command:?}: {printed}");
    assert!(output.stdout.is_empty(), "{command:?}");
    let line = printed.strip_suffix('\n').unwrap();
    assert!(line.starts_with("tcpclose: ") && !line.contains(char::is_control), "{command:?}: {printed}");
    assert!(!line.contains("panicked") && !line.contains("backtrace"), "{printed}");
    // What to do stands behind the only kind of semicolon there is.
    assert!(line.contains("; "), "nothing to do about it: {line}");
    line.to_owned()
}

fn refusal(command: &mut Command) -> String {
    refusal_within(SOON, command)
}

/// `command`'s one line has all of `words`.
fn refuses(command: &mut Command, words: &[&str]) {
    let line = refusal(command);
    for word in words {
        assert!(line.contains(word), "no {word:?} in: {line}");
    }
}

fn tcpclose(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments);
    command
}

/// An agent with a socket at `socket`, and a port and a state directory that nobody else has.
fn agent_at(socket: &Path) -> Command {
    let mut command = tcpclose(&["agent", "--listen", "127.0.0.1:0", "--socket"]);
    command.arg(socket).arg("--state-dir").arg(state_near(socket));
    command
}

/// A state directory of its own for an agent with this socket, where there is a folder to make it in.
fn state_near(socket: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let folder = socket.ancestors().find(|path| path.is_dir()).unwrap();
    folder.join(format!("state.{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// `script` in a mount namespace of its own, then `tcpclose`; its arguments are added to the command.
fn after_mounts(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &format!("set -e; {script} exec \"$@\"")]);
    command.args(["sh", BINARY]);
    command
}

const NO_TRACEFS: &str = "mount -t tmpfs none /sys/kernel/tracing; mount -t tmpfs none /sys/kernel/debug;";
const NO_BTF: &str = "mount -t tmpfs none /sys/kernel/btf;";

/// `tcpclose` as root with `capabilities` of setpriv's bounding set.
fn with_capabilities(capabilities: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args([&format!("--bounding-set={capabilities}"), BINARY]);
    command
}

/// A running agent whose start this test watches itself; ended when dropped.
struct Running {
    child: Child,
    socket: PathBuf,
    printed: PathBuf,
}

impl Running {
    fn spawn(command: &mut Command, socket: PathBuf, printed: PathBuf) -> Self {
        let child = command.stdin(Stdio::null()).stderr(File::create(&printed).unwrap()).spawn().unwrap();
        Self { child, socket, printed }
    }

    fn printed(&self) -> String {
        fs::read_to_string(&self.printed).unwrap()
    }

    fn wait_until_ready(&mut self) {
        let start = Instant::now();
        while UnixStream::connect(&self.socket).is_err() || get_unix(&self.socket, "/readyz").0 != 200 {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.printed());
            assert!(start.elapsed() < Duration::from_secs(90), "not ready: {}", self.printed());
            sleep(Duration::from_millis(20));
        }
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.end(Signal::TERM);
        }
    }
}

/// A folder for sockets, and an agent that serves at a path in it.
fn running(folder: &TempDir, name: &str) -> Running {
    let socket = folder.path().join(name);
    let mut running =
        Running::spawn(&mut agent_at(&socket), socket, folder.path().join(format!("{name}.said")));
    running.wait_until_ready();
    running
}

/// How many wait in the queue of the unix socket at `path`.
fn callers(path: &Path) -> u32 {
    let output = Command::new("ss").args(["-xlnH", "src"]).arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().nth(2).unwrap().parse().unwrap()
}
