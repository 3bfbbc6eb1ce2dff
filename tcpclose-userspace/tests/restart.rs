//! What outlives an agent: ages, and nothing that is not true any more. Agents are killed, told to end, and followed by
//! others on the same state directory.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy's leave for tests does not reach helpers of an integration test"
)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, HOOKS, Metrics, can_attach, free_port, try_get_unix};
use rustix::process::Signal;
use tcpclose_common::state::TcpState;
use tcpclose_userspace::kernel::{host, sock_diag};
use tcpclose_userspace::query::document::{Document, StuckSocket};
use tcpclose_userspace::terms::{Flow, Phase, Side};
use tcpclose_userspace::tracker::journal;
use tcpclose_userspace::tracker::keep::Former;

/// Nothing takes longer, on a slow machine either.
const PATIENCE: Duration = Duration::from_secs(20);

/// An instant that lies between two readings of CLOCK_MONOTONIC, nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Bracket {
    begun: u64,
    done: u64,
}

/// `act` and when.
fn bracket(act: impl FnOnce()) -> Bracket {
    let begun = host::monotonic_ns();
    act();
    Bracket { begun, done: host::monotonic_ns() }
}

/// One connection within this process.
struct Connection {
    client: TcpStream,
    server: Option<TcpStream>,
    /// When the server's end came into the state that it is in.
    entered: Bracket,
}

impl Connection {
    fn peer(&self) -> SocketAddr {
        self.client.local_addr().unwrap()
    }

    fn flow(&self) -> Flow {
        Flow::new(self.client.peer_addr().unwrap(), self.peer())
    }

    fn until_in(&self, state: TcpState) {
        let there = || {
            let socket = sock_diag::lookup(&self.flow(), 0, None).unwrap();
            socket.is_some_and(|socket| socket.state == state)
        };
        while !there() {}
    }

    /// CLOSE-WAIT → LAST-ACK, where it stays: its FIN waits behind data that the client does not take.
    fn close(&mut self) {
        let server = self.server.take().unwrap();
        self.entered = bracket(|| {
            drop(server);
            self.until_in(TcpState::LastAck);
        });
    }
}

struct Port {
    listener: TcpListener,
    port: u16,
}

impl Port {
    fn new() -> Self {
        let port = free_port();
        Self { listener: TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap(), port }
    }

    fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        (client, self.listener.accept().unwrap().0)
    }

    /// A connection of which the server's end is in CLOSE-WAIT.
    fn close_wait(&self) -> Connection {
        let (client, server) = self.connect();
        Self::half_close(client, server)
    }

    fn close_waits(&self, n: usize) -> Vec<Connection> {
        (0..n).map(|_| self.close_wait()).collect()
    }

    /// The same, with all the data underway that fits.
    fn clogged(&self) -> Connection {
        let (client, mut server) = self.connect();
        server.set_nonblocking(true).unwrap();
        while server.write(&[0; 65536]).is_ok() {}
        Self::half_close(client, server)
    }

    fn half_close(client: TcpStream, server: TcpStream) -> Connection {
        let entered = Bracket { begun: 0, done: 0 };
        let mut connection = Connection { client, server: Some(server), entered };
        connection.entered = bracket(|| {
            connection.client.shutdown(Shutdown::Write).unwrap();
            connection.until_in(TcpState::CloseWait);
        });
        connection
    }

    /// A connection that ends as it should.
    fn whole(&self) {
        let (mut client, server) = self.connect();
        drop(server);
        client.read_to_end(&mut Vec::new()).unwrap();
    }

    /// What `agent` says of this port's sockets in `phase`, and when it was asked.
    fn ask(&self, agent: &Agent, phase: Phase) -> Answer {
        let path = format!("/v1/sockets?state={}&older_than=0s", phase.name());
        let mut text = String::new();
        let asked = bracket(|| text = agent.get(&path).1);
        let mut document: Document = serde_json::from_str(&text).unwrap();
        document.sockets.retain(|socket| [socket.local.port(), socket.peer.port()].contains(&self.port));
        Answer { sockets: document.sockets, asked }
    }
}

struct Answer {
    sockets: Vec<StuckSocket>,
    asked: Bracket,
}

impl Answer {
    fn find(&self, connection: &Connection) -> &StuckSocket {
        let peer = connection.peer();
        self.sockets.iter().find(|socket| socket.peer == peer).unwrap_or_else(|| panic!("{peer} is missing"))
    }

