//! Arguments that several commands have, and their values.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use crate::client::fetch::AgentAddress;
use crate::linux::netns::Scope;
use crate::names::Phase;
use crate::report::requests::DEFAULT_SOCKET;

/// A duration such as `10m`.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    humantime::parse_duration(text).map_err(|_| "not a duration; write for example 60s, 10m or 1h30m")
}

/// A path that a Unix socket can have.
pub fn socket_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        // sun_path holds 108 bytes, the last of them 0 (include/uapi/linux/un.h).
        let fits = path.as_os_str().len() < 108;
        fits.then_some(path).ok_or("the path of a Unix socket has 107 bytes at most; choose a shorter one")
    })
}

/// A port that a connection can have.
pub fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().ok().filter(|port| *port != 0).ok_or("not a port; write a number from 1 to 65535")
}

/// A number of lines, ports or sockets.
pub fn number(text: &str) -> Result<usize, &'static str> {
    text.parse().map_err(|_| "not a number; write for example 20")
}

/// A process id.
pub fn pid(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "not a process id; write a number as ps shows it")
}

/// A TCP state of the close phase, in capitals and with hyphens too.
pub fn state(text: &str) -> Result<Phase, &'static str> {
    let name = text.to_ascii_lowercase().replace('-', "_");
    Phase::ALL
        .into_iter()
        .find(|phase| phase.name() == name)
        .ok_or("not a state; write close_wait, last_ack, fin_wait_1, fin_wait_2, closing or time_wait")
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
    pub fn scope(self) -> Scope {
        match self {
            Self::All => Scope::All,
            Self::Current => Scope::Current,
        }
    }
}

/// The id of the argument `--socket`.
pub const SOCKET: &str = "socket";

/// `--socket` and `--no-agent`. By hand, since derived arguments do not know whether they were given.
impl clap::Args for AgentAddress {
    fn augment_args(command: Command) -> Command {
        command
            .arg(
                Arg::new("no_agent")
                    .long("no-agent")
                    .action(ArgAction::SetTrue)
                    .help("Work without the agent, even where one is running"),
            )
            .arg(
                Arg::new(SOCKET)
                    .long("socket")
                    .value_name("PATH")
                    .default_value(DEFAULT_SOCKET)
                    .value_parser(socket_path())
                    .help("The agent's Unix socket"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for AgentAddress {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            socket: matches.get_one(SOCKET).cloned().unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET)),
            is_explicit: matches.value_source(SOCKET) == Some(ValueSource::CommandLine),
            no_agent: matches.get_flag("no_agent"),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
