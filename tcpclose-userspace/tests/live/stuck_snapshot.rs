//! `tcpclose stuck --no-agent` on real sockets: every diagnosis, every family, agreement with `ss`, what it says
//! without privileges, and what it says to nonsense.
//!
//! Each test asks about the port of its own listener, so they may run side by side. Ages are asserted only inside
//! the brackets that the test's own clock takes.

use crate::common::{free_port, nobody};

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tcpclose::linux::sock_diag;
use tcpclose::names::{Diagnosis, Flow, Phase, Side};
use tcpclose::report::sockets::{DocumentSource, SocketsDocument, StuckSocket};
use tcpclose_common::state::TcpState;

use nobody::Nobody;

const BINARY: &str = env!("CARGO_BIN_EXE_tcpclose");

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("$ {command:?}\n{}{}", text(&output.stdout), text(&output.stderr));
    output
}

/// `tcpclose stuck --no-agent` and `arguments`.
fn stuck(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["stuck", "--no-agent"]).args(arguments);
    command
}

/// The one document that `command` prints.
fn document(command: &mut Command) -> SocketsDocument {
    let output = run(command);
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 1);
    let document: SocketsDocument = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document.source, DocumentSource::Snapshot);
    document
}

/// Every close-wait of `port`, by a snapshot.
fn snapshot(port: u16, older_than: &str) -> SocketsDocument {
    document(&mut stuck(&["--json", "--older-than", older_than, "--port", &port.to_string()]))
}

struct Server {
    listener: TcpListener,
    /// Where a client reaches it.
    host: &'static str,
}

impl Server {
    fn new(address: &str, host: &'static str) -> Self {
        // A snapshot is of every namespace: the port is none that another test's client may have.
        Self { listener: TcpListener::bind((address, free_port())).unwrap(), host }
    }