    /// The age that is given for `connection` is the true one. Whether it is exact.
    fn holds(&self, connection: &Connection) -> bool {
        let age = self.find(connection).age;
        let since = |then: u64, now: u64| now.saturating_sub(then) as f64 / 1e9;
        let (least, most) = (
            since(connection.entered.done, self.asked.begun),
            since(connection.entered.begun, self.asked.done),
        );
        assert!(age.min_seconds <= most, "{age:?}, and it is {most} s at most");
        assert!(age.max_seconds.is_none_or(|max| max >= least), "{age:?}, and it is {least} s at least");
        age.exact
    }
}

/// Ends a load when it is dropped, however that comes.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn state_file(folder: &Path) -> PathBuf {
    folder.join("state")
}

fn on_file(folder: &Path) -> Option<Former> {
    let bytes = fs::read(state_file(folder)).ok()?;
    Some(journal::read(&bytes, &host::boot_id(), host::monotonic_ns()).unwrap())
}

/// Returns when all of `connections` are in the state file in `folder`, as CLOSE-WAITs.
fn until_kept(folder: &Path, connections: &[&Connection]) {
    let start = Instant::now();
    loop {
        let kept: Vec<Flow> = on_file(folder).map_or_else(Vec::new, |former| {
            former.lives().filter(|kept| kept.phase == Phase::CloseWait).map(|kept| kept.flow).collect()
        });
        let missing = connections.iter().filter(|connection| !kept.contains(&connection.flow())).count();
        if missing == 0 {
            println!("{} sockets were kept after {:?}", connections.len(), start.elapsed());
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{missing} of {} are not kept", connections.len());
        sleep(Duration::from_millis(10));
    }
}

/// Scrapes `agent` from the first moment on until it is ready, and once more. Before the first reconcile there is no
/// gauge of any socket; after it there are all `close_waits` of `port`.
fn scrape_from_the_first_moment(agent: &mut Agent, port: u16, close_waits: usize) {
    let (mut early, mut ready) = (0, false);
    let start = Instant::now();
    let port = port.to_string();
    loop {
        assert!(start.elapsed() < PATIENCE, "not ready: {}", agent.said());
        // The first one is in the socket's queue before anything is served.
        let Ok((200, text)) = try_get_unix(&agent.socket(), "/metrics") else { continue };
        let metrics = Metrics::parse(&text);
        let here = [("state", "close_wait"), ("side", "server"), ("port", port.as_str())];
        if !metrics.has("tcpclose_sockets", &[]) {
            assert!(!ready, "ready without gauges");
            assert!(
                !metrics.has("tcpclose_stuck_sockets", &[])
                    && !metrics.has("tcpclose_oldest_socket_age_seconds", &[])
            );
            early += 1;
        } else {
            assert_eq!(metrics.sum("tcpclose_sockets", &here) as usize, close_waits);
        }
        if ready {
            break;
        }
        // Whoever is ready now has gauges the next time.
        ready = try_get_unix(&agent.socket(), "/readyz").is_ok_and(|(status, _)| status == 200);
    }
    println!("{early} scrapes came before the first reconcile and have no gauges");
    agent.until_ready().unwrap();
}

#[test]
fn ages_outlive_a_killed_agent() {
    if !can_attach() {
        return;
    }
    for hook in HOOKS {
        let folder = tempfile::tempdir().unwrap();
        let port = Port::new();
        let name = port.port.to_string();
        let arguments = ["--state-hook", hook, "--stuck-after", "500ms,1h", "--name-port", &name];
        let mut first = Agent::begin_in(folder.path(), &arguments);
        first.until_ready().unwrap();
        (0..3).for_each(|_| port.whole());
        let stayed = port.close_waits(20);
        let mut closed = port.close_waits(5);
        let mut stepped: Vec<Connection> = (0..5).map(|_| port.clogged()).collect();
        let all: Vec<&Connection> = stayed.iter().chain(&closed).chain(&stepped).collect();
        until_kept(folder.path(), &all);
        let here = [("port", name.as_str())];
        first.metrics_when(PATIENCE, "three closes", |metrics| {
            metrics.sum("tcpclose_closes_total", &here) >= 3.0
        });
        first.end(Signal::KILL);
        let saved = on_file(folder.path()).unwrap().until_ns();
        assert_ne!(saved, 0, "no record was lost");

        // While no agent runs.
        for connection in &mut closed {
            drop(connection.server.take());
        }
        stepped.iter_mut().for_each(Connection::close);
        let new = port.close_waits(10);
        sleep(Duration::from_millis(600));

        let mut second = Agent::begin_in(folder.path(), &arguments);
        // So that the agent sees records before its first dump is in.
        let (busy, ready) = (Port::new(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ready.load(Ordering::Relaxed) {
                    busy.whole();
                    sleep(Duration::from_micros(500));
                }
            });
            let _stop = Raise(&ready);
            scrape_from_the_first_moment(&mut second, port.port, stayed.len() + new.len());
        });
        assert!(!second.said().contains("WARN"), "{}", second.said());
        let metrics = second.metrics();
        assert_eq!(metrics.sum("tcpclose_closes_total", &here), 0.0, "counters start at 0");
        assert_eq!(metrics.sum("tcpclose_state_duration_seconds_count", &here), 0.0);
        let stuck = metrics.sum("tcpclose_stuck_sockets", &[("age", "500ms"), ("side", "server"), here[0]]);
        assert!(stuck as usize >= stayed.len(), "{stuck} stuck: an alert would resolve");

        let answer = port.ask(&second, Phase::CloseWait);
        assert_eq!(answer.sockets.len(), stayed.len() + new.len(), "the closed ones are not there");
        for connection in &stayed {
            assert!(answer.holds(connection), "{hook}: not exact: {:?}", answer.find(connection));
            assert_eq!(answer.find(connection).side, Side::Server);
        }
        for connection in &new {
            assert!(!answer.holds(connection), "{hook}: nobody saw it enter: {:?}", answer.find(connection));
        }
        // The clients are in FIN-WAIT-2 since, and the kernel no longer knows whose FIN was first.
        let clients = port.ask(&second, Phase::FinWait2);
        let exact =
            clients.sockets.iter().filter(|socket| socket.age.exact && socket.side == Side::Client).count();
        assert!(exact >= stayed.len(), "{exact} exact of {}", clients.sockets.len());

        let answer = port.ask(&second, Phase::LastAck);
        assert_eq!(answer.sockets.len(), stepped.len());
        for connection in &stepped {
            assert!(!answer.holds(connection));
            let age = answer.find(connection).age;
            let since_saved = (answer.asked.done - saved) as f64 / 1e9;
            assert!(age.max_seconds.unwrap() <= since_saved + 0.2, "{age:?}, and saved {since_saved} s ago");
        }

        // What was kept makes a sample of its whole length when it ends.
        let (begun, ended) = (stayed[0].entered, host::monotonic_ns());
        drop(stayed);
        let done = [("state", "close_wait"), here[0]];
        let metrics = second.metrics_when(PATIENCE, "20 samples", |metrics| {
            metrics.sum("tcpclose_state_duration_seconds_count", &done) >= 20.0
        });
        let mean = metrics.sum("tcpclose_state_duration_seconds_sum", &done) / 20.0;
        assert!(mean >= 0.6 && mean <= (host::monotonic_ns() - begun.begun) as f64 / 1e9, "{mean}, {ended}");
    }
}

