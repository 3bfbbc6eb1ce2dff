//! What passes between systemd and the agent: sockets, readiness, reloads, the watchdog.

use crate::common;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, free_port, try_get_unix};
use rustix::process::{Pid, Signal, kill_process};

/// The socket that NOTIFY_SOCKET names, and all that has come there.
struct Heard {
    socket: UnixDatagram,
    all: Vec<String>,
}

impl Heard {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, all: Vec::new() }
    }

    fn listen(&mut self) {
        let mut text = [0; 4096];
        loop {
            match self.socket.recv(&mut text) {
                Ok(n) => self.all.push(String::from_utf8(text[..n].to_vec()).unwrap()),
                Err(why) => return assert_eq!(why.kind(), ErrorKind::WouldBlock),
            }
        }
    }

    /// How many began with `what`.
    fn count(&mut self, what: &str) -> usize {
        self.listen();
        self.all.iter().filter(|text| text.starts_with(what)).count()
    }

    fn until(&mut self, what: &str, count: usize) {
        let end = Instant::now() + Duration::from_secs(30);
        while self.count(what) < count {
            assert!(Instant::now() < end, "no {count} of {what} in {:?}", self.all);
            sleep(Duration::from_millis(20));
        }
    }
}

#[test]
#[ignore = "needs root"]
fn systemd_learns_of_readiness_reloads_and_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let mut heard = Heard::at(&path);
    let mut command = Command::new(BINARY);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    let mut agent = Agent::start_by(command, &[]);
    heard.until("READY=1\nSTATUS=watching; metrics at http://127.0.0.1:", 1);
    assert_eq!(heard.count("READY=1"), 1);

    // Twice a second and more, of which a loaded machine may take some.
    let (before, start) = (heard.count("WATCHDOG=1"), Instant::now());
    heard.until("WATCHDOG=1", before + 4);
    println!("4 signs of life in {:?}", start.elapsed());
    // A process that hangs gives none.
    agent.signal(Signal::STOP);
    sleep(Duration::from_millis(200));
    let before = heard.count("WATCHDOG=1");
    sleep(Duration::from_millis(1500));
    assert_eq!(heard.count("WATCHDOG=1"), before);
    agent.signal(Signal::CONT);
    heard.until("WATCHDOG=1", before + 1);

    agent.signal(Signal::HUP);
    heard.until("RELOADING=1\nMONOTONIC_USEC=", 1);
    heard.until("READY=1\nSTATUS=reloaded: nothing has changed", 1);
    let at = |what: &str| heard.all.iter().position(|text| text.starts_with(what)).unwrap();
    assert!(at("RELOADING=1") < at("READY=1\nSTATUS=reloaded"));
    let usec: u64 = heard.all[at("RELOADING=1")].rsplit_once('=').unwrap().1.parse().unwrap();
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let ago = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000 - usec;
    assert!(ago < 60_000_000, "{ago} µs ago");

    assert!(agent.end(Signal::TERM).success());
    assert_eq!(heard.count("STOPPING=1"), 1);
    let last = heard.all.iter().rfind(|text| !text.starts_with("WATCHDOG")).unwrap();
    assert!(last.starts_with("STOPPING=1"), "{last}");
}

#[test]
#[ignore = "needs root"]
fn the_watchdog_of_another_process_and_nobody_get_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let mut heard = Heard::at(&path);
    let mut command = Command::new(BINARY);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000").env("WATCHDOG_PID", "1");
    let _agent = Agent::start_by(command, &[]);
    heard.until("READY=1", 1);
    sleep(Duration::from_millis(500));
    assert_eq!(heard.count("WATCHDOG=1"), 0);
    // Who does not exist is no reason not to run.
    let mut command = Command::new(BINARY);
    command.env("NOTIFY_SOCKET", folder.path().join("nobody")).env("WATCHDOG_USEC", "100000");
    assert_eq!(Agent::start_by(command, &[]).get("/readyz").0, 200);
}

/// An agent behind systemd-socket-activate; ended when dropped.
struct Activated(Child);

impl Drop for Activated {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

impl Activated {
    fn start(listen: &[&str], printed: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("systemd-socket-activate");
        for address in listen {
            command.args(["-l", address]);
        }
        command.arg(BINARY).arg("agent").args(arguments);
        let child = command.stdin(Stdio::null()).stderr(File::create(printed).unwrap()).spawn().unwrap();
        Self(child)
    }