    fn local() -> Self {
        Self::new("127.0.0.1", "127.0.0.1")
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// A client that has sent `data` and its FIN, and the server's kernel has taken both.
    fn half_closed_client(&self, data: &[u8]) -> TcpStream {
        let mut client = TcpStream::connect((self.host, self.port())).unwrap();
        client.write_all(data).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        until_close_wait(client.peer_addr().unwrap(), client.local_addr().unwrap());
        client
    }

    fn accept(&self) -> TcpStream {
        self.listener.accept().unwrap().0
    }
}

fn until_close_wait(local: SocketAddr, remote: SocketAddr) {
    let flow = Flow::new(local, remote);
    let there = || {
        let dump = sock_diag::dump(TcpState::CloseWait.bit(), false).unwrap();
        dump.sockets.iter().any(|socket| socket.flow == flow)
    };
    while !there() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The descriptors by which this process owns `socket`.
fn own_fds(socket: &StuckSocket) -> Vec<u32> {
    let own = std::process::id();
    socket.owners.iter().filter(|owner| owner.pid == own).map(|owner| owner.fd).collect()
}

fn fd(file: &impl AsRawFd) -> u32 {
    file.as_raw_fd() as u32
}

#[test]
fn every_diagnosis_made_for_real() {
    let server = Server::local();
    let never_read = (server.half_closed_client(b"hello"), server.accept());
    let eof_waits = (server.half_closed_client(b""), server.accept());
    let mut data_unread = (server.half_closed_client(b"hello"), server.accept());
    data_unread.1.read_exact(&mut [0; 2]).unwrap();
    let mut eof_read = (server.half_closed_client(b"hello"), server.accept());
    eof_read.1.read_to_end(&mut Vec::new()).unwrap();
    let queued = server.half_closed_client(b"hello");

    let document = snapshot(server.port(), "0s");
    assert_eq!(document.sockets.len(), 5);
    let expect = |client: &TcpStream, holder: u32, diagnosis, unread| {
        let peer = client.local_addr().unwrap();
        let socket = document.sockets.iter().find(|socket| socket.peer == peer).unwrap();
        assert_eq!((socket.diagnosis, socket.unread_bytes), (Some(diagnosis), unread));
        assert_eq!((socket.state, socket.side, socket.port), (Phase::CloseWait, Side::Server, server.port()));
        assert_eq!(own_fds(socket), [holder]);
        let owner = &socket.owners[0];
        assert!(!owner.comm.is_empty() && owner.fds_used.is_some() && owner.fds_limit.is_some());
        assert_eq!(socket.inode == 0, diagnosis == Diagnosis::NotAccepted);
    };
    expect(&never_read.0, fd(&never_read.1), Diagnosis::NotRead, 5);
    expect(&eof_waits.0, fd(&eof_waits.1), Diagnosis::NotRead, 0);
    expect(&data_unread.0, fd(&data_unread.1), Diagnosis::NotRead, 3);
    expect(&eof_read.0, fd(&eof_read.1), Diagnosis::NotClosed, 0);
    // Nobody holds it, and who could take it holds the listener.
    expect(&queued, fd(&server.listener), Diagnosis::NotAccepted, 5);
}

#[test]
fn a_server_that_goes_on_sending_is_not_stuck() {
    let server = Server::local();
    let mut client = server.half_closed_client(b"");
    let mut stream = server.accept();
    client.set_nonblocking(true).unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let sender = std::thread::spawn(move || {
        while stopped.recv_timeout(Duration::from_millis(20)).is_err() {
            stream.write_all(b"x").unwrap();
            let _ = client.read(&mut [0; 64]);
        }
    });
    // Old enough to be past the bound.
    std::thread::sleep(Duration::from_millis(1100));
    let document = snapshot(server.port(), "1s");
    assert_eq!(document.sockets.len(), 1);
    assert_eq!(document.sockets[0].diagnosis, Some(Diagnosis::StillSending));
    let port = server.port().to_string();
    let output = run(&mut stuck(&["--older-than", "1s", "--port", &port, "--check"]));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.starts_with("No matching socket has been in CLOSE-WAIT for 1s or longer; 1 still sending"));
    stop.send(()).unwrap();
    sender.join().unwrap();
}

#[test]
fn every_process_that_holds_a_socket_is_named() {
    let server = Server::local();
    let _client = server.half_closed_client(b"");
    let stream = server.accept();
    // A child that keeps the socket as its standard input, as a forked worker would.
    let inherited = OwnedFd::from(stream.try_clone().unwrap());
    let mut child = Command::new("sleep").arg("1000").stdin(Stdio::from(inherited)).spawn().unwrap();
    let held = snapshot(server.port(), "0s");
    let of_child = document(&mut stuck(&["--json", "--older-than", "0s", "--pid", &child.id().to_string()]));
    child.kill().unwrap();
    child.wait().unwrap();

    let owners: Vec<_> = held.sockets[0].owners.iter().map(|owner| (owner.pid, owner.fd)).collect();
    let mut expected = vec![(std::process::id(), fd(&stream)), (child.id(), 0)];
    expected.sort_unstable();
    assert_eq!(owners, expected);
    assert!(held.sockets[0].owners.iter().any(|owner| owner.comm == "sleep"));
    assert_eq!(of_child.sockets.len(), 1);
    assert_eq!(of_child.sockets[0].cookie, held.sockets[0].cookie);
}

#[test]
fn every_family_is_seen_aged_inside_the_bracket_and_as_ss_sees_it() {
    for (address, host) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")] {
        let server = Server::new(address, host);
        let begun = Instant::now();
        let client = server.half_closed_client(b"hello");
        let entered = Instant::now();
        let stream = server.accept();
        std::thread::sleep(Duration::from_millis(300));

        let least = entered.elapsed().as_secs_f64();
        let document = snapshot(server.port(), "0s");
        let most = begun.elapsed().as_secs_f64();
        assert_eq!(document.sockets.len(), 1);
        let socket = &document.sockets[0];
        let age = socket.age;
        assert!(!age.exact && age.min_seconds <= most, "{age:?} {least} {most}");
        assert!(age.max_seconds.is_none_or(|max| max >= least), "{age:?} {least} {most}");
        // v4-mapped addresses are written as IPv4.
        assert_eq!((socket.local, socket.peer), (client.peer_addr().unwrap(), client.local_addr().unwrap()));
        assert_eq!(own_fds(socket), [fd(&stream)]);

        let filter = format!("sport = :{}", server.port());
        let ss = run(Command::new("ss").args(["-taneH", "state", "close-wait", &filter]));
        let line = String::from_utf8(ss.stdout).unwrap();
        assert_eq!(line.lines().count(), 1);
        let cookie = serde_json::to_value(socket.cookie).unwrap();
        for word in [format!("sk:{}", cookie.as_str().unwrap()), format!("ino:{}", socket.inode)] {
            assert!(line.split_whitespace().any(|part| part == word), "{word}");
        }
        // The FIN counts one.
        assert!(line.trim_start().starts_with(&format!("{} ", socket.unread_bytes + 1)));
    }
}

