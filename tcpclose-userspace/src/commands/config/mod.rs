//! The agent's settings: arguments, else `TCPCLOSE_…` variables, else a file, else defaults.
//!
//! All of it is derived from the list of arguments, so that a new argument is also a variable and a key of the file: `--stuck-after`, `TCPCLOSE_STUCK_AFTER`, `stuck-after = "1m,10m"`.
//!
//! * [`settings`]: which arguments are settings. [`environment`]: the variables. [`file`]: the file.
//! * [`show`]: the settings in force, for `--check-config`.
//! * [`template`]: the file that packages install.

mod environment;
mod file;
pub mod settings;
mod show;
mod template;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::error::Error;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::commands::arguments::SOCKET;
use crate::commands::cli::Cli;
use crate::commands::config::environment::Variables;
use crate::commands::config::file::Entry;
use crate::commands::config::settings::{
    AGENT, AGENT_COMMAND, ARGUMENT_ONLY, CONFIG, DEFAULT_FILE, WEB_CONFIG, agent_of, is_flag, named_in_help,
    settings_of, takes_lists, variable_of,
};
use crate::failure::Failure;

/// Why there is no command to run.
#[derive(Debug)]
pub enum Stop {
    /// A help text or the version was requested.
    Help(Error),
    /// The settings in force were requested: these.
    Answer(String),
    Failed(Failure),
}

