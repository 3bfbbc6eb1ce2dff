//! Who looks on: what may not be in a scrape, whatever went on before it.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tcpclose::linux::{host, sock_diag};
use tcpclose_common::state::TcpState;

use crate::common::{Agent, Metrics, try_get_unix};
use crate::restart::stage::{PATIENCE, Port};

/// Connections that close in every way on one port, some hundred a second, for as long as nobody stops them.
pub struct Load {
    pub closed: u64,
    /// What was left in CLOSE-WAIT.
    left: Vec<(TcpStream, TcpStream)>,
}

impl Load {
    pub fn until(port: &Port, stop: &AtomicBool) -> Self {
        let mut load = Self { closed: 0, left: Vec::new() };
        while !stop.load(Ordering::Relaxed) {
            load.one(port);
            sleep(Duration::from_millis(2));
        }
        load
    }

    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    fn one(&mut self, port: &Port) {
        let (mut client, mut server) = port.connect();
        self.closed += 1;
        match self.closed % 5 {
            0 | 1 => {
                drop(server);
                assert_eq!(client.read(&mut [0]).unwrap(), 0);
            }
            2 => {
                client.shutdown(Shutdown::Write).unwrap();
                assert_eq!(server.read(&mut [0]).unwrap(), 0);
            }
            3 => {
                SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
                drop(client);
                assert!(server.read(&mut [0]).is_err());
            }
            // It stays for a while.
            _ => {
                client.shutdown(Shutdown::Write).unwrap();
                assert_eq!(server.read(&mut [0]).unwrap(), 0);
                self.left.push((client, server));
                if self.left.len() > 100 {
                    self.left.drain(..50);
                }
            }
        }
    }
}

/// Holds each scrape of an agent against the one before it.
pub struct Witness<'a> {
    agent: &'a Agent,
    port: String,
    begun: u64,
    last: BTreeMap<String, f64>,
    lost: f64,
}

impl<'a> Witness<'a> {
    pub fn of(agent: &'a Agent, port: u16) -> Self {
        Self { agent, port: port.to_string(), begun: host::monotonic_ns(), last: BTreeMap::new(), lost: 0.0 }
    }

    /// Records that the agent says were lost.
    pub fn lost(&self) -> u64 {
        self.lost as u64
    }

    /// Looks, and fails where the agent says what cannot be.
    pub fn look(&mut self) {
        let begun = Instant::now();
        let text = loop {
            // Without a descriptor to spare it may have none for this.
            match try_get_unix(&self.agent.socket(), "/metrics") {
                Ok((200, text)) => break text,
                _ => assert!(begun.elapsed() < PATIENCE, "no answer: {}", self.agent.printed()),
            }
            sleep(Duration::from_millis(20));
        };
        let metrics = Metrics::parse(&text);
        let age = (host::monotonic_ns() - self.begun) as f64 / 1e9;
        let mut now = BTreeMap::new();
        for (name, labels, value) in metrics.with(&[]) {
            let series = format!("{name}{labels:?}");
            assert!(value >= 0.0 && value.is_finite(), "{series} {value}");
            let grows = ["_total", "_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end));
            if grows {
                // A name that is lost takes its series along; ours is always named.
                if let Some(before) = self.last.get(&series) {
                    assert!(value >= *before, "{series} went from {before} to {value}");
                }
                now.insert(series, value);
            }
        }
        self.histograms(&metrics, age);
        for before in self.last.keys().filter(|series| series.contains(&format!("{:?}", self.port))) {
            assert!(now.contains_key(before), "{before} has gone");
        }
        self.last = now;
        self.lost = metrics.sum("tcpclose_events_lost_total", &[]);
    }

    /// No bucket holds more than the next, and all together what a time of `age` seconds has room for.
    fn histograms(&self, metrics: &Metrics, age: f64) {
        const NAME: &str = "tcpclose_state_duration_seconds";
        let (bucket, count, sum) = (format!("{NAME}_bucket"), format!("{NAME}_count"), format!("{NAME}_sum"));
        let here = [("port", self.port.as_str())];
        let mut left: BTreeMap<&str, f64> = BTreeMap::new();
        for (labels, n) in metrics.select(&count, &here) {
            let same = [("state", labels["state"].as_str()), ("side", labels["side"].as_str()), here[0]];
            let mut bounds: Vec<(f64, f64)> = metrics
                .select(&bucket, &same)
                .map(|(labels, value)| (labels["le"].parse().unwrap_or(f64::INFINITY), value))
                .collect();
            bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(bounds.is_sorted_by(|a, b| a.1 <= b.1), "{same:?}: {bounds:?}");
            assert_eq!(bounds.last().unwrap().1, n, "{same:?}");
            // A TIME-WAIT is known by its timer to a tick or so.
            let most = n * (age + 0.1);
            assert!(metrics.sum(&sum, &same) <= most, "{same:?}: longer than there was time");
            *left.entry(labels["side"].as_str()).or_default() += n;
        }
        // A connection closes once, and goes through four states at the most on one side, the last of them after its close.
        for (side, n) in left {
            let closes = metrics.sum("tcpclose_closes_total", &[("side", side), here[0]]);
            let open = metrics.sum("tcpclose_sockets", &[("side", side), here[0]]);
            assert!(n <= 4.0 * (closes + open), "{side}: {n} phases of {closes} closes and {open} sockets");
        }
    }
}

/// Waits until the gauges of `port` are what the kernel has, which a reconcile makes them whatever was lost.
pub fn agrees(agent: &Agent, port: u16) {
    let name = port.to_string();
    let kernel = || {
        let states = TcpState::CloseWait.bit() | TcpState::FinWait2.bit() | TcpState::TimeWait.bit();
        let mut count = BTreeMap::new();
        for socket in sock_diag::dump(states, false).unwrap().sockets {
            if [socket.flow.local_port, socket.flow.remote_port].contains(&port) {
                *count.entry(socket.state.name()).or_insert(0) += 1;
            }
        }
        count
    };
    let begun = Instant::now();
    loop {
        let before = kernel();
        let Ok((200, text)) = try_get_unix(&agent.socket(), "/metrics") else { continue };
        let metrics = Metrics::parse(&text);
        let printed = ["close_wait", "fin_wait_2", "time_wait"].map(|state| {
            (state, metrics.sum("tcpclose_sockets", &[("state", state), ("port", name.as_str())]) as usize)
        });
        if before == kernel()
            && printed.iter().all(|(state, n)| before.get(state).copied().unwrap_or(0) == *n)
        {
            println!("{port}: {printed:?}, as the kernel has it, after {:.1?}", begun.elapsed());
            return;
        }
        assert!(begun.elapsed() < 3 * PATIENCE, "{printed:?}, and the kernel has {before:?}");
        sleep(Duration::from_millis(100));
    }
}
