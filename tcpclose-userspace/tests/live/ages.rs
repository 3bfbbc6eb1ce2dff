//! CLOSE-WAITs that are older than the agent, made at known times in two network namespaces and two cgroups: whatever came
//! after the FIN, each proven interval contains the true age.

use crate::cases::peer;
use crate::cases::place;
use crate::common;
use crate::namespaces::named;
use crate::owners::cgroups;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use cgroups::Cgroups;
use common::{Agent, BINARY, free_port};
use named::{Named, Service};
use peer::Peer;
use place::Tun;
use serde_json::Value;
use socket2::{SockRef, TcpKeepalive};

/// Of each kind in each namespace.
const EACH: usize = 25;
/// Between two of them.
const APART: Duration = Duration::from_millis(40);

/// What comes after the FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum After {
    Nothing,
    /// The program writes to a peer that still reads.
    Data,
    Keepalives,
    /// The peer sends its FIN again.
    Fins,
}

impl After {
    const ALL: [Self; 4] = [Self::Nothing, Self::Data, Self::Keepalives, Self::Fins];
}

/// One socket in CLOSE-WAIT.
struct Waiting {
    after: After,
    netns: u64,
    peer: SocketAddr,
    /// It was entered after the first and before the second.
    entered: (SystemTime, SystemTime),
    server: TcpStream,
    client: Option<TcpStream>,
    by_hand: Option<Peer>,
}

/// Waits for the peer's FIN, which `close` sends.
fn closed(server: &mut TcpStream, close: impl FnOnce()) -> (SystemTime, SystemTime) {
    let before = SystemTime::now();
    close();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    (before, SystemTime::now())
}

fn make(netns: &Named, service: &Service, after: After, nth: usize) -> Waiting {
    if after == After::Fins {
        return make_by_hand(netns, service.port() + 1, nth);
    }
    let (client, mut server) = service.connect();
    if after == After::Keepalives {
        let each = Duration::from_secs(1);
        let keepalive = TcpKeepalive::new().with_time(each).with_interval(each);
        SockRef::from(&server).set_tcp_keepalive(&keepalive).unwrap();
    }
    let entered = closed(&mut server, || client.shutdown(Shutdown::Write).unwrap());
    let peer = client.local_addr().unwrap();
    Waiting { after, netns: netns.inum, peer, entered, server, client: Some(client), by_hand: None }
}

/// A connection whose other end is a peer made by hand, on a wire of its own.
fn make_by_hand(netns: &Named, port: u16, nth: usize) -> Waiting {
    let net = nth as u8;
    let v4 = |end| Ipv4Addr::new(10, 88, net, end);
    let wire =
        Tun::new(&format!("age{nth}"), v4(1), Ipv6Addr::new(0xfd88, 0, 0, nth as u16, 0, 0, 0, 1)).unwrap();
    let here = SocketAddr::from((v4(1), port));
    let listener = TcpListener::bind(here).unwrap();
    let peer = SocketAddr::from((v4(2), 40_000));
    let mut by_hand = Peer::new(wire, peer, here);
    by_hand.connect();
    let (mut server, _) = listener.accept().unwrap();
    let entered = closed(&mut server, || by_hand.fin());
    Waiting {
        after: After::Fins,
        netns: netns.inum,
        peer,
        entered,
        server,
        client: None,
        by_hand: Some(by_hand),
    }
}

/// What may come after a FIN, once more.
fn go_on(waiting: &mut [Waiting]) {
    for one in waiting {
        match (one.after, &mut one.by_hand) {
            (After::Data, _) => one.server.write_all(b"late").unwrap(),
            (After::Fins, Some(peer)) => peer.again(),
            // Keepalives come by themselves.
            _ => {}
        }
    }
}

/// Holds every interval of `document`, which was asked for before `returned`, against the truth. Prints how wide they are.
fn judge(waiting: &[Waiting], document: &Value, returned: SystemTime, source: &str) {
    let at = humantime::parse_rfc3339(document["at"].as_str().unwrap()).unwrap();
    let sockets: BTreeMap<(u64, String), &Value> = document["sockets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|socket| {
            let peer = socket["peer"].as_str().unwrap().to_owned();
            ((socket["netns"].as_u64().unwrap(), peer), socket)
        })
        .collect();
    let mut widths: BTreeMap<After, Vec<f64>> = BTreeMap::new();
    for one in waiting {
        let socket = sockets.get(&(one.netns, one.peer.to_string()));
        let age =
            &socket.unwrap_or_else(|| panic!("{source}: {:?} {} is missing", one.after, one.peer))["age"];
        let bound = |name: &str| age[name].as_f64().unwrap_or_else(|| panic!("{source}: {name} in {age}"));
        let (min, max) = (bound("min_seconds"), bound("max_seconds"));
        let (before, after) = one.entered;
        // The ages are those of an instant between `at` and `returned`.
        let most = returned.duration_since(before).unwrap().as_secs_f64();
        let least = at.duration_since(after).unwrap().as_secs_f64();
        assert!(min <= most && least <= max, "{source}: {:?}: {age}, true {least} to {most}", one.after);
        widths.entry(one.after).or_default().push(max - min);
    }
    let mut all: Vec<f64> = widths.values().flatten().copied().collect();
    for (after, widths) in &mut widths {
        println!("{source}: {after:?}: median width {:.3} s of {}", median(widths), widths.len());
    }
    println!("{source}: all: median width {:.3} s of {}", median(&mut all), all.len());
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "needs root"]
fn two_hundred_ages_are_inside_their_intervals() {
    let namespaces = [Named::new("old"), Named::new("older")];
    let mut waiting = Vec::new();
    let services = namespaces.each_ref().map(|netns| Service::listen(netns, free_port()));
    let mut cgroups = Cgroups::of_each_hierarchy().pop();
    let begun = SystemTime::now();
    for nth in 0..EACH {
        for (netns, (service, scope)) in namespaces.iter().zip(services.iter().zip(["a.scope", "b.scope"])) {
            // A socket is of the cgroup that its maker is in at the time.
            cgroups.iter_mut().for_each(|cgroups| cgroups.take(std::process::id(), OsStr::new(scope)));
            netns.inside(|| waiting.extend(After::ALL.map(|after| make(netns, service, after, nth))));
            sleep(APART);
        }
        if nth % 10 == 9 {
            go_on(&mut waiting);
        }
    }
    cgroups.iter().for_each(Cgroups::leave);
    println!("{} made in {:.1?}", waiting.len(), begun.elapsed().unwrap());
    assert_eq!(waiting.len(), 200);
    for _ in 0..3 {
        sleep(Duration::from_secs(1));
        go_on(&mut waiting);
    }
    sleep(Duration::from_millis(500));

    let older = ["--older-than", "1ms", "--json"];
    let output = Command::new(BINARY).args(["stuck", "--no-agent"]).args(older).output().unwrap();
    judge(&waiting, &serde_json::from_slice(&output.stdout).unwrap(), SystemTime::now(), "snapshot");
    for (hook, agent) in Agent::on_each_hook(&[]) {
        let output = agent.stuck(&older);
        judge(&waiting, &serde_json::from_slice(&output.stdout).unwrap(), SystemTime::now(), hook);
    }
    // The clients were there to the end.
    assert!(waiting.iter().all(|one| one.client.is_some() || one.by_hand.is_some()));
}
