//! A wall clock that is set forwards and backwards while the agent runs. Only in guests, where nobody else has the clock.

use crate::common;
use crate::restart::stage;
use crate::torture::witness;

use std::time::{Duration, SystemTime};

use common::Agent;
use common::apart::PATIENCE;
use common::reader::Reader;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use stage::Port;
use tcpclose::names::Phase;
use witness::Witness;

/// Sets the wall clock so many seconds ahead.
fn step(seconds: i64) {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Realtime);
    clock_settime(ClockId::Realtime, Timespec { tv_sec: tv_sec + seconds, tv_nsec }).unwrap();
}

#[test]
#[ignore = "sets the wall clock: runs in guests, with cargo xtask test --all"]
fn guest_a_wall_clock_that_is_set_changes_no_duration() {
    assert!(crate::load::emulated(), "the wall clock is set in guests only");
    const DAY: i64 = 86_400;
    let port = Port::new();
    let name = port.port.to_string();
    let mut agent = Agent::start(&["--name-port", &name]);
    let folder = tempfile::tempdir().unwrap();
    // From here on it misses no line.
    let mut watch = Reader::json(&agent, &["--port", &name]);
    let mut witness = Witness::of(&agent, port.port);
    let mut stayed = Vec::new();
    for by in [DAY, -2 * DAY, DAY] {
        stayed.extend(port.close_waits(3));
        step(by);
        // What the wall clock was ahead is looked up again each second.
        std::thread::sleep(Duration::from_millis(1500));
        witness.look();
        let answer = port.ask(&agent, Phase::CloseWait);
        for connection in &stayed {
            assert!(answer.holds(connection), "{by}: {:?}", answer.find(connection));
        }
    }
    // The clock is right again: so is the time of what comes now. Each connection before has one line of this kind too.
    let begun = SystemTime::now() - Duration::from_millis(100);
    port.whole();
    let begun = humantime::format_rfc3339_nanos(begun).to_string();
    let line = watch.nth_when(PATIENCE, "its FIN", stayed.len(), |line| line["to"] == "fin_wait_1");
    assert!(line["time"].as_str().unwrap() >= begun.as_str(), "{line}, and it began at {begun}");
    let now = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
    assert!(line["time"].as_str().unwrap() <= now.as_str(), "{line}, and now it is {now}");
    agent.end(rustix::process::Signal::KILL);
    drop(folder);
}
