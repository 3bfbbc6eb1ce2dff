//! A peer that sends its FIN and vanishes, while the program has written an answer: the kernel sends that again and again, for a
//! quarter of an hour by default, and the program does nothing.

use crate::cases::peer::Peer;
use crate::cases::place::Tun;
use crate::common;
use crate::namespaces::named::Named;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, free_port};
use tcpclose::names::Diagnosis;
use tcpclose::report::sockets::{AgeSeconds, SocketsDocument, StuckSocket};

const BOUND: Duration = Duration::from_secs(1);
/// The kernel sends again 0.2, 0.6, 1.4, 3.0 and 6.2 s after the write.
const PLAY: Duration = Duration::from_secs(7);

/// A connection by hand in a network namespace of its own: the peer has sent its FIN, and never says anything again.
struct Vanished {
    netns: Named,
    _peer: Peer,
    server: TcpStream,
    here: SocketAddr,
}

impl Vanished {
    fn new(netns: Named, port: u16) -> Self {
        let (v4, v6) = (Ipv4Addr::new(10, 81, 0, 1), Ipv6Addr::new(0xfd81, 0, 0, 0, 0, 0, 0, 1));
        let there = SocketAddr::from((Ipv4Addr::new(10, 81, 0, 2), 40_000));
        let here = SocketAddr::from((v4, port));
        let (peer, server) = netns.inside(|| {
            let mut peer = Peer::new(Tun::new("wire", v4, v6).unwrap(), there, here);
            let listener = TcpListener::bind(here).unwrap();
            peer.connect();
            let mut server = listener.accept().unwrap().0;
            peer.fin_and_ack();
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            (peer, server)
        });
        Self { netns, _peer: peer, server, here: there }
    }
}

/// What `output`, of `tcpclose stuck --json`, says of the one socket whose peer is `peer`.
fn reported(output: &std::process::Output, peer: SocketAddr) -> StuckSocket {
    assert!(output.status.success(), "{output:?}");
    let document: SocketsDocument = serde_json::from_slice(&output.stdout).unwrap();
    let mut found = document.sockets.into_iter().filter(|socket| socket.peer == peer);
    let one = found.next().unwrap();
    assert_eq!(found.next(), None);
    one
}

/// Two instants between which something happened.
type Between = (Instant, Instant);

/// Whether `age`, told within `asked`, may be that of something at `moment`.
fn holds(age: AgeSeconds, moment: Between, asked: Between) -> bool {
    let most = (asked.1 - moment.0).as_secs_f64();
    let least = asked.0.saturating_duration_since(moment.1).as_secs_f64();
    age.min_seconds <= most && age.max_seconds.is_none_or(|max| max >= least)
}

#[test]
#[ignore = "needs root"]
fn what_the_kernel_sends_again_is_no_work_of_the_program() {
    let port = free_port();
    let netns = Named::new("vanished");
    let agents = Agent::on_each_hook(&["--stuck-after", "1s,1h", "--name-port", &port.to_string()]);
    let mut scene = Vanished::new(netns, port);
    let before = Instant::now();
    scene.server.write_all(b"answer").unwrap();
    let written = (before, Instant::now());

    let port = port.to_string();
    let arguments = ["--json", "--port", &port, "--older-than", "1s"];
    let mut stuck_since = vec![None; agents.len()];
    while written.1.elapsed() < PLAY || stuck_since.contains(&None) {
        assert!(written.1.elapsed() < Duration::from_secs(60), "not stuck for an agent: {stuck_since:?}");
        for (i, (hook, agent)) in agents.iter().enumerate() {
            let asked = Instant::now();
            let metrics = agent.metrics();
            let labels = [("side", "server"), ("port", port.as_str())];
            let stuck = metrics.sum("tcpclose_stuck_sockets", &labels);
            let age = written.1.elapsed();
            match stuck_since[i] {
                None if stuck == 0.0 => {}
                None => {
                    println!("{hook}: stuck {age:?} after the write");
                    assert!(written.0.elapsed() >= BOUND, "{hook}: stuck {age:?} after a write");
                    stuck_since[i] = Some(asked);
                }
                Some(_) => assert_eq!(stuck, 1.0, "{hook}: no longer stuck, {age:?} after the write"),
            }
            // Younger than the bound it is not listed.
            let asked = Instant::now();
            if asked.duration_since(written.1) > 2 * BOUND {
                let output = agent.stuck(&arguments);
                check(hook, &reported(&output, scene.here), written, (asked, Instant::now()));
            }
        }
        let asked = Instant::now();
        if asked.duration_since(written.1) > 2 * BOUND {
            let snapshot =
                Command::new(BINARY).args(["stuck", "--no-agent"]).args(arguments).output().unwrap();
            check("snapshot", &reported(&snapshot, scene.here), written, (asked, Instant::now()));
        }
        sleep(Duration::from_millis(100));
    }
    // It writes once more: that is work.
    scene.server.write_all(b"more").unwrap();
    let again = Instant::now();
    for (hook, agent) in &agents {
        let socket = reported(&agent.stuck(&arguments), scene.here);
        assert_eq!(socket.written_bytes, Some(10));
        let write = socket.last_write.unwrap();
        assert!(write.min_seconds <= again.elapsed().as_secs_f64(), "{hook}: {write:?}");
    }
    scene.netns.delete();
}

/// Checks what `who` said within `asked`.
fn check(who: &str, socket: &StuckSocket, written: Between, asked: Between) {
    let age = asked.0.saturating_duration_since(written.1);
    let write = socket.last_write.expect("a dump has it");
    assert!(holds(write, written, asked), "{who}, {age:?} after the write: {write:?}");
    if age >= BOUND {
        assert_eq!(socket.diagnosis, Some(Diagnosis::NotClosed), "{who}, {age:?} after the write: {write:?}");
    }
    // The retransmission timer tells that the peer has been silent for half of that time and more.
    if age >= 3 * BOUND {
        assert!(
            write.min_seconds >= age.as_secs_f64() / 2.0 - 0.3,
            "{who}, {age:?} after the write: {write:?}"
        );
    }
}
