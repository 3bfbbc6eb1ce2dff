//! A real Prometheus scrapes the agent and answers `histogram_quantile` over a port's durations.

use crate::common;

use std::io::Read;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::prometheus::Prometheus;
use common::{Agent, free_port};

/// The upper bounds of CLOSE-WAIT's buckets, as DESIGN.md has them.
const BUCKETS: [f64; 12] = [0.001, 0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0];

/// A server that keeps `n` sockets in CLOSE-WAIT for about `hold`, all at once: the least and the most that the test's
/// clock allows for any of them.
fn close_waits(listener: &TcpListener, n: usize, hold: Duration) -> (f64, f64) {
    let address = listener.local_addr().unwrap();
    let mut pairs: Vec<(TcpStream, TcpStream)> =
        (0..n).map(|_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap().0)).collect();
    let first = Instant::now();
    for (client, _) in &pairs {
        client.shutdown(Shutdown::Write).unwrap();
    }
    for (_, server) in &mut pairs {
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
    }
    let last = Instant::now();
    sleep(hold);
    let least = last.elapsed().as_secs_f64();
    pairs.retain(|_| false);
    (least, first.elapsed().as_secs_f64())
}

/// The bounds of the buckets that hold what is between `least` and `most`.
fn buckets((least, most): (f64, f64)) -> (f64, f64) {
    let above = BUCKETS.iter().position(|&bound| most <= bound).unwrap();
    let below = BUCKETS.iter().position(|&bound| least <= bound).unwrap();
    (if below == 0 { 0.0 } else { BUCKETS[below - 1] }, BUCKETS[above])
}

#[test]
#[ignore = "needs root"]
fn a_real_prometheus_answers_quantiles_for_a_port() {
    let port = free_port();
    let agents = Agent::on_each_hook(&["--name-port", &port.to_string()]);
    let targets: Vec<(&str, String)> = agents.iter().map(|(hook, agent)| (*hook, agent.address())).collect();
    let jobs: Vec<&str> = targets.iter().map(|(hook, _)| *hook).collect();
    let prometheus = Prometheus::start(&targets);
    prometheus.query_when(&jobs, "up", |up| up == 1.0);

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let labels = format!("{{state=\"close_wait\",side=\"server\",port=\"{port}\"}}");
    let count = format!("tcpclose_state_duration_seconds_count{labels}");
    // A series begins with its first sample, and increase() tells what came after: so one before those that count.
    let first = close_waits(&listener, 1, Duration::ZERO);
    prometheus.query_when(&jobs, &count, |n| n == 1.0);
    let short = close_waits(&listener, 30, Duration::from_millis(400));
    let long = close_waits(&listener, 10, Duration::from_secs(2));
    prometheus.query_when(&jobs, &count, |n| n == 41.0);

    let quantile = |quantile: f64, over: &str| {
        format!(
            "histogram_quantile({quantile}, sum by (job, le) ({over}(tcpclose_state_duration_seconds_bucket{labels}[1m])))"
        )
    };
    for (at, bracket) in [(0.5, short), (0.95, long)] {
        let (lower, upper) = buckets(bracket);
        println!("{at}: {bracket:?}, in the bucket {lower} to {upper}");
        for over in ["rate", "increase"] {
            prometheus.query_when(&jobs, &quantile(at, over), |value| lower < value && value <= upper);
        }
    }
    // The sums hold the mean exactly, not by buckets.
    let sum = format!("tcpclose_state_duration_seconds_sum{labels}");
    let all = |first: f64, short: f64, long: f64| first + 30.0 * short + 10.0 * long;
    let (least, most) = (all(first.0, short.0, long.0), all(first.1, short.1, long.1));
    for (job, sum) in prometheus.query(&sum) {
        println!("{job}: {sum} s in all, {least} to {most} expected");
        assert!(least <= sum && sum <= most);
    }
    prometheus.query_when(&jobs, "up", |up| up == 1.0);
}
