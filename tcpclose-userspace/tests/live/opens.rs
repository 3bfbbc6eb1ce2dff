//! Processes whose files do not answer: a leased executable, one on a file system whose server hangs, a command line of two
//! megabytes, a million descriptors. Whatever a local user does to the files that are theirs, a question is answered, the owner is right,
//! and what could not be read is named. Each is put to an agent on either owners backend and to a snapshot.

use crate::common;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use common::{Agent, BINARY, free_port, half_closed_client};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tcpclose::names::Runtime;
use tcpclose::report::sockets::{Owner, SocketsDocument};
use tempfile::TempDir;

const NOBODY: u32 = 65534;
/// A lease lasts 45 s after somebody wants it broken (/proc/sys/fs/lease-break-time).
const FAR_BELOW_A_LEASE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(60);
const ROLE: &str = "TCPCLOSE_TEST_OPENS_ROLE";

/// Everybody who answers.
struct Askers(Vec<(&'static str, Agent)>);

impl Askers {
    fn start() -> Self {
        let start = |backend| (backend, Agent::start(&["--owners", backend]));
        Self(["task_file", "proc"].map(start).into())
    }

    /// What each says of the close-waits of `port`, and what is done before each is asked.
    fn ask(&self, port: u16, before: impl Fn()) -> Vec<(&'static str, SocketsDocument)> {
        let arguments = ["--json", "--older-than", "0s", "--port", &port.to_string()];
        let document = |output: std::process::Output| {
            let printed = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && printed.is_empty(), "{printed}");
            serde_json::from_slice(&output.stdout).unwrap()
        };
        let mut answers: Vec<(&str, SocketsDocument)> = Vec::new();
        for (backend, agent) in &self.0 {
            answers.push((backend, until_found(|| document(agent.stuck(&arguments)), &before)));
        }
        let snapshot = || {
            let (mut command, begun) = (Command::new(BINARY), Instant::now());
            let output = command.args(["stuck", "--no-agent"]).args(arguments).output().unwrap();
            assert!(begun.elapsed() < FAR_BELOW_A_LEASE, "{:?}", begun.elapsed());
            document(output)
        };
        answers.push(("snapshot", until_found(snapshot, &before)));
        answers
    }
}

/// Asks again while an owner is missing and that is said: on a busy machine a look's time may be over before it has come far.
fn until_found(ask: impl Fn() -> SocketsDocument, before: impl Fn()) -> SocketsDocument {
    let until = Instant::now() + PATIENCE;
    loop {
        before();
        let document = ask();
        let cut_short = document.incomplete.iter().any(|remark| remark.starts_with("owners may be missing"));
        let found = document.sockets.iter().all(|socket| !socket.owners.is_empty());
        if found || !cut_short || Instant::now() >= until {
            return document;
        }
    }
}

/// A connection whose server end is in CLOSE-WAIT, to be held by somebody.
struct Stuck {
    port: u16,
    server: TcpStream,
    _client: TcpStream,
}

impl Stuck {
    fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = half_closed_client(port, b"");
        Self { port, server: listener.accept().unwrap().0, _client: client }
    }

    /// Has `command` hold it as its standard input, and nobody else.
    fn held_by(self, command: &mut Command) -> (Running, Held) {
        let Self { port, server, _client } = self;
        let child = command.stdin(Stdio::from(OwnedFd::from(server))).process_group(0).spawn().unwrap();
        // What is still in `command` is let go of, too.
        command.stdin(Stdio::null());
        (Running(child), Held { port, _client })
    }
}

struct Held {
    port: u16,
    _client: TcpStream,
}

/// A process with a process group of its own; ended with all that it started when dropped.
struct Running(Child);

