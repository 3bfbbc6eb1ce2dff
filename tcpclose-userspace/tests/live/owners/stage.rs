//! Servers, sockets in CLOSE-WAIT, processes that hold them, and who is asked about them.

use std::io::{BufRead, BufReader, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use socket2::{Domain, Socket, Type};
use tcpclose::linux::sock_diag;
use tcpclose::names::Flow;
use tcpclose::report::sockets::{Owner, SocketsDocument, StuckSocket};

use tcpclose_common::state::TcpState;

use super::common::{Agent, BINARY, free_port};

const PATIENCE: Duration = Duration::from_secs(20);
/// Makes this test program one of its own helpers: which.
const ROLE: &str = "TCPCLOSE_TEST_OWNER_ROLE";
/// How many connections the helper `leak` takes.
pub const COUNT: &str = "TCPCLOSE_TEST_OWNER_COUNT";
/// The file with the name that the helper `renamed` takes.
pub const NAME_FILE: &str = "TCPCLOSE_TEST_OWNER_NAME";

/// One test at a time: a child that another test forks holds our sockets too, until it runs its program.
static ALONE: Mutex<()> = Mutex::new(());

pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everybody who answers: agents on both backends, and a snapshot.
pub struct Askers {
    agents: Vec<(&'static str, Agent)>,
    _alone: MutexGuard<'static, ()>,
}

impl Askers {
    pub fn start() -> Self {
        let start = |backend| (backend, Agent::start(&["--owners", backend]));
        let alone = alone();
        Self { agents: vec![start("task_file"), start("proc")], _alone: alone }
    }

    /// What each says of the close-waits of `port`.
    pub fn ask(&self, port: u16) -> Vec<(&'static str, SocketsDocument)> {
        self.ask_with(&["--older-than", "0s", "--port", &port.to_string()])
    }

    pub fn ask_with(&self, arguments: &[&str]) -> Vec<(&'static str, SocketsDocument)> {
        let arguments = [&["--json"], arguments].concat();
        let document = |output: std::process::Output| {
            let printed = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && printed.is_empty(), "{printed}");
            serde_json::from_slice(&output.stdout).unwrap()
        };
        let mut answers: Vec<(&str, SocketsDocument)> = self
            .agents
            .iter()
            .map(|(backend, agent)| (*backend, document(agent.stuck(&arguments))))
            .collect();
        let mut snapshot = Command::new(BINARY);
        snapshot.args(["stuck", "--no-agent"]).args(&arguments);
        answers.push(("snapshot", document(snapshot.output().unwrap())));
        answers
    }
}

pub struct Server {
    pub listener: TcpListener,
}

/// Both ends of a connection whose server end is in CLOSE-WAIT.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Server {
    pub fn new() -> Self {
        Self { listener: TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap() }
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    pub fn client(&self) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port())).unwrap()
    }

    /// A client that has sent `data` and its FIN, and the server's kernel has taken both.
    pub fn half_closed_client(&self, data: &[u8]) -> TcpStream {
        Self::half_closed(self.client(), data)
    }

    /// As [`Self::half_closed_client`], from this address.
    pub fn half_closed_client_from(&self, address: Ipv4Addr) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.port())).into()).unwrap();
        Self::half_closed(socket.into(), b"")
    }

    fn half_closed(mut client: TcpStream, data: &[u8]) -> TcpStream {
        client.write_all(data).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let flow = Flow::new(client.peer_addr().unwrap(), client.local_addr().unwrap());
        let there = || sock_diag::lookup(&flow, 0, None).unwrap();
        let until = Instant::now() + PATIENCE;
        while there().is_none_or(|socket| socket.state != TcpState::CloseWait) {
            assert!(Instant::now() < until);
            sleep(Duration::from_millis(1));
        }
        client
    }

    /// Both ends of an open connection.
    pub fn open_pair(&self) -> Pair {
        let client = self.client();
        Pair { client, server: self.listener.accept().unwrap().0 }
    }

    pub fn pair(&self) -> Pair {
        let client = self.half_closed_client(b"");
        Pair { client, server: self.listener.accept().unwrap().0 }
    }
}

