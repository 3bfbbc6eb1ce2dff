//! Where the agent's settings come from: arguments, else `TCPCLOSE_…` variables, else a file, else defaults.
//!
//! All of it is made from the list of arguments, so that a flag that is added there is a variable and a key of the file
//! at once: `--stuck-after`, `TCPCLOSE_STUCK_AFTER`, `stuck-after = "1m,10m"`.
//!
//! * [`settings`]: which arguments are settings. [`file`]: the file.
//! * [`show`]: what came of it all, for `--check-config`.
//! * [`template`]: the file that packages install.

mod file;
pub mod settings;
mod show;
mod template;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::Error;
use clap::{Command, CommandFactory, FromArgMatches};

use crate::commands::cli::Cli;
use crate::commands::config::file::Entry;
use crate::commands::config::settings::{
    AGENT, ARGUMENT_ONLY, CONFIG, DEFAULT_FILE, WEB_CONFIG, agent_of, named_in_help, settings_of,
    takes_lists, variable_of,
};
use crate::failure::Failure;

/// Why there is no command to run.
#[derive(Debug)]
pub enum Stop {
    /// A help text or the version was asked for.
    Help(Error),
    /// The settings were asked for, which are these.
    Answer(String),
    Failed(Failure),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        if error.use_stderr() { Self::Failed(Failure::of_arguments(&error)) } else { Self::Help(error) }
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
/// When one of them is wrong, or an answer is all that was asked for.
pub fn parse(arguments: &[OsString]) -> Result<Cli, Stop> {
    parse_with(arguments, &|name| std::env::var_os(name), Path::new(DEFAULT_FILE))
}

fn parse_with(
    arguments: &[OsString],
    variable: &dyn Fn(&str) -> Option<OsString>,
    default_file: &Path,
) -> Result<Cli, Stop> {
    let command = Cli::command();
    if arguments.get(1).is_none_or(|command| command != AGENT) {
        return Ok(Cli::from_arg_matches(&command.try_get_matches_from(arguments)?)?);
    }
    let command = command.mut_subcommand(AGENT, |agent| agent.mut_args(takes_lists));
    let variables = variables(&command, variable)?;
    let command = command.mut_subcommand(AGENT, |agent| agent.mut_args(named_in_help));
    // Once without the file, for its name. What is wrong with an argument is told before it is opened.
    let named = with_defaults(command.clone(), &variables).try_get_matches_from(arguments)?;
    let named = agent_of(&named).and_then(|agent| agent.get_one::<PathBuf>(CONFIG));
    let path = named.map_or(default_file, PathBuf::as_path);
    let entries = match file::read(path, &command) {
        Err(file::ConfigFileError::Missing(_)) if named.is_none() => Vec::new(),
        Err(unread) => return Err(Failure::from(unread).into()),
        Ok(entries) => entries,
    };
    // The variables come last, and so hold.
    let all: Vec<&Entry> = entries.iter().chain(&variables).collect();
    let matches = with_defaults(command.clone(), all.iter().copied()).try_get_matches_from(arguments)?;
    if agent_of(&matches).is_some_and(|agent| agent.get_flag(ARGUMENT_ONLY[0])) {
        let web = agent_of(&matches).and_then(|agent| agent.get_one::<PathBuf>(WEB_CONFIG));
        web.map_or(Ok(()), |path| crate::agent::server::web::loaded::load(path).0.map(drop))?;
        return Err(Stop::Answer(show::settings(&command, &matches, &all)));
    }
    Ok(Cli::from_arg_matches(&matches)?)
}

/// The commands as documents show them: those that help lists, and the agent's arguments with their variables.
pub fn documented() -> Command {
    let whole =
        Cli::command().mut_subcommand(AGENT, |agent| agent.mut_args(takes_lists).mut_args(named_in_help));
    // Completions would list what is hidden too.
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

/// The agent's settings by the `text` of a file and nothing else, as `--check-config` prints them.
///
/// # Errors
/// What is wrong with it.
pub fn of_text(text: &str) -> Result<String, Failure> {
    let command = Cli::command().mut_subcommand(AGENT, |agent| agent.mut_args(takes_lists));
    let entries = file::entries(text, "tcpclose.toml", &command)?;
    let all: Vec<&Entry> = entries.iter().collect();
    let refused = |error: Error| Failure::of_arguments(&error);
    let parsed = with_defaults(command.clone(), &entries).try_get_matches_from(["tcpclose", AGENT]);
    let matches = parsed.map_err(refused)?;
    Cli::from_arg_matches(&matches).map_err(refused)?;
    Ok(show::settings(&command, &matches, &all))
}

/// The agent's variables that are set.
fn variables(command: &Command, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Vec<Entry>, Failure> {
    let mut entries = Vec::new();
    for (arg, long) in settings_of(command) {
        let name = variable_of(long);
        let Some(value) = variable(&name) else { continue };
        let Some(text) = value.to_str() else {
            return Err(Failure::new(name, "not UTF-8", "write it in UTF-8"));
        };
        entries.push(Entry::new(command, arg, vec![text.to_owned()], name.clone(), &name)?);
    }
    Ok(entries)
}

/// `command` with `entries` for what is no argument. Of two for one argument the later one holds.
fn with_defaults<'a>(command: Command, entries: impl IntoIterator<Item = &'a Entry>) -> Command {
    entries.into_iter().fold(command, |command, entry| {
        command
            .mut_subcommand(AGENT, |agent| agent.mut_arg(&entry.id, |arg| arg.default_values(&entry.values)))
    })
}

#[cfg(test)]
mod tests;
