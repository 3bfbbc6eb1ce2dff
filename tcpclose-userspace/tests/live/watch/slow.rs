//! A reader that does not read.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use super::PATIENCE;
use super::closes::Stage;
use super::common::reader::Reader;
use super::common::{Agent, free_port};

/// Each makes six steps: together more than wait for a reader.
const CLOSES: usize = 3_000;

/// Whether a line is the client's end of an aborted connection.
fn is_marker(line: &Value) -> bool {
    line["outcome"] == "aborted"
}

/// Lines, and lines that are said to be lost, before the marker; without the other end of that, which may come before it.
fn account<'a>(lines: impl Iterator<Item = &'a Value>) -> (usize, usize) {
    let before: Vec<&Value> = lines.take_while(|line| !is_marker(line)).collect();
    let lost = before.iter().filter_map(|line| line["lost"].as_u64()).sum::<u64>() as usize;
    let is_of_the_flood = |line: &&&Value| line.get("lost").is_none() && line["outcome"] != "reset_received";
    (before.iter().filter(is_of_the_flood).count(), lost)
}

#[test]
#[ignore = "needs root"]
fn who_reads_slowly_loses_lines_with_a_count_and_slows_nobody() {
    let agent = Agent::start(&[]);
    let port = free_port();
    let mut fast = Reader::json(&agent, &["--port", &port.to_string()]);
    let mut slow = UnixStream::connect(agent.socket()).unwrap();
    write!(slow, "GET /v1/watch?port={port} HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    let mut slow = BufReader::new(slow);
    let mut line = String::new();
    slow.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 200 "), "{line}");

    let stage = Stage::at(port);
    for _ in 0..CLOSES {
        drop(stage.pair());
    }
    // The agent answers as ever, and has all of it.
    let taken = agent.metrics().sum("tcpclose_transitions_total", &[]);
    assert!(taken >= 5.0 * CLOSES as f64, "{taken}");
    // The one that reads has it all, or a count for what it lacks; then the other one begins.
    let parse = |lines: &[String]| -> Vec<Value> {
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    fast.when(PATIENCE, "the flood", |lines| {
        let (lines, lost) = account(parse(lines).iter());
        lines + lost >= 5 * CLOSES
    });
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Chunks hold whole lines.
        let lines = slow.lines().map_while(Result::ok).filter(|line| line.starts_with('{'));
        for line in lines {
            if sender.send(serde_json::from_str::<Value>(&line).unwrap()).is_err() {
                return;
            }
        }
    });
    let mut read: Vec<Value> = Vec::new();
    while let Ok(line) = lines.recv_timeout(Duration::from_secs(2)) {
        read.push(line);
    }
    stage.aborted();
    while !read.iter().any(is_marker) {
        read.push(lines.recv_timeout(PATIENCE).unwrap());
    }
    fast.when(PATIENCE, "the marker", |lines| parse(lines).iter().any(is_marker));
    let (slow, fast) = (account(read.iter()), account(parse(&fast.lines()).iter()));
    println!("slow: {} lines, {} lost; fast: {} lines, {} lost", slow.0, slow.1, fast.0, fast.1);
    assert!(slow.1 > 0, "it was slow");
    assert_eq!(slow.0 + slow.1, fast.0 + fast.1);
}
