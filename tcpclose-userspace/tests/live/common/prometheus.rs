//! A real Prometheus that scrapes agents, and what a test asks of it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::free_port;

pub const PATIENCE: Duration = Duration::from_secs(30);

/// Debian's Prometheus; ended when dropped.
pub struct Prometheus {
    process: Child,
    port: u16,
    _folder: TempDir,
}

impl Prometheus {
    /// Scrapes each of `targets` (a name and an address) once a second.
    pub fn start(targets: &[(&str, String)]) -> Self {
        Self::start_with(targets, None)
    }

    /// The same, and evaluates `rules` as often.
    pub fn start_with(targets: &[(&str, String)], rules: Option<&Path>) -> Self {
        let mut config = String::new();
        if let Some(rules) = rules {
            config += &format!("rule_files: ['{}']\n", rules.display());
        }
        config += "scrape_configs:\n";
        for (name, address) in targets {
            config += &format!("  - job_name: {name}\n    static_configs:\n      - targets: ['{address}']\n");
        }
        Self::start_by(&config)
    }

    /// Runs by `config`, to which the intervals are added.
    pub fn start_by(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let global =
            "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  evaluation_interval: 1s\n".to_owned();
        let config = global + config;
        std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let process = Command::new("prometheus")
            .current_dir(folder.path())
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=error"])
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut prometheus = Self { process, port, _folder: folder };
        let until = Instant::now() + PATIENCE;
        while prometheus.get("/-/ready").is_none_or(|(status, _)| status != 200) {
            let ended = prometheus.process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "Prometheus is not ready: {ended:?}");
            sleep(Duration::from_millis(50));
        }
        prometheus
    }

    /// `GET path`: what the answer calls its data.
    pub fn data(&self, path: &str) -> Value {
        let (status, body) = self.get(path).unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        let mut answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["status"], "success", "{path}");
        answer["data"].take()
    }

    /// `GET path`: status and body; `None` while nobody listens.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: 127.0.0.1:{}\r\n\r\n", self.port).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Some((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
    }

    /// The result of an instant query: its series, each with its labels and value.
    pub fn series(&self, expression: &str) -> Vec<(Value, f64)> {
        let mut data = self.data(&format!("/api/v1/query?query={}", encoded(expression)));
        let Value::Array(series) = data["result"].take() else { panic!("{expression}: {data}") };
        series
            .into_iter()
            .map(|mut series| {
                let value = series["value"][1].as_str().unwrap().parse().unwrap();
                (series["metric"].take(), value)
            })
            .collect()
    }

    /// The value of an instant query for each job.
    pub fn query(&self, expression: &str) -> Vec<(String, f64)> {
        let series = self.series(expression).into_iter();
        series.map(|(labels, value)| (labels["job"].as_str().unwrap().to_owned(), value)).collect()
    }

    /// Asks again until every job of `jobs` is answered with a value for which `done` holds.
    pub fn query_when(
        &self,
        jobs: &[&str],
        expression: &str,
        done: impl Fn(f64) -> bool,
    ) -> Vec<(String, f64)> {
        let until = Instant::now() + PATIENCE;
        loop {
            let values = self.query(expression);
            let all = jobs.iter().all(|job| values.iter().any(|(j, value)| j == job && done(*value)));
            if all && values.len() == jobs.len() {
                println!("{expression}: {values:?}");
                return values;
            }
            assert!(Instant::now() < until, "{expression}: {values:?}");
            sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `text` as a part of an address.
pub fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}