    /// It is started by whoever connects first.
    fn until_ready(&mut self, socket: &Path, printed: &Path) {
        let end = Instant::now() + Duration::from_secs(60);
        while !try_get_unix(socket, "/readyz").is_ok_and(|(status, _)| status == 200) {
            let text = fs::read_to_string(printed).unwrap();
            assert!(self.0.try_wait().unwrap().is_none() && Instant::now() < end, "not ready: {text}");
            sleep(Duration::from_millis(50));
        }
    }
}

/// The status of `GET /healthz`.
fn status(address: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn sockets_of_systemd_are_served_in_place_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, printed) = (folder.path().join("x.sock"), folder.path().join("said"));
    let (v4, v6) = (format!("127.0.0.1:{}", free_port()), format!("[::1]:{}", free_port()));
    // An address that this host has not, and a folder that is not there: neither is looked at.
    let state = path("state");
    let own = ["--listen", "203.0.113.1:1", "--socket", "/nowhere/x.sock", "--state-dir", &state];
    let mut agent = Activated::start(&[&v4, &v6, &path("x.sock")], &printed, &own);
    let end = Instant::now() + Duration::from_secs(30);
    while !socket.exists() {
        assert!(Instant::now() < end, "systemd-socket-activate does not listen");
        sleep(Duration::from_millis(20));
    }
    agent.until_ready(&socket, &printed);
    assert_eq!((status(&v4), status(&v6)), (200, 200));
    let stuck = Command::new(BINARY).args(["stuck", "--json", "--socket", &path("x.sock")]).output().unwrap();
    assert!(
        stuck.status.success() && String::from_utf8(stuck.stdout).unwrap().contains(r#""source":"agent""#)
    );
    let text = fs::read_to_string(&printed).unwrap();
    for line in [
        format!("  metrics     http://{v4}/metrics"),
        format!("  metrics     http://{v6}/metrics"),
        format!("  queries     {}", path("x.sock")),
    ] {
        assert!(text.contains(&line), "no {line:?} in {text}");
    }
    drop(agent);
    assert!(socket.exists(), "it is systemd's to remove");
}

#[test]
#[ignore = "needs root"]
fn what_systemd_passes_must_be_listeners() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (listen, more, expected) in [
        (
            vec![path("a.sock"), path("b.sock")],
            None,
            "passed by systemd: a second unix socket; configure one",
        ),
        (vec![path("c.sock")], Some("--datagram"), "passed by systemd: not a TCP or unix stream listener; "),
    ] {
        let mut command = Command::new("systemd-socket-activate");
        command.args(more);
        for address in &listen {
            command.args(["-l", address]);
        }
        let printed = folder.path().join("said");
        command.arg(BINARY).args(["agent", "--config", "/dev/null"]);
        let child = command.stdin(Stdio::null()).stderr(File::create(&printed).unwrap()).spawn().unwrap();
        let mut agent = Activated(child);
        let (end, first) = (Instant::now() + Duration::from_secs(30), Path::new(&listen[0]));
        // Whoever comes first has it started.
        let reported = || match more {
            Some(_) => UnixDatagram::unbound().unwrap().send_to(b"x", first).is_ok(),
            None => std::os::unix::net::UnixStream::connect(first).is_ok(),
        };
        while !reported() {
            assert!(Instant::now() < end);
            sleep(Duration::from_millis(20));
        }
        let status = agent.0.wait().unwrap();
        let text = fs::read_to_string(&printed).unwrap();
        print!("{text}");
        assert_eq!(status.code(), Some(2), "{text}");
        assert!(
            text.lines().filter(|line| line.starts_with("tcpclose: ")).any(|line| line.contains(expected)),
            "{text}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn every_address_of_several_is_served_and_one_in_use_is_a_line() {
    let (port, other) = (free_port(), free_port());
    // The agent's own comes first: 127.0.0.1:0.
    let agent =
        Agent::start(&["--web.listen-address", &format!(":{port}"), "--listen", &format!("[::1]:{other}")]);
    agent.address();
    for address in
        [format!("127.0.0.1:{port}"), format!("[::1]:{port}"), format!("[::1]:{other}"), agent.address()]
    {
        assert_eq!(status(&address), 200, "{address}");
    }
    let printed = agent.printed();
    assert!(printed.contains(&format!("  metrics     http://[::]:{port}/metrics")), "{printed}");
    assert_eq!(printed.matches("at all addresses, IPv6 and IPv4").count(), 1, "{printed}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let taken = TcpListener::bind::<SocketAddr>(taken).unwrap();
    let address = taken.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(BINARY)
        .args([
            "agent",
            "--wait",
            "0s",
            "--listen",
            "127.0.0.1:0",
            "--listen",
            &address.to_string(),
            "--socket",
        ])
        .arg(folder.path().join("x.sock"))
        .arg("--state-dir")
        .arg(folder.path())
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        printed.starts_with(&format!("tcpclose: cannot listen on {address}: the address is in use; ")),
        "{printed}"
    );
    assert_eq!(printed.lines().count(), 1, "{printed}");
}
