//! A TIME-WAIT whose timer was set anew, since the peer had not heard the last acknowledgment: its age, as each agent and a snapshot
//! tell it, holds the truth.

use crate::cases::peer::Peer;
use crate::cases::place::Tun;
use crate::cases::wire::{ACK, FIN};
use crate::common;
use crate::namespaces::named::Named;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, free_port};
use tcpclose::report::sockets::SocketsDocument;

/// How many connections: dumps, a second apart, fall between the two FINs of some.
const CONNECTIONS: u8 = 5;
/// Between the FIN and the same once more.
const AGAIN: Duration = Duration::from_millis(400);

struct Waiting {
    _peer: Peer,
    here: SocketAddr,
    /// Before and after it was entered.
    entered: (Instant, Instant),
    /// After its timer was set anew.
    again: Instant,
}

/// A connection that the server closed first and whose peer has sent its FIN twice.
fn wait(nth: u8, port: u16) -> Waiting {
    let (v4, v6) = (Ipv4Addr::new(10, 83, nth, 1), Ipv6Addr::new(0xfd83, 0, 0, nth.into(), 0, 0, 0, 1));
    let there = SocketAddr::from((Ipv4Addr::new(10, 83, nth, 2), 40_000));
    let here = SocketAddr::from((v4, port));
    let mut peer = Peer::new(Tun::new(&format!("again{nth}"), v4, v6).unwrap(), there, here);
    let listener = TcpListener::bind(here).unwrap();
    peer.connect();
    drop(listener.accept().unwrap());
    peer.expect(FIN | ACK);
    peer.ack();
    let before = Instant::now();
    peer.fin();
    let entered = (before, Instant::now());
    sleep(AGAIN);
    peer.again();
    Waiting { _peer: peer, here, entered, again: Instant::now() }
}

/// Checks every age that `output`, of `tcpclose stuck --state time_wait --json`, gives. `bounded`: each has an upper bound.
fn check(who: &str, output: &Output, waiting: &[Waiting], asked: Instant, bounded: bool) {
    let reported = Instant::now();
    assert!(output.status.success(), "{who}: {output:?}");
    let document: SocketsDocument = serde_json::from_slice(&output.stdout).unwrap();
    for Waiting { here, entered, again, .. } in waiting {
        let found = document.sockets.iter().find(|socket| socket.local == *here);
        let socket = found.unwrap_or_else(|| panic!("{who}: no {here} in {document:?}"));
        let (least, most) = ((asked - entered.1).as_secs_f64(), (reported - entered.0).as_secs_f64());
        let age = socket.age;
        let holds = age.min_seconds <= most && age.max_seconds.is_none_or(|max| max >= least);
        assert!(holds, "{who}: {age:?}, true {least} to {most}");
        assert_eq!(age.max_seconds.is_some(), bounded, "{who}: {age:?}");
        // Nor is it less than its timer tells.
        let timer = (asked - *again).as_secs_f64() - 0.2;
        assert!(age.min_seconds >= timer, "{who}: {age:?}, by its timer {timer}");
    }
}

#[test]
#[ignore = "needs root"]
fn the_age_of_a_time_wait_holds_its_entry_though_its_timer_was_set_anew() {
    let port = free_port();
    let netns = Named::new("rearmed");
    let diag = ["--time-wait", "diag"];
    let before = Agent::on_each_hook(&diag);
    // Their dumps do not see that FIN-WAIT-2 has ended before somebody asks: it was there at the last record.
    let seldom = Agent::on_each_hook(&[
        "--time-wait",
        "diag",
        "--dump-interval",
        "60s",
        "--reconcile-interval",
        "60s",
    ]);
    let waiting: Vec<Waiting> = netns.inside(|| (0..CONNECTIONS).map(|nth| wait(nth, port)).collect());
    // Their dumps have seen all.
    sleep(Duration::from_secs(3));
    let port = port.to_string();
    let arguments = ["--json", "--older-than", "0s", "--state", "time_wait", "--port", &port];
    for (hook, agent) in &before {
        let asked = Instant::now();
        check(hook, &agent.stuck(&arguments), &waiting, asked, true);
    }
    for (hook, agent) in &seldom {
        let asked = Instant::now();
        check(&format!("{hook}, seldom"), &agent.stuck(&arguments), &waiting, asked, true);
    }
    for (hook, agent) in &Agent::on_each_hook(&diag) {
        let asked = Instant::now();
        check(&format!("{hook}, later"), &agent.stuck(&arguments), &waiting, asked, false);
    }
    let asked = Instant::now();
    let snapshot = Command::new(BINARY).args(["stuck", "--no-agent"]).args(arguments).output().unwrap();
    check("snapshot", &snapshot, &waiting, asked, false);
    netns.delete();
}
