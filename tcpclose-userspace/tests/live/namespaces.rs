//! Every network namespace of the host: what is in them is found, its gauges equal `ss`, it is named, and no handle of the
//! agent's outlives a dump.

use crate::common;
pub mod held;
pub mod named;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, HOOKS, Metrics, free_port};
use named::{Named, Service, ip};
use serde_json::Value;

/// A round and its dumps, on a machine that does something else.
const PATIENCE: Duration = Duration::from_secs(60);

/// The phases whose gauges are held against `ss`, by both names.
const STATES: [(&str, &str); 3] =
    [("close_wait", "close-wait"), ("time_wait", "time-wait"), ("fin_wait_2", "fin-wait-2")];

fn gauge(metrics: &Metrics, port: u16, state: &str) -> usize {
    metrics.sum("tcpclose_sockets", &[("state", state), ("port", &port.to_string())]) as usize
}

/// Waits until the gauges of each service equal what `ss` shows in its namespace, and `all` says of the CLOSE-WAITs and
/// TIME-WAITs of each that they are all there: a close takes a moment.
fn until_equal(
    agent: &Agent,
    services: &[(&Named, u16)],
    when: &str,
    all: impl Fn(&[(usize, usize)]) -> bool,
) {
    let until = Instant::now() + PATIENCE;
    loop {
        let shown = || -> Vec<Vec<usize>> {
            let of = |netns: &Named, port| STATES.iter().map(|(_, ss)| netns.ss(ss, port)).collect();
            services.iter().map(|(netns, port)| of(netns, *port)).collect()
        };
        let (before, metrics, after) = (shown(), agent.metrics(), shown());
        let gauges: Vec<Vec<usize>> = services
            .iter()
            .map(|(_, port)| STATES.iter().map(|(state, _)| gauge(&metrics, *port, state)).collect())
            .collect();
        let counted: Vec<(usize, usize)> = gauges.iter().map(|of| (of[0], of[1])).collect();
        if before == after && gauges == after && all(&counted) {
            println!("{when}: gauges equal ss: {gauges:?}");
            return;
        }
        assert!(Instant::now() < until, "{when}: gauges {gauges:?}, ss {after:?}\n{}", metrics.text);
        sleep(Duration::from_millis(200));
    }
}

fn json(output: &std::process::Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn named_ports(ports: &[u16]) -> Vec<String> {
    ports.iter().map(|port| format!("--name-port={port}")).collect()
}

/// The sockets of `document` at `port`.
fn at_port(document: &Value, port: u16) -> Vec<&Value> {
    let sockets = document["sockets"].as_array().unwrap().iter();
    sockets.filter(|socket| socket["port"] == port).collect()
}

/// The remarks of `document`, one a line.
fn incomplete(document: &Value) -> String {
    let remarks = document["incomplete"].as_array().unwrap().iter();
    remarks.map(|remark| remark.as_str().unwrap().to_owned() + "\n").collect()
}

#[test]
#[ignore = "needs root"]
fn the_fullest_table_of_time_waits_is_reported_wherever_it_is() {
    let full = Named::new("full");
    full.inside(|| fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "10").unwrap());
    Service::listen(&full, free_port()).close(&full, 0, 9);
    let container = [("netns_owner", "container")];
    let ratio = Agent::start(&[]).metrics().sum("tcpclose_time_wait_limit_used_ratio", &container);
    println!("{ratio} of the fullest");
    assert!(ratio >= 0.9);
}

