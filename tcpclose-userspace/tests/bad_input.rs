//! What the command line says when it cannot do what it was told: one line, exit status 2, nothing on standard output,
//! and soon. And that an agent which can be started is, beside others and after those that died.

#![expect(
    clippy::unwrap_used,
    reason = "clippy's leave for tests does not reach helpers of an integration test"
)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, can_attach, get_unix};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// No refusal takes longer, on a slow machine either.
const SOON: Duration = Duration::from_secs(8);

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
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}");
    assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
    assert!(output.stdout.is_empty(), "{command:?}");
    let line = said.strip_suffix('\n').unwrap();
    assert!(line.starts_with("tcpclose: ") && !line.contains(char::is_control), "{command:?}: {said}");
    assert!(!line.contains("panicked") && !line.contains("backtrace"), "{said}");
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
    said: PathBuf,
}

impl Running {
    fn spawn(command: &mut Command, socket: PathBuf, said: PathBuf) -> Self {
        let child = command.stdin(Stdio::null()).stderr(File::create(&said).unwrap()).spawn().unwrap();
        Self { child, socket, said }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    fn wait_until_ready(&mut self) {
        let start = Instant::now();
        while UnixStream::connect(&self.socket).is_err() || get_unix(&self.socket, "/readyz").0 != 200 {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.said());
            assert!(start.elapsed() < Duration::from_secs(20), "not ready: {}", self.said());
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

#[test]
fn nonsense_of_the_agents_arguments_is_named_and_mended() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--stuck-after", "banana"], &["--stuck-after \"banana\"", "not a list of durations", "1m,10m,1h"]),
        (&["--stuck-after", "10m,1m"], &["must ascend", "1m,10m,1h"]),
        (&["--stuck-after", "0s"], &["0 would call every CLOSE-WAIT stuck", "1m,10m,1h"]),
        (&["--stuck-after", ""], &["--stuck-after \"\"", "1m,10m,1h"]),
        (&["--listen", "banana"], &["--listen \"banana\"", "127.0.0.1:9923"]),
        (&["--listen", "localhost:9923"], &["not an address", "127.0.0.1:9923"]),
        (&["--listen", ""], &["not an address"]),
        (&["--ring-size", "3M"], &["--ring-size \"3M\"", "power of two from 4K to 1024M"]),
        (&["--ring-size", "2048M"], &["power of two from 4K to 1024M"]),
        (&["--max-ports", "-1"], &["--max-ports \"-1\"", "from 0 to 65535"]),
        (&["--max-ports", "70000"], &["--max-ports \"70000\"", "from 0 to 65535"]),
        (&["--name-port", "0"], &["--name-port \"0\"", "from 1 to 65535"]),
        (&["--dump-interval", "0"], &["--dump-interval \"0\"", "between 10ms and 1day", "write"]),
        (&["--reconcile-interval", "1ms"], &["between 10ms and 1day"]),
        (&["--wait", "soon"], &["--wait \"soon\"", "not a duration", "60s"]),
        (&["--state-hook", "banana"], &["--state-hook \"banana\"", "one of auto, btf, tracepoint"]),
        (&["--time-wait", "banana"], &["--time-wait \"banana\"", "one of auto, hooks, diag"]),
        (&["--log-level", "loud"], &["--log-level \"loud\"", "off, error, warn, info, debug or trace"]),
        (&["--lissten", "x"], &["--lissten", "did you mean --listen?", "tcpclose agent --help"]),
        (&["--banana"], &["--banana", "tcpclose agent --help"]),
        (&["banana"], &["banana", "tcpclose agent --help"]),
        (&["--listen"], &["a value is required"]),
        (&["--wait", "1s", "--wait", "2s"], &["cannot be used multiple times"]),
    ];
    for (arguments, words) in cases {
        refuses(tcpclose(&["agent"]).args(*arguments), words);
    }
    refuses(&mut tcpclose(&["banana"]), &["unrecognized subcommand 'banana'", "tcpclose --help"]);
    refuses(&mut tcpclose(&["agnet"]), &["did you mean agent?"]);
    refuses(&mut tcpclose(&[]), &["no command", "tcpclose --help"]);
    let too_long = format!("/tmp/{}", "x".repeat(103));
    for command in ["agent", "stuck"] {
        refuses(&mut tcpclose(&[command, "--socket", &too_long]), &["107 bytes at most", "shorter"]);
    }
}