#[test]
fn a_leak_of_hundreds_agrees_with_ss() {
    let server = Server::local();
    let pairs: Vec<_> = (0..200).map(|_| (server.half_closed_client(b""), server.accept())).collect();
    let document = snapshot(server.port(), "0s");
    let filter = format!("sport = :{}", server.port());
    let ss = run(Command::new("ss").args(["-tanH", "state", "close-wait", &filter]));
    assert_eq!(document.sockets.len(), pairs.len());
    assert_eq!(String::from_utf8(ss.stdout).unwrap().lines().count(), pairs.len());
    let mut fds: Vec<u32> = document.sockets.iter().flat_map(own_fds).collect();
    let mut expected: Vec<u32> = pairs.iter().map(|(_, stream)| fd(stream)).collect();
    fds.sort_unstable();
    expected.sort_unstable();
    assert_eq!(fds, expected);
    assert!(document.sockets.is_sorted_by(|a, b| a.age.min_seconds >= b.age.min_seconds));
}

#[test]
fn other_states_are_answered_too() {
    let server = Server::local();
    let client = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let stream = server.accept();
    let port = server.port().to_string();
    let ask = |state: &str| loop {
        let found = document(&mut stuck(&[
            "--json",
            "--older-than",
            "0s",
            "--state",
            state,
            "--port",
            port.as_str(),
        ]));
        // Until the peer's acknowledgment, or its FIN, is there.
        if !found.sockets.is_empty() {
            return found;
        }
    };
    stream.shutdown(Shutdown::Write).unwrap();
    until_close_wait(client.local_addr().unwrap(), client.peer_addr().unwrap());
    let half_closed = ask("FIN-WAIT-2");
    assert_eq!(half_closed.sockets[0].diagnosis, None);
    assert_eq!(own_fds(&half_closed.sockets[0]), [fd(&stream)]);
    drop(client);
    drop(stream);
    let time_wait = ask("time_wait");
    assert_eq!(time_wait.sockets[0].state, Phase::TimeWait);
    assert!(time_wait.sockets[0].owners.is_empty());
}

#[test]
fn text_fits_eighty_columns_and_the_check_counts() {
    let server = Server::new("::", "127.0.0.1");
    let _pairs: Vec<_> = (0..3).map(|_| (server.half_closed_client(b""), server.accept())).collect();
    let port = server.port().to_string();
    for layout in [&[][..], &["--sockets"], &["--by", "port"], &["--by", "peer"]] {
        let arguments = [&["--older-than", "0s", "--port", port.as_str()][..], layout].concat();
        let output = run(stuck(&arguments).env("COLUMNS", "80"));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("3 sockets in CLOSE-WAIT for 0s or longer\n"));
        assert!(text.contains("not_read") && text.contains("\nsource: snapshot\n"));
        assert!(text.lines().all(|line| line.chars().count() <= 80));
        assert!(!text.contains('\x1b'));
    }
    let status = |more: &[&str]| {
        let arguments = [&["--check", "--port", port.as_str()][..], more].concat();
        run(&mut stuck(&arguments)).status.code()
    };
    assert_eq!(status(&["--older-than", "0s"]), Some(1));
    assert_eq!(status(&["--older-than", "0s", "--json"]), Some(1));
    assert_eq!(status(&["--older-than", "0s", "--max", "2"]), Some(1));
    assert_eq!(status(&["--older-than", "0s", "--max", "3"]), Some(0));
    assert_eq!(status(&["--older-than", "1h"]), Some(0));
    let output = run(&mut stuck(&["--older-than", "1h", "--port", &port]));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("No matching socket has been in CLOSE-WAIT for 1h or longer; 3 younger ones\n"));
}

