//! `tcpclose ports`: with an agent its numbers are those of `/metrics`, without one those of the kernel.

use crate::common;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, Metrics, free_port, half_closed_client};
use serde_json::Value;
use tcpclose::linux::sock_diag;
use tcpclose::names::Flow;
use tcpclose_common::state::TcpState;

const PATIENCE: Duration = Duration::from_secs(60);

fn ports(arguments: &[&str]) -> Output {
    let output = Command::new(BINARY).arg("ports").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn of_port(document: &Value, port: u16) -> Vec<&Value> {
    document["ports"].as_array().unwrap().iter().filter(|row| row["port"] == port).collect()
}

/// What two scrapes with an answer in between have in common, if nothing changed but ages.
fn at_one_moment(agent: &Agent, port: u16) -> (Metrics, Value, Metrics) {
    let label = port.to_string();
    let series = |metrics: &Metrics| -> Vec<(String, BTreeMap<String, String>, String)> {
        let of_port = [("port", label.as_str())];
        let all = metrics.with(&of_port).filter(|(name, ..)| !name.contains("oldest"));
        all.map(|(name, labels, value)| (name.to_owned(), labels.clone(), value.to_string())).collect()
    };
    let until = Instant::now() + PATIENCE;
    loop {
        let before = agent.metrics();
        let (status, document) = agent.get("/ports");
        let after = agent.metrics();
        assert_eq!(status, 200, "{document}");
        if series(&before) == series(&after) {
            return (before, serde_json::from_str(&document).unwrap(), after);
        }
        assert!(Instant::now() < until, "{}", after.text);
    }
}

#[test]
#[ignore = "needs root"]
fn the_agents_numbers_are_those_of_its_metrics() {
    let port = free_port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let agents = Agent::on_each_hook(&["--stuck-after", "1s", "--name-port", &port.to_string()]);
    for _ in 0..20 {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        drop(listener.accept().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    let held: Vec<_> = (0..3).map(|_| (half_closed_client(port, b"x"), listener.accept().unwrap())).collect();
    for (hook, agent) in &agents {
        let label = port.to_string();
        agent.metrics_when(PATIENCE, "three are stuck and twenty wait", |metrics| {
            metrics.sum("tcpclose_stuck_sockets", &[("port", &label)]) == 3.0
                && metrics.sum("tcpclose_sockets", &[("port", &label), ("state", "time_wait")]) == 20.0
        });
        let (before, document, after) = at_one_moment(agent, port);
        let rows = of_port(&document, port);
        assert_eq!(rows.len(), 2, "{hook}: {document}");
        let mut compared = 0;
        for row in rows {
            let pair = [("port", label.as_str()), ("side", row["side"].as_str().unwrap())];
            assert_eq!(row["stuck"].as_f64().unwrap(), before.sum("tcpclose_stuck_sockets", &pair));
            assert_eq!(row["closes"].as_f64().unwrap(), before.sum("tcpclose_closes_total", &pair));
            let states = row["states"].as_array().unwrap();
            let all: f64 = states.iter().map(|of_state| of_state["sockets"].as_f64().unwrap()).sum();
            assert_eq!((row["sockets"].as_f64().unwrap(), all), (all, before.sum("tcpclose_sockets", &pair)));
            for of_state in states {
                let state = of_state["state"].as_str().unwrap();
                let labels = [pair[0], pair[1], ("state", state)];
                let sockets = of_state["sockets"].as_f64().unwrap();
                assert_eq!(sockets, before.sum("tcpclose_sockets", &labels), "{state}");
                if before.has("tcpclose_oldest_socket_age_seconds", &labels) {
                    let at = |metrics: &Metrics| metrics.sum("tcpclose_oldest_socket_age_seconds", &labels);
                    let oldest = of_state["oldest_seconds"].as_f64().unwrap();
                    assert!(at(&before) <= oldest && oldest <= at(&after), "{state}: {oldest}");
                }
                assert_eq!(sockets > 0.0, of_state["oldest_seconds"].is_f64());
                let durations = &of_state["durations"];
                if durations.is_null() {
                    assert!(!before.has("tcpclose_state_duration_seconds_count", &labels), "{state}");
                    continue;
                }
                compared += 1;
                let sum = before.sum("tcpclose_state_duration_seconds_sum", &labels);
                assert_eq!(
                    durations["count"].as_f64().unwrap(),
                    before.sum("tcpclose_state_duration_seconds_count", &labels)
                );
                assert_eq!(durations["sum_seconds"].as_f64().unwrap(), sum);
                for (key, q) in [("median", 0.5), ("p99", 0.99)] {
                    let (ours, theirs) =
                        (durations[key]["seconds"].as_f64(), before.duration_quantile(&labels, q));
                    // The agent divides whole nanoseconds.
                    let equal = ours.zip(theirs).is_none_or(|(a, b)| (a - b).abs() <= 2e-9 + 1e-9 * b);
                    assert!(
                        ours.is_some() == theirs.is_some() && equal,
                        "{state} {key}: {ours:?} {theirs:?}"
                    );
                }
            }
        }
        assert!(compared >= 4, "{hook}: {document}");
        // It tells of no single socket, and so is on the TCP port too.
        let url = format!("http://{}/ports", agent.address());
        let answer = Command::new("curl").args(["-sf", &url]).output().unwrap();
        let text = String::from_utf8(answer.stdout).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["schema"], 1);
        assert!(!text.contains("127.0.0.1") && !text.contains("pid"), "{text}");

        let socket = agent.socket();
        let arguments = ["--socket", socket.to_str().unwrap()];
        let document: Value =
            serde_json::from_slice(&ports(&[&arguments[..], &["--json"]].concat()).stdout).unwrap();
        assert_eq!(document["source"], "agent");
        assert_eq!(of_port(&document, port).iter().map(|row| row["stuck"].as_u64().unwrap()).sum::<u64>(), 3);
        let text = String::from_utf8(ports(&arguments).stdout).unwrap();
        println!("{hook}:\n{text}");
        let line = text.lines().find(|line| line.starts_with("server") && line.contains(&label)).unwrap();
        assert!(line.ends_with(" 3"), "{text}");
        // On a busy machine it adds how old the numbers are.
        assert!(text.contains("\nsource: agent"), "{text}");
    }
    drop(held);
}

#[test]
fn without_an_agent_a_snapshot_says_what_it_can() {
    let port = free_port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let held: Vec<_> = (0..3).map(|_| (half_closed_client(port, b"x"), listener.accept().unwrap())).collect();
    // One that has been in TIME-WAIT since a known moment.
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    drop(listener.accept().unwrap());
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    let flow = Flow::new(client.peer_addr().unwrap(), client.local_addr().unwrap());
    let closing = Instant::now();
    drop(client);
    while sock_diag::lookup(&flow, 0, None).unwrap().is_none_or(|seen| seen.state != TcpState::TimeWait) {}
    let closed = Instant::now();
    sleep(Duration::from_secs(1));

    let folder = tempfile::tempdir().unwrap();
    let nobody = folder.path().join("agent.sock");
    let nobody = nobody.to_str().unwrap();
    let without_agent = |arguments: &[&str]| {
        Command::new(BINARY).arg("ports").args(arguments).env("TCPCLOSE_SOCKET", nobody).output().unwrap()
    };
    for arguments in [&["--no-agent", "--json"][..], &["--json"]] {
        let least = closed.elapsed().as_secs_f64();
        let output = without_agent(arguments);
        let most = closing.elapsed().as_secs_f64();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&document["source"], &document["rate_seconds"]), (&"snapshot".into(), &Value::Null));
        let incomplete = document["incomplete"].to_string();
        assert!(incomplete.contains("only a running agent"), "{incomplete}");
        let rows = of_port(&document, port);
        let of = |side: &str| *rows.iter().find(|row| row["side"] == side).unwrap();
        let (server, unknown) = (of("server"), of("unknown"));
        // Nothing of a minisocket proves its side.
        assert_eq!((&server["sockets"], &unknown["sockets"]), (&3.into(), &1.into()));
        let state = |name: &str| {
            let row = if name == "time_wait" { unknown } else { server };
            let mut states = row["states"].as_array().unwrap().iter();
            states.find(|state| state["state"] == name).unwrap()["oldest_seconds"].as_f64().unwrap()
        };
        assert!(state("close_wait") < 60.0);
        // By its timer; four ticks of 10 ms may be missing: two that are never proven, and the timer's own.
        let oldest = state("time_wait");
        assert!((least - 0.04..=most).contains(&oldest), "{oldest} s, and it was {least} s to {most} s");
        assert_eq!((&server["closes"], &server["stuck"]), (&Value::Null, &0.into()));
    }
    let text = String::from_utf8(without_agent(&["--limit", "10000"]).stdout).unwrap();
    assert!(text.contains(&format!("source: snapshot (no agent at {nobody})")), "{text}");
    assert!(
        text.lines().any(|line| line.starts_with("server") && line.contains(&port.to_string())),
        "{text}"
    );
    drop(held);
}
