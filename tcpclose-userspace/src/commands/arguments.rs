//! Arguments that several commands have, and their values.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PathBufValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, ValueHint};

use crate::client::fetch::AgentAddress;
use crate::linux::netns::Scope;
use crate::names::{Outcome, Phase};
use crate::report::requests::DEFAULT_SOCKET;
use crate::report::sockets::Cookie;

/// A duration such as `10m`. Arguments of this kind need `allow_hyphen_values`, so that a negative one gets here.
pub fn duration(text: &str) -> Result<Duration, String> {
    bare_duration(text).map_err(|why| format!("{why}; for example 60s, 10m, 1h30m or 2days"))
}

/// The same; the error lacks what to write.
pub fn bare_duration(text: &str) -> Result<Duration, &'static str> {
    let text = text.trim();
    if text.starts_with("--") {
        return Err("an option in place of a duration");
    }
    if text.starts_with('-') {
        return Err("a duration cannot be negative");
    }
    // systemd writes months so, and people minutes.
    let is_ambiguous = |unit: &str| unit == "M";
    if text.split(|c: char| !c.is_alphabetic()).any(is_ambiguous) {
        return Err("M may be minutes (m) or months (months)");
    }
    // Where somebody writes 5MIN.
    humantime::parse_duration(&text.to_lowercase()).map_err(|why| match why {
        humantime::DurationError::UnknownUnit { unit, .. } if unit.is_empty() => "a duration without a unit",
        humantime::DurationError::UnknownUnit { .. } => {
            "an unknown unit (known are ns, us, ms, s, m, h, d, w, months, years, and their whole words)"
        }
        humantime::DurationError::NumberOverflow => "too long a duration",
        _ => "not a duration",
    })
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
    text.parse().map_err(|_| "not a number from 0 on; for example 20")
}

/// A number of sockets to destroy.
pub fn limit(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|limit| *limit > 0).ok_or("not a number from 1 on; for example 20")
}

/// A socket's cookie, in hexadecimal, with or without `sk:`.
pub fn cookie(text: &str) -> Result<Cookie, &'static str> {
    let digits = text.strip_prefix("sk:").unwrap_or(text);
    let value = u64::from_str_radix(digits, 16).ok().filter(|cookie| *cookie != 0);
    value.map(Cookie).ok_or("not a cookie; write it as `tcpclose stuck --json` does, for example 4fe4d")
}

/// A process id.
pub fn pid(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "not a process id; write a number as ps shows it")
}

/// A TCP state of the close phase, in capitals and with hyphens too.
pub fn state() -> NamedValues<Phase> {
    NamedValues { all: || Phase::ALL.into_iter().map(|phase| (phase, phase.name())).collect() }
}

/// The outcome of a close, in capitals and with hyphens too.
pub fn outcome() -> NamedValues<Outcome> {
    NamedValues { all: || Outcome::ALL.into_iter().map(|outcome| (outcome, outcome.name())).collect() }
}

/// Values with names, for completions and help; case and hyphens make no difference.
#[derive(Clone)]
pub struct NamedValues<T> {
    all: fn() -> Vec<(T, &'static str)>,
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for NamedValues<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        let text = value.to_string_lossy().to_ascii_lowercase().replace('-', "_");
        let found = (self.all)().into_iter().find(|(_, name)| *name == text);
        // clap's own parser for the error, which lists the names.
        let names = PossibleValuesParser::new((self.all)().into_iter().map(|(_, name)| name));
        match found {
            Some((value, _)) => Ok(value),
            None => Err(names
                .parse_ref(command, arg, value)
                .err()
                .unwrap_or_else(|| clap::Error::new(clap::error::ErrorKind::InvalidValue))),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.all)().into_iter().map(|(_, name)| PossibleValue::new(name))))
    }
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
                    .value_hint(ValueHint::FilePath)
                    .help("The agent's Unix socket [TCPCLOSE_SOCKET]"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("60s", 60),
            ("30sec", 30),
            ("5min", 300),
            ("5 Minutes", 300),
            ("1h30m", 5400),
            ("1hour", 3600),
            ("2hrs", 7200),
            ("1day", 86_400),
            ("2days", 172_800),
            (" 1d 2h ", 93_600),
            ("1week", 604_800),
            ("1month", 2_630_016),
            ("0", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for (text, why) in [
            ("-5s", "a duration cannot be negative"),
            ("-", "a duration cannot be negative"),
            ("--json", "an option in place of a duration"),
            ("60", "a duration without a unit"),
            ("5bananas", "an unknown unit (known are ns, us, ms, s, m, h, d, w,"),
            ("10M", "M may be minutes (m) or months (months); for example"),
            ("1h10M", "M may be minutes (m) or months"),
            ("99999999999999999999s", "too long a duration"),
            ("banana", "not a duration"),
            ("", "not a duration"),
            ("1s,2s", "not a duration"),
        ] {
            let wrong = duration(text).unwrap_err();
            assert!(wrong.starts_with(why) && wrong.contains("; for example 60s"), "{text}: {wrong}");
        }
    }
}