#[test]
fn told_to_end_an_agent_saves_what_it_has_just_seen() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = Port::new();
    let mut first = Agent::begin_in(folder.path(), &[]);
    first.until_ready().unwrap();
    let late = port.close_waits(5);
    assert!(first.end(Signal::TERM).success());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state_file(folder.path())), 0o600);

    let mut second = Agent::begin_in(folder.path(), &[]);
    second.until_ready().unwrap();
    let answer = port.ask(&second, Phase::CloseWait);
    assert!(late.iter().all(|connection| answer.holds(connection)));
}

#[test]
fn a_state_of_no_use_is_one_line_and_the_agent_starts_without_it() {
    if !can_attach() {
        return;
    }
    let port = Port::new();
    let stayed = port.close_wait();
    let boot_id = host::boot_id();
    let sound = journal::write(&boot_id, &[], 0);
    let mut flipped = sound.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let elsewhere = journal::write("11111111-2222-3333-4444-555555555555", &[], 0);
    let torn = [&sound[..], b"torn"].concat();
    for (bytes, complaint) in [
        (flipped, Some("it is corrupt (the checksum of a batch differs)")),
        (b"banana".to_vec(), Some("it is corrupt")),
        (Vec::new(), Some("it is corrupt")),
        (elsewhere, Some("it is from another boot of this host")),
        (torn, None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = state_file(folder.path());
        fs::write(&path, bytes).unwrap();
        let mut agent = Agent::begin_in(folder.path(), &[]);
        agent.until_ready().unwrap();
        let said = agent.said();
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("is not used")).collect();
        println!("{lines:?}");
        match complaint {
            Some(why) => assert!(
                matches!(lines[..], [line] if line.contains(why) && line.contains(path.to_str().unwrap()) && line.contains("nothing is to be done")),
                "{said}"
            ),
            None => assert_eq!(lines.len(), 0, "{said}"),
        }
        let answer = port.ask(&agent, Phase::CloseWait);
        answer.holds(&stayed);
        // A new one takes its place.
        until_kept(folder.path(), &[&stayed]);
    }
}