#[test]
fn without_privileges_sockets_are_listed_and_owners_are_unknown() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let user = Nobody::new();
    // A live agent whose socket this user may not open.
    let path = user.folder().join("agent.sock");
    let _agent = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();

    let server = Server::local();
    let _pair = (server.half_closed_client(b""), server.accept());
    let port = server.port().to_string();
    let mut nobody = user.command();
    nobody.args(["stuck", "--older-than", "0s", "--port", &port]);
    nobody.env("TCPCLOSE_SOCKET", &path);
    let text = String::from_utf8(run(&mut nobody).stdout).unwrap();
    assert!(text.starts_with("1 socket in CLOSE-WAIT for 0s or longer\n") && text.contains("unknown, uid 0"));

    let document = document(nobody.arg("--json"));
    assert!(document.sockets[0].owners.is_empty());
    let printed = |words: &str| document.incomplete.iter().any(|remark| remark.contains(words));
    assert!(printed("are unknown: CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are needed"));
    assert!(printed("this user has no access to"));
    // Who names the socket wants that agent: nothing in a snapshot would say that it was not asked.
    let refused = nobody.args(["--check", "--socket"]).arg(&path).output().unwrap();
    let why = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{why}");
    assert!(why.contains("this user is not allowed to connect to it") && why.lines().count() == 1, "{why}");
}

#[test]
fn nonsense_is_one_line_and_status_two() {
    let cases: &[(&[&str], &str)] = &[
        (
            &["stuck", "--older-than", "banana"],
            "tcpclose: --older-than \"banana\": not a duration; for example 60s, 10m, 1h30m or 2days\n",
        ),
        (
            &["stuck", "--port", "70000"],
            "tcpclose: --port \"70000\": not a port; write a number from 1 to 65535\n",
        ),
        (
            &["stuck", "--pid", "x"],
            "tcpclose: --pid \"x\": not a process id; write a number as ps shows it\n",
        ),
        (&["stuck", "--limit", "-3"], ""),
        (&["stuck", "--state", "banana"], ""),
        (&["stuck", "--by", "banana"], ""),
        (&["stuck", "--max", "3"], ""),
        (&["stuck", "--banana"], ""),
        (&["banana"], ""),
        (&[], "tcpclose: arguments: no command; see tcpclose --help\n"),
    ];
    for (arguments, line) in cases {
        let output = run(Command::new(BINARY).args(*arguments));
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(printed.starts_with("tcpclose: ") && printed.ends_with('\n') && printed.lines().count() == 1);
        assert!(line.is_empty() || printed == *line);
    }
    for help in [&["--help"][..], &["stuck", "--help"], &["--version"]] {
        let output = run(Command::new(BINARY).args(help));
        assert!(output.status.success() && output.stderr.is_empty() && !output.stdout.is_empty());
    }
}

#[test]
fn an_agent_that_dies_mid_answer_is_one_line_and_none_is_a_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let ask = || {
        let mut command = Command::new(BINARY);
        command.args(["stuck", "--json"]).env("TCPCLOSE_SOCKET", &path);
        command
    };
    // Nothing there: a snapshot, unless the user named the socket.
    document(&mut ask());
    let named = run(ask().arg("--socket").arg(&path));
    let printed = String::from_utf8(named.stderr).unwrap();
    assert_eq!((named.status.code(), named.stdout.len()), (Some(2), 0));
    assert!(printed.contains("no agent is running there; ") && printed.lines().count() == 1, "{printed}");

    let listener = UnixListener::bind(&path).unwrap();
    let agent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"schema\":1,").unwrap();
    });
    let output = run(&mut ask());
    agent.join().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(
        printed.contains("closed the connection in the middle of its answer") && printed.lines().count() == 1
    );

    // The listener is gone, its socket file is still there.
    document(&mut ask());
}

#[test]
fn a_reader_that_has_gone_away_is_no_failure() {
    let (reader, writer) = UnixStream::pair().unwrap();
    drop(reader);
    let output = run(stuck(&["--json"]).stdout(Stdio::from(OwnedFd::from(writer))));
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
}
