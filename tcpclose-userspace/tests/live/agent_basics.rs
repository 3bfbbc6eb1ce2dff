//! The agent's faces: what is served where, and how it ends.

use crate::common;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Agent, free_port};
use rustix::process::Signal;

/// `promtool check metrics`, which says nothing when there is nothing to say.
fn promtool(text: &str) -> String {
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    format!(
        "{}{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        if output.status.success() { "" } else { "failed" }
    )
}

#[test]
#[ignore = "needs root"]
fn every_page_is_where_it_belongs() {
    for (hook, agent) in Agent::on_each_hook(&[]) {
        assert_eq!(agent.get("/healthz"), (200, "ok\n".to_owned()));
        assert_eq!(agent.get("/readyz"), (200, "ready\n".to_owned()));
        assert!(agent.get("/").1.contains("/metrics"));
        assert_eq!(agent.get("/banana").0, 404);
        let metrics = agent.metrics();
        assert_eq!(promtool(&metrics.text), "", "{}", metrics.text);
        assert_eq!(metrics.sum("tcpclose_hook_info", &[("hook", "state"), ("backend", hook)]), 1.0);
        let series = metrics.text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(metrics.sum("tcpclose_series", &[]), series as f64);

        // The TCP face has no sockets to show.
        let address = agent.address();
        let status = |path: &str| {
            let url = format!("http://{address}{path}");
            let output = Command::new("curl")
                .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url])
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(status("/metrics"), "200");
        // Compressed for those who ask for it, as Prometheus does; curl shows what it has unpacked.
        let scrape = |options: &[&str]| {
            let url = format!("http://{address}/metrics");
            let output = Command::new("curl").args(["-s", "-i"]).args(options).arg(&url).output().unwrap();
            let answer = String::from_utf8(output.stdout).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(body.contains("\ntcpclose_build_info{"), "{answer}");
            head.to_ascii_lowercase().contains("content-encoding: gzip")
        };
        assert_eq!((scrape(&[]), scrape(&["--compressed"])), (false, true));
        assert_eq!(status("/v1/sockets"), "404");
        let url = format!("http://{address}/v1/sockets");
        let body = Command::new("curl").args(["-s", &url]).output().unwrap().stdout;
        assert!(String::from_utf8_lossy(&body).contains("only on the agent's Unix socket"), "{body:?}");
        assert_eq!(agent.get("/v1/sockets").0, 200);
        // A key that would have changed the answer is not ignored; scrapers may have their own.
        for (path, word) in [
            ("/exhaustion?limit=5000", "limit=5000: write a number from 0 to 1000"),
            ("/exhaustion?later=1", "later: unknown key; this path has limit"),
            ("/v1/idle?silent_for=soon", "silent_for=soon: "),
            ("/v1/sockets?port=80", "port: unknown key; this path has state, older_than, peers and owners"),
            ("/v1/watch?color=red", "color: unknown key"),
            ("/ports?port=80", "port: unknown key; this path has none"),
            ("/v1/reconcile?now=1", "now: unknown key; this path has none"),
        ] {
            let (status, line) = agent.get(path);
            assert!(
                status == 400 && line.starts_with(word) && line.lines().count() == 1,
                "{path}: {status} {line}"
            );
        }
        assert_eq!((status("/ports?port=80"), status("/metrics?name[]=up")), ("400".into(), "200".into()));
        let mode = std::fs::metadata(agent.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
#[ignore = "needs root"]
fn either_signal_ends_it_and_removes_the_socket() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut agent = Agent::start(&[]);
        let socket = agent.socket();
        assert!(socket.exists());
        let status = agent.end(signal);
        assert!(status.success(), "{status}");
        assert!(!socket.exists());
    }
}

#[test]
#[ignore = "needs root"]
fn what_the_probe_costs_is_shown_while_the_kernel_counts_it() {
    // Since 5.8; on for as long as this descriptor is open.
    let _kept = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
    for (hook, agent) in Agent::on_each_hook(&[]) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap();
        drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let metrics = agent.metrics_when(Duration::from_secs(10), "a run is counted", |metrics| {
            metrics.sum("tcpclose_program_runs_total", &[]) > 0.0
        });
        let seconds = metrics.sum("tcpclose_program_run_seconds_total", &[]);
        assert!(seconds > 0.0, "{hook}: {seconds} s");
        assert_eq!(promtool(&metrics.text), "", "{}", metrics.text);
    }
}