#[test]
#[ignore = "needs root"]
fn what_is_in_two_namespaces_is_counted_listed_and_named() {
    let (blue, red) = (Named::new("blue"), Named::new("red"));
    let mut services =
        [(&blue, Service::listen(&blue, free_port())), (&red, Service::listen(&red, free_port()))];
    let ports: Vec<u16> = services.iter().map(|(_, service)| service.port()).collect();
    // What was there first.
    for (netns, service) in &mut services {
        service.close(netns, 20, 20);
    }
    let names = named_ports(&ports);
    let mut arguments: Vec<&str> = names.iter().map(String::as_str).collect();
    arguments.extend(["--reconcile-interval", "2s"]);
    let agents = Agent::on_each_hook(&arguments);
    let current = Agent::start(&[&arguments[..], &["--netns", "current"]].concat());
    let at: Vec<(&Named, u16)> = vec![(&blue, ports[0]), (&red, ports[1])];
    for (hook, agent) in &agents {
        until_equal(agent, &at, &format!("{hook}, before"), |counted| {
            counted.iter().all(|(close_waits, _)| *close_waits == 20)
        });
    }
    // And what came later.
    for (n, (netns, service)) in services.iter_mut().enumerate() {
        service.close(netns, 10 + n, 10);
    }
    for (hook, agent) in &agents {
        until_equal(agent, &at, &format!("{hook}, after"), |counted| {
            counted.iter().map(|(close_waits, _)| *close_waits).eq([30, 31])
        });

        let document = json(&agent.stuck(&["--older-than", "1ms", "--json"]));
        for ((netns, port), n) in at.iter().zip([30, 31]) {
            let sockets = at_port(&document, *port);
            assert_eq!(sockets.len(), n, "{hook}: {document}");
            for socket in sockets {
                assert_eq!(socket["netns_name"], netns.name.as_str());
                assert_eq!(socket["netns"], netns.inum);
                assert_eq!(socket["diagnosis"], "not_closed");
                assert_eq!(socket["side"], "server");
                assert_eq!(socket["owners"][0]["pid"], std::process::id());
            }
        }
        for more in [&[][..], &["--sockets"]] {
            let output = agent.stuck(&[&["--older-than", "1ms"], more].concat());
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains(&blue.name) && text.contains(&red.name), "{text}");
        }
        let own = agent.stuck(&["--older-than", "1ms", "--netns", "current", "--json"]);
        assert!(ports.iter().all(|port| at_port(&json(&own), *port).is_empty()));
    }
    // Without an agent.
    let snapshot = |more: &[&str]| {
        let words = [&["stuck", "--no-agent", "--older-than", "1ms", "--json"], more].concat();
        json(&Command::new(BINARY).args(words).output().unwrap())
    };
    let document = snapshot(&[]);
    for ((netns, port), n) in at.iter().zip([30, 31]) {
        let sockets = at_port(&document, *port);
        assert_eq!(sockets.len(), n);
        assert!(sockets.iter().all(|socket| socket["netns_name"] == netns.name.as_str()));
    }
    let document = snapshot(&["--netns", "current"]);
    assert!(ports.iter().all(|port| at_port(&document, *port).is_empty()));

    // One that dumps its own namespace alone knows of the others what its hooks tell, and says so.
    let metrics = current.metrics();
    let close_waits: Vec<usize> = ports.iter().map(|port| gauge(&metrics, *port, "close_wait")).collect();
    assert_eq!(close_waits, [10, 11], "made since it runs");
    let document = json(&current.stuck(&["--older-than", "1ms", "--json"]));
    assert_eq!(at_port(&document, ports[0]).len(), 10);
    assert_eq!(at_port(&document, ports[0])[0]["netns"], blue.inum, "its record told it");
    assert!(incomplete(&document).contains("--netns current"), "{document}");
}

/// A namespace handle that stays open keeps a dead container's interfaces alive: here one end of a veth pair in our own
/// namespace, which goes with the other.
#[test]
#[ignore = "needs root"]
fn a_deleted_namespace_goes_while_agents_run_and_leaves_no_life() {
    let gone = Named::new("gone");
    let veth = format!("tc{}", std::process::id());
    ip(&["link", "add", &veth, "type", "veth", "peer", "name", "inside", "netns", &gone.name]);
    let mut service = Service::listen(&gone, free_port());
    let port = service.port();
    service.close(&gone, 5, 30);
    let names = named_ports(&[port]);
    let often = [names[0].as_str(), "--dump-interval", "20ms", "--reconcile-interval", "100ms"];
    let agents: Vec<(&str, Agent)> = HOOKS
        .into_iter()
        .map(|hook| (hook, Agent::start(&[&often[..], &["--state-hook", hook]].concat())))
        .collect();
    service.close(&gone, 5, 10);
    for (hook, agent) in &agents {
        until_equal(agent, &[(&gone, port)], hook, |counted| counted == [(10, 40)]);
    }
    service.abort();
    gone.delete();
    let deleted = Instant::now();
    while fs::exists(format!("/sys/class/net/{veth}")).unwrap() {
        assert!(deleted.elapsed() < PATIENCE, "somebody holds the namespace");
        sleep(Duration::from_millis(20));
    }
    println!("the veth went {:.1?} after the namespace's name", deleted.elapsed());
    for (hook, agent) in &agents {
        let metrics = agent.metrics_when(PATIENCE, "no life is left", |metrics| {
            ["close_wait", "last_ack", "fin_wait_2", "time_wait"]
                .iter()
                .all(|state| gauge(metrics, port, state) == 0)
        });
        let purged = metrics.sum("tcpclose_time_wait_ended_total", &[("reason", "purged")]);
        println!("{hook}: no life is left after {:.1?}, {purged} purged", deleted.elapsed());
        for name in ["tcpclose_time_wait_ended_total", "tcpclose_unseen_phases_total"] {
            for (labels, n) in metrics.select(name, &[]).filter(|(_, n)| *n > 0.0) {
                println!("{hook}: {name} {labels:?} {n}");
            }
        }
        let of_port = [("port", &*port.to_string()), ("outcome", "aborted")];
        let aborted = metrics.sum("tcpclose_closes_total", &of_port);
        assert_eq!(aborted, 10.0, "{hook}: {}", metrics.text);
    }
}