#[test]
fn arguments_that_are_not_utf8_are_refused_without_a_panic() {
    let garbage = OsStr::from_bytes(b"\xff\xfe");
    for arguments in
        [&["agent"][..], &["agent", "--listen"], &["agent", "--state-hook"], &["stuck", "--pid"], &[]]
    {
        refuses(tcpclose(arguments).arg(garbage), &[]);
    }
    refuses(tcpclose(&["agent", "--listen"]).arg(garbage), &["not UTF-8"]);
}

#[test]
fn a_missing_privilege_is_named_before_anything_else() {
    if !can_attach() {
        return;
    }
    // The binary where every user may run it.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let binary = folder.path().join("tcpclose");
    fs::copy(BINARY, &binary).unwrap();

    // Neither the default socket's directory nor the port would be this user's to have, which is not what is said.
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command.uid(65534).gid(65534).args(arguments);
        command
    };
    const BOTH: [&str; 3] =
        ["lacks CAP_BPF and CAP_PERFMON;", "root or grant them", "`tcpclose stuck --no-agent` needs none"];
    refuses(&mut nobody(&["agent"]), &BOTH);
    refuses(&mut nobody(&["agent", "--listen", "127.0.0.1:80"]), &BOTH);
    // And so it is.
    let output = run_within(SOON, &mut nobody(&["stuck", "--no-agent", "--json"]));
    assert!(output.status.success() && output.stderr.is_empty());

    let socket = folder.path().join("tcpclose.sock");
    let with = |capabilities| {
        let mut command = with_capabilities(capabilities);
        command.args(["agent", "--listen", "127.0.0.1:0", "--socket"]).arg(&socket);
        command
    };
    refuses(&mut with("-bpf,-sys_admin"), &["lacks CAP_BPF;", "grant it"]);
    refuses(&mut with("-perfmon,-sys_admin"), &["lacks CAP_PERFMON;", "grant it"]);
    assert!(!socket.exists());

    // Those of a user namespace are none.
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", BINARY, "agent", "--listen", "127.0.0.1:0", "--socket"])
        .arg(&socket);
    refuses(&mut command, &["of a user namespace do not count", "the host's root"]);
}

#[test]
fn two_capabilities_are_enough_for_the_best_rung() {
    if !can_attach() {
        return;
    }
    let agent = Agent::start_by(with_capabilities("-all,+bpf,+perfmon"), &[]);
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    assert!(status.contains("CapEff:\t000000c000000000\n"), "{status}");
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("tcpclose_hook_info", &[("hook", "state"), ("rung", "btf")]), 1.0);
    assert_eq!(metrics.sum("tcpclose_hook_degraded", &[("hook", "state")]), 0.0);
    assert!(agent.stuck(&["--json"]).status.success());

    // The classic door needs tracefs, which only more privileges mount: on a host that has it mounted nobody has to.
    let masked =
        "umount /sys/kernel/tracing 2>/dev/null || true; umount /sys/kernel/debug 2>/dev/null || true;";
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &format!("{masked} exec \"$@\""), "sh"]);
    command.args([
        "setpriv",
        "--bounding-set=-all,+bpf,+perfmon",
        BINARY,
        "agent",
        "--listen",
        "127.0.0.1:0",
    ]);
    command.args(["--state-hook", "tracepoint", "--socket"]).arg(folder.path().join("tcpclose.sock"));
    command.arg("--state-dir").arg(folder.path());
    refuses(
        &mut command,
        &["tracefs is not mounted at /sys/kernel/tracing, and cannot be", "--state-hook auto"],
    );
}

#[test]
fn a_kernel_without_the_tracepoint_is_named_before_anything_is_loaded() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("tcpclose.sock");
    let start = |mounts: &str, more: &[&str]| {
        let mut command = after_mounts(mounts);
        command.args(["agent", "--listen", "127.0.0.1:0", "--socket"]).arg(&socket).args(more);
        command
    };
    let neither = format!("{NO_TRACEFS} {NO_BTF}");
    let words =
        ["no tracepoint sock:inet_sock_set_state", "no BTF", "Linux 5.8", "`tcpclose stuck --no-agent`"];
    refuses(&mut start(&neither, &[]), &words);
    refuses(&mut start(&neither, &["--state-hook", "btf"]), &["no BTF", "Linux 5.8"]);
    refuses(&mut start(&neither, &["--state-hook", "tracepoint"]), &["no tracepoint", "Linux 5.8"]);
    refuses(&mut start(NO_BTF, &["--state-hook", "btf"]), &["no BTF", "try --state-hook auto"]);
    refuses(
        &mut start(NO_TRACEFS, &["--state-hook", "tracepoint"]),
        &["no tracepoint sock:inet_sock_set_state", "try --state-hook auto"],
    );
    assert!(!socket.exists());

    // Nor does anybody wait for a socket just to hear that.
    let _first = running(&folder, "tcpclose.sock");
    refuses(&mut start(&neither, &["--wait", "1h"]), &words);
}

