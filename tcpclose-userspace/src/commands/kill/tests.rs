use std::cell::RefCell;

use super::execution::{Executor, hopeless};
use super::text::result_line;
use super::*;
use crate::kill::KillOutcome;
use crate::names::Phase;
use crate::report::fixtures::{owner, socket};

fn arguments(words: &[&str]) -> Kill {
    use clap::Parser;
    match crate::commands::cli::Cli::try_parse_from(["tcpclose", "kill"].iter().chain(words)).unwrap() {
        crate::commands::cli::Cli::Kill(kill) => kill,
        other => panic!("{other:?}"),
    }
}

#[test]
fn neglected_sockets_alone_are_destroyed_by_default() {
    let kill = arguments(&[]);
    assert_eq!((kill.diagnoses(), kill.yes, kill.rate), (DIAGNOSES.to_vec(), false, 100));
    assert_eq!(kill.filter.state, Phase::CloseWait);
    let named = arguments(&["--diagnosis", "still_sending", "--diagnosis", "not_read"]);
    assert_eq!(named.diagnoses(), [Diagnosis::StillSending, Diagnosis::NotRead]);
    assert!(rate("0").is_err() && rate("-1").is_err() && rate("many").is_err());
}

#[test]
fn one_socket_is_one_line_whatever_its_owner_is_called() {
    let socket = socket(3_720, &[owner(42, "a\nb\x1b[2J", (1, 2))]);
    let line = result_line(&socket, false, &KillOutcome::Refused { errno: None, why: "x\ny".to_owned() });
    assert_eq!(
        line,
        "refused    10.0.0.5:8080  10.0.0.9:41234  1h 2m  not_closed  a\\nb\\u{1b}[2J[42]:5  (x\\ny)\n"
    );
}

#[test]
fn a_socket_of_another_namespace_has_its_name() {
    let socket = StuckSocket { netns_name: Some("blue".to_owned()), ..socket(60, &[]) };
    let line = result_line(&socket, true, &KillOutcome::Destroyed);
    assert!(line.starts_with("destroyed  10.0.0.5:8080 in blue  10.0.0.9:41234  1m"), "{line}");
}

#[test]
fn a_refusal_for_every_socket_is_one_failure() {
    let refused = |errno| KillOutcome::Refused { errno: Some(errno), why: "os says so".to_owned() };
    let line = |errno, state| {
        hopeless(&refused(errno), state, &Executor::Own(RefCell::default())).map(|f| f.to_string())
    };
    assert!(line(libc::EPERM, Phase::CloseWait).unwrap().contains("CAP_NET_ADMIN"));
    assert!(line(libc::EOPNOTSUPP, Phase::CloseWait).unwrap().contains("CONFIG_INET_DIAG_DESTROY"));
    assert_eq!(line(libc::EOPNOTSUPP, Phase::TimeWait), None);
    assert_eq!(line(libc::ENOMEM, Phase::CloseWait), None);
    assert_eq!(hopeless(&KillOutcome::Destroyed, Phase::CloseWait, &Executor::Own(RefCell::default())), None);
}

#[test]
fn yes_needs_a_target() {
    for words in [&["--yes"][..], &["--yes", "--older-than", "1h"], &["--yes", "--limit", "1"]] {
        let line = arguments(words).run().unwrap_err().to_string();
        assert!(line.starts_with("tcpclose: kill --yes: no target; ") && line.contains("--all"), "{line}");
    }
    for words in [&["--port", "80"][..], &["--pid", "1"], &["--unit", "api.service"]] {
        assert!(arguments(words).filter.has_target(), "{words:?}");
    }
}

#[test]
fn the_dry_run_lists_what_it_would_destroy() {
    let findings = crate::commands::stuck::tests::findings(60);
    let going = [
        socket(3_720, &[owner(42, "api", (924, 1024))]),
        StuckSocket { netns_name: Some("blue".to_owned()), ..socket(61, &[owner(7, "worker", (3, 1024))]) },
    ];
    let left = Left { still_sending: 1, possibly: 2, ..Left::default() };
    let text = |words: &[&str], going: &[StuckSocket]| {
        arguments(words).dry_run_text(&findings, going, left, 60.0, Some(100))
    };
    let targeted = text(&["--port", "8080"], &going);
    crate::ui::golden::check("kill-dry-run.txt", &targeted);
    assert!(text(&[], &going).ends_with("(add --yes --all to destroy them; that takes root)\n"));
    assert!(text(&[], &[]).starts_with("No socket to destroy (") && !text(&[], &[]).contains("dry run"));
}
