//! The command line: arguments in, text or JSON out, an exit status.
//!
//! * [`cli`]: the commands. [`config`]: their settings from arguments, variables and a file.
//! * [`agent`], [`stuck`], [`kill`], [`ports`], [`exhaustion`], [`idle`], [`top`], [`verify`], [`watch`], [`doctor`]: one file
//!   per command.
//! * [`generate`]: man pages and completions, for packages.
//! * [`arguments`]: arguments that several commands have. [`output`]: standard output.
//! * [`filter`]: the sockets that `stuck` and `kill` are about. [`groups`]: sockets put together;
//!   [`fd_exhaustion`]: when processes run out of descriptors; [`suggest`]: what to run next.
//! * [`signals`]: SIGINT and SIGTERM between two sockets.

pub mod agent;
pub mod arguments;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod exhaustion;
pub mod fd_exhaustion;
pub mod filter;
pub mod generate;
pub mod groups;
pub mod idle;
pub mod kill;
pub mod output;
pub mod ports;
pub mod signals;
pub mod stuck;
pub mod suggest;
#[cfg(feature = "tui")]
pub mod top;
pub mod verify;
pub mod watch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::agent::config::Config;
use crate::commands::cli::Cli;
use crate::commands::config::Stop;
use crate::commands::output::{note, print, written};
use crate::failure::Failure;
use crate::linux::executables;
use crate::linux::executables::helper;
use crate::linux::stacks;

