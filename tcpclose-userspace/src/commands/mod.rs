//! The command line: arguments in, text or JSON out, an exit status.
//!
//! * [`agent`]: `tcpclose agent`; [`config`]: its settings from arguments, variables and a file.
//! * [`stuck`]: `tcpclose stuck`.
//! * [`kill`]: `tcpclose kill`.
//! * [`verify`]: `tcpclose verify`.
//! * [`watch`]: `tcpclose watch`.
//! * [`ports`]: `tcpclose ports`.
//! * [`exhaustion`]: `tcpclose exhaustion`.
//! * [`top`]: `tcpclose top`.
//! * [`crate::client::fetch`]: a document of the agent's, or the same without one.
//! * [`filter`]: which sockets are meant, and where they are asked for.
//! * [`crate::client`]: asks the agent on its unix socket; [`crate::client::stream`]: reads its stream.
//! * [`signals`]: SIGINT and SIGTERM between two sockets.
//! * [`groups`]: sockets put together; [`fd_exhaustion`]: how fast processes run out of descriptors;
//!   [`suggest`]: what to run next.
//! * [`generate`]: man pages and completions, for packages.
//! * [`crate::ui::table`]: columns and short words for people.

pub mod agent;
pub mod config;
pub mod exhaustion;
pub mod fd_exhaustion;
pub mod filter;
pub mod generate;
pub mod groups;
pub mod kill;
pub mod ports;
pub mod signals;
pub mod stuck;
pub mod suggest;
pub mod top;
pub mod verify;
pub mod watch;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::builder::{PathBufValueParser, TypedValueParser};
use serde::Serialize;

use crate::agent::config::Config;
use crate::commands::config::Stop;
use crate::failure::Failure;
use crate::linux::executables;
use crate::linux::executables::helper;
use crate::linux::netns::Scope;

pub use crate::report::api::DEFAULT_SOCKET;

/// A live monitor of how TCP connections end on a Linux host.
#[derive(Debug, Parser)]
#[command(name = "tcpclose", version, about, infer_long_args = false)]
#[command(after_help = "Example: tcpclose stuck --older-than 10m")]
pub enum Cli {
    // It has by far the most settings.
    Agent(Box<agent::Agent>),
    Stuck(stuck::Stuck),
    Kill(kill::Kill),
    Ports(ports::Ports),
    Exhaustion(exhaustion::Exhaustion),
    Top(top::Top),
    Verify(verify::Verify),
    Watch(watch::Watch),
    Generate(generate::Generate),
}

/// Runs the command line `arguments` (the program's name first) and says how it went: 0, 1 for a check that found
/// something, 2 for a failure.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // Not one of clap's: nobody is to type it, and it is to begin at once.
    if matches!(&arguments[..], [_, word] if word == helper::COMMAND) {
        return helper::serve();
    }
    executables::has_command();
    let done = match config::parse(&arguments) {
        Ok(Cli::Agent(agent)) => agent.run(&|| reload(&arguments)).map(|()| ExitCode::SUCCESS),
        Ok(Cli::Stuck(stuck)) => stuck.run(),
        Ok(Cli::Kill(kill)) => kill.run(),
        Ok(Cli::Ports(ports)) => ports.run(),
        Ok(Cli::Exhaustion(exhaustion)) => exhaustion.run(),
        Ok(Cli::Top(top)) => top.run(),
        Ok(Cli::Verify(verify)) => verify.run(),
        Ok(Cli::Watch(watch)) => watch.run(),
        Ok(Cli::Generate(generate)) => generate.run(),
        // Clap's own way: in colour on a terminal, unless NO_COLOR says otherwise.
        Err(Stop::Help(help)) => written(help.print()).map(|()| ExitCode::SUCCESS),
        Err(Stop::Answer(text)) => print(&text).map(|()| ExitCode::SUCCESS),
        Err(Stop::Failed(failure)) => Err(failure),
    };
    done.unwrap_or_else(|failure| {
        let _ = writeln!(io::stderr(), "{failure}");
        ExitCode::from(Failure::EXIT)
    })
}

/// The agent's settings as they are now.
fn reload(arguments: &[OsString]) -> Result<Config, Failure> {
    match config::parse(arguments) {
        Ok(Cli::Agent(agent)) => Ok(agent.config()),
        Err(Stop::Failed(failure)) => Err(failure),
        // The arguments are what they were when they asked for an agent.
        Ok(_) | Err(Stop::Answer(_) | Stop::Help(_)) => {
            Err(Failure::new("reloading", "the arguments no longer ask for an agent", "restart it"))
        }
    }
}

/// Writes `text` to standard output. A reader that has gone away (`| head`) is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

fn written(done: io::Result<()>) -> Result<(), Failure> {
    match done {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new("writing to standard output", error, "make room there, or write elsewhere"))
        }
        _ => Ok(()),
    }
}

