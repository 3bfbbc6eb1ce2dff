//! The agent's settings from arguments, variables and a file, and what SIGHUP makes of a file that has changed.

use crate::common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use common::{Agent, BINARY};

fn check(file: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    Command::new(BINARY)
        .args(["agent", "--check-config", "--config"])
        .arg(file)
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn check_config_prints_what_holds_and_refuses_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tcpclose.toml");
    fs::write(&file, "stuck-after = [\"5s\", \"1m\"]\nwait = \"9s\"\nmax-ports = 7\n").unwrap();
    let output = check(&file, &[("TCPCLOSE_WAIT", "8s")], &["--max-ports", "6"]);
    let text = String::from_utf8(output.stdout).unwrap();
    println!("{text}");
    assert!(output.status.success() && output.stderr.is_empty());
    for line in [
        &format!("stuck-after = \"5s,1m\"  # {}", file.display()),
        "wait = \"8s\"  # TCPCLOSE_WAIT",
        "max-ports = 6  # argument",
        "netns = \"all\"  # default",
    ] {
        assert!(text.lines().any(|printed| printed == line), "no {line}");
    }

    fs::write(&file, "stuck_after = \"5s\"\n").unwrap();
    for (output, expected) in [
        (
            check(&file, &[], &[]),
            "stuck_after: no such setting; did you mean stuck-after? Otherwise see tcpclose agent --help",
        ),
        (check(&folder.path().join("none"), &[], &[]), "there is no such file"),
        (
            check(Path::new("/dev/null"), &[("TCPCLOSE_NETNS", "some")], &[]),
            "TCPCLOSE_NETNS \"some\": not a possible value",
        ),
    ] {
        let printed = String::from_utf8(output.stderr).unwrap();
        print!("{printed}");
        assert_eq!(output.status.code(), Some(2), "{printed}");
        assert!(
            output.stdout.is_empty() && printed.contains(expected) && printed.lines().count() == 1,
            "{printed}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn a_reload_takes_what_can_change_and_says_what_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tcpclose.toml");
    let first = "stuck-after = \"2m,1h\"\nring-size = \"1M\"\n";
    fs::write(&file, first).unwrap();
    let agent = Agent::start(&["--config", file.to_str().unwrap()]);
    let until_ready = agent.printed();
    let bound = || agent.metrics().sum("tcpclose_stuck_after_seconds", &[]);
    assert_eq!(bound(), 120.0);

    let printed = |settings: &str| agent.reloaded(|| fs::write(&file, settings).unwrap());
    assert_eq!(printed(first), "tcpclose: reloaded: nothing has changed");
    assert_eq!(
        printed(
            "stuck-after = \"3s\"\ndump-interval = \"7s\"\nring-size = \"2M\"\nname-port = 80\nowner-interval = \"off\"\n"
        ),
        "tcpclose: reloaded: stuck-after, dump-interval, owner-interval; restart the agent to apply name-port, ring-size"
    );
    assert_eq!(bound(), 3.0);
    // What is between two dumps is as the agent was told, or longer where dumps are dear.
    let interval = |metrics: &common::Metrics| metrics.sum("tcpclose_reconcile_interval_seconds", &[]) >= 7.0;
    agent.metrics_when(Duration::from_secs(60), "dumps are 7 s apart", interval);

    // What is wrong changes nothing, and the agent goes on.
    let wrong = printed("stuck-afer = \"9s\"\n");
    assert!(
        wrong.ends_with(
            "did you mean stuck-after? Otherwise see tcpclose agent --help (nothing was reloaded)"
        ),
        "{wrong}"
    );
    let gone = agent.reloaded(|| fs::remove_file(&file).unwrap());
    assert!(gone.contains("there is no such file") && gone.ends_with(" (nothing was reloaded)"), "{gone}");
    assert_eq!(bound(), 3.0);
    // Against what runs, not against what was asked for last: the ring is what it was, and so are names.
    assert_eq!(
        printed("stuck-after = \"3s\"\nring-size = \"1M\"\nlog-level = \"info\""),
        "tcpclose: reloaded: dump-interval, owner-interval, log-level"
    );
    assert!(agent.printed().starts_with(&until_ready));
}