/// Without CAP_SYS_ADMIN nobody enters a namespace: of others the hooks tell, and it is said what is missing.
#[test]
#[ignore = "needs root"]
fn without_the_privilege_others_are_covered_by_hooks_and_that_is_reported() {
    let other = Named::new("closed");
    let mut service = Service::listen(&other, free_port());
    let port = service.port();
    service.close(&other, 4, 4);
    let names = named_ports(&[port]);
    let mut without = Command::new("setpriv");
    without.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--", BINARY]);
    let agent = match Agent::try_start_by(without, &[names[0].as_str()]) {
        Ok(agent) => agent,
        Err(printed) => {
            assert!(printed.contains("CAP_") || printed.contains("setpriv"), "{printed}");
            eprintln!("SKIPPED: this kernel loads no probe without CAP_SYS_ADMIN: {printed}");
            return;
        }
    };
    let until = Instant::now() + PATIENCE;
    while !agent.printed().contains("CAP_SYS_ADMIN") {
        assert!(Instant::now() < until, "{}", agent.printed());
        sleep(Duration::from_millis(20));
    }
    service.close(&other, 3, 3);
    agent.metrics_when(PATIENCE, "what the hooks tell", |metrics| gauge(metrics, port, "close_wait") == 3);
    let document = json(&agent.stuck(&["--older-than", "1ms", "--json"]));
    let sockets = at_port(&document, port);
    assert_eq!(sockets.len(), 3);
    assert_eq!(sockets[0]["netns"], other.inum);
    let printed = incomplete(&document);
    assert!(printed.contains("CAP_SYS_ADMIN") && printed.contains("older than the agent"), "{printed}");
    // A minisocket that nobody will hear of again is not held on to.
    assert_eq!(gauge(&agent.metrics(), port, "time_wait"), 0);

    let mut snapshot = Command::new("setpriv");
    snapshot.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--", BINARY]);
    snapshot.args(["stuck", "--no-agent", "--older-than", "1ms", "--json"]);
    let document = json(&snapshot.output().unwrap());
    assert!(at_port(&document, port).is_empty());
    assert!(incomplete(&document).contains("CAP_SYS_ADMIN"), "{document}");
}

/// In a mount namespace of one's own any namespace can be mounted at any path.
#[test]
#[ignore = "needs root"]
fn nobody_else_names_the_hosts_namespace() {
    let (port, script) = (
        free_port(),
        "mount -t tmpfs none /run && mkdir /run/netns && touch /run/netns/prod-db && \
         mount --bind /proc/self/ns/net /run/netns/prod-db && echo ready && read end",
    );
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).uid(65534).gid(65534);
    let mut attacker = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    if attacker.stdout.take().unwrap().read_exact(&mut ready).is_err() {
        attacker.wait().unwrap();
        return eprintln!("SKIPPED: no user may make a user namespace here");
    }
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let _client = common::half_closed_client(port, b"");
    let _server = listener.accept().unwrap();
    let agent = Agent::start(&[]);
    let arguments = ["stuck", "--older-than", "0s", "--json", "--no-agent"];
    let snapshot = json(&Command::new(BINARY).args(arguments).output().unwrap());
    for document in [snapshot, json(&agent.stuck(&["--older-than", "0s", "--json"]))] {
        let sockets = at_port(&document, port);
        assert!(sockets.len() == 1 && sockets[0].get("netns_name").is_none(), "{sockets:?}");
    }
    // Its shell reads the end of its input.
    drop(attacker.stdin.take());
    attacker.wait().unwrap();
}