/// Another descriptor on the same file, to give away.
pub fn owned(file: &impl AsFd) -> OwnedFd {
    file.as_fd().try_clone_to_owned().unwrap()
}

/// A process; ended when dropped.
pub struct Child {
    process: std::process::Child,
    printed: Option<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts `command` with `file` as its standard input.
    pub fn holding(command: &mut Command, file: &impl AsFd) -> Self {
        let mut process = command.stdin(Stdio::from(owned(file))).spawn().unwrap();
        let printed = process.stdout.take().map(BufReader::new);
        Self { process, printed }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn until_it_says(&mut self, word: &str) {
        let printed = self.printed.as_mut().unwrap();
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert_ne!(printed.read_line(&mut line).unwrap(), 0, "the helper ended");
        }
    }

    /// The one child that it has, once that is the program `name`.
    pub fn its_child(&self, name: &str) -> u32 {
        let until = Instant::now() + PATIENCE;
        loop {
            let path = format!("/proc/{0}/task/{0}/children", self.pid());
            let pid = std::fs::read_to_string(path).unwrap().trim().parse().unwrap_or(0);
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if comm.trim_end() == name {
                return pid;
            }
            assert!(Instant::now() < until, "no child {name}");
            sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The one socket of a document.
pub fn only(document: &SocketsDocument) -> &StuckSocket {
    assert_eq!(document.sockets.len(), 1, "{document:?}");
    &document.sockets[0]
}

pub fn inode(socket: impl AsFd) -> u64 {
    rustix::fs::fstat(socket).unwrap().st_ino
}

/// By pid and descriptor, in order.
pub fn holders(owners: &[Owner]) -> Vec<(u32, u32)> {
    owners.iter().map(|owner| (owner.pid, owner.fd)).collect()
}

/// This test program in one of the roles of [`program_in_a_role`].
pub fn helper(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "owners::stage::program_in_a_role", "--nocapture"])
        .env(ROLE, role)
        .stdout(Stdio::piped());
    command
}

/// Not a test but a program: what it holds is its standard input.
#[test]
fn program_in_a_role() {
    match std::env::var(ROLE).as_deref() {
        Ok("receiver") => receiver(),
        Ok("leak") => leak(),
        Ok("renamed") => renamed(),
        _ => {}
    }
}

/// Takes a descriptor that is on its way over the unix socket, and holds it.
fn receiver() {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(std::io::stdin(), &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::empty()).unwrap();
    let received: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(received.len(), 1);
    println!("received");
    until_the_test_is_gone();
    drop(received);
}

/// Takes connections to their end and never closes them.
fn leak() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let count: usize = std::env::var(COUNT).unwrap().parse().unwrap();
    let listener = TcpListener::from(owned(&std::io::stdin()));
    let leaked: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut stream = listener.accept().unwrap().0;
            stream.read_to_end(&mut Vec::new()).unwrap();
            stream
        })
        .collect();
    println!("taken");
    until_the_test_is_gone();
    drop(leaked);
}

/// Makes a socket in CLOSE-WAIT as an ordinary user, and calls itself what the file says.
fn renamed() {
    const USER: libc::uid_t = 20_001;
    let file = std::env::var(NAME_FILE).unwrap();
    // SAFETY: no pointers; glibc sets the user of all threads.
    assert_eq!(unsafe { libc::setresuid(USER, USER, USER) }, 0);
    // Who has changed its user may not write to its own /proc otherwise.
    set_dumpable_behavior(DumpableBehavior::Dumpable).unwrap();
    let mut name = std::fs::read_to_string(&file).unwrap();
    std::fs::write("/proc/self/comm", &name).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let held = listener.accept().unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    println!("leaks");
    let parent = rustix::process::getppid();
    while rustix::process::getppid() == parent {
        if let Ok(next) = std::fs::read_to_string(&file)
            && next != name
        {
            std::fs::write("/proc/self/comm", &next).unwrap();
            name = next;
        }
        sleep(Duration::from_millis(5));
    }
    drop(held);
}

/// The test ends its helpers; one whose test died ends by itself.
fn until_the_test_is_gone() {
    let parent = rustix::process::getppid();
    while rustix::process::getppid() == parent {
        sleep(Duration::from_millis(100));
    }
}
