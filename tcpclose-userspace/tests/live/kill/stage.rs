//! Connections to be killed, and `tcpclose kill` on them.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tcpclose::linux::sock_diag;
use tcpclose::names::Flow;
use tcpclose_common::state::TcpState;

use crate::common::{Agent, BINARY, half_closed_client};

pub const PATIENCE: Duration = Duration::from_secs(30);
/// What these tests call stuck.
///
/// Long enough for a busy machine: what a program has written within it is at work, and a snapshot looks for that for 200 ms.
pub const BOUND: &str = "2s";

/// A connection whose client has sent `data` and its FIN.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Pair {
    pub fn new(listener: &TcpListener, port: u16, data: &[u8]) -> Self {
        let client = half_closed_client(port, data);
        Self { client, server: listener.accept().unwrap().0 }
    }

    /// The server's socket, as the kernel has it.
    pub fn socket(&self) -> Option<sock_diag::Socket> {
        let flow = Flow::new(self.server.local_addr().unwrap(), self.client.local_addr().unwrap());
        sock_diag::lookup(&flow, 0, None).unwrap()
    }

    pub fn assert_alive(&self) {
        assert_eq!(self.socket().unwrap().state, TcpState::CloseWait);
        assert!(self.server.take_error().unwrap().is_none());
    }

    /// What program and peer see of SOCK_DESTROY.
    pub fn assert_destroyed(&mut self) {
        let error = self.server.take_error().unwrap().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert_eq!(self.client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

/// `tcpclose kill` of what is past [`BOUND`] on `port`, with `arguments`.
pub fn kill(port: u16, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    // The other end of all of these pairs is this process's.
    command
        .args(["kill", "--half-closed", "--older-than", BOUND, "--port", &port.to_string()])
        .args(arguments);
    command.stdin(Stdio::null());
    command
}

pub fn without_agent(port: u16, arguments: &[&str]) -> Output {
    kill(port, arguments).arg("--no-agent").output().unwrap()
}

pub fn text(output: &Output) -> String {
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line of a failure.
pub fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let printed = String::from_utf8(output.stderr.clone()).unwrap();
    println!("{printed}");
    assert!(
        printed.starts_with("tcpclose: ") && printed.lines().count() == 1 && printed.contains("; "),
        "{printed}"
    );
    printed
}

/// Past [`BOUND`] by what a dump proves: the lower bound is the time since the last ACK.
pub fn grow_old() {
    sleep(Duration::from_millis(2_400));
}

/// Writes to its half-closed peer until it cannot.
pub fn stream_on(listener: &TcpListener, port: u16) -> (TcpStream, std::thread::JoinHandle<ErrorKind>) {
    let Pair { client, mut server } = Pair::new(listener, port, b"");
    let mut reader = client.try_clone().unwrap();
    std::thread::spawn(move || while reader.read(&mut [0; 64]).is_ok_and(|n| n > 0) {});
    let writer = std::thread::spawn(move || {
        loop {
            if let Err(why) = server.write_all(b"news") {
                return why.kind();
            }
            sleep(Duration::from_millis(10));
        }
    });
    (client, writer)
}

/// `tcpclose kill`, and the lines that it prints.
pub struct Killing {
    pub child: Child,
    pub lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Killing {
    pub fn start(port: u16, arguments: &[&str]) -> Self {
        let mut child =
            kill(port, arguments).args(["--no-agent", "--yes"]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The lines to come, and how it ended.
    pub fn end(mut self) -> (Vec<String>, Option<i32>) {
        let lines = self.lines.by_ref().map(Result::unwrap).collect();
        (lines, self.child.wait().unwrap().code())
    }
}

pub fn through(agent: &Agent, port: u16, arguments: &[&str]) -> Output {
    kill(port, arguments).arg("--socket").arg(agent.socket()).output().unwrap()
}
