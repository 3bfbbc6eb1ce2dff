//! What a terminal gets and a pipe does not: colour, and how far long work is.

use crate::common;

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Output, Stdio};

use common::{BINARY, free_port, half_closed_client};

const ESCAPE: char = '\u{1b}';

/// What a command writes on a terminal of its own: script's, from util-linux.
fn on_a_terminal(line: &str, environment: &[(&str, &str)]) -> String {
    let mut command = Command::new("script");
    command.args(["-qec", line, "/dev/null"]).stdin(Stdio::null()).env("TERM", "xterm");
    // What else speaks for colour or against it: a log of CI shows it, whatever TERM is (anstyle_query::is_ci).
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
        command.env_remove(name);
    }
    text(command.envs(environment.iter().copied()).output().unwrap())
}

fn text(Output { stdout, stderr, .. }: Output) -> String {
    String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned()
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let help = format!("{BINARY} stuck --help");
    let coloured = on_a_terminal(&help, &[]);
    assert!(coloured.contains("Usage:") && coloured.contains(ESCAPE), "{coloured:?}");
    for unwanted in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = on_a_terminal(&help, &[unwanted]);
        assert!(plain.contains("Usage:") && !plain.contains(ESCAPE), "{unwanted:?}: {plain:?}");
    }
    let piped = text(Command::new(BINARY).args(["stuck", "--help"]).output().unwrap());
    assert!(piped.contains("Usage:") && !piped.contains(ESCAPE), "{piped:?}");
    // A table has none, wherever it goes.
    let table = on_a_terminal(&format!("{BINARY} stuck --no-agent"), &[]);
    assert!(!table.contains(ESCAPE), "{table:?}");
}

/// Four sockets at one a second take three.
#[test]
#[ignore = "needs root"]
fn a_large_kill_shows_how_far_it_is() {
    for terminal in [true, false] {
        let port = free_port();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let clients: Vec<_> = (0..4).map(|_| half_closed_client(port, b"")).collect();
        let mut servers: Vec<_> = (0..4).map(|_| listener.accept().unwrap().0).collect();
        for server in &mut servers {
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
        }
        let words =
            format!("kill --no-agent --possibly --half-closed --older-than 1ms --port {port} --rate 1 --yes");
        let printed = match terminal {
            true => on_a_terminal(&format!("{BINARY} {words}"), &[]),
            false => text(Command::new(BINARY).args(words.split(' ')).output().unwrap()),
        };
        println!("{printed:?}");
        assert!(printed.contains("destroyed 4 of 4"), "{printed:?}");
        assert_eq!(printed.contains("\r\u{1b}[K1 of 4, "), terminal, "{printed:?}");
        assert_eq!(printed.contains(ESCAPE), terminal, "{printed:?}");
        drop(clients);
    }
}