/// `document` as one line of JSON.
pub fn json(document: &impl Serialize) -> Result<String, Failure> {
    let line = serde_json::to_string(document);
    line.map(|line| line + "\n").map_err(|error| Failure::new("writing JSON", error, "report this"))
}

/// A duration as people write it, for clap.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    humantime::parse_duration(text).map_err(|_| "not a duration; write for example 60s, 10m or 1h30m")
}

/// A path that a unix socket can have, for clap.
pub fn socket_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        // sun_path holds 108 bytes, the last of them 0 (include/uapi/linux/un.h).
        let fits = path.as_os_str().len() < 108;
        fits.then_some(path).ok_or("the path of a unix socket has 107 bytes at most; choose a shorter one")
    })
}

/// A port that a connection can have, for clap.
pub fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().ok().filter(|port| *port != 0).ok_or("not a port; write a number from 1 to 65535")
}

/// `--netns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NetnsChoice {
    /// Every network namespace that can be entered.
    All,
    /// This one.
    Current,
}

impl NetnsChoice {
    fn scope(self) -> Scope {
        match self {
            Self::All => Scope::All,
            Self::Current => Scope::Current,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn complaint(arguments: &[&str]) -> String {
        let words = ["tcpclose"].iter().chain(arguments);
        Failure::of_arguments(&Cli::try_parse_from(words).unwrap_err()).to_string()
    }

    #[test]
    fn the_arguments_are_consistent_and_every_help_shows_an_example() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        assert!(command.render_long_help().to_string().contains("Example"));
        for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
            assert!(sub.render_long_help().to_string().contains("Example"), "{}", sub.get_name());
        }
    }

    #[test]
    fn what_is_wrong_with_arguments_is_said_in_one_line() {
        assert_eq!(
            complaint(&["stuck", "--older-than", "banana"]),
            r#"tcpclose: --older-than "banana": not a duration; write for example 60s, 10m or 1h30m"#
        );
        assert_eq!(
            complaint(&["stuck", "--port", "0"]),
            r#"tcpclose: --port "0": not a port; write a number from 1 to 65535"#
        );
        assert_eq!(
            complaint(&["agent", "--listen", ""]),
            r#"tcpclose: --listen "": not an address; write for example 127.0.0.1:9923 or [::]:9923"#
        );
        assert_eq!(
            complaint(&["agent", "--state-hook", "banana"]),
            r#"tcpclose: --state-hook "banana": not a possible value; choose one of auto, btf, tracepoint"#
        );
        assert_eq!(
            complaint(&["stuck", "--sokets"]),
            "tcpclose: arguments: unexpected argument '--sokets' found; did you mean --sockets? \
             else see tcpclose stuck --help"
        );
        assert_eq!(
            complaint(&["agnet"]),
            "tcpclose: arguments: unrecognized subcommand 'agnet'; did you mean agent? else see tcpclose --help"
        );
        assert_eq!(
            complaint(&["agent", "--socket", &"x".repeat(108)]).split_once(r#"": "#).unwrap().1,
            "the path of a unix socket has 107 bytes at most; choose a shorter one"
        );
        assert!(Cli::try_parse_from(["tcpclose", "agent", "--socket", &"x".repeat(107)]).is_ok());
        let rest: &[&[&str]] = &[
            &["stuck", "--state", "limbo"],
            &["stuck", "--by", "pod"],
            &["stuck", "--max", "3"],
            &["stuck", "--pid", "-1"],
            &["stuck", "--limit", "many"],
            &["stuck", "--limit", "-3"],
            &["stuck", "--older-than"],
            &["stuck", "--older-than", ""],
            &["stuck", "--by", ""],
            &["stuck", "--banana"],
            &["stuck", "banana"],
            &["kill", "--rate", "0"],
            &["kill", "--rate", "-1"],
            &["kill", "--diagnosis", "unknown"],
            &["kill", "--limit", "-1"],
            &["kill", "--check"],
            &["ports", "--limit", "-1"],
            &["ports", "8080"],
            &["top", "--port", "80"],
            &["exhaustion", "--for", "-1s"],
            &["exhaustion", "--limit", "all"],
            &["verify", "--for", "-1s"],
            &["verify", "banana"],
            &["watch", "--state", "established"],
            &["watch", "--outcome", "good"],
            &["watch", "--port", "-1"],
            &["watch", "--json", "--handshake"],
            &["agent", "--max-ports", "-1"],
            &["agent", "--wait", "-1s"],
            &["agent", "--wait", "1s", "--wait", "2s"],
            &["banana"],
            &["help", "banana"],
            &["a\nb"],
            &[],
        ];
        for arguments in rest {
            let line = complaint(arguments);
            assert!(line.starts_with("tcpclose: ") && !line.contains('\n'), "{arguments:?}: {line}");
            assert!(line.contains("; "), "nothing to do: {line}");
            println!("{line}");
        }
    }
}
