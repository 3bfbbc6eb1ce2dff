//! A host that lacks something: a privilege, a part of the kernel, file descriptors.

use super::*;

#[test]
#[ignore = "needs root"]
fn a_missing_privilege_is_named_before_anything_else() {
    let user = Nobody::new();
    // Neither the default socket's directory nor the port would be this user's to have, which is not what is said.
    let nobody = |arguments: &[&str]| {
        let mut command = user.command();
        command.args(arguments);
        command
    };
    const BOTH: [&str; 3] =
        ["lacks CAP_BPF and CAP_PERFMON;", "root or grant them", "`tcpclose stuck --no-agent` needs none"];
    refuses(&mut nobody(&["agent"]), &BOTH);
    refuses(&mut nobody(&["agent", "--listen", "127.0.0.1:80"]), &BOTH);
    // And so it is.
    let output = run_within(SOON, &mut nobody(&["stuck", "--no-agent", "--json"]));
    assert!(output.status.success() && output.stderr.is_empty());

    let socket = user.folder().join("tcpclose.sock");
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
#[ignore = "needs root"]
fn two_capabilities_are_enough_for_the_best_backend() {
    let agent = Agent::start_by(with_capabilities("-all,+bpf,+perfmon"), &[]);
    agent.address();
    assert!(agent.printed().contains("capabilities kept: none"), "{}", agent.printed());
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("tcpclose_hook_info", &[("hook", "state"), ("backend", "btf")]), 1.0);
    assert_eq!(metrics.sum("tcpclose_hook_degraded", &[("hook", "state")]), 0.0);
    assert!(agent.stuck(&["--json"]).status.success());

    // The classic tracepoint needs tracefs, which only more privileges mount: on a host that has it mounted nobody has to.
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
#[ignore = "needs root"]
fn a_kernel_without_the_tracepoint_is_named_before_anything_is_loaded() {
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
#[ignore = "needs root"]
fn with_one_attach_point_masked_the_other_is_used() {
    let agent = Agent::start_by(after_mounts(NO_BTF), &[]);
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("tcpclose_hook_info", &[("hook", "state"), ("backend", "tracepoint")]), 1.0);
    assert_eq!(metrics.sum("tcpclose_hook_degraded", &[("hook", "state")]), 1.0);
    let printed = agent.printed();
    assert!(printed.contains("tracepoint (classic, no BTF"), "{printed}");
    assert!(printed.contains("not in use: state hook btf: this kernel has no BTF"), "{printed}");

    let agent = Agent::start_by(after_mounts(NO_TRACEFS), &[]);
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("tcpclose_hook_info", &[("hook", "state"), ("backend", "btf")]), 1.0);
    assert_eq!(metrics.sum("tcpclose_hook_degraded", &[("hook", "state")]), 0.0);
}

/// A memory cgroup with this limit, of version 2 or 1; removed when dropped.
struct Memory(PathBuf);

impl Memory {
    /// `None` where no such cgroup can be made.
    fn of(limit: &str) -> Option<Self> {
        let name = format!("tcpclose-{}", std::process::id());
        let made = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].iter().find_map(|root| {
            let folder = Path::new(root).join(&name);
            fs::create_dir(&folder).ok()?;
            Some(Self(folder))
        })?;
        let limited = ["memory.max", "memory.limit_in_bytes"]
            .iter()
            .any(|file| fs::write(made.0.join(file), limit).is_ok());
        limited.then_some(made)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn a_ring_that_does_not_fit_is_named() {
    let Some(memory) = Memory::of("64M") else {
        eprintln!("SKIPPED: a ring that does not fit: no memory cgroup can be made here");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(memory.0.join("cgroup.procs"));
    command.args([BINARY, "agent", "--listen", "127.0.0.1:0", "--ring-size", "256M", "--socket"]);
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
#[ignore = "needs root"]
fn few_descriptors_are_reported_or_shared_out() {
    let folder = tempfile::tempdir().unwrap();
    let limited = |files: u32| {
        let mut command = Command::new("prlimit");
        command.args([&format!("--nofile={files}:{files}"), BINARY]);
        command
    };
    for files in [5, 10, 16, 20, 24, 32] {
        let mut command = limited(files);
        command.args(["agent", "--listen", "127.0.0.1:0", "--socket"]).arg(folder.path().join("x.sock"));
        refuses(&mut command, &[&format!("may open {files} files"), "raise the limit", "LimitNOFILE"]);
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
        assert!(!agent.printed().contains("Too many open files"));
    }
}
