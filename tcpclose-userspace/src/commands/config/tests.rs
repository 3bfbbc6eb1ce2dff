use crate::commands::config::settings::is_flag;
use crate::commands::config::*;

/// Variables by name, and a file's text, at the default place or named.
fn parsed(arguments: &[&str], variables: &[(&str, &str)], file: Option<&str>) -> Result<Cli, Stop> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tcpclose.toml");
    if let Some(text) = file {
        std::fs::write(&path, text).unwrap();
    }
    let arguments: Vec<OsString> = ["tcpclose"].iter().chain(arguments).map(OsString::from).collect();
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value)));
    parse_with(&arguments, &Variables(variables.collect()), &path)
}

/// The settings in force, without `agent` and `--check-config` among the arguments.
fn settings(arguments: &[&str], variables: &[(&str, &str)], file: Option<&str>) -> String {
    let arguments = [&["agent", "--check-config"], arguments].concat();
    match parsed(&arguments, variables, file) {
        Err(Stop::Answer(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn complaint(arguments: &[&str], variables: &[(&str, &str)], file: Option<&str>) -> String {
    match parsed(arguments, variables, file) {
        Err(Stop::Failed(failure)) => failure.to_string(),
        other => panic!("{other:?}"),
    }
}

fn line<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines().find(|line| line.contains(key)).unwrap_or_else(|| panic!("no {key} in {text}"))
}

#[test]
fn an_argument_overrules_a_variable_and_that_the_file() {
    let file = Some("max-ports = 1\nwait = \"1s\"\nring-size = \"1M\"\nallow-kill = true\n");
    let variables = [("TCPCLOSE_MAX_PORTS", "2"), ("TCPCLOSE_WAIT", "2s"), ("TCPCLOSE_ALLOW_KILL", "false")];
    let text = settings(&["--max-ports", "3"], &variables, file);
    assert_eq!(line(&text, "max-ports"), "max-ports = 3  # argument");
    assert_eq!(line(&text, "wait ="), r#"wait = "2s"  # TCPCLOSE_WAIT"#);
    assert_eq!(line(&text, "allow-kill"), "allow-kill = false  # TCPCLOSE_ALLOW_KILL");
    assert!(line(&text, "ring-size").starts_with(r#"ring-size = "1M"  # /"#));
    assert_eq!(line(&text, "netns"), r#"netns = "all"  # default"#);
    assert_eq!(line(&text, "state-dir"), "# state-dir: default");
}

#[test]
fn lists_are_written_as_lists_or_with_commas() {
    let both = r#"listen = ["127.0.0.1:1", "[::1]:2"]"#;
    let expected = format!("name-port = [80, 443]  # {}", "TCPCLOSE_NAME_PORT");
    let text = settings(&[], &[("TCPCLOSE_NAME_PORT", "80,443")], Some(both));
    assert!(line(&text, "listen").starts_with(both));
    assert_eq!(line(&text, "name-port"), expected);
    let text = settings(
        &["--name-port", "1", "--name-port", "2"],
        &[],
        Some("stuck-after = [\"1s\", \"2s\"]\nname-port = 80"),
    );
    assert_eq!(line(&text, "name-port"), "name-port = [1, 2]  # argument");
    assert!(line(&text, "stuck-after").starts_with(r#"stuck-after = "1s,2s""#));
}

#[test]
fn what_is_printed_says_the_same_when_it_is_read() {
    let file = "listen = [\"127.0.0.1:1\", \"[::1]:2\"]\nstate-dir = \"/a\\\"b\\\\c\"\nallow-kill = true\nname-port = [1]\n";
    let value = |text: &str| {
        text.lines().map(|line| line.split("  # ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let once = settings(&[], &[], Some(file));
    assert_eq!(value(&settings(&[], &[], Some(&once))), value(&once));
    assert!(once.contains(r#"state-dir = "/a\"b\\c""#), "{once}");
}

#[test]
fn every_argument_of_the_agent_is_a_variable_and_a_key() {
    let command = Cli::command();
    let mut keys = 0;
    for (arg, long) in settings_of(&command).filter(|(arg, _)| arg.get_id() != CONFIG) {
        // Their own defaults, which hold anyway, or what is valid for those without one.
        let value = match arg.get_default_values().first() {
            Some(value) if !is_flag(arg) => value.to_str().unwrap().to_owned(),
            _ if is_flag(arg) => "true".to_owned(),
            _ if long == "name-port" => "80".to_owned(),
            _ if long == "allowed-host" => "node.example".to_owned(),
            _ if long.ends_with("-owner") || long.ends_with("-group") => "root".to_owned(),
            // One of them is read, and empty it is valid.
            _ => "/dev/null".to_owned(),
        };
        let text = settings(&[], &[(&variable_of(long), &value)], None);
        assert!(
            text.lines().any(|line| line.ends_with(&format!("# {}", variable_of(long)))),
            "{long}: {text}"
        );
        let quoted = if is_flag(arg) { value } else { format!("{value:?}") };
        let text = settings(&[], &[], Some(&format!("{long} = {quoted}")));
        assert!(text.lines().any(|line| line.ends_with("tcpclose.toml")), "{long}: {text}");
        keys += 1;
    }
    assert!(keys >= 15);
}

#[test]
fn what_is_wrong_is_reported_with_its_place() {
    let printed = |file: &str| {
        let printed = complaint(&["agent"], &[], Some(file));
        assert!(!printed.contains('\n'), "{printed}");
        printed.split_once("tcpclose.toml").unwrap().1.to_owned()
    };
    assert_eq!(
        printed("stuck_after = \"1m\""),
        ": stuck_after: no such setting; did you mean stuck-after? Otherwise see tcpclose agent --help"
    );
    assert_eq!(
        printed("lisen = \"x\""),
        ": lisen: no such setting; did you mean listen? Otherwise see tcpclose agent --help"
    );
    assert_eq!(printed("config = \"x\"").split("; ").next(), Some(": config: no such setting"));
    assert_eq!(printed("check-config = true").split("; ").next(), Some(": check-config: no such setting"));
    assert_eq!(printed("[agent]\nwait = \"1s\"").split("; ").next(), Some(": agent: no such setting"));
    assert_eq!(
        printed("wait = \"banana\""),
        r#": wait "banana": not a duration; for example 60s, 10m, 1h30m or 2days"#
    );
    assert_eq!(
        printed("max-ports = -1").split("; ").next(),
        Some(r#": max-ports "-1": not a number of ports"#)
    );
    assert_eq!(printed("allow-kill = \"yes\""), ": allow-kill: neither true nor false; write true or false");
    assert_eq!(
        printed("listen = []"),
        ": listen: an empty list; write at least one value, or remove the key"
    );
    assert!(printed("wait = 1.5").starts_with(": wait: not a text, a number or a list; "));
    assert!(printed("wait = \"1s\"\nwait = \"2s\"").starts_with(", line 2: "));
    assert!(printed("\n\nlisten").starts_with(", line 3: "));
    assert_eq!(
        complaint(&["agent"], &[("TCPCLOSE_LISTEN", "nowhere")], None),
        r#"tcpclose: TCPCLOSE_LISTEN "nowhere": not an address; for example 127.0.0.1:9923 or [::]:9923"#
    );
    assert_eq!(
        complaint(&["agent"], &[("TCPCLOSE_ALLOW_KILL", "perhaps")], None),
        r#"tcpclose: TCPCLOSE_ALLOW_KILL "perhaps": neither true nor false; write true or false"#
    );
    // A file that is named must be there; and it is wrong whether it would have been overruled or not.
    assert!(
        complaint(&["agent", "--config", "/nowhere/x"], &[], None)
            .starts_with("tcpclose: /nowhere/x: there is no such file; create it")
    );
    assert!(complaint(&["agent", "--wait", "1s"], &[], Some("wait = \"banana\"")).contains("banana"));
    // An argument that is wrong is told before any file is.
    assert!(
        complaint(&["agent", "--wait", "x", "--config", "/nowhere"], &[], None)
            .starts_with("tcpclose: --wait")
    );
}

#[test]
fn a_flag_is_set_by_the_usual_words() {
    for (word, value) in
        [("1", true), ("on", true), ("yes", true), ("0", false), ("off", false), ("no", false)]
    {
        let text = settings(&[], &[("TCPCLOSE_ALLOW_KILL", word)], None);
        assert!(line(&text, "allow-kill").starts_with(&format!("allow-kill = {value} ")), "{text}");
    }
}

#[test]
fn every_command_finds_the_socket_of_the_agent() {
    let address = |arguments: &[&str], variables: &[(&str, &str)], file| match parsed(
        &[&["stuck"], arguments].concat(),
        variables,
        file,
    ) {
        Ok(Cli::Stuck(stuck)) => (stuck.address.socket.display().to_string(), stuck.address.is_explicit),
        other => panic!("{other:?}"),
    };
    let of = |path: &str, is_explicit| (path.to_owned(), is_explicit);
    let default = of(crate::report::requests::DEFAULT_SOCKET, false);
    let file = Some("socket = \"/file\"\nmax-ports = 7");
    let variable = [("TCPCLOSE_SOCKET", "/variable")];
    assert_eq!(address(&[], &[], None), default);
    assert_eq!(address(&[], &[], file), of("/file", false));
    assert_eq!(address(&[], &variable, file), of("/variable", false));
    assert_eq!(address(&["--socket", "/argument"], &variable, file), of("/argument", true));
    // A file that the agent would refuse does not keep a snapshot from being taken.
    assert_eq!(address(&[], &[], Some("banana")), default);
    assert_eq!(address(&[], &[("TCPCLOSE_CONFIG", "/nowhere")], file), default);
    assert!(
        complaint(&["stuck"], &[("TCPCLOSE_SOCKET", "")], None)
            .starts_with("tcpclose: TCPCLOSE_SOCKET \"\": ")
    );
    for command in ["kill", "ports", "exhaustion", "idle", "top", "verify", "watch"] {
        assert!(
            complaint(&[command], &[("TCPCLOSE_SOCKET", &"x".repeat(108))], None)
                .contains("107 bytes at most"),
            "{command}"
        );
    }
}

#[test]
fn only_the_agent_has_other_settings() {
    assert!(matches!(parsed(&["stuck"], &[("TCPCLOSE_WAIT", "")], Some("banana")), Ok(Cli::Stuck(_))));
    assert!(matches!(parsed(&["agent"], &[], None), Ok(Cli::Agent(_))));
    let Err(Stop::Help(help)) = parsed(&["agent", "--help"], &[], None) else { panic!("no help") };
    let help = help.to_string();
    assert!(help.contains("TCPCLOSE_STUCK_AFTER") && !help.contains("TCPCLOSE_CHECK_CONFIG"), "{help}");
}

#[test]
fn the_packaged_file_says_every_default_and_changes_nothing() {
    let file = template();
    let code: Vec<&str> = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert_eq!(code, [""; 0], "{file}");
    assert!(file.lines().all(|line| line.chars().count() <= 120), "{file}");
    let plain = settings(&[], &[], None);
    assert_eq!(settings(&[], &[], Some(&file)), plain);

    // Every setting is in it, and with the # off it is what it was.
    let settable: Vec<&str> =
        file.lines().filter(|line| line.starts_with('#') && !line.starts_with("# ")).collect();
    let settable: Vec<&str> = settable.into_iter().filter(|line| *line != "#").collect();
    assert_eq!(settable.len(), plain.lines().count(), "{file}");
    let with_default = settable.iter().filter(|line| !line.ends_with("# not set"));
    let uncommented: String =
        with_default.map(|line| format!("{}\n", line.trim_start_matches('#'))).collect();
    let without_places = |text: &str| {
        let values = text.lines().map(|line| line.split("  # ").next().unwrap_or_default().to_owned());
        values.collect::<Vec<_>>()
    };
    let same = settings(&[], &[], Some(&uncommented));
    assert_eq!(without_places(&same), without_places(&plain));
    assert!(
        uncommented.contains("listen = [\"127.0.0.1:9923\"]\n") && uncommented.contains("max-ports = 32\n")
    );
    assert!(
        file.contains("[TCPCLOSE_STATE_HOOK]\n#   auto: The best one that this kernel loads\n"),
        "{file}"
    );
}

/// What a fuzzer found: numbers that TOML writes otherwise, and characters that it does not allow.
#[test]
fn what_is_shown_can_be_read_again() {
    for text in [
        "name-port = \"080\"",
        "state-dir = '18446744073709551615'",
        "socket = \"/a\\u007f\\u202e\\n\\u0080\"",
    ] {
        let shown = of_text(text).unwrap();
        let again = of_text(&shown).unwrap();
        let key = text.split(' ').next().unwrap();
        assert_eq!(line(&again, key), line(&shown, key));
        assert!(!shown.chars().any(|c| c != '\n' && crate::failure::is_hostile(c)), "{shown:?}");
    }
}

#[test]
fn what_check_config_prints_is_a_file() {
    for mode in ["660", "0", "0o600", "0640"] {
        let text = settings(&["--socket-mode", mode], &[], None);
        let again = settings(&[], &[], Some(&text));
        let value = |text: &str| line(text, "socket-mode").split("  #").next().unwrap().to_owned();
        assert_eq!(value(&again), value(&text));
    }
}

#[test]
fn a_level_is_known_in_capitals() {
    assert_eq!(
        line(&settings(&[], &[("TCPCLOSE_LOG_LEVEL", "WARN")], None), "log-level"),
        "log-level = \"WARN\"  # TCPCLOSE_LOG_LEVEL"
    );
    let Ok(Cli::Agent(_)) = parsed(&["agent", "--log-level", "Info"], &[], None) else { panic!("refused") };
}

#[test]
fn a_wrong_socket_of_the_settings_concerns_only_who_needs_it() {
    let wrong = [("TCPCLOSE_SOCKET", "")];
    for fine in [&["stuck", "--socket", "/s"][..], &["stuck", "--no-agent"], &["doctor"]] {
        assert!(parsed(fine, &wrong, None).is_ok(), "{fine:?}");
    }
    assert!(matches!(parsed(&["--help"], &wrong, None), Err(Stop::Help(_))));
    assert!(complaint(&["stuck"], &wrong, None).contains("TCPCLOSE_SOCKET"));
}
