//! A server process that never closes: 1,000 sockets in CLOSE-WAIT, half of them from before the agent. Gauges and
//! `stuck` agree with `ss`, name the process and the descriptors, and give every age inside the test's brackets.

use crate::common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, Metrics, free_port};
use tcpclose::linux::host::TICKS_NS;
use tcpclose::linux::sock_diag;
use tcpclose::names::{Diagnosis, Flow, Phase, Side};
use tcpclose::report::sockets::{DocumentSource, SocketsDocument, StuckSocket};
use tcpclose_common::state::TcpState;

/// Makes this test program the leaking server, on the port that it names.
const LEAK_ON: &str = "TCPCLOSE_TEST_LEAK_ON";
/// What the server prints when it listens and when it has taken a batch to its end.
const DONE: &str = "the server is done";

const BATCH: usize = 500;
/// The first `--stuck-after`. The sockets from before the agent are connected longer ago than this and have been in
/// CLOSE-WAIT for less, when the agents start: unproven.
const BOUND: Duration = Duration::from_secs(5);

/// Not a test but a program, run by the test below: takes its clients' data to the end and never closes.
#[test]
fn program_leaking_server() {
    let Some(port) = std::env::var(LEAK_ON).ok().and_then(|port| port.parse::<u16>().ok()) else { return };
    // It goes when the test goes, whatever becomes of that.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    println!("{DONE}");
    let mut leaked = Vec::new();
    loop {
        let mut batch: Vec<TcpStream> = (0..BATCH).map(|_| listener.accept().unwrap().0).collect();
        for stream in &mut batch {
            stream.read_to_end(&mut Vec::new()).unwrap();
        }
        leaked.append(&mut batch);
        println!("{DONE}");
    }
}

struct Server {
    process: Child,
    printed: BufReader<ChildStdout>,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let port = free_port();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "leak::program_leaking_server", "--nocapture"])
            .env(LEAK_ON, port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let printed = BufReader::new(process.stdout.take().unwrap());
        let mut server = Self { process, printed, port };
        server.until_done();
        server
    }

    /// Returns when it has done what it is at: listening, a batch.
    fn until_done(&mut self) {
        let mut line = String::new();
        while !line.contains(DONE) {
            line.clear();
            assert_ne!(self.printed.read_line(&mut line).unwrap(), 0, "the server ended");
        }
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its sockets, by inode: the descriptors, as /proc has them.
    fn descriptors(&self) -> BTreeMap<u32, Vec<u32>> {
        let mut by_inode: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap() {
            let entry = entry.unwrap();
            let target = std::fs::read_link(entry.path()).unwrap();
            let inode =
                target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                by_inode.entry(inode).or_default().push(entry.file_name().to_str().unwrap().parse().unwrap());
            }
        }
        by_inode
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A connection that the server leaks, with what the test's clock says of its FIN.
struct Leak {
    client: Option<TcpStream>,
    address: SocketAddr,
    /// Before the FIN was sent.
    begun: Instant,
    /// The server's end was in CLOSE-WAIT.
    entered: Instant,
}

fn connect(port: u16) -> Vec<TcpStream> {
    (0..BATCH)
        .map(|_| {
            let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            client.write_all(b"hello").unwrap();
            client
        })
        .collect()
}

/// Ends the sending direction of `client`, and waits until the server's end has taken that.
fn leak(client: TcpStream) -> Leak {
    let flow = Flow::new(client.peer_addr().unwrap(), client.local_addr().unwrap());
    let begun = Instant::now();
    client.shutdown(Shutdown::Write).unwrap();
    let in_close_wait = || {
        let socket = sock_diag::lookup(&flow, 0, None).unwrap();
        socket.is_some_and(|socket| socket.state == TcpState::CloseWait)
    };
    while !in_close_wait() {}
    let entered = Instant::now();
    Leak { address: client.local_addr().unwrap(), client: Some(client), begun, entered }
}

/// The peers of the CLOSE-WAITs on `port`, as `ss` has them.
fn peers_by_ss(port: u16) -> BTreeSet<SocketAddr> {
    let filter = format!("sport = :{port}");
    let output = Command::new("ss").args(["-tanH", "state", "close-wait", &filter]).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split_whitespace().nth(3).unwrap().parse().unwrap()).collect()
}

/// `stuck --json` of the agent, and the instants around the question.
fn ask(agent: &Agent, port: u16, arguments: &[&str]) -> (Instant, SocketsDocument, Instant) {
    let before = Instant::now();
    let output = agent.stuck(&[&["--json", "--port", &port.to_string()], arguments].concat());
    let after = Instant::now();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let document: SocketsDocument = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document.source, DocumentSource::Agent);
    // Other tests have namespaces that nothing leads to, mount tables that are too long, and sockets without an owner.
    let of_others = ["network namespaces", "owners of "];
    let ours: Vec<&String> =
        document.incomplete.iter().filter(|why| !of_others.iter().any(|other| why.contains(other))).collect();
    assert_eq!(ours, [""; 0]);
    assert!(document.sockets.iter().all(|socket| !socket.owners.is_empty()), "{document:?}");
    (before, document, after)
}

/// The series of a port's leak.
struct Gauges {
    close_waits: f64,
    stuck: f64,
    stuck_for_an_hour: f64,
    unproven: f64,
    oldest: f64,
}

