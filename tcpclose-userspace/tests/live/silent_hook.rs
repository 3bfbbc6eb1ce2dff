//! The classic tracepoint's record as its format tells of it, right and wrong: a format is mounted over tracefs' own, for the
//! agent alone. With a wrong one the agent's program runs and finds nothing, as on a kernel that lays its records out in a way
//! that nobody knew.

use crate::common;
use crate::namespaces::named::Named;

use std::fs;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Agent, BINARY, Metrics, is_lacking};
use tempfile::TempDir;

/// The reconcile is asked for each second; a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary through a mount namespace in which tracefs tells `format`.
fn with_format(folder: &Path, format: &str) -> Command {
    let file = folder.join("format");
    fs::write(&file, format).unwrap();
    let script = "set -e; mount -t tracefs none /sys/kernel/tracing; \
                  mount --bind \"$0\" /sys/kernel/tracing/events/sock/inet_sock_set_state/format; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", script]).arg(file).arg(BINARY);
    command
}

/// What this kernel's own tells.
fn format() -> String {
    const FILE: &str = "/sys/kernel/tracing/events/sock/inet_sock_set_state/format";
    let script = format!("mount -t tracefs none /sys/kernel/tracing && cat {FILE}");
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The offset of a field, as a format writes it: `offset:24;`.
fn offset<'a>(format: &'a str, field: &str) -> &'a str {
    let line = format.lines().find(|line| line.contains(&format!(" {field};"))).unwrap();
    line.split_whitespace().find(|part| part.starts_with("offset:")).unwrap()
}

/// `format` with the fields named here at each other's place.
fn with_places(format: &str, places: &[(&str, &str)]) -> String {
    let moved = |line: &str| {
        let place = places.iter().find(|(field, _)| line.contains(&format!(" {field};")));
        place.map_or(line.to_owned(), |(field, of)| line.replace(offset(format, field), offset(format, of)))
    };
    format.lines().map(moved).collect::<Vec<_>>().join("\n")
}

/// Connections that the peer has closed and this program has not.
struct Leak {
    listener: TcpListener,
    held: Vec<(TcpStream, TcpStream)>,
}

impl Leak {
    fn new() -> Self {
        Self { listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), held: Vec::new() }
    }

    fn grow(&mut self, by: usize) {
        for _ in 0..by {
            let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
            let (server, _) = self.listener.accept().unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            self.held.push((client, server));
        }
    }
}

fn degraded(metrics: &Metrics) -> bool {
    metrics.sum("tcpclose_hook_degraded", &[("hook", "state")]) == 1.0
}

fn close_waits_seen(metrics: &Metrics) -> f64 {
    metrics.sum("tcpclose_transitions_total", &[("from", "established"), ("to", "close_wait")])
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    (folder, path)
}

const FAST: [&str; 4] = ["--reconcile-interval", "1s", "--netns", "current"];

#[test]
#[ignore = "needs root"]
fn a_hook_that_hears_nothing_while_sockets_close_says_so() {
    // Dumps of this namespace alone: what other tests close would tell too early.
    Named::new("deaf").inside(a_deaf_hook_says_so);
}

fn a_deaf_hook_says_so() {
    let (_folder, folder) = folder();
    // What is read for the protocol is the family.
    let wrong = with_places(&format(), &[("protocol", "family")]);
    let tracepoint = [&FAST[..], &["--state-hook", "tracepoint", "--time-wait", "diag"]].concat();
    let deaf = Agent::start_by(with_format(&folder, &wrong), &tracepoint);
    let mut hearing = vec![Agent::start(&tracepoint)];
    if !is_lacking("btf") {
        hearing.push(Agent::start(&[&FAST[..], &["--state-hook", "btf"]].concat()));
    }
    assert!(!degraded(&deaf.metrics()), "it has heard nothing because nothing has closed");

    let mut leak = Leak::new();
    leak.grow(8);
    let metrics = deaf.metrics_when(PATIENCE, "it is degraded", degraded);
    assert_eq!(close_waits_seen(&metrics), 0.0);
    assert_eq!(metrics.sum("tcpclose_events_lost_total", &[]), 0.0);
    deaf.until_it_says_line(|line| {
        line.contains("the state hook (tracepoint) reports nothing: ")
            && line.contains("try --state-hook btf")
    });
    let (status, body) = deaf.get("/readyz");
    assert!(status == 503 && body.starts_with("incomplete: the state hook (tracepoint) "), "{status} {body}");
    let (_, document) = deaf.get("/v1/sockets?older_than=0s");
    assert!(document.contains("has reported nothing for"), "{document}");
    // Said once.
    leak.grow(8);
    let old = |metrics: &Metrics| metrics.sum("tcpclose_gauges_age_seconds", &[("netns", "host")]) < 30.0;
    deaf.metrics_when(PATIENCE, "the gauges are as old as the last reconcile", old);
    let printed = deaf.printed();
    assert_eq!(printed.matches("reports nothing").count(), 1, "{printed}");

    for agent in hearing {
        let metrics = agent.metrics();
        assert!(!degraded(&metrics), "{}", agent.printed());
        assert!(close_waits_seen(&metrics) >= 16.0);
        assert_eq!(agent.get("/readyz").0, 200);
    }
}

#[test]
#[ignore = "needs root"]
fn fields_are_read_where_the_format_says() {
    let (_folder, folder) = folder();
    // The ports change places: each end is told with the port of its peer.
    let swapped = with_places(&format(), &[("sport", "dport"), ("dport", "sport")]);
    let mut leak = Leak::new();
    let port = leak.listener.local_addr().unwrap().port().to_string();
    let names = ["--state-hook", "tracepoint", "--time-wait", "diag", "--name-port", &port];
    let agent = Agent::start_by(with_format(&folder, &swapped), &names);
    assert!(!degraded(&agent.metrics()), "{}", agent.printed());
    leak.grow(8);
    agent.metrics_when(PATIENCE, "records come", |metrics| close_waits_seen(metrics) >= 8.0);
    // The program keys sockets by their address, so the end of each is told too.
    leak.held.clear();
    let of = [("from", "close_wait"), ("to", "last_ack")];
    agent
        .metrics_when(PATIENCE, "ends come", |metrics| metrics.sum("tcpclose_transitions_total", &of) >= 8.0);
    let closes = [("port", &*port), ("side", "server")];
    assert_eq!(agent.metrics().sum("tcpclose_closes_total", &closes), 0.0, "of the other port");
}

#[test]
#[ignore = "needs root"]
fn a_record_of_another_form_is_refused_and_named() {
    let (_folder, folder) = folder();
    let without = format().replace("__u16 protocol;", "__u16 kind;");
    let why = Agent::try_start_by(with_format(&folder, &without), &["--state-hook", "tracepoint"]);
    let why = why.err().expect("it runs");
    assert!(
        why.contains(
            "no state hook can be attached: state hook tracepoint: its format has no field protocol: "
        ),
        "{why}"
    );
    assert!(why.contains("try --state-hook auto"), "{why}");
    if !is_lacking("btf") {
        let agent = Agent::start_by(with_format(&folder, &without), &[]);
        assert!(!degraded(&agent.metrics()), "{}", agent.printed());
    }
}