impl Running {
    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// The number that it writes first.
    fn first_line(&mut self) -> u32 {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim().parse().unwrap_or(0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.0.id() as i32) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// The owner with this pid of the one socket in `document`.
fn owner(document: &SocketsDocument, pid: u32) -> &Owner {
    assert_eq!(document.sockets.len(), 1, "{document:?}");
    document.sockets[0].owners.iter().find(|owner| owner.pid == pid).unwrap()
}

fn names(document: &SocketsDocument, pid: u32) -> bool {
    let words = format!("the runtime of 1 process (pid {pid}) is unknown");
    document.incomplete.iter().any(|remark| remark.starts_with(&words))
}

/// A folder of nobody's, with a copy of sleep(1) in `low`.
fn folder(inside: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for name in inside {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let sleep = folder.path().join("low/sleep");
    fs::copy("/bin/sleep", &sleep).unwrap();
    chown(&sleep, Some(NOBODY), Some(NOBODY)).unwrap();
    folder
}

/// A write lease on a running executable is refused (fs/locks.c, check_conflicting_open()). But on an overlay, which every user may
/// mount in a user namespace of their own, the file that runs is the lower one, and from a chmod() on another is opened.
#[test]
fn a_leased_executable_delays_nobody() {
    const SCRIPT: &str = "mount -t overlay -o lowerdir=low,upperdir=up,workdir=work,userxattr none m || exit
        exec 3<&0; m/sleep 1000 <&3 & exec 3<&- </dev/null
        until [ \"$(readlink /proc/$!/exe)\" = \"$PWD/m/sleep\" ]; do :; done
        chmod 700 m/sleep; chmod 755 m/sleep; echo $!; wait";
    let askers = Askers::start();
    let folder = folder(&["low", "up", "work", "m"]);
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", SCRIPT]).uid(NOBODY).gid(NOBODY).current_dir(folder.path());
    let (mut running, held) = Stuck::new().held_by(command.stdout(Stdio::piped()));
    let pid = running.first_line();
    if pid == 0 {
        assert!(std::env::var_os("CI").is_none(), "no overlay in a user namespace");
        eprintln!("SKIPPED: no overlay can be mounted in a user namespace here");
        return;
    }
    let upper = File::open(folder.path().join("up/sleep")).unwrap();
    let lease = |kind: libc::c_int| {
        // SAFETY: neither call has a pointer for an argument, and SIGIO, which a break of the lease sends, is nobody's here.
        unsafe {
            libc::signal(libc::SIGIO, libc::SIG_IGN);
            libc::fcntl(upper.as_raw_fd(), libc::F_SETLEASE, kind) == 0
        }
    };
    // Anew for each: who wants it broken gets that in the end.
    let leased = askers.ask(held.port, || {
        lease(libc::F_UNLCK);
        let until = Instant::now() + PATIENCE;
        while !lease(libc::F_WRLCK) {
            assert!(Instant::now() < until, "there is no lease");
            sleep(Duration::from_millis(1));
        }
    });
    for (asker, document) in leased {
        let owner = owner(&document, pid);
        assert_eq!((&*owner.comm, owner.runs, owner.fds_used.is_some()), ("sleep", None, true), "{asker}");
        assert!(owner.exe.as_ref().is_some_and(|exe| exe.ends_with("/m/sleep")), "{asker}: {owner:?}");
        assert!(names(&document, pid), "{asker}: {:?}", document.incomplete);
    }
    lease(libc::F_UNLCK);
    drop(upper);
    until_all_read(&askers, held.port, pid);
}

/// On a busy machine one question's time may be over before an executable has been read.
fn until_all_read(askers: &Askers, port: u16, pid: u32) {
    let until = Instant::now() + PATIENCE;
    let is_read = |(_, document): &(&str, SocketsDocument)| {
        owner(document, pid).runs == Some(Runtime::Native) && !names(document, pid)
    };
    while !askers.ask(port, || {}).iter().all(is_read) {
        assert!(Instant::now() < until, "the executable of {pid} is not read");
    }
}

#[test]
#[ignore = "needs root"]
fn an_executable_on_a_file_system_that_hangs_delays_nobody() {
    let askers = Askers::start();
    let folder = folder(&["low", "m"]);
    let Some(server) = Fuse::mount(&folder.path().join("low/sleep"), &folder.path().join("m")) else {
        assert!(std::env::var_os("CI").is_none(), "no FUSE");
        eprintln!("SKIPPED: no FUSE here");
        return;
    };
    let fifo = folder.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let (running, held) = server.in_its_namespace(|| {
        let open =
            |path: &Path| OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        let path = folder.path().join("m/sleep");
        let mut command = Command::new(&path);
        // A search for namespaces looks at what descriptors lead to.
        command.arg("1000").uid(NOBODY).gid(NOBODY).stdout(open(&fifo)).stderr(open(&path));
        Stuck::new().held_by(&mut command)
    });
    server.hang();
    // The second time nobody waits for it: the helper that was killed hangs on it still.
    for _ in 0..2 {
        for (asker, document) in askers.ask(held.port, || {}) {
            let owner = owner(&document, running.pid());
            assert_eq!((&*owner.comm, owner.runs), ("sleep", None), "{asker}");
            assert!(names(&document, running.pid()), "{asker}: {:?}", document.incomplete);
        }
    }
    for (backend, agent) in &askers.0 {
        assert_eq!(agent.metrics().sum("tcpclose_helpers_killed_total", &[]), 1.0, "{backend}");
    }
    drop(server);
    drop(running);
}

#[test]
#[ignore = "needs root"]
fn a_command_line_of_two_megabytes_is_nobodys_concern() {
    let askers = Askers::start();
    let zeros = "0".repeat(120_000);
    let mut command = Command::new("sleep");
    command.arg("1000").args(vec![&zeros; 15]).uid(NOBODY).gid(NOBODY);
    let (running, held) = Stuck::new().held_by(&mut command);
    until_all_read(&askers, held.port, running.pid());
}

/// The iterator stops with EAGAIN after a million files that are no sockets (kernel/bpf/bpf_iter.c, bpf_seq_read()).
#[test]
#[ignore = "needs root"]
fn a_million_descriptors_of_others_hide_no_owner() {
    let askers = Askers::start();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "opens::program_in_a_role", "--nocapture"]).env(ROLE, "many");
    let mut many =
        Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn().unwrap());
    let mut lines = BufReader::new(many.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("a million")));
    let mut command = Command::new("sleep");
    let (running, held) = Stuck::new().held_by(command.arg("1000").uid(NOBODY).gid(NOBODY));
    for (asker, document) in askers.ask(held.port, || {}) {
        assert_eq!(&*owner(&document, running.pid()).comm, "sleep", "{asker}");
    }
    for (_, agent) in &askers.0 {
        assert!(!agent.printed().contains("cannot read the iterator over files"), "{}", agent.printed());
    }
}

