//! `--check-config`: the settings in force, as a configuration file.

use std::ffi::OsStr;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use crate::commands::config::file::Entry;
use crate::commands::config::settings::{CONFIG, SOCKET_MODE, agent_of, is_flag, is_list, settings_of};
use crate::failure::harmless_json;

/// One line per setting: its key, its value and its source.
pub fn settings(command: &Command, matches: &ArgMatches, entries: &[&Entry]) -> String {
    let mut lines = String::new();
    for (arg, long) in settings_of(command).filter(|(arg, _)| arg.get_id() != CONFIG) {
        let id = arg.get_id().as_str();
        let Some(agent) = agent_of(matches) else { continue };
        // The later of two takes precedence.
        let entry = entries.iter().rfind(|entry| entry.id == id);
        let from = match (agent.value_source(id), entry) {
            (Some(ValueSource::CommandLine), _) => "argument",
            (_, Some(entry)) => &entry.from,
            _ => "default",
        };
        let line = match value(agent, arg) {
            Some(value) => format!("{long} = {value}  # {from}\n"),
            None => format!("# {long}: {from}\n"),
        };
        lines.push_str(&crate::failure::printable(line.trim_end()));
        lines.push('\n');
    }
    lines
}

/// The value of `arg` in TOML; `None` where it has none.
fn value(agent: &ArgMatches, arg: &Arg) -> Option<String> {
    let id = arg.get_id().as_str();
    if is_flag(arg) {
        return Some(agent.get_flag(id).to_string());
    }
    Some(written(arg, agent.get_raw(id)?))
}

/// These values of `arg` in TOML.
pub fn written<'a>(arg: &Arg, values: impl IntoIterator<Item = &'a OsStr>) -> String {
    let is_mode = arg.get_id() == SOCKET_MODE;
    let values = values.into_iter().map(|value| {
        let text = value.to_string_lossy();
        // A number as TOML writes it: not `080`, nor one beyond its range, nor a mode, which is octal.
        match text.parse::<i64>() {
            Ok(number) if number.to_string() == *text && !is_mode => text.into_owned(),
            _ => quoted(&text),
        }
    });
    let values: Vec<String> = values.collect();
    if is_list(arg) { format!("[{}]", values.join(", ")) } else { values.concat() }
}

/// A text in TOML, with nothing in it that could harm a terminal or that TOML forbids.
fn quoted(text: &str) -> String {
    // What JSON writes for a text, TOML reads; but for DEL, which JSON leaves as it is.
    harmless_json(serde_json::Value::from(text).to_string())
}
