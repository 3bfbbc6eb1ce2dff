//! The TOML file, with a key for each of the agent's arguments.

use std::io;
use std::path::Path;

use clap::{Arg, Command};
use toml::{Table, Value};

use crate::commands::config::settings::{
    AGENT, AGENT_COMMAND, CONFIG, SOCKET_MODE, is_flag, is_list, settings_of,
};
use crate::failure::{Failure, nearest};

/// A setting from a variable or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The argument, as clap calls it.
    pub id: String,
    pub values: Vec<String>,
    /// Its source: a file's path or a variable's name.
    pub from: String,
}

impl Entry {
    /// A setting of `arg`, parsed alone, so that an error names its place, `what`.
    pub fn new(
        command: &Command,
        arg: &Arg,
        values: Vec<String>,
        from: String,
        what: &str,
    ) -> Result<Self, Failure> {
        let quoted = || format!("{what} {:?}", values.join(","));
        if is_flag(arg) {
            if !values.iter().all(|value| value == "true" || value == "false") {
                return Err(Failure::new(quoted(), "neither true nor false", "write true or false"));
            }
        } else {
            let long = arg.get_long().unwrap_or_default();
            let tried = values.iter().map(|value| format!("--{long}={value}"));
            let tried = ["tcpclose", AGENT].map(str::to_owned).into_iter().chain(tried);
            if let Err(error) = command.clone().try_get_matches_from(tried) {
                let Failure { why, todo, .. } = Failure::of_arguments(&error, AGENT_COMMAND);
                return Err(Failure::new(quoted(), why, todo));
            }
        }
        Ok(Self { id: arg.get_id().to_string(), values, from })
    }
}

/// Why there are no entries.
#[derive(Debug)]
pub enum ConfigFileError {
    /// The file does not exist.
    Missing(Failure),
    /// It cannot be read, or something in it is wrong.
    Wrong(Failure),
}

impl From<ConfigFileError> for Failure {
    fn from(unread: ConfigFileError) -> Self {
        match unread {
            ConfigFileError::Missing(failure) | ConfigFileError::Wrong(failure) => failure,
        }
    }
}

/// The settings in the file at `path`.
///
/// # Errors
/// When it does not exist, or a setting in it is wrong.
pub fn read(path: &Path, command: &Command) -> Result<Vec<Entry>, ConfigFileError> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => entries(&text, &name, command).map_err(ConfigFileError::Wrong),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            let todo = "create it, or name another file with --config";
            Err(ConfigFileError::Missing(Failure::new(name, "there is no such file", todo)))
        }
        Err(why) => Err(ConfigFileError::Wrong(Failure::new(
            name,
            why,
            "make it readable for the agent, or name another file with --config",
        ))),
    }
}

/// The settings in the `text` of a `file`.
///
/// # Errors
/// When one of them is wrong.
pub fn entries(text: &str, file: &str, command: &Command) -> Result<Vec<Entry>, Failure> {
    let table: Table = toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        // The message may have more than one line.
        let why: Vec<&str> = error.message().split_whitespace().collect();
        let todo = r#"write one key = value per line, for example stuck-after = "1m,10m""#;
        Failure::new(format!("{file}, line {line}"), why.join(" "), todo)
    })?;
    let mut entries = Vec::new();
    for (key, value) in &table {
        let what = format!("{file}: {key}");
        let mut known = settings_of(command).filter(|(arg, _)| arg.get_id() != CONFIG);
        let Some((arg, _)) = known.find(|(_, long)| long == key) else {
            return Err(Failure::new(what, "no such setting", did_you_mean(key, command)));
        };
        let values = values(value, arg).map_err(|(why, todo)| Failure::new(&what, why, todo))?;
        entries.push(Entry::new(command, arg, values, file.to_owned(), &what)?);
    }
    Ok(entries)
}

/// The nearest setting, where one is close.
fn did_you_mean(key: &str, command: &Command) -> String {
    let known = settings_of(command).filter(|(arg, _)| arg.get_id() != CONFIG).map(|(_, long)| long);
    // Underscores for hyphens are no difference.
    match nearest(&key.replace('_', "-"), known) {
        Some(meant) => format!("did you mean {meant}? Otherwise see {AGENT_COMMAND} --help"),
        None => format!("see {AGENT_COMMAND} --help"),
    }
}

/// The text at `key` of the file at `path`; `None` where it is missing, unreadable or no TOML, which the agent reports.
pub fn text_of(path: &Path, key: &str) -> Option<String> {
    let table: Table = toml::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    table.get(key)?.as_str().map(str::to_owned)
}

type Wrong = (&'static str, &'static str);

/// `value` as arguments have it.
fn values(value: &Value, arg: &Arg) -> Result<Vec<String>, Wrong> {
    match value {
        Value::Array(items) if items.is_empty() => {
            Err(("an empty list", "write at least one value, or remove the key"))
        }
        Value::Array(items) => {
            let items = items.iter().map(|item| scalar(item, arg)).collect::<Result<Vec<String>, Wrong>>()?;
            // A list of durations is one argument.
            Ok(if is_list(arg) { items } else { vec![items.join(",")] })
        }
        value => Ok(vec![scalar(value, arg)?]),
    }
}

fn scalar(value: &Value, arg: &Arg) -> Result<String, Wrong> {
    match value {
        Value::Boolean(value) if is_flag(arg) => Ok(value.to_string()),
        Value::String(_) | Value::Integer(_) if is_flag(arg) => {
            Err(("neither true nor false", "write true or false"))
        }
        // TOML's 0o660 and 432 are the same number: neither can be read as the mode that was meant.
        Value::Integer(_) if arg.get_id() == SOCKET_MODE => {
            Err(("a number", r#"write the mode as a text, for example "0660""#))
        }
        Value::String(text) => Ok(text.clone()),
        Value::Integer(n) => Ok(n.to_string()),
        _ => Err(("not a text, a number or a list", r#"write it as for the argument, for example "1m""#)),
    }
}