#[test]
fn with_one_door_masked_the_other_is_taken() {
    if !can_attach() {
        return;
    }
    let agent = Agent::start_by(after_mounts(NO_BTF), &[]);
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("tcpclose_hook_info", &[("hook", "state"), ("rung", "tracepoint")]), 1.0);
    assert_eq!(metrics.sum("tcpclose_hook_degraded", &[("hook", "state")]), 1.0);
    let said = agent.said();
    assert!(said.contains("tracepoint (classic, no BTF"), "{said}");
    assert!(said.contains("not in use: state hook btf: this kernel has no BTF"), "{said}");

    let agent = Agent::start_by(after_mounts(NO_TRACEFS), &[]);
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("tcpclose_hook_info", &[("hook", "state"), ("rung", "btf")]), 1.0);
    assert_eq!(metrics.sum("tcpclose_hook_degraded", &[("hook", "state")]), 0.0);
}

#[test]
fn an_address_that_is_not_to_be_had_is_named() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("tcpclose.sock");
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = occupied.local_addr().unwrap().to_string();
    let at = |listen: &str| {
        let mut command = tcpclose(&["agent", "--listen", "127.0.0.1:0", "--listen", listen, "--socket"]);
        command.arg(&socket).arg("--state-dir").arg(folder.path());
        command
    };
    refuses(
        &mut at(&address),
        &[&format!("cannot listen on {address}: the address is in use"), "ss -ltnp", "--listen"],
    );
    refuses(&mut at("192.0.2.1:9923"), &["192.0.2.1:9923", "no such address", "--listen"]);
    assert!(!socket.exists());

    let mut command = with_capabilities("-all,+bpf,+perfmon");
    command.args(["agent", "--listen", "127.0.0.1:81", "--socket"]).arg(&socket);
    refuses(&mut command, &["127.0.0.1:81", "above 1023", "CAP_NET_BIND_SERVICE"]);
}

#[test]
fn a_path_that_is_not_for_a_socket_is_refused_and_left_alone() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    refuses(&mut agent_at(&file), &["a file that is no socket", "--socket"]);
    refuses(&mut agent_at(&file.join("x")), &["is no directory", "--socket"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    refuses(&mut agent_at(&link), &["a file that is no socket"]);
    assert_eq!(fs::read_link(&link).unwrap(), file);
    refuses(&mut agent_at(folder.path()), &["it is a directory", "--socket"]);

    let missing = folder.path().join("missing");
    refuses(
        &mut agent_at(&missing.join("tcpclose.sock")),
        &["missing does not exist", "make it", "--socket"],
    );
    assert!(!missing.exists());
}

#[test]
fn the_default_directory_is_made() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = after_mounts("mount -t tmpfs none /run;");
    command.args(["agent", "--listen", "127.0.0.1:0"]);
    let said = folder.path().join("said");
    let mut agent = Running::spawn(&mut command, PathBuf::new(), said);
    agent.socket = format!("/proc/{}/root/run/tcpclose/tcpclose.sock", agent.child.id()).into();
    agent.wait_until_ready();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&agent.socket), 0o600);
    let folder = agent.socket.parent().unwrap();
    assert_eq!(mode(folder), 0o700);
    assert_eq!(mode(&folder.join("state")), 0o600);
    assert!(agent.end(Signal::TERM).success());
}

#[test]
fn a_live_agents_socket_is_waited_for() {
    if !can_attach() {
        return;
    }
    let mut first = Agent::start(&[]);
    let (socket, address) = (first.socket(), first.address());
    refuses(
        agent_at(&socket).args(["--wait", "0s"]),
        &["cannot listen at", "another agent is serving there", "--socket"],
    );

    // The next agent has the same configuration, address and all, and takes over when the first ends.
    let folder = tempfile::tempdir().unwrap();
    let mut command = tcpclose(&["agent", "--wait", "10s", "--listen", &address, "--socket"]);
    command.arg(&socket).arg("--state-dir").arg(folder.path());
    let mut second = Running::spawn(&mut command, socket.clone(), folder.path().join("said"));
    sleep(Duration::from_millis(500));
    assert!(second.child.try_wait().unwrap().is_none(), "{}", second.said());
    let said = second.said();
    assert!(
        said.contains("waiting up to 10s for another agent, which serves at") && said.lines().count() == 1,
        "{said}"
    );
    // The folder of the socket goes with `first`, which therefore stays.
    assert!(first.end(Signal::TERM).success());
    second.wait_until_ready();
    assert!(second.said().contains(&format!("http://{address}/metrics")));

    // Told to end while it waits, it goes and leaves the socket to its owner.
    let said = folder.path().join("third");
    let mut third = Running::spawn(agent_at(&socket).args(["--wait", "1h"]), socket.clone(), said);
    sleep(Duration::from_millis(500));
    let start = Instant::now();
    assert!(third.end(Signal::TERM).success());
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(get_unix(&socket, "/readyz").0, 200);
    assert!(second.end(Signal::TERM).success());
    assert!(!socket.exists());
}