/// Not a test but a program: processes that have a million descriptors together.
#[test]
fn program_in_a_role() {
    const MILLION: u64 = 1_050_000;
    if std::env::var(ROLE).as_deref() != Ok("many") {
        return;
    }
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let each = most.unwrap_or(MILLION).min(MILLION);
    let null = File::open("/dev/null").unwrap();
    // SAFETY: the call has no pointer for an argument; the copies are for the children, and end with this process.
    let copied = (0..each).take_while(|_| unsafe { libc::dup(null.as_raw_fd()) } >= 0).count() as u64;
    // A few are needed to start others.
    for fd in each - 50..each {
        // SAFETY: as above; the highest numbers are copies that nobody uses.
        let _ = unsafe { libc::close(fd as i32) };
    }
    let children: Vec<Child> = (0..MILLION.div_ceil(copied - 50))
        .map(|_| Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap())
        .collect();
    println!("a million");
    children.into_iter().for_each(|mut child| drop(child.wait()));
}

/// A file system with one file in it, whose server can stop to answer.
struct Fuse {
    stop: Arc<AtomicBool>,
    hang: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
    /// A mount namespace of its own: there and nowhere else is it mounted.
    namespace: File,
}

impl Fuse {
    /// `None` where there is no /dev/fuse.
    fn mount(file: &Path, at: &Path) -> Option<Self> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let at: PathBuf = at.to_owned();
        let mounting = thread::spawn(move || {
            // SAFETY: a thread that ends here leaves its own view of mounts, and shares no file descriptors less than before.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS).unwrap() };
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let options = CString::new(options).unwrap();
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            mount("fuse", &at, "fuse", flags, &*options).unwrap();
            File::open("/proc/thread-self/ns/mnt").unwrap()
        });
        let namespace = mounting.join().unwrap();
        let (stop, hang) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let content = File::open(file).unwrap();
        let (stopped, hangs) = (Arc::clone(&stop), Arc::clone(&hang));
        let serving = thread::spawn(move || serve(device, &content, &stopped, &hangs));
        Some(Self { stop, hang, serving: Some(serving), namespace })
    }

    fn in_its_namespace<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        thread::scope(|scope| {
            let there = || {
                // SAFETY: as above.
                unsafe { unshare_unsafe(UnshareFlags::FS).unwrap() };
                let mount = Some(LinkNameSpaceType::Mount);
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&self.namespace), mount).unwrap();
                work()
            };
            scope.spawn(there).join().unwrap()
        })
    }

    fn hang(&self) {
        self.hang.store(true, Ordering::Relaxed);
    }
}

