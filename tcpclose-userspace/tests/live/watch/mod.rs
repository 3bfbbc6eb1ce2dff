//! `tcpclose watch` beside what was done: real sockets, a live agent on each state hook, and the segments on the wire.
//!
//! * [`closes`]: closes as scripts. [`capture`]: the segments.

use crate::cases::place;
use crate::common;

mod capture;
mod closes;
mod ends;
mod handshake;
mod slow;

use std::time::Duration;

use common::reader::{self, Reader, steps_of};
use common::{Agent, free_port};
use serde_json::Value;
use tcpclose::linux::sock_diag;

use closes::Stage;

/// For whatever happens on a busy machine; on an idle one it is there within a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a client that closes first goes through, and its server.
const ACTIVE: [&str; 3] = ["established→fin_wait_1", "fin_wait_1→fin_wait_2", "fin_wait_2→time_wait"];
const PASSIVE: [&str; 3] = ["established→close_wait", "close_wait→last_ack", "last_ack→closed"];

/// The keys that are promised, in the alphabet's order.
const KEYS: [&str; 16] = [
    "cookie",
    "from",
    "local",
    "max_seconds",
    "min_seconds",
    "netns",
    "outcome",
    "owner",
    "peer",
    "port",
    "role",
    "side",
    "source",
    "time",
    "time_ns",
    "to",
];

#[test]
#[ignore = "needs root"]
fn every_step_of_both_sides_is_reported_as_it_was_made() {
    for (hook, agent) in Agent::on_each_hook(&[]) {
        println!("--- {hook}");
        let port = free_port();
        let mut reader = Reader::json(&agent, &["--port", &port.to_string()]);
        let stage = Stage::at(port);
        a_graceful_close(&stage, &mut reader, hook);
        resets(&stage, &mut reader);
        both_at_once(&mut reader, port);
        for line in reader.lines() {
            let line: Value = serde_json::from_str(&line).unwrap();
            let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
            // Of an abort there is the kernel's reason, besides.
            let always: Vec<&String> = keys.into_iter().filter(|key| *key != "reset_reason").collect();
            assert_eq!(always, KEYS);
            assert!(
                line["reset_reason"].is_null()
                    || line["outcome"] == "aborted"
                    || line["outcome"] == "reset_sent"
            );
            assert_eq!(line["port"], port);
            let time = line["time"].as_str().unwrap();
            assert!(humantime::parse_rfc3339(time).is_ok() && time.len() == 30, "{time}");
        }
    }
}

fn a_graceful_close(stage: &Stage, reader: &mut Reader, hook: &str) {
    let close = stage.graceful(Duration::from_millis(60));
    let client = reader.steps_when(PATIENCE, &close.client, |steps| steps.len() >= 3);
    let server = reader.steps_when(PATIENCE, &close.server, |steps| steps.len() >= 3);
    assert_eq!(
        (steps_of(&client), steps_of(&server)),
        (ACTIVE.map(String::from).into(), PASSIVE.map(String::from).into())
    );
    for (line, side, role) in client
        .iter()
        .map(|line| (line, "client", "active"))
        .chain(server.iter().map(|line| (line, "server", "passive")))
    {
        assert_eq!((line["side"].as_str(), line["role"].as_str()), (Some(side), Some(role)), "{line}");
    }
    // The program closed both ends.
    let me = u64::from(std::process::id());
    assert!(client.iter().all(|line| line["owner"]["pid"] == me), "{client:?}");
    let owners: Vec<bool> = server.iter().map(|line| line["owner"]["pid"] == me).collect();
    assert_eq!(owners, [false, true, true], "nobody had closed when CLOSE-WAIT began");
    let outcomes: Vec<&Value> = client.iter().chain(&server).map(|line| &line["outcome"]).collect();
    let (none, graceful) = (&Value::Null, &Value::from("graceful"));
    assert_eq!(outcomes, [none, none, none, none, none, graceful]);
    // Nobody saw either socket become ESTABLISHED.
    for line in [&client[0], &server[0]] {
        assert_eq!((line["min_seconds"].as_f64(), line["max_seconds"].is_null()), (Some(0.0), true));
    }
    // How long CLOSE-WAIT lasted lies within what was measured around it.
    let (min, max) = bounds(&server[1]);
    assert_eq!(min, max, "both ends of it were seen");
    assert!(close.close_wait.contains(&min), "{min} in {:?}", close.close_wait);
    // The client's FIN-WAIT-2 lasted no longer, however well its end is known.
    let (min, max) = bounds(&client[2]);
    assert!(min <= max && min <= *close.close_wait.end(), "{min}–{max}");
    // TIME-WAIT's end is told too, and what ends a minisocket from outside is no tracepoint.
    let cookie = stage.cookie_of(&close.client);
    sock_diag::destroy(&close.client, 0, cookie).unwrap();
    let client = reader.steps_when(PATIENCE, &close.client, |steps| steps.len() >= 4);
    let end = &client[3];
    assert_eq!(steps_of(&client)[3], "time_wait→closed");
    assert_eq!((&end["outcome"], end["source"] == "tracepoint"), (graceful, false), "{end}");
    let (min, max) = bounds(end);
    assert!(min <= max && max < PATIENCE.as_secs_f64(), "{end}");
    assert_eq!(end["cookie"].as_str().unwrap(), format!("{cookie:x}"), "{hook}");
}

