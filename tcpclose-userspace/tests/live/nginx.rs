//! nginx under `wrk` with short connections: what nginx says it handled is what the agent counts.

use crate::common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, Metrics, free_port, half_closed_client};
use tcpclose::names::Diagnosis;
use tcpclose::report::sockets::{SocketsDocument, StuckSocket};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// nginx with a configuration of its own; ended, workers and all, when dropped.
struct Nginx {
    process: Child,
    /// Where it is loaded.
    port: u16,
    /// Where it tells how many connections it has handled, those to tell it included.
    status: u16,
    _folder: TempDir,
}

impl Nginx {
    /// `listen`: further words for the loaded port.
    fn start(listen: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (port, status) = (free_port(), free_port());
        let at = folder.path().display();
        let config = format!(
            "daemon off;\nworker_processes 2;\npid {at}/nginx.pid;\nerror_log stderr error;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n  access_log off;\n  keepalive_timeout 0;\n\
             client_body_temp_path {at}/body;\n  proxy_temp_path {at}/proxy;\n  fastcgi_temp_path {at}/fastcgi;\n\
             uwsgi_temp_path {at}/uwsgi;\n  scgi_temp_path {at}/scgi;\n\
             server {{ listen 127.0.0.1:{port} backlog=4096 {listen}; location / {{ return 200 \"hello\\n\"; }} }}\n\
             server {{ listen 127.0.0.1:{status}; location / {{ stub_status; }} }}\n}}\n"
        );
        std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let process = Command::new("nginx")
            .args(["-e", "stderr", "-p"])
            .arg(folder.path())
            .args(["-c", "nginx.conf"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut nginx = Self { process, port, status, _folder: folder };
        let until = Instant::now() + PATIENCE;
        while nginx.counts().is_none() {
            let ended = nginx.process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "nginx is not there: {ended:?}");
            sleep(Duration::from_millis(20));
        }
        nginx
    }

    /// Its own counts: connections accepted and handled, the one that asks included; `None` while nobody listens.
    fn counts(&self) -> Option<(u64, u64)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.status)).ok()?;
        write!(stream, "GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let line =
            answer.lines().skip_while(|line| !line.starts_with("server accepts handled")).nth(1).unwrap();
        let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap());
        Some((numbers.next()?, numbers.next()?))
    }

    /// The pids of its workers.
    fn workers(&self) -> Vec<u32> {
        let pid = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    /// Whether every connection on its loaded port has ended, or waits in TIME-WAIT.
    fn is_quiet(&self) -> bool {
        let filter = format!("( sport = :{0} or dport = :{0} )", self.port);
        let states = ["state", "all", "exclude", "time-wait", "exclude", "listening"];
        let output = Command::new("ss").arg("-tanH").args(states).arg(&filter).output().unwrap();
        assert!(output.status.success());
        output.stdout.is_empty()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers when it is told to; one that is stopped takes no signal.
        for worker in self.workers() {
            let pid = rustix::process::Pid::from_raw(worker as i32).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::CONT);
        }
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.process),
            rustix::process::Signal::TERM,
        );
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn closes_are_the_connections_that_nginx_handled() {
    let nginx = Nginx::start("");
    let port = nginx.port.to_string();
    let agents = Agent::on_each_hook(&["--name-port", &port]);
    let (_, before) = nginx.counts().unwrap();
    let url = format!("http://127.0.0.1:{}/", nginx.port);
    let wrk =
        Command::new("wrk").args(["-t2", "-c64", "-d10s", "-H", "Connection: close", &url]).output().unwrap();
    println!("{}", String::from_utf8_lossy(&wrk.stdout));
    assert!(wrk.status.success());
    let until = Instant::now() + PATIENCE;
    while !nginx.is_quiet() {
        assert!(Instant::now() < until, "connections are still open");
        sleep(Duration::from_millis(100));
    }
    let (accepted, after) = nginx.counts().unwrap();
    assert_eq!(accepted, after);
    // Less the connection that asked just now; `before` holds the one that asked then.
    let handled = after - before - 1;
    println!("nginx has handled {handled}");
    assert!(handled > 1000, "that is no load");

    for (hook, agent) in &agents {
        let of_nginx = [("side", "server"), ("port", port.as_str())];
        // What became of a FIN-WAIT-2 without a socket, the next dump tells; whether a RST was received or sent, a moment.
        let all_have_ended = |metrics: &Metrics| {
            let none_goes_on = metrics
                .select("tcpclose_sockets", &[("port", &port)])
                .all(|(labels, n)| labels["state"] == "time_wait" || n == 0.0);
            none_goes_on && metrics.sum("tcpclose_closes_total", &of_nginx) as u64 >= handled
        };
        let metrics = agent.metrics_when(PATIENCE, "every connection has ended", all_have_ended);
        for (labels, n) in metrics.select("tcpclose_closes_total", &[("port", &port)]) {
            println!("{hook}: {} {} {}: {n}", labels["side"], labels["role"], labels["outcome"]);
        }
        let counted = metrics.sum("tcpclose_closes_total", &of_nginx) as u64;
        // A step that the kernel left the probe out of is one of several of its connection, which counts all the same.
        let missed = metrics.missed_by_the_kernel();
        println!("{hook}: {missed} steps missed by the kernel");
        assert_eq!(counted, handled, "{hook}");
        println!("{hook}: {} records", metrics.sum("tcpclose_events_received_total", &[]));
    }
}

/// Each worker has a listener of its own (reuseport), and every process of nginx holds all of them. One worker is stopped: what waits
/// in its queue is its own, and not that of the one that serves.
#[test]
#[ignore = "needs root"]
fn a_stopped_worker_is_named_and_not_its_siblings() {
    let nginx = Nginx::start("reuseport");
    // The first may serve before the second is there.
    let until = Instant::now() + PATIENCE;
    let workers = loop {
        let workers = nginx.workers();
        if workers.len() == 2 {
            break workers;
        }
        assert!(Instant::now() < until, "{workers:?}");
        sleep(Duration::from_millis(20));
    };
    let stopped = workers[1];
    let signal = |signal| {
        let pid = rustix::process::Pid::from_raw(stopped as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    };
    signal(rustix::process::Signal::STOP);
    // The other one accepts its share, and closes.
    let _clients: Vec<TcpStream> = (0..64).map(|_| half_closed_client(nginx.port, b"")).collect();
    let stuck = |arguments: &[&str]| {
        let output = Command::new(BINARY)
            .args(["stuck", "--no-agent", "--older-than", "0s", "--port", &nginx.port.to_string()])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let until = Instant::now() + PATIENCE;
    loop {
        let document: SocketsDocument = serde_json::from_str(&stuck(&["--json"])).unwrap();
        let waits = |socket: &&StuckSocket| socket.diagnosis == Some(Diagnosis::NotAccepted);
        let first: Vec<u32> = document
            .sockets
            .iter()
            .filter(waits)
            .filter_map(|socket| socket.first_owner().map(|owner| owner.pid))
            .collect();
        // What the other one has not closed yet is not its queue's.
        if !first.is_empty() && first.len() == document.sockets.len() {
            assert!(first.iter().all(|pid| *pid == stopped), "{stopped}: {document:?}");
            break;
        }
        assert!(Instant::now() < until, "{document:?}");
        sleep(Duration::from_millis(100));
    }
    let text = stuck(&[]);
    assert!(
        text.contains(&format!("nginx[{stopped}]")) && text.contains(&format!("kill -CONT {stopped}")),
        "{text}"
    );
}
