//! How long a scrape takes, with as many series as there can be.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prometheus::core::Collector;
use prometheus::{GaugeVec, Opts, TextEncoder};
use serde_json::json;

use crate::Setting;
use crate::contender::{self, Agent};
use crate::load::{self, Load};
use crate::report::{Figure, Spread, cell, reached};

const FIRST_PORT: u16 = 21_000;
/// Scrapes a turn.
const SCRAPES: usize = 10;
const NODE_EXPORTER: &str = "127.0.0.1:9100";

/// Pairs of side and port that get names, and the bound of the median.
const BOUNDS: [(u16, f64); 2] = [(32, 1e-3), (128, 6e-3)];

/// Ends its process when dropped.
struct NodeExporter(Child);

impl NodeExporter {
    fn start() -> Result<Self> {
        let child = Command::new("prometheus-node-exporter")
            .arg(format!("--web.listen-address={NODE_EXPORTER}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("install prometheus-node-exporter (cargo xtask setup --for bench)")?;
        let exporter = Self(child);
        let until = Instant::now() + Duration::from_secs(20);
        while contender::get(NODE_EXPORTER, "/metrics").is_err() {
            ensure!(Instant::now() < until, "node_exporter does not answer");
            sleep(Duration::from_millis(50));
        }
        Ok(exporter)
    }
}

impl Drop for NodeExporter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connections of every kind to `ports` ports: closed first by either side, reset, and left in CLOSE-WAIT.
fn every_kind(ports: u16) -> Result<Vec<TcpStream>> {
    let mut held = Vec::new();
    for port in FIRST_PORT..FIRST_PORT + ports {
        let mut load = Load::listen(port)?;
        load.whole()?;
        for (client, server) in load.open(2)? {
            drop(server);
            drop(client);
        }
        for (client, server) in load.open(1)? {
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
            drop(client);
            drop(server);
        }
        for (client, server) in load.open(1)? {
            server.shutdown(Shutdown::Write)?;
            held.extend([client, server]);
        }
        held.extend(load.open(1)?.into_iter().map(|(_, server)| server));
    }
    Ok(held)
}

/// Answers each request with as many gauges of three labels as `series` says, written by prometheus' encoder: what those
/// cost whoever exports them by it. Ends with the process.
fn encoder_alone(series: usize) -> Result<String> {
    let labels = ["state", "side", "port"];
    let gauges = GaugeVec::new(Opts::new("floor_sockets", "Sockets in the state now."), &labels)?;
    for n in 0..series {
        gauges.with_label_values(&["close_wait", "server", &n.to_string()]).set(n as f64);
    }
    let families = gauges.collect();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let text = TextEncoder::new().encode_to_string(&families).unwrap_or_default();
            let _ = stream.read(&mut [0; 1024]);
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{text}");
        }
    });
    Ok(address)
}

/// Seconds of each scrape, and what one had: series and bytes.
pub struct Scraped {
    pub seconds: Vec<f64>,
    pub series: usize,
    pub bytes: usize,
}

impl Scraped {
    fn of(mut get: impl FnMut() -> Result<String>) -> Result<Self> {
        let mut scraped = Self { seconds: Vec::new(), series: 0, bytes: 0 };
        for _ in 0..SCRAPES {
            let begun = Instant::now();
            let text = get()?;
            scraped.seconds.push(begun.elapsed().as_secs_f64());
            scraped.series = text.lines().filter(|line| !line.starts_with('#')).count();
            scraped.bytes = text.len();
        }
        Ok(scraped)
    }

    pub fn of_agent(agent: &Agent) -> Result<Self> {
        Self::of(|| agent.scrape())
    }

    fn add(&mut self, other: Self) {
        self.seconds.extend(other.seconds);
        (self.series, self.bytes) = (other.series, other.bytes);
    }
}

pub fn measure(setting: &Setting) -> Result<Figure> {
    let mut rows = Vec::new();
    let mut samples = Vec::new();
    let mut row = |name: String, scraped: &Scraped, bound: Option<f64>| {
        let spread = Spread::of(scraped.seconds.iter().copied());
        let median = spread.map_or(0.0, |spread| spread.median);
        rows.push(vec![
            name.clone(),
            scraped.series.to_string(),
            (scraped.bytes / 1024).to_string(),
            cell(spread, 1e3, 3),
            bound.map_or_else(
                || "–".to_owned(),
                |bound| reached(median <= bound, &format!("≤ {} ms", bound * 1e3)),
            ),
        ]);
        samples.push(json!({"who": name, "series": scraped.series, "seconds": scraped.seconds}));
    };
    for (pairs, bound) in BOUNDS {
        let (ours, floor, theirs) = load::in_a_namespace(|| {
            let agent = Agent::start(&["--max-ports", &pairs.to_string()])?;
            let exporter = NodeExporter::start()?;
            // Both sides of each port, and as much again for the series of the nameless.
            let _held = every_kind(pairs)?;
            let (mut ours, mut theirs) = (Scraped::of_agent(&agent)?, node_exporter()?);
            let alone = encoder_alone(ours.series)?;
            let encoder = || Scraped::of(|| contender::get(&alone, "/"));
            let mut floor = encoder()?;
            for _ in 0..setting.pairs {
                ours.add(Scraped::of_agent(&agent)?);
                floor.add(encoder()?);
                theirs.add(node_exporter()?);
            }
            drop(exporter);
            Ok((ours, floor, theirs))
        })?;
        row(format!("tcpclose, --max-ports {pairs}"), &ours, Some(bound));
        row("floor: prometheus' encoder alone, as many gauges".to_owned(), &floor, None);
        row("node_exporter, its defaults, meanwhile".to_owned(), &theirs, None);
    }
    Ok(Figure {
        name: "scrape",
        title: "A scrape",
        method: format!(
            "GET /metrics over a new loopback connection until the last byte, {SCRAPES} scrapes a turn, {} \
             turns; all names are taken, and every port has had closes of several kinds. Milliseconds, \
             median (quartiles). The agent has one thread: while it renders, the ring waits, and the probe \
             does not.",
            setting.pairs
        ),
        columns: vec!["who", "series", "KiB", "ms", "to reach"],
        rows,
        samples: json!(samples),
    })
}

fn node_exporter() -> Result<Scraped> {
    Scraped::of(|| contender::get(NODE_EXPORTER, "/metrics"))
}