#[test]
fn a_directory_that_will_not_do_is_refused() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("file"), "").unwrap();
    fs::create_dir(path("open")).unwrap();
    fs::set_permissions(path("open"), PermissionsExt::from_mode(0o777)).unwrap();
    fs::create_dir(path("theirs")).unwrap();
    std::os::unix::fs::chown(path("theirs"), Some(65534), None).unwrap();
    for (name, why) in [
        ("file", "it is no directory; choose another directory with --state-dir"),
        ("missing/x", "missing does not exist; make it"),
        ("open", "others may write there; chmod go-w it"),
        ("theirs", "it belongs to user 65534; chown it"),
    ] {
        let output = Command::new(BINARY)
            .args(["agent", "--listen", "127.0.0.1:0", "--socket"])
            .arg(path("tcpclose.sock"))
            .arg("--state-dir")
            .arg(path(name))
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        print!("{said}");
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with("tcpclose: cannot keep state in ") && said.contains(why), "{said}");
        assert_eq!(said.lines().count(), 1);
    }
    // In a directory that is fit it makes one more, for itself.
    let mut agent = Agent::begin_in(&path("new"), &[]);
    agent.until_ready().unwrap();
    assert_eq!(fs::metadata(path("new")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_second_agent_waits_for_the_directory_and_takes_over() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = Port::new();
    let mut first = Agent::begin_in(folder.path(), &[]);
    first.until_ready().unwrap();
    let stayed = port.close_waits(3);

    let mut refused = Agent::begin_in(folder.path(), &["--wait", "0s"]);
    let said = refused.until_ready().unwrap_err();
    let holder = format!(
        "another agent (pid {}) has it; stop it, or give this one a directory of its own",
        first.pid()
    );
    assert!(said.contains("exit status: 2") && said.contains(&holder), "{said}");

    let mut second = Agent::begin_in(folder.path(), &["--wait", "1h"]);
    let start = Instant::now();
    while second.said().is_empty() {
        assert!(start.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10));
    }
    // It says so once.
    sleep(Duration::from_millis(500));
    let said = second.said();
    assert!(said.contains("waiting up to 1h for another agent (pid ") && said.lines().count() == 1, "{said}");
    assert!(!second.socket().exists());
    assert!(first.end(Signal::TERM).success());
    second.until_ready().unwrap();
    let answer = port.ask(&second, Phase::CloseWait);
    assert!(stayed.iter().all(|connection| answer.holds(connection)));

    // One that is killed leaves no lock behind.
    second.end(Signal::KILL);
    let mut third = Agent::begin_in(folder.path(), &["--wait", "0s"]);
    third.until_ready().unwrap();
    let answer = port.ask(&third, Phase::CloseWait);
    assert_eq!(answer.sockets.len(), stayed.len());
}

/// Killed when dropped: a test that fails leaves none behind.
struct Started(Vec<std::process::Child>);

impl Drop for Started {
    fn drop(&mut self) {
        for agent in &mut self.0 {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// Two agents that find a dead one's socket at the same moment: one has it, and it is served there.
#[test]
fn of_agents_that_start_at_once_one_has_the_socket() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("tcpclose.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    // As an agent does that is between its look and its bind.
    let looking = fs::File::open(folder.path()).unwrap();
    rustix::fs::flock(&looking, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let start = |n: usize| {
        Command::new(BINARY)
            .args(["agent", "--listen", "127.0.0.1:0", "--wait", "0s", "--socket"])
            .arg(&socket)
            .arg("--state-dir")
            .arg(folder.path().join(format!("state.{n}")))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut agents = Started((0..4).map(start).collect());
    let begun = Instant::now();
    sleep(Duration::from_secs(1));
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_err(), "one of them has not waited");
    drop(looking);
    let running = |Started(agents): &mut Started| {
        agents.iter_mut().map(|agent| usize::from(agent.try_wait().unwrap().is_none())).sum::<usize>()
    };
    while running(&mut agents) > 1 {
        assert!(begun.elapsed() < PATIENCE, "{} agents have one socket", running(&mut agents));
        sleep(Duration::from_millis(20));
    }
    while !try_get_unix(&socket, "/readyz").is_ok_and(|(status, _)| status == 200) {
        assert!(begun.elapsed() < PATIENCE && running(&mut agents) == 1);
        sleep(Duration::from_millis(20));
    }
    for agent in &mut agents.0 {
        if agent.try_wait().unwrap().is_none() {
            rustix::process::kill_process(rustix::process::Pid::from_child(agent), Signal::TERM).unwrap();
            assert!(agent.wait().unwrap().success());
        }
    }
    assert!(!socket.exists());
}

#[test]
fn killed_again_and_again_under_load() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (port, busy) = (Port::new(), Port::new());
    let name = port.port.to_string();
    let arguments = ["--name-port", name.as_str()];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut connections = 0;
            while !stop.load(Ordering::Relaxed) {
                busy.whole();
                // A thousand a second or so: other tests want the machine, too.
                sleep(Duration::from_millis(1));
                connections += 1;
            }
            connections
        });
        let stopping = Raise(&stop);
        let mut stayed: Vec<Connection> = Vec::new();
        for round in 0..=10 {
            let mut agent = Agent::begin_in(folder.path(), &arguments);
            agent.until_ready().unwrap();
            assert!(!agent.said().contains("is not used"), "{}", agent.said());
            let answer = port.ask(&agent, Phase::CloseWait);
            assert_eq!(answer.sockets.len(), stayed.len());
            for connection in &stayed {
                assert!(answer.holds(connection), "round {round}: {:?}", answer.find(connection));
            }
            if round == 10 {
                break;
            }
            stayed.extend(port.close_waits(3));
            until_kept(folder.path(), &stayed.iter().collect::<Vec<_>>());
            // At any moment of a save, too.
            sleep(Duration::from_millis(37 * round));
            agent.end(Signal::KILL);
        }
        drop(stopping);
        println!("{} connections meanwhile", load.join().unwrap());
    });
}