/// The time that a step's old state lasted.
fn bounds(line: &Value) -> (f64, f64) {
    (line["min_seconds"].as_f64().unwrap(), line["max_seconds"].as_f64().unwrap())
}

fn resets(stage: &Stage, reader: &mut Reader) {
    let close = stage.aborted();
    for (flow, outcome) in [(&close.client, "aborted"), (&close.server, "reset_received")] {
        let steps = reader.steps_when(PATIENCE, flow, |steps| !steps.is_empty());
        assert_eq!(steps_of(&steps), ["established→closed"]);
        assert_eq!((steps[0]["outcome"].as_str(), steps[0]["role"].as_str()), (Some(outcome), Some("none")));
    }
    let close = stage.half_closed_and_aborted();
    let client = reader.steps_when(PATIENCE, &close.client, |steps| steps.len() >= 3);
    let server = reader.steps_when(PATIENCE, &close.server, |steps| steps.len() >= 2);
    assert_eq!(steps_of(&client), [ACTIVE[0], ACTIVE[1], "fin_wait_2→closed"]);
    assert_eq!(steps_of(&server), [PASSIVE[0], "close_wait→closed"]);
    assert_eq!((&client[2]["outcome"], &server[1]["outcome"]), (&"aborted".into(), &"reset_received".into()));
}

fn both_at_once(reader: &mut Reader, port: u16) {
    let flow = closes::with_itself(port);
    let steps = reader.steps_when(PATIENCE, &flow, |steps| steps.len() >= 3);
    assert_eq!(steps_of(&steps)[..3], ["established→fin_wait_1", "fin_wait_1→closing", "closing→time_wait"]);
    let roles: Vec<&str> = steps[..3].iter().map(|line| line["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["active", "simultaneous", "simultaneous"]);
}

#[test]
#[ignore = "needs root"]
fn filters_let_through_what_they_name_and_nothing_else() {
    let agent = Agent::start(&[]);
    let port = free_port();
    let (here, me) = (port.to_string(), std::process::id().to_string());
    let mut all = Reader::json(&agent, &["--port", &here]);
    let is = |line: &Value, key: &str, value: &str| line[key].as_str() == Some(value);
    type Passes<'a> = &'a dyn Fn(&Value) -> bool;
    let filters: [(&[&str], Passes<'_>); 6] = [
        (&["--state", "close-wait"], &|line| is(line, "from", "close_wait") || is(line, "to", "close_wait")),
        (&["--outcome", "reset_received"], &|line| is(line, "outcome", "reset_received")),
        (&["--longer-than", "50ms"], &|line| line["min_seconds"].as_f64() >= Some(0.05)),
        (&["--pid", &me], &|line| line["owner"]["pid"] == std::process::id()),
        (&["--state", "last_ack", "--state", "closing", "--outcome", "graceful"], &|line| {
            is(line, "from", "last_ack") && is(line, "outcome", "graceful")
        }),
        (&["--pid", "1"], &|_| false),
    ];
    let mut readers: Vec<(Reader, Passes<'_>)> = filters
        .map(|(arguments, passes)| (Reader::json(&agent, &[arguments, &["--port", &here]].concat()), passes))
        .into();
    // With this one eight watch, and no more may.
    let _last = Reader::json(&agent, &["--port", &free_port().to_string()]);
    let refused = reader::refused(&agent.socket(), &[]);
    assert!(refused.contains("8 clients are watching") && refused.lines().count() == 1, "{refused}");

    let stage = Stage::at(port);
    let closes =
        [stage.graceful(Duration::from_millis(80)), stage.half_closed_and_aborted(), stage.aborted()];
    for close in &closes[..2] {
        all.steps_when(PATIENCE, &close.client, |steps| steps.len() >= 3);
    }
    all.steps_when(PATIENCE, &closes[2].server, |steps| !steps.is_empty());
    all.steps_when(PATIENCE, &closes[0].server, |steps| steps.len() >= 3);
    let reported: Vec<Value> = all.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut something = 0;
    for (reader, passes) in &mut readers {
        let expected: Vec<&Value> = reported.iter().filter(|line| passes(line)).collect();
        reader.when(PATIENCE, "its lines", |lines| lines.len() >= expected.len());
        let lines: Vec<Value> =
            reader.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().eq(expected.iter().copied()), "{lines:#?}\n{expected:#?}");
        something += usize::from(!lines.is_empty());
    }
    assert_eq!(something, 5);
}
