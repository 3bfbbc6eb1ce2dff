//! `tcpclose kill` on real sockets: exactly those that it says, with the program's and the peer's view of it.

#![expect(
    clippy::unwrap_used,
    reason = "clippy's leave for tests does not reach helpers of an integration test"
)]

mod common;
#[allow(dead_code, reason = "each test program uses its part")]
#[path = "namespaces/named.rs"]
mod named;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, Metrics, can_attach, free_port, half_closed_client};
use named::{Named, Service};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tcpclose_common::state::TcpState;
use tcpclose_userspace::kernel::{destroy, sock_diag};
use tcpclose_userspace::terms::Flow;

const PATIENCE: Duration = Duration::from_secs(30);
/// What these tests call stuck.
const BOUND: &str = "300ms";

fn listen() -> (TcpListener, u16) {
    let port = free_port();
    (TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap(), port)
}

/// A connection whose client has sent `data` and its FIN.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new(listener: &TcpListener, port: u16, data: &[u8]) -> Self {
        let client = half_closed_client(port, data);
        Self { client, server: listener.accept().unwrap().0 }
    }

    /// The server's socket, as the kernel has it.
    fn socket(&self) -> Option<sock_diag::Socket> {
        let flow = Flow::new(self.server.local_addr().unwrap(), self.client.local_addr().unwrap());
        sock_diag::lookup(&flow, 0, None).unwrap()
    }

    fn assert_alive(&self) {
        assert_eq!(self.socket().unwrap().state, TcpState::CloseWait);
        assert!(self.server.take_error().unwrap().is_none());
    }

    /// What program and peer see of SOCK_DESTROY.
    fn assert_destroyed(&mut self) {
        let error = self.server.take_error().unwrap().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert_eq!(self.client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

/// `tcpclose kill` of what is past [`BOUND`] on `port`, with `arguments`.
fn kill(port: u16, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["kill", "--older-than", BOUND, "--port", &port.to_string()]).args(arguments);
    command.stdin(Stdio::null());
    command
}

fn without_agent(port: u16, arguments: &[&str]) -> Output {
    kill(port, arguments).arg("--no-agent").output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line of a failure.
fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    println!("{said}");
    assert!(said.starts_with("tcpclose: ") && said.lines().count() == 1 && said.contains("; "), "{said}");
    said
}

/// Past [`BOUND`] by what a dump proves: the lower bound is the time since the last ACK.
fn grow_old() {
    sleep(Duration::from_millis(600));
}

/// Writes to its half-closed peer until it cannot.
fn stream_on(listener: &TcpListener, port: u16) -> (TcpStream, std::thread::JoinHandle<ErrorKind>) {
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

#[test]
fn a_dry_run_touches_nothing_and_yes_takes_exactly_the_neglected() {
    if !can_attach() {
        return;
    }
    let ((listener, port), (other_listener, other_port)) = (listen(), listen());
    let mut not_read = Pair::new(&listener, port, b"hello");
    let mut not_closed = Pair::new(&listener, port, b"hello");
    not_closed.server.read_to_end(&mut Vec::new()).unwrap();
    let (sending_client, sending) = stream_on(&listener, port);
    let other_port_pair = Pair::new(&other_listener, other_port, b"");
    let mut queued = half_closed_client(port, b"hello");
    grow_old();
    let young = {
        // Behind the queued one: it is not accepted either, whatever its age.
        half_closed_client(port, b"")
    };

    let dry = without_agent(port, &[]);
    let said = text(&dry);
    println!("{said}");
    assert_eq!(dry.status.code(), Some(0));
    assert!(said.starts_with("Would destroy 2 sockets: in CLOSE-WAIT, for 300ms or longer\n"), "{said}");
    assert!(said.contains("left alone: 1 still sending"), "{said}");
    assert!(said.contains("not accepted yet") && said.contains("--yes"), "{said}");
    not_read.assert_alive();
    not_closed.assert_alive();

    let done = without_agent(port, &["--yes"]);
    let said = text(&done);
    println!("{said}");
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(said.lines().filter(|line| line.starts_with("destroyed  ")).count(), 2, "{said}");
    assert!(said.contains("\ndestroyed 2 of 2\n"), "{said}");
    not_read.assert_destroyed();
    not_closed.assert_destroyed();
    other_port_pair.assert_alive();
    assert!(!sending.is_finished());

    // By name: who is still sending, and who waits to be accepted.
    // A snapshot proves no age of a socket whose peer goes on acknowledging.
    let done = without_agent(port, &["--yes", "--diagnosis", "still_sending", "--possibly"]);
    println!("{}", text(&done));
    assert_eq!(done.status.code(), Some(0));
    assert!(matches!(sending.join().unwrap(), ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe));
    drop(sending_client);
    let done = without_agent(port, &["--yes", "--diagnosis", "not_accepted", "--limit", "1"]);
    println!("{}", text(&done));
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(queued.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    // Its place in the queue it keeps, which is why it does not go unless named.
    let mut accepted = listener.accept().unwrap().0;
    // What was unread is not lost, and the end of the stream was there already; it is writing that fails.
    let mut data = Vec::new();
    accepted.read_to_end(&mut data).unwrap();
    assert_eq!(data, b"hello");
    assert_eq!(accepted.write(b"x").unwrap_err().kind(), ErrorKind::ConnectionAborted);
    let next = listener.accept().unwrap();
    assert_eq!(next.1, young.local_addr().unwrap());

    let nothing = without_agent(port, &["--yes", "--diagnosis", "not_closed"]);
    assert_eq!(nothing.status.code(), Some(0));
    assert!(text(&nothing).starts_with("Nothing to destroy"));
}

#[test]
fn the_kernel_takes_no_other_cookie() {
    if !can_attach() {
        return;
    }
    let (listener, port) = listen();
    let mut pair = Pair::new(&listener, port, b"");
    let socket = pair.socket().unwrap();
    let error = destroy::destroy(&socket.flow, 0, socket.cookie + 1).unwrap_err();
    assert!(destroy::is_gone(&error), "{error}");
    pair.assert_alive();
    destroy::destroy(&socket.flow, 0, socket.cookie).unwrap();
    pair.assert_destroyed();
    assert!(destroy::is_gone(&destroy::destroy(&socket.flow, 0, socket.cookie).unwrap_err()));
    // The same addresses lead to the listener now, which is not meant.
    assert_eq!(listener.local_addr().unwrap().port(), port);
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
}

#[test]
fn ipv6_goes_too() {
    if !can_attach() {
        return;
    }
    let port = free_port();
    let listener = TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, port)).unwrap();
    let client = TcpStream::connect((std::net::Ipv6Addr::LOCALHOST, port)).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut pair = Pair { client, server: listener.accept().unwrap().0 };
    while pair.socket().is_none_or(|socket| socket.state != TcpState::CloseWait) {}
    grow_old();
    let done = without_agent(port, &["--yes"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    pair.assert_destroyed();
}

#[test]
fn no_more_than_the_rate_go_in_a_second() {
    if !can_attach() {
        return;
    }
    let (listener, port) = listen();
    let mut pairs: Vec<Pair> = (0..11).map(|_| Pair::new(&listener, port, b"")).collect();
    grow_old();
    let began = Instant::now();
    let done = without_agent(port, &["--yes", "--rate", "10", "--json"]);
    let took = began.elapsed();
    println!("11 at 10 a second: {took:?}");
    assert!(took >= Duration::from_secs(1));
    assert_eq!(done.status.code(), Some(0));
    let report: Value = serde_json::from_str(&text(&done)).unwrap();
    assert_eq!((&report["destroyed"], &report["dry_run"]), (&11.into(), &false.into()));
    assert_eq!(report["source"], "snapshot");
    let sockets = report["sockets"].as_array().unwrap();
    assert_eq!(sockets.len(), 11);
    for socket in sockets {
        assert_eq!((&socket["result"]["outcome"], &socket["port"]), (&"destroyed".into(), &port.into()));
        assert!(socket["tried_at"].is_string() && socket["cookie"].is_string());
    }
    pairs.iter_mut().for_each(Pair::assert_destroyed);
}

/// `tcpclose kill`, and the lines that it prints.
struct Killing {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Killing {
    fn start(port: u16, arguments: &[&str]) -> Self {
        let mut child =
            kill(port, arguments).args(["--no-agent", "--yes"]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The lines to come, and how it ended.
    fn end(mut self) -> (Vec<String>, Option<i32>) {
        let lines = self.lines.by_ref().map(Result::unwrap).collect();
        (lines, self.child.wait().unwrap().code())
    }
}

#[test]
fn what_changes_between_the_list_and_its_turn_is_spared() {
    if !can_attach() {
        return;
    }
    let (listener, port) = listen();
    let mut pairs: Vec<Pair> = (0..3)
        .map(|_| {
            // The oldest goes first.
            sleep(Duration::from_millis(50));
            Pair::new(&listener, port, b"")
        })
        .collect();
    grow_old();
    let mut killing = Killing::start(port, &["--rate", "1"]);
    let first = killing.lines.next().unwrap().unwrap();
    assert!(first.starts_with("destroyed"), "{first}");
    killing.signal(Signal::STOP);
    // The second is closed by its program, the third begins to send.
    let third = pairs.pop().unwrap();
    let Pair { client, server } = pairs.pop().unwrap();
    drop((server, client));
    (&third.server).write_all(b"I am at work").unwrap();
    killing.signal(Signal::CONT);
    // Its turn may come late on a slow machine; the program goes on sending.
    let sender = third.server.try_clone().unwrap();
    std::thread::spawn(move || {
        for _ in 0..1000 {
            if (&sender).write_all(b".").is_err() {
                return;
            }
            sleep(Duration::from_millis(10));
        }
    });
    let (lines, code) = killing.end();
    println!("{first}\n{}", lines.join("\n"));
    assert_eq!(code, Some(1));
    assert!(lines[0].starts_with("spared") && lines[0].contains("it has gone"), "{lines:?}");
    assert!(lines[1].starts_with("spared") && lines[1].contains("it is still_sending now"), "{lines:?}");
    assert!(lines[2].starts_with("destroyed 1, spared 1 (it has gone), spared 1 (it is still_sending now)"));
    third.assert_alive();
    pairs[0].assert_destroyed();
}

#[test]
fn a_signal_stops_it_between_two_sockets_and_it_says_how_many_went() {
    if !can_attach() {
        return;
    }
    let (listener, port) = listen();
    let mut pairs: Vec<Pair> = (0..8).map(|_| Pair::new(&listener, port, b"")).collect();
    grow_old();
    for signal in [Signal::INT, Signal::TERM] {
        let mut killing = Killing::start(port, &["--rate", "1"]);
        let first = killing.lines.next().unwrap().unwrap();
        killing.signal(signal);
        let (lines, code) = killing.end();
        println!("{first}\n{}", lines.join("\n"));
        assert_eq!(code, Some(1));
        let all = pairs.iter().filter(|pair| pair.socket().is_some()).count();
        let gone = pairs.len() - all;
        let words = lines.iter().find(|line| line.starts_with("stopped by a signal: destroyed ")).unwrap();
        let went = 1 + lines.iter().filter(|line| line.starts_with("destroyed  ")).count();
        assert!(words.contains(&format!("destroyed {went} of ")) && gone == went, "{words}: {gone}");
        pairs.retain_mut(|pair| {
            let there = pair.socket().is_some();
            if !there {
                pair.assert_destroyed();
            }
            there
        });
    }
    pairs.iter().for_each(Pair::assert_alive);
}

#[test]
fn last_ack_goes_when_named() {
    if !can_attach() {
        return;
    }
    let (listener, port) = listen();
    let Pair { client, server } = Pair::new(&listener, port, b"");
    // Its FIN waits behind data that the client has no room for.
    server.set_nonblocking(true).unwrap();
    while (&server).write(&[0; 65536]).is_ok() {}
    let flow = Flow::new(server.local_addr().unwrap(), client.local_addr().unwrap());
    drop(server);
    let state = || sock_diag::lookup(&flow, 0, None).unwrap().map(|socket| socket.state);
    assert_eq!(state(), Some(TcpState::LastAck));
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(["kill", "--older-than", "0s", "--no-agent", "--yes", "--json"]);
        let output = command.args(["--port", &port.to_string()]).args(arguments).output().unwrap();
        let report: Value = serde_json::from_str(&text(&output)).unwrap();
        println!("{:?} {report}", output.status);
        report
    };
    assert_eq!(ask(&[])["sockets"], Value::Array(Vec::new()));
    assert_eq!(state(), Some(TcpState::LastAck));
    let report = ask(&["--state", "last_ack"]);
    match &report["destroyed"] {
        destroyed if *destroyed == 1 => assert_eq!(state(), None),
        // Before 6.11 an orphan is left, and that is not called destroyed.
        _ => {
            assert_eq!(report["refused"], 1);
            assert_eq!(state(), Some(TcpState::LastAck));
        }
    }
}

fn through(agent: &Agent, port: u16, arguments: &[&str]) -> Output {
    kill(port, arguments).arg("--socket").arg(agent.socket()).output().unwrap()
}

/// `POST path`, with an order that makes no sense: the status and the body of the answer.
fn post<S: Read + Write>(stream: S, path: &str) -> (u16, String) {
    post_body(stream, path, "{}")
}

fn post_body<S: Read + Write>(mut stream: S, path: &str, body: &str) -> (u16, String) {
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: {}", body.len());
    // At once: who refuses does not wait for the body.
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn an_agent_destroys_only_where_it_was_allowed_to() {
    if !can_attach() {
        return;
    }
    let (listener, port) = listen();
    let name_port = port.to_string();
    let strict = Agent::start(&["--name-port", &name_port]);
    let allowing = Agent::on_each_hook(&["--allow-kill", "--name-port", &name_port]);
    let mut pairs: Vec<Pair> = (0..4).map(|_| Pair::new(&listener, port, b"")).collect();
    grow_old();

    // Looking is allowed.
    let dry = through(&strict, port, &[]);
    assert!(text(&dry).contains("Would destroy 4 sockets") && text(&dry).contains("source: agent"));
    let said = refusal(&through(&strict, port, &["--yes"]));
    assert!(said.contains("without --allow-kill") && said.contains("--no-agent"), "{said}");
    pairs.iter().for_each(Pair::assert_alive);

    let unix = |agent: &Agent| UnixStream::connect(agent.socket()).unwrap();
    let tcp = |agent: &Agent| TcpStream::connect(agent.address()).unwrap();
    let (status, body) = post(unix(&strict), "/v1/kill");
    assert_eq!((status, body.lines().count()), (403, 1), "{body}");
    assert_eq!(post(tcp(&strict), "/v1/kill").0, 404);
    assert_eq!(strict.get("/v1/kill").0, 405);
    for (_, agent) in &allowing {
        assert_eq!(post(tcp(agent), "/v1/kill").0, 404);
        let (status, body) = post(unix(agent), "/v1/kill");
        assert_eq!((status, body.lines().count()), (400, 1), "{body}");
    }

    for (hook, agent) in &allowing {
        let done = through(agent, port, &["--yes", "--limit", "2"]);
        println!("{hook}: {}", text(&done));
        assert_eq!(done.status.code(), Some(0));
        assert!(text(&done).contains("destroyed 2 of 2"));
        let said = agent.said();
        let logged = said.lines().filter(|line| line.contains("destroyed 127.0.0.1:"));
        assert_eq!(logged.filter(|line| line.contains("asked by pid ") && line.contains("uid 0")).count(), 2);
    }
    pairs.iter_mut().for_each(Pair::assert_destroyed);
    for (hook, agent) in std::iter::once(&("strict", strict)).chain(&allowing) {
        let labels = [("port", name_port.as_str()), ("side", "server"), ("outcome", "destroyed")];
        let counted = |metrics: &Metrics| metrics.sum("tcpclose_closes_total", &labels) == 4.0;
        agent.metrics_when(PATIENCE, &format!("{hook}: four are counted as destroyed"), counted);
    }
}

/// A CLOSE-WAIT in a namespace with a name, one in our own, at the same port.
struct TwoNamespaces {
    other: Named,
    there: Service,
    here: Pair,
    port: u16,
    _listener: TcpListener,
}

impl TwoNamespaces {
    fn new(what: &str) -> Self {
        let other = Named::new(what);
        let (listener, port) = listen();
        let mut there = Service::listen(&other, port);
        there.close(&other, 1, 0);
        let here = Pair::new(&listener, port, b"");
        Self { other, there, here, port, _listener: listener }
    }

    fn lives_there(&self) -> bool {
        self.other.ss("close-wait", self.port) == 1
    }

    fn is_destroyed_there(&self) -> bool {
        let error = self.there.half_closed[0].take_error().unwrap();
        error.is_some_and(|error| error.kind() == ErrorKind::ConnectionAborted) && !self.lives_there()
    }

    fn run_there(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.other.name, BINARY, "kill", "--older-than", BOUND]);
        command.args(["--port", &self.port.to_string(), "--no-agent"]).args(arguments).output().unwrap()
    }
}

#[test]
fn a_socket_of_another_namespace_is_named_and_goes_and_ours_stays() {
    if !can_attach() {
        return;
    }
    let mut two = TwoNamespaces::new("kill");
    grow_old();
    let said = text(&without_agent(two.port, &[]));
    println!("{said}");
    assert!(said.contains("Would destroy 2 sockets") && said.contains(&two.other.name), "{said}");
    // Ours, and not the one there.
    let said = text(&without_agent(two.port, &["--yes", "--netns", "current"]));
    assert!(said.contains("destroyed 1 of 1") && !said.contains(&two.other.name), "{said}");
    two.here.assert_destroyed();
    assert!(two.lives_there());
    // The one there, and not ours.
    two.here = Pair::new(&two._listener, two.port, b"");
    grow_old();
    let done = two.run_there(&["--yes", "--netns", "current"]);
    assert!(text(&done).contains("destroyed 1 of 1"), "{done:?}");
    assert!(two.is_destroyed_there());
    two.here.assert_alive();
    // Both, each in its own.
    two.there.half_closed.clear();
    two.there.close(&two.other, 1, 0);
    grow_old();
    let said = text(&without_agent(two.port, &["--yes"]));
    println!("{said}");
    assert!(said.contains("destroyed 2 of 2"), "{said}");
    assert!(said.contains(&format!("destroyed  127.0.0.1:{} in {}  ", two.port, two.other.name)), "{said}");
    two.here.assert_destroyed();
    assert!(two.is_destroyed_there());
}

#[test]
fn an_agent_goes_into_the_namespace_of_the_socket() {
    if !can_attach() {
        return;
    }
    for (hook, agent) in &Agent::on_each_hook(&["--allow-kill"]) {
        let mut two = TwoNamespaces::new(hook);
        grow_old();
        // The agent is to have found the namespace: a dump tells who neglects a socket.
        let until = Instant::now() + PATIENCE;
        while !text(&through(agent, two.port, &[])).contains("Would destroy 2 sockets") {
            assert!(Instant::now() < until, "{}", text(&through(agent, two.port, &[])));
            sleep(Duration::from_millis(100));
        }
        let said = text(&through(agent, two.port, &["--yes"]));
        println!("{hook}: {said}");
        assert!(said.contains("destroyed 2 of 2") && said.contains(&two.other.name), "{said}");
        two.here.assert_destroyed();
        assert!(two.is_destroyed_there());
        let logged = format!("(net:[{}], cookie ", two.other.inum);
        assert!(agent.said().lines().any(|line| line.contains("destroyed ") && line.contains(&logged)));
    }
}

#[test]
fn without_the_right_to_enter_it_is_refused_with_the_capabilitys_name() {
    if !can_attach() {
        return;
    }
    let mut two = TwoNamespaces::new("closed");
    let setpriv = || {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--", BINARY]);
        command
    };
    grow_old();
    let done = setpriv()
        .args(["kill", "--older-than", BOUND, "--no-agent", "--yes", "--port", &two.port.to_string()])
        .output()
        .unwrap();
    let said = text(&done);
    println!("{said}");
    assert!(said.contains("destroyed 1 of 1") && said.contains("CAP_SYS_ADMIN"), "{said}");
    two.here.assert_destroyed();
    assert!(two.lives_there());
    // An agent that is to, and may not go there.
    let agent = match Agent::try_start_by(setpriv(), &["--allow-kill", "--stuck-after", BOUND]) {
        Ok(agent) => agent,
        Err(said) => return eprintln!("SKIPPED: this kernel loads no probe without CAP_SYS_ADMIN: {said}"),
    };
    let mut document = stuck_in(&two);
    assert_eq!(document["sockets"].as_array().unwrap().len(), 1);
    let socket = document["sockets"][0].take();
    assert_eq!(socket["netns"], two.other.inum);
    let order = serde_json::json!({
        "schema": 1, "cookie": socket["cookie"], "local": socket["local"], "peer": socket["peer"],
        "netns": socket["netns"], "netns_id": socket["netns_id"], "state": "close_wait",
        "diagnoses": ["not_read", "not_closed"], "stuck_after_seconds": 0.3, "max_age_seconds": null,
    });
    let (status, body) =
        post_body(UnixStream::connect(agent.socket()).unwrap(), "/v1/kill", &order.to_string());
    println!("{status} {body}");
    assert_eq!(status, 200);
    let outcome: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(outcome["outcome"], "refused");
    assert!(outcome["why"].as_str().unwrap().contains("CAP_SYS_ADMIN is needed to enter"), "{outcome}");
    assert!(two.lives_there());
}

/// `stuck --json` without an agent, for all namespaces.
fn stuck_in(two: &TwoNamespaces) -> Value {
    let mut command = Command::new(BINARY);
    command.args(["stuck", "--no-agent", "--json", "--older-than", BOUND, "--port", &two.port.to_string()]);
    serde_json::from_str(&text(&command.output().unwrap())).unwrap()
}

#[test]
fn without_the_capability_it_is_one_line_and_nothing_is_harmed() {
    if !can_attach() {
        return;
    }
    let (listener, port) = listen();
    let pair = Pair::new(&listener, port, b"");
    grow_old();
    let powerless = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-net_admin", BINARY, "kill", "--older-than", BOUND, "--no-agent"]);
        command.args(["--port", &port.to_string()]).args(arguments).output().unwrap()
    };
    assert!(text(&powerless(&[])).contains("Would destroy 1 socket:"));
    assert!(refusal(&powerless(&["--yes"])).contains("CAP_NET_ADMIN"));
    let agent = Command::new("setpriv")
        .args(["--bounding-set=-net_admin", BINARY, "agent", "--allow-kill", "--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    assert!(refusal(&agent).contains("--allow-kill: this process lacks CAP_NET_ADMIN"));
    pair.assert_alive();
}