impl Stop {
    /// For an error that clap found in the arguments of `command`.
    fn of(error: Error, command: &str) -> Self {
        if error.use_stderr() {
            Self::Failed(Failure::of_arguments(&error, command))
        } else {
            Self::Help(error)
        }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The command that `arguments` ask for (the program's name first), with settings from all places.
///
/// # Errors
/// When one of them is wrong, or only an answer was asked for.
pub fn parse(arguments: &[OsString]) -> Result<Cli, Stop> {
    parse_with(arguments, &Variables::of_process(), Path::new(DEFAULT_FILE))
}

/// A warning about variables that are no settings.
pub fn unknown_variables() -> Option<String> {
    Variables::of_process().warning(&Cli::command())
}

fn parse_with(arguments: &[OsString], variables: &Variables, default_file: &Path) -> Result<Cli, Stop> {
    let command = Cli::command();
    let name = name_of(&command, arguments);
    let stop = |error| Stop::of(error, &name);
    if arguments.get(1).is_none_or(|command| command != AGENT) {
        let socket = socket_of_agent(&command, variables, default_file);
        let command = match &socket {
            Ok(Some(entry)) => with_socket(command, entry),
            Ok(None) | Err(_) => command,
        };
        let matches = command.try_get_matches_from(arguments).map_err(stop)?;
        // A wrong setting concerns only those who need it.
        match socket {
            Err(wrong) if needs_socket(&matches) => return Err(wrong.into()),
            Ok(_) | Err(_) => return Cli::from_arg_matches(&matches).map_err(stop),
        }
    }
    let command = command.mut_subcommand(AGENT, |agent| agent.mut_args(takes_lists));
    let variables = entries(&command, variables)?;
    let command = command.mut_subcommand(AGENT, |agent| agent.mut_args(named_in_help));
    // Once without the file, for its name. A wrong argument is reported before the file is opened.
    let named = with_defaults(command.clone(), &variables).try_get_matches_from(arguments).map_err(stop)?;
    let named = agent_of(&named).and_then(|agent| agent.get_one::<PathBuf>(CONFIG));
    let path = named.map_or(default_file, PathBuf::as_path);
    let entries = match file::read(path, &command) {
        Err(file::ConfigFileError::Missing(_)) if named.is_none() => Vec::new(),
        Err(unread) => return Err(Failure::from(unread).into()),
        Ok(entries) => entries,
    };
    // The variables come last and so take precedence.
    let all: Vec<&Entry> = entries.iter().chain(&variables).collect();
    let matches = with_defaults(command.clone(), all.iter().copied());
    let matches = matches.try_get_matches_from(arguments).map_err(stop)?;
    if agent_of(&matches).is_some_and(|agent| agent.get_flag(ARGUMENT_ONLY[0])) {
        let web = agent_of(&matches).and_then(|agent| agent.get_one::<PathBuf>(WEB_CONFIG));
        web.map_or(Ok(()), |path| crate::agent::server::web::loaded::load(path).0.map(drop))?;
        return Err(Stop::Answer(show::settings(&command, &matches, &all)));
    }
    Cli::from_arg_matches(&matches).map_err(stop)
}

/// `tcpclose stuck`, by the first of the `arguments` after the program's name; `tcpclose` where that is no command.
pub fn name_of(command: &Command, arguments: &[OsString]) -> String {
    let sub = arguments.get(1).and_then(|word| command.find_subcommand(word));
    let names = [command.get_name()].into_iter().chain(sub.map(Command::get_name));
    names.collect::<Vec<&str>>().join(" ")
}

/// The agent's socket by its variable, else by its file: the default of the other commands.
fn socket_of_agent(
    command: &Command,
    variables: &Variables,
    default_file: &Path,
) -> Result<Option<Entry>, Failure> {
    let Some((arg, long)) = settings_of(command).find(|(arg, _)| arg.get_id() == SOCKET) else {
        return Ok(None);
    };
    let name = variable_of(long);
    if let Some(value) = variables.get(&name) {
        return entry_of(command, arg, &name, value).map(Some);
    }
    let path = variables.get(&variable_of(CONFIG)).map_or(default_file, Path::new);
    let Some(socket) = file::text_of(path, long) else { return Ok(None) };
    let from = path.display().to_string();
    let what = format!("{from}: {long}");
    Entry::new(command, arg, vec![socket], from, &what).map(Some)
}

/// Whether the command asks the agent at the socket of the settings.
fn needs_socket(matches: &ArgMatches) -> bool {
    let Some((_, command)) = matches.subcommand() else { return false };
    let is_default = matches!(command.try_contains_id(SOCKET), Ok(true))
        && command.value_source(SOCKET) == Some(ValueSource::DefaultValue);
    let no_agent = matches!(command.try_get_one::<bool>("no_agent"), Ok(Some(true)));
    is_default && !no_agent
}

/// `command` with `socket` as the default of every command that asks an agent.
fn with_socket(command: Command, socket: &Entry) -> Command {
    let names: Vec<String> = command
        .get_subcommands()
        .filter(|command| command.get_arguments().any(|arg| arg.get_id() == SOCKET))
        .map(|command| command.get_name().to_owned())
        .collect();
    names.into_iter().fold(command, |command, name| {
        command
            .mut_subcommand(name, |command| command.mut_arg(SOCKET, |arg| arg.default_values(&socket.values)))
    })
}

/// The commands as documents show them: without hidden ones, and with the variables of the agent's arguments.
pub fn documented() -> Command {
    let whole =
        Cli::command().mut_subcommand(AGENT, |agent| agent.mut_args(takes_lists).mut_args(named_in_help));
    // Completions would list hidden commands too.
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let shown: Vec<Command> = shown.collect();
    let version = whole.get_version().unwrap_or_default().to_owned();
    let about = whole.get_about().cloned().unwrap_or_default();
    let example = whole.get_after_help().cloned().unwrap_or_default();
    let root = Command::new(whole.get_name().to_owned()).version(version).about(about).after_help(example);
    root.subcommand_required(true).subcommands(shown)
}

/// The configuration file that packages install.
pub fn template() -> String {
    template::template(&documented())
}

/// The agent's settings by the `text` of a file alone, as `--check-config` prints them.
///
/// # Errors
/// When the text is wrong.
pub fn of_text(text: &str) -> Result<String, Failure> {
    let command = Cli::command().mut_subcommand(AGENT, |agent| agent.mut_args(takes_lists));
    let entries = file::entries(text, "tcpclose.toml", &command)?;
    let all: Vec<&Entry> = entries.iter().collect();
    let refused = |error: Error| Failure::of_arguments(&error, AGENT_COMMAND);
    let parsed = with_defaults(command.clone(), &entries).try_get_matches_from(["tcpclose", AGENT]);
    let matches = parsed.map_err(refused)?;
    Cli::from_arg_matches(&matches).map_err(refused)?;
    Ok(show::settings(&command, &matches, &all))
}

/// The agent's settings from `variables`.
fn entries(command: &Command, variables: &Variables) -> Result<Vec<Entry>, Failure> {
    let set = settings_of(command).filter_map(|(arg, long)| {
        let name = variable_of(long);
        variables.get(&name).map(|value| entry_of(command, arg, &name, value))
    });
    set.collect()
}

/// The setting of `arg` by the variable `name`.
fn entry_of(command: &Command, arg: &Arg, name: &str, value: &OsStr) -> Result<Entry, Failure> {
    let Some(text) = value.to_str() else {
        return Err(Failure::new(name, "not UTF-8", "write it in UTF-8"));
    };
    let text = match text {
        "1" | "yes" | "on" if is_flag(arg) => "true",
        "0" | "no" | "off" if is_flag(arg) => "false",
        text => text,
    };
    Entry::new(command, arg, vec![text.to_owned()], name.to_owned(), name)
}

/// `command` with `entries` as defaults. Of two for one argument the later one takes precedence.
fn with_defaults<'a>(command: Command, entries: impl IntoIterator<Item = &'a Entry>) -> Command {
    entries.into_iter().fold(command, |command, entry| {
        command
            .mut_subcommand(AGENT, |agent| agent.mut_arg(&entry.id, |arg| arg.default_values(&entry.values)))
    })
}

#[cfg(test)]
mod tests;