#[test]
fn a_full_disk_is_one_line_until_there_is_room_again() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("tcpclose.sock");
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let said = folder.path().join("said");
    let mounts = "mount -t tmpfs -o size=16k,mode=0700 none \"$DISK\"; exec \"$@\"";
    let agent = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-ec", mounts, "sh", BINARY])
        .args(["agent", "--listen", "127.0.0.1:0", "--socket"])
        .arg(&socket)
        .arg("--state-dir")
        .arg(&disk)
        .env("DISK", &disk)
        .stderr(fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let mut agents = Started(vec![agent]);
    let agent = &mut agents.0[0];
    let said = || fs::read_to_string(&said).unwrap();
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < 2 * PATIENCE, "not {what}: {}", said());
            sleep(Duration::from_millis(20));
        }
    };
    until("ready", &|| try_get_unix(&socket, "/readyz").is_ok_and(|(status, _)| status == 200));
    let port = Port::new();
    let many = port.close_waits(200);
    until("full", &|| said().contains("cannot be written"));
    sleep(Duration::from_secs(2));
    assert_eq!(said().lines().filter(|line| line.contains("WARN")).count(), 1, "{}", said());
    assert!(said().contains("No space left on device") && said().contains("make room"), "{}", said());
    assert_eq!(try_get_unix(&socket, "/healthz").unwrap().0, 200);
    drop(many);
    let kept = port.close_wait();
    until("kept again", &|| said().contains("is kept again"));
    let there = PathBuf::from(format!("/proc/{}/root", agent.id())).join(disk.strip_prefix("/").unwrap());
    until_kept(&there, &[&kept]);
    rustix::process::kill_process(rustix::process::Pid::from_child(agent), Signal::TERM).unwrap();
    assert!(agent.wait().unwrap().success());
}

/// What saving costs while 100,000 TIME-WAITs are there and connections close as fast as this machine makes them.
#[test]
#[ignore = "a measurement"]
fn what_saving_costs_under_load() {
    if !can_attach() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, free_port())).unwrap();
    let port = listener.local_addr().unwrap().port();
    let whole = |n: u64| {
        // 28,000 ports are not enough for one address.
        let mut client = TcpStream::connect((Ipv4Addr::new(127, 0, 0, 2 + (n % 16) as u8), port)).unwrap();
        drop(listener.accept().unwrap());
        client.read_to_end(&mut Vec::new()).unwrap();
    };
    (0..100_000).for_each(whole);
    let mut agent = Agent::begin_in(folder.path(), &["--log-level", "debug"]);
    agent.until_ready().unwrap();
    let start = Instant::now();
    let mut closes = 0;
    while start.elapsed() < Duration::from_secs(22) {
        whole(closes);
        closes += 1;
    }
    println!("{} closes a second, each of two sockets", closes as f64 / start.elapsed().as_secs_f64());
    println!("{} TIME-WAITs", agent.metrics().sum("tcpclose_sockets", &[("state", "time_wait")]));
    let said = agent.said();
    let costs: Vec<&str> = said.lines().filter(|line| line.contains(" saves in ")).collect();
    println!("{}", costs.join("\n"));
    assert_ne!(costs.len(), 0);
}