#[test]
fn a_dead_agents_socket_is_replaced() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut agent = running(&folder, "tcpclose.sock");
    let socket = agent.socket.clone();
    let inode = || fs::symlink_metadata(&socket).unwrap();
    agent.end(Signal::KILL);
    let stale = inode();
    assert!(stale.file_type().is_socket());
    // Nobody is there: a snapshot.
    let output = run_within(SOON, tcpclose(&["stuck", "--json", "--socket"]).arg(&socket));
    assert!(
        output.status.success()
            && String::from_utf8_lossy(&output.stdout).contains("\"source\":\"snapshot\"")
    );

    let mut next = running(&folder, "tcpclose.sock");
    assert_eq!(get_unix(&socket, "/healthz").0, 200);
    // Whoever removes its file and puts another agent there: the first takes only its own away.
    fs::remove_file(&socket).unwrap();
    let other = running(&folder, "tcpclose.sock");
    let made = inode().ino();
    assert!(next.end(Signal::TERM).success());
    assert_eq!(inode().ino(), made);
    assert_eq!(get_unix(&socket, "/healthz").0, 200);
    drop(other);
    assert!(!socket.exists());
}

#[test]
fn agents_with_sockets_of_their_own_run_side_by_side() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut agents = [running(&folder, "one.sock"), running(&folder, "two.sock")];
    for agent in &agents {
        let output = run_within(SOON, tcpclose(&["stuck", "--json", "--socket"]).arg(&agent.socket));
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("\"source\":\"agent\""));
    }
    assert!(agents[0].end(Signal::TERM).success());
    assert!(!agents[0].socket.exists());
    assert_eq!(get_unix(&agents[1].socket, "/readyz").0, 200);
}

#[test]
fn told_to_end_while_it_starts_an_agent_ends_cleanly() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let mut agent = stopped_while_it_starts(&folder);
        let pid = Pid::from_child(&agent.child);
        let told = Instant::now();
        kill_process(pid, signal).unwrap();
        let status = agent.end(Signal::CONT);
        assert!(status.success(), "{status}: {}", agent.said());
        assert!(told.elapsed() < Duration::from_secs(2));
        assert!(!agent.socket.exists());
    }
}

/// An agent that has made its socket and is not ready, stopped there.
fn stopped_while_it_starts(folder: &TempDir) -> Running {
    // It may be ready before this test gets a CPU again.
    for _ in 0..20 {
        let socket = folder.path().join("tcpclose.sock");
        let mut agent = Running::spawn(&mut agent_at(&socket), socket, folder.path().join("said"));
        let start = Instant::now();
        while !agent.socket.exists() {
            assert!(start.elapsed() < SOON, "{}", agent.said());
            sleep(Duration::from_micros(200));
        }
        kill_process(Pid::from_child(&agent.child), Signal::STOP).unwrap();
        if agent.said().is_empty() {
            return agent;
        }
        kill_process(Pid::from_child(&agent.child), Signal::CONT).unwrap();
        assert!(agent.end(Signal::TERM).success());
    }
    panic!("it always was ready already");
}

/// How many wait in the queue of the unix socket at `path`.
fn callers(path: &Path) -> u32 {
    let output = Command::new("ss").args(["-xlnH", "src"]).arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[test]
fn an_agent_that_dies_mid_answer_and_others_that_are_none_are_one_line() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tcpclose.sock");
    let ask = || {
        let mut command = tcpclose(&["stuck", "--socket"]);
        command.arg(&path);
        command
    };
    // A real one, stopped so that it is in the middle for sure.
    let mut agent = running(&folder, "tcpclose.sock");
    kill_process(Pid::from_child(&agent.child), Signal::STOP).unwrap();
    let asking = std::thread::spawn({
        let mut ask = ask();
        move || refusal(&mut ask)
    });
    let start = Instant::now();
    while callers(&path) == 0 {
        assert!(start.elapsed() < SOON);
        sleep(Duration::from_millis(20));
    }
    agent.end(Signal::KILL);
    let line = asking.join().unwrap();
    assert!(line.contains("it hung up in the middle of its answer; restart the agent"), "{line}");
    assert!(line.contains("--no-agent"), "{line}");

    // No HTTP.
    fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").unwrap();
        let _ = stream.read(&mut [0; 1024]);
    });
    refuses(&mut ask(), &["does not speak HTTP", "--no-agent"]);
    stranger.join().unwrap();
}