/// Runs the command line `arguments` (the program's name first) and returns the exit status: 0, 1 for a check that found
/// something, 2 for a failure.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // Not one of clap's: no user types it, and it has to begin at once.
    if matches!(&arguments[..], [_, word] if word == helper::COMMAND) {
        return helper::serve();
    }
    if matches!(&arguments[..], [_, word] if word == stacks::helper::COMMAND) {
        return stacks::helper::serve();
    }
    executables::has_command();
    if let Some(warning) = config::unknown_variables() {
        note(&warning);
    }
    let done = match config::parse(&arguments) {
        Ok(Cli::Agent(agent)) => agent.run(&|| reload(&arguments)).map(|()| ExitCode::SUCCESS),
        Ok(Cli::Stuck(stuck)) => stuck.run(),
        Ok(Cli::Kill(kill)) => kill.run(),
        Ok(Cli::Ports(ports)) => ports.run(),
        Ok(Cli::Exhaustion(exhaustion)) => exhaustion.run(),
        Ok(Cli::Idle(idle)) => idle.run(),
        #[cfg(feature = "tui")]
        Ok(Cli::Top(top)) => top.run(),
        Ok(Cli::Verify(verify)) => verify.run(),
        Ok(Cli::Watch(watch)) => watch.run(),
        Ok(Cli::Doctor(doctor)) => doctor.run(),
        Ok(Cli::Generate(generate)) => generate.run(&config::documented(), &config::template()),
        // As clap prints it: in colour on a terminal, unless NO_COLOR is set.
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
        // The arguments are the same as at the start.
        Ok(_) | Err(Stop::Answer(_) | Stop::Help(_)) => {
            Err(Failure::new("reload", "the arguments no longer start an agent", "restart it"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    fn complaint(arguments: &[&str]) -> String {
        let words: Vec<OsString> = ["tcpclose"].iter().chain(arguments).map(OsString::from).collect();
        let name = config::name_of(&Cli::command(), &words);
        Failure::of_arguments(&Cli::try_parse_from(words).unwrap_err(), &name).to_string()
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
    fn a_negative_value_reaches_its_parser_and_is_no_unknown_option() {
        let command = config::documented();
        let arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
        let named = |arg: &clap::Arg, kinds: &[&str]| {
            let names = arg.get_value_names().unwrap_or_default();
            names.iter().any(|name| kinds.contains(&name.as_str()))
        };
        let arguments: Vec<&clap::Arg> = arguments.collect();
        let of = |kinds: &[&str]| arguments.iter().filter(|arg| named(arg, kinds)).collect::<Vec<_>>();
        let (words, numbers) = (of(&["DURATION", "DURATIONS", "SIZE", "MODE"]), of(&["N", "PORT", "PID"]));
        assert!(words.len() >= 14 && numbers.len() >= 14, "{words:?} {numbers:?}");
        for arg in words {
            assert!(arg.is_allow_hyphen_values_set(), "{arg}");
        }
        for arg in numbers {
            assert!(arg.is_allow_negative_numbers_set() || arg.is_allow_hyphen_values_set(), "{arg}");
        }
    }

    #[test]
    fn the_whole_help_of_every_command() {
        let mut command = config::documented().term_width(100);
        command.build();
        // clap leaves blanks at the ends of lines.
        let help = |command: &mut clap::Command| {
            let text = command.render_long_help().to_string();
            text.lines().map(|line| line.trim_end().to_owned() + "\n").collect::<String>()
        };
        crate::ui::golden::check("help.txt", &help(&mut command));
        for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
            let name = format!("help-{}.txt", sub.get_name());
            crate::ui::golden::check(&name, &help(sub));
        }
    }

    #[test]
    fn what_is_wrong_with_arguments_is_reported_in_one_line() {
        assert_eq!(
            complaint(&["stuck", "--older-than", "banana"]),
            r#"tcpclose: --older-than "banana": not a duration; for example 60s, 10m, 1h30m or 2days"#
        );
        assert_eq!(
            complaint(&["stuck", "--older-than", "-5s"]),
            r#"tcpclose: --older-than "-5s": a duration cannot be negative; for example 60s, 10m, 1h30m or 2days"#
        );
        assert_eq!(
            complaint(&["agent", "--stuck-after", "-1m,10m"]),
            r#"tcpclose: --stuck-after "-1m,10m": not a list of durations: "-1m": a duration cannot be negative; for example 1m,10m,1h"#
        );
        assert_eq!(
            complaint(&["stuck", "--older-than"]),
            "tcpclose: arguments: a value is required for '--older-than <DURATION>' but none was supplied; \
             see tcpclose stuck --help"
        );
        assert_eq!(
            complaint(&["stuck", "--port", "0"]),
            r#"tcpclose: --port "0": not a port; write a number from 1 to 65535"#
        );
        assert_eq!(
            complaint(&["agent", "--listen", ""]),
            r#"tcpclose: --listen "": not an address; for example 127.0.0.1:9923 or [::]:9923"#
        );
        assert_eq!(
            complaint(&["agent", "--state-hook", "banana"]),
            r#"tcpclose: --state-hook "banana": not a possible value; choose one of auto, btf, tracepoint"#
        );
        assert_eq!(
            complaint(&["stuck", "--sokets"]),
            "tcpclose: arguments: unexpected argument '--sokets' found; did you mean --sockets? \
             Otherwise see tcpclose stuck --help"
        );
        assert_eq!(
            complaint(&["agnet"]),
            "tcpclose: arguments: unrecognized subcommand 'agnet'; did you mean agent? Otherwise see tcpclose --help"
        );
        assert_eq!(
            complaint(&["agent", "--socket", &"x".repeat(108)]).split_once(r#"": "#).unwrap().1,
            "the path of a Unix socket has 107 bytes at most; choose a shorter one"
        );
        assert!(Cli::try_parse_from(["tcpclose", "agent", "--socket", &"x".repeat(107)]).is_ok());
        // clap's own suggestion is --no-agent.
        assert!(complaint(&["stuck", "--nope-agree"]).ends_with("; see tcpclose stuck --help"));
        let rest: &[&[&str]] = &[
            &["stuck", "--state", "limbo"],
            &["stuck", "--by", "pod"],
            &["stuck", "--max", "3"],
            &["stuck", "--check", "--max", "-3"],
            &["agent", "--ring-size", "-8M"],
            &["agent", "--socket-mode", "-600"],
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
            let known = arguments.first().and_then(|word| Cli::command().find_subcommand(word).map(drop));
            if let (Some(()), Some((_, help))) = (known, line.split_once("see tcpclose "))
                && arguments[0] != "help"
            {
                assert_eq!(help, format!("{} --help", arguments[0]), "{line}");
            }
            println!("{line}");
        }
    }
}
