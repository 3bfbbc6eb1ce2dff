//! Another time namespace. (What sets the wall clock is in `wall_clock`, for guests.)

use std::process::Command;

use tcpclose::names::Phase;

use crate::common::{Agent, BINARY};
use crate::restart::stage::Port;

/// A container may have a time namespace, whose CLOCK_MONOTONIC is not what the probe reads.
#[test]
#[ignore = "needs root"]
fn in_a_time_namespace_ages_are_true() {
    if !std::fs::exists("/proc/self/ns/time").unwrap() {
        eprintln!("SKIPPED: this kernel has no time namespaces");
        return;
    }
    let port = Port::new();
    let before = port.close_waits(3);
    for ahead in ["100000", "-30"] {
        let mut command = Command::new("unshare");
        let (monotonic, boottime) = (format!("--monotonic={ahead}"), format!("--boottime={ahead}"));
        // Without --fork: the agent has the process, and enters by exec (fs/exec.c, since 6.0).
        command.args(["--time", &monotonic, &boottime, BINARY]);
        let agent = Agent::start_by(command, &[]);
        let after = port.close_waits(3);
        let answer = port.ask(&agent, Phase::CloseWait);
        for connection in &before {
            answer.holds(connection);
        }
        for connection in &after {
            assert!(answer.holds(connection), "{ahead}: {:?}", answer.find(connection));
        }
    }
}