#[test]
fn silence_and_a_full_queue_end_too() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tcpclose.sock");
    let silent = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    silent.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    silent.listen(0).unwrap();
    let ask = || {
        let mut command = tcpclose(&["stuck", "--socket"]);
        command.arg(&path);
        command
    };
    // The one who asks takes the only place.
    let line = refusal_within(Duration::from_secs(15), &mut ask());
    assert!(line.contains("no answer within 10s; restart the agent"), "{line}");
    // And leaves it taken: nobody has accepted the call.
    refuses(&mut ask(), &["takes no more calls", "--no-agent"]);
    refuses(agent_at(&path).args(["--wait", "0s"]), &["another agent is serving there"]);
}

#[test]
fn output_that_nobody_takes() {
    let ask = || tcpclose(&["stuck", "--no-agent"]);
    // `| head -0`
    for arguments in [&["stuck", "--no-agent"][..], &["--help"], &["agent", "--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = tcpclose(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty());
    }
    for json in [&[][..], &["--json"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = ask().args(json).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with("tcpclose: writing to standard output: No space left"), "{said}");
        assert_eq!(said.lines().count(), 1);
    }
}

#[test]
fn an_agent_whose_summary_nobody_takes_serves_all_the_same() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("tcpclose.sock");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let child = agent_at(&socket).args(["--log-level", "debug"]).stderr(full).spawn().unwrap();
    let mut agent = Running { child, socket, said: "/dev/null".into() };
    agent.wait_until_ready();
    assert_eq!(get_unix(&agent.socket, "/metrics").0, 200);
    assert!(agent.end(Signal::TERM).success());
}

#[test]
fn a_ring_that_does_not_fit_is_named() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("prlimit");
    command.args([
        "--as=600000000",
        BINARY,
        "agent",
        "--listen",
        "127.0.0.1:0",
        "--ring-size",
        "256M",
        "--socket",
    ]);
    command.arg(folder.path().join("tcpclose.sock")).arg("--state-dir").arg(folder.path());
    refuses(&mut command, &["cannot load the probe", "Cannot allocate memory", "smaller --ring-size"]);
}

/// CPU time of `pid`, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn few_descriptors_are_said_or_shared_out() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let limited = |files: u32| {
        let mut command = Command::new("prlimit");
        command.args([&format!("--nofile={files}:{files}"), BINARY]);
        command
    };
    for files in [5, 10, 16, 20, 24, 32] {
        let mut command = limited(files);
        command.args(["agent", "--listen", "127.0.0.1:0", "--socket"]).arg(folder.path().join("x.sock"));
        refuses(&mut command, &[&format!("may have {files} files open"), "raise the limit", "LimitNOFILE"]);
    }

    for agent in [Agent::start_by(limited(64), &["--dump-interval", "50ms"]), Agent::start(&[])] {
        // A hundred strangers who say nothing.
        let address = agent.address();
        let _idle: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&address).unwrap()).collect();
        sleep(Duration::from_millis(300));
        let (start, before) = (Instant::now(), ticks(agent.pid()));
        for _ in 0..5 {
            assert_eq!(agent.get("/readyz").0, 200);
            assert!(agent.stuck(&["--json"]).status.success());
            sleep(Duration::from_millis(200));
        }
        let (taken, used) = (start.elapsed(), ticks(agent.pid()) - before);
        assert!((used * 10) as f64 / (taken.as_millis() as f64) < 0.5, "{used} ticks in {taken:?}");
        assert!(!agent.said().contains("Too many open files"));
    }
}

#[test]
fn every_help_fits_eighty_columns_and_has_an_example() {
    for command in [&[][..], &["agent"], &["stuck"]] {
        for help in ["--help", "-h"] {
            let output = tcpclose(command).arg(help).env("COLUMNS", "80").output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty());
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains("Example") && text.contains("Usage: tcpclose"), "{text}");
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }
}