impl Gauges {
    fn of(metrics: &Metrics, port: u16) -> Self {
        let port = &port.to_string();
        let labels = [("side", "server"), ("port", port.as_str())];
        let close_wait = [("state", "close_wait"), labels[0], labels[1]];
        Self {
            close_waits: metrics.sum("tcpclose_sockets", &close_wait),
            stuck: metrics.sum("tcpclose_stuck_sockets", &[("age", "5s"), labels[0], labels[1]]),
            stuck_for_an_hour: metrics.sum("tcpclose_stuck_sockets", &[("age", "1h"), labels[0], labels[1]]),
            unproven: metrics.sum("tcpclose_stuck_sockets_unproven", &labels),
            oldest: metrics.sum("tcpclose_oldest_socket_age_seconds", &close_wait),
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_thousand_leaked_sockets_half_of_them_from_before_the_agent() {
    let mut server = Server::start();
    let early = connect(server.port);
    // Until their data is older than the bound, so that the kernel proves no more than an interval that contains it.
    let connected = Instant::now();
    sleep(BOUND + Duration::from_nanos(TICKS_NS));
    let mut early: Vec<Leak> = early.into_iter().map(leak).collect();
    server.until_done();
    assert!(connected.elapsed() >= BOUND);

    let agents = Agent::on_each_hook(&["--stuck-after", "5s,1h", "--name-port", &server.port.to_string()]);
    for (hook, agent) in &agents {
        // What passes the bound after a dump is neither until the next one has looked at it.
        let judged = |metrics: &Metrics| {
            let gauges = Gauges::of(metrics, server.port);
            gauges.stuck + gauges.unproven == BATCH as f64
        };
        let metrics = agent.metrics_when(Duration::from_secs(30), "each is stuck or may be", judged);
        let gauges = Gauges::of(&metrics, server.port);
        let after = Instant::now();
        println!(
            "{hook}, at the start: {} in CLOSE-WAIT, {} stuck, {} unproven, oldest {} s",
            gauges.close_waits, gauges.stuck, gauges.unproven, gauges.oldest
        );
        assert_eq!(gauges.close_waits as usize, BATCH);
        assert!(gauges.oldest <= (after - early[0].begun).as_secs_f64());
        // Nobody can have proven more than is true.
        if after - early[0].begun < BOUND {
            assert_eq!(gauges.unproven as usize, BATCH);
            let (_, document, asked) = ask(agent, server.port, &[]);
            if asked - early[0].begun < BOUND {
                assert_eq!(document.sockets.len(), BATCH, "listed as possibly stuck");
                assert!(document.sockets.iter().all(|socket| socket.age.may_be_past(BOUND.as_secs_f64())));
            }
        }
    }

    let mut late: Vec<Leak> = connect(server.port).into_iter().map(leak).collect();
    server.until_done();
    // Peers that went away altogether make no difference to the leak.
    for leak in late.iter_mut().chain(&mut early).step_by(2) {
        leak.client = None;
    }

    for (hook, agent) in &agents {
        // The gauge's oldest before and after the question: what the question finds lies between.
        let all = |metrics: &Metrics| Gauges::of(metrics, server.port).stuck as usize == 2 * BATCH;
        let stuck = agent.metrics_when(Duration::from_secs(30), "all are stuck", all);
        let first = Gauges::of(&stuck, server.port);
        let (before, document, after) = ask(agent, server.port, &[]);
        let second = Gauges::of(&agent.metrics(), server.port);
        for gauges in [&first, &second] {
            assert_eq!(gauges.close_waits as usize, 2 * BATCH);
            assert_eq!(
                (gauges.stuck as usize, gauges.stuck_for_an_hour, gauges.unproven),
                (2 * BATCH, 0.0, 0.0)
            );
        }
        let oldest = document.sockets.iter().map(|socket| socket.age.min_seconds).fold(0.0, f64::max);
        println!(
            "{hook}, in the end: {} stuck, oldest {oldest} s; {} s and {} s by the gauge",
            first.stuck, first.oldest, second.oldest
        );
        // A question looks again, and what it proves of a socket from before the agent may be better by a tick.
        let tick = TICKS_NS as f64 / 1e9;
        assert!(first.oldest <= oldest && oldest <= second.oldest + tick);
        assert!(second.oldest <= (Instant::now() - early[0].begun).as_secs_f64());
        assert!(first.oldest >= BOUND.as_secs_f64());

        assert_eq!(document.sockets.len(), 2 * BATCH);
        let peers: BTreeSet<SocketAddr> = document.sockets.iter().map(|socket| socket.peer).collect();
        assert_eq!(peers, peers_by_ss(server.port));
        let by_peer: BTreeMap<SocketAddr, &StuckSocket> =
            document.sockets.iter().map(|socket| (socket.peer, socket)).collect();
        let descriptors = server.descriptors();
        for (leak, exact) in
            early.iter().map(|leak| (leak, false)).chain(late.iter().map(|leak| (leak, true)))
        {
            let socket = by_peer[&leak.address];
            assert_eq!(
                (socket.state, socket.side, socket.port),
                (Phase::CloseWait, Side::Server, server.port)
            );
            assert_eq!(socket.diagnosis, Some(Diagnosis::NotClosed));
            assert_eq!(socket.unread_bytes, 0);
            let owners: Vec<(u32, u32)> = socket.owners.iter().map(|owner| (owner.pid, owner.fd)).collect();
            let expected: Vec<(u32, u32)> =
                descriptors[&socket.inode].iter().map(|&fd| (server.pid(), fd)).collect();
            assert_eq!(owners, expected);

            let (least, most) = ((before - leak.entered).as_secs_f64(), (after - leak.begun).as_secs_f64());
            assert_eq!(socket.age.exact, exact, "{:?}", socket.age);
            let max = socket.age.max_seconds.unwrap();
            assert!(socket.age.min_seconds <= most && max >= least, "{:?}: {least} to {most}", socket.age);
            if exact {
                assert!(
                    socket.age.min_seconds >= least && max <= most,
                    "{:?}: {least} to {most}",
                    socket.age
                );
            }
        }
    }
}