impl Drop for Fuse {
    /// Whoever waits for an answer gets an error when the device is closed.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.serving.take().map(JoinHandle::join);
    }
}

/// Answers the kernel's requests (include/uapi/linux/fuse.h), until told to `stop`; takes and drops them while told to `hang`.
fn serve(mut device: File, content: &File, stop: &AtomicBool, hang: &AtomicBool) {
    let mut request = vec![0; 1 << 18];
    while !stop.load(Ordering::Relaxed) {
        let moment = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let mut fds = [PollFd::new(&device, PollFlags::IN)];
        if !poll(&mut fds, Some(&moment)).is_ok_and(|ready| ready > 0) {
            continue;
        }
        let Ok(length) = device.read(&mut request) else { continue };
        if hang.load(Ordering::Relaxed) {
            continue;
        }
        if let Some(reply) = reply(&request[..length], content) {
            let _ = device.write_all(&reply);
        }
    }
}

/// The reply to a request; none is due to FORGET, INTERRUPT and BATCH_FORGET.
fn reply(request: &[u8], content: &File) -> Option<Vec<u8>> {
    const FILE: u64 = 2;
    let u32_at = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
    let (opcode, unique, node) = (u32_at(4), u64_at(8), u64_at(16));
    let attributes = |node: u64| {
        let size = if node == FILE { content.metadata().unwrap().size() } else { 0 };
        let mode = if node == FILE { 0o100_755 } else { 0o040_755 };
        let (times, nanoseconds) = ([0u64; 3], [0u32; 3]);
        let mut bytes: Vec<u8> =
            [node, size, size / 512].iter().chain(&times).flat_map(|n| n.to_le_bytes()).collect();
        let words = [mode, 1, 0, 0, 0, 4096, 0];
        bytes.extend(nanoseconds.iter().chain(&words).flat_map(|n| n.to_le_bytes()));
        bytes
    };
    let words = |numbers: &[u64]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let body = match opcode {
        2 | 36 | 42 => return None,
        // LOOKUP
        1 if request[40..].starts_with(b"sleep\0") => {
            Ok([words(&[FILE, 0, 3600, 3600, 0]), attributes(FILE)].concat())
        }
        1 => Err(libc::ENOENT),
        // GETATTR
        3 => Ok([words(&[3600, 0]), attributes(node)].concat()),
        // OPEN, OPENDIR
        14 | 27 => Ok(words(&[0, 0])),
        // READ
        15 => {
            let mut bytes = vec![0; u32_at(56) as usize];
            let read = content.read_at(&mut bytes, u64_at(48)).unwrap();
            bytes.truncate(read);
            Ok(bytes)
        }
        // RELEASE, FLUSH, RELEASEDIR
        18 | 25 | 29 => Ok(Vec::new()),
        // INIT: version 7.31, no read-ahead, no flags, writes of 4 kB.
        26 => {
            Ok([words(&[7 | 31 << 32, 0, 4096 << 32 | 4 << 16 | 4]), words(&[1; 1]), words(&[0; 4])].concat())
        }
        _ => Err(libc::ENOSYS),
    };
    let (error, body) = body.map_or_else(|error| (-error, Vec::new()), |body| (0, body));
    let mut bytes = ((16 + body.len()) as u32).to_le_bytes().to_vec();
    bytes.extend(error.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend(body);
    Some(bytes)
}
