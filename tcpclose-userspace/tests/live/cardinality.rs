//! 50,000 ports in a minute: the number of series stays within the promise, the ports that came first keep their names
//! from scrape to scrape, and memory stays bounded.

use crate::cases::place;

use crate::common;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use common::{Agent, Metrics};
use place::Netns;
use socket2::{Domain, Socket, Type};

/// Those of the local port range are among them.
const FIRST: u16 = 10_001;
const PORTS: u16 = 50_000;
/// `--max-ports`, as it is by default; a test's agent has more unless told otherwise.
const NAMES: usize = 32;
/// What docs/src/metrics.md promises by default.
const SERIES: usize = 3200;
/// Of those, what the unit test of the worst case leaves for metrics that no connection and no owner adds to.
const OWN: usize = 140;
/// Those that the unit test counts.
const COUNTED: [&str; 14] = [
    "tcpclose_state_duration_seconds",
    "tcpclose_transitions_total",
    "tcpclose_closes_total",
    "tcpclose_time_wait_ended_total",
    "tcpclose_unseen_phases_total",
    "tcpclose_reconcile_corrections_total",
    "tcpclose_time_wait_overflows_total",
    "tcpclose_ports_folded_total",
    "tcpclose_sockets",
    "tcpclose_oldest_socket_age_seconds",
    "tcpclose_stuck_sockets",
    "tcpclose_stuck_sockets_unproven",
    "tcpclose_stuck_owner_sockets",
    "tcpclose_stuck_diagnosis_sockets",
];
/// For the TIME-WAITs, which the agent tracks one by one, and whatever it takes to keep the ports apart.
const MEMORY: u64 = 64 << 20;

/// The clients' port. A chance port of theirs could be one of those, and its TIME-WAIT in the listener's way.
const CLIENTS: u16 = 5000;

/// A whole connection to a port that nobody else served, closed by the client first.
fn close_on(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from = Ipv4Addr::new(127, 1, (port >> 8) as u8, port as u8);
    client.bind(&SocketAddr::from((from, CLIENTS)).into()).unwrap();
    client.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    let (server, _) = listener.accept().unwrap();
    drop(client);
    drop(server);
}

/// The named pairs, side and port, of this scrape.
fn named(metrics: &Metrics) -> BTreeSet<(String, u16)> {
    let with = ["tcpclose_sockets", "tcpclose_state_duration_seconds_count", "tcpclose_closes_total"];
    let pairs = with.into_iter().flat_map(|name| {
        let pairs = metrics.select(name, &[]);
        let pairs =
            pairs.filter_map(|(labels, _)| Some((labels["side"].clone(), labels["port"].parse().ok()?)));
        pairs.collect::<Vec<_>>()
    });
    pairs.collect()
}

#[test]
#[ignore = "needs root"]
fn fifty_thousand_ports_in_a_minute() {
    let netns = Netns::new(&[]).unwrap();
    let run = || {
        netns.enter().unwrap();
        ports_here();
    };
    let ran = std::thread::scope(|scope| scope.spawn(run).join());
    ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn ports_here() {
    let agent = Agent::start(&["--max-ports", &NAMES.to_string()]);
    // A chance port; it makes no difference to what is promised.
    let taken: u16 = agent.address().rsplit(':').next().unwrap().parse().unwrap();
    let before = agent.resident();
    let begun = Instant::now();
    let mut names: BTreeSet<(String, u16)> = BTreeSet::new();
    let mut most = 0;
    for nth in 0..PORTS {
        if FIRST + nth != taken {
            close_on(FIRST + nth);
        }
        if nth % 5000 != 0 && nth + 1 != PORTS {
            continue;
        }
        let metrics = agent.metrics();
        let lines = metrics.text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(lines, metrics.sum("tcpclose_series", &[]) as usize);
        most = most.max(lines);
        let now = named(&metrics);
        assert!(now.len() <= NAMES, "{} pairs have names: {now:?}", now.len());
        assert!(now.is_superset(&names), "a name was lost: {names:?}, then {now:?}");
        names = now;
    }
    println!("{PORTS} ports in {:?}, {most} series at the most, names: {names:?}", begun.elapsed());
    let text = agent.metrics().text;
    let own = text.lines().filter(|line| !line.starts_with('#')).filter(|line| {
        let name = line.split(['{', ' ']).next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        !COUNTED.contains(&name) && !family.is_some_and(|family| COUNTED.contains(&family))
    });
    let own = own.count();
    println!("{own} series of the agent itself");
    assert!((20..=OWN).contains(&own), "{own}");
    assert!(most <= SERIES, "{most} series");

    // Names go in order of appearance. Other traffic of this host may have taken some, but none in between. Later ones are of
    // the parts for listeners, leaks and chance ports, as other tests have them.
    const LATER: usize = NAMES * 5 / 8;
    for side in ["client", "server"] {
        let ours = names.iter().filter(|(s, port)| s == side && (FIRST..FIRST + PORTS).contains(port));
        let mut ours: Vec<u16> = ours.map(|(_, port)| *port).collect();
        ours.sort_unstable();
        assert!(!ours.is_empty(), "no {side} port of ours has a name");
        let first = ours.iter().zip(FIRST..).take_while(|(port, nth)| *port == nth).count();
        assert!(first > 0 && ours.len() - first <= LATER, "the first to come are named: {ours:?}");
    }

    // What has no name is counted all the same, but for what the kernel kept from every program on the hook.
    let closes = 2 * usize::from(PORTS - 1);
    let least = closes - closes / 100;
    let metrics = agent.metrics_when(Duration::from_secs(30), "every close is counted", |metrics| {
        metrics.sum("tcpclose_closes_total", &[]) as usize >= least
    });
    assert!(metrics.sum("tcpclose_ports_folded_total", &[]) as usize >= least - 2 * NAMES);
    let grown = agent.resident().saturating_sub(before);
    println!("memory grew by {} KiB", grown >> 10);
    assert!(grown <= MEMORY, "memory grew by {grown} bytes");
}
