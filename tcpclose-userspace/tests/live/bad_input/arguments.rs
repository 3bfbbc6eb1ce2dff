//! Arguments that make no sense.

use super::*;

#[test]
fn nonsense_of_the_agents_arguments_is_named_with_a_remedy() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--stuck-after", "banana"], &["--stuck-after \"banana\"", "not a list of durations", "1m,10m,1h"]),
        (&["--stuck-after", "10m,1m"], &["must ascend", "1m,10m,1h"]),
        (&["--stuck-after", "0s"], &["0 would call every CLOSE-WAIT stuck", "1m,10m,1h"]),
        (&["--stuck-after", ""], &["--stuck-after \"\"", "1m,10m,1h"]),
        (&["--listen", "banana"], &["--listen \"banana\"", "127.0.0.1:9923"]),
        (&["--listen", "example.org:9923"], &["not an address", "127.0.0.1:9923"]),
        (&["--listen", ""], &["not an address"]),
        (&["--ring-size", "3M"], &["--ring-size \"3M\"", "power of two from ", "to 1024M"]),
        (&["--ring-size", "2048M"], &["power of two from ", "to 1024M"]),
        (&["--max-ports", "-1"], &["--max-ports \"-1\"", "from 0 to 65535"]),
        (&["--max-ports", "70000"], &["--max-ports \"70000\"", "from 0 to 65535"]),
        (&["--name-port", "0"], &["--name-port \"0\"", "from 1 to 65535"]),
        (&["--dump-interval", "0"], &["--dump-interval \"0\"", "between 10ms and 1day", "for example"]),
        (&["--reconcile-interval", "1ms"], &["between 10ms and 1day"]),
        (&["--reconcile-max", "0s"], &["between 10ms and 1day", "for example"]),
        (&["--wait", "-1s"], &["--wait \"-1s\"", "cannot be negative", "60s"]),
        (&["--dump-interval", "-1s"], &["cannot be negative", "60s"]),
        (&["--wait", "soon"], &["--wait \"soon\"", "not a duration", "60s"]),
        (&["--state-hook", "banana"], &["--state-hook \"banana\"", "one of auto, btf, tracepoint"]),
        (&["--time-wait", "banana"], &["--time-wait \"banana\"", "one of auto, hooks, diag"]),
        (&["--log-level", "loud"], &["--log-level \"loud\"", "one of off, error, warn, info, debug, trace"]),
        (&["--lissten", "x"], &["--lissten", "did you mean --listen?", "tcpclose agent --help"]),
        (&["--banana"], &["--banana", "tcpclose agent --help"]),
        (&["banana"], &["banana", "tcpclose agent --help"]),
        (&["--listen"], &["a value is required", "see tcpclose agent --help"]),
        (&["--wait", "1s", "--wait", "2s"], &["cannot be used multiple times"]),
    ];
    for (arguments, words) in cases {
        refuses(tcpclose(&["agent"]).args(*arguments), words);
    }
    refuses(&mut tcpclose(&["banana"]), &["unrecognized subcommand 'banana'", "tcpclose --help"]);
    refuses(&mut tcpclose(&["agnet"]), &["did you mean agent?"]);
    refuses(&mut tcpclose(&[]), &["no command", "tcpclose --help"]);
    let too_long = format!("/tmp/{}", "x".repeat(103));
    for command in ["agent", "stuck"] {
        refuses(&mut tcpclose(&[command, "--socket", &too_long]), &["107 bytes at most", "shorter"]);
    }
}

#[test]
fn arguments_that_are_not_utf8_are_refused_without_a_panic() {
    let garbage = OsStr::from_bytes(b"\xff\xfe");
    for arguments in
        [&["agent"][..], &["agent", "--listen"], &["agent", "--state-hook"], &["stuck", "--pid"], &[]]
    {
        refuses(tcpclose(arguments).arg(garbage), &[]);
    }
    refuses(tcpclose(&["agent", "--listen"]).arg(garbage), &["not UTF-8"]);
}

#[test]
fn what_names_nothing_is_refused() {
    // One more than the kernel's highest (include/linux/threads.h, PID_MAX_LIMIT).
    let nobody = "4194305";
    refuses(&mut tcpclose(&["stuck", "--no-agent", "--check", "--pid", nobody]), &["no such process"]);
    for command in [&["watch", "--no-agent", "--pid", nobody][..], &["kill", "--no-agent", "--pid", nobody]] {
        refuses(&mut tcpclose(command), &[&format!("--pid {nobody}: no such process"), "as ps shows it"]);
    }
    refuses(&mut tcpclose(&["kill", "--no-agent", "--yes"]), &["kill --yes: no target", "--all"]);
    let own = std::process::id().to_string();
    assert!(tcpclose(&["stuck", "--no-agent", "--pid", &own]).output().unwrap().status.success());
}

#[test]
fn an_unknown_variable_is_one_warning() {
    let output = tcpclose(&["stuck", "--no-agent"]).env("TCPCLOSE_SOKET", "/x").output().unwrap();
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "tcpclose: warning: TCPCLOSE_SOKET (did you mean TCPCLOSE_SOCKET?): no such setting, ignored\n"
    );
}

#[test]
fn the_doctor_says_whether_an_agent_can_run() {
    let output = tcpclose(&["doctor", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let can_run = report["agent_can_run"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(if can_run { 0 } else { 1 }), "{report}");
}

#[test]
fn every_help_fits_eighty_columns_and_has_an_example() {
    for command in [&[][..], &["agent"], &["stuck"], &["doctor"]] {
        for help in ["--help", "-h"] {
            let output = tcpclose(command).arg(help).env("COLUMNS", "80").output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty());
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains("Example") && text.contains("Usage: tcpclose"), "{text}");
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }
}

#[test]
fn a_web_configuration_that_is_missing_is_one_line() {
    let mut command = tcpclose(&["agent", "--check-config", "--web-config", "/nowhere/web.yml"]);
    refuses(
        &mut command,
        &[
            "web configuration /nowhere/web.yml: there is no such file; create it, or name another file with --web-config",
        ],
    );
}
