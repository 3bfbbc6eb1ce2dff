//! Which arguments are settings, and their names in a file and in the environment.

use clap::{Arg, ArgAction, ArgMatches, Command};

/// Read where it exists and no other file is named.
pub const DEFAULT_FILE: &str = "/etc/tcpclose/tcpclose.toml";

/// Arguments that are no settings.
pub const ARGUMENT_ONLY: [&str; 1] = ["check_config"];
/// The argument that names the file, which is no key of it.
pub const CONFIG: &str = "config";
/// The argument that names the web configuration, which is checked too.
pub const WEB_CONFIG: &str = "web_config";
/// The argument whose value is octal.
pub const SOCKET_MODE: &str = "socket_mode";

/// The one command that has settings.
pub const AGENT: &str = "agent";
/// The same with the program's name.
pub const AGENT_COMMAND: &str = "tcpclose agent";

pub fn agent_of(matches: &ArgMatches) -> Option<&ArgMatches> {
    matches.subcommand().map(|(_, agent)| agent)
}

/// Every argument of the agent.
fn arguments_of(command: &Command) -> impl Iterator<Item = &Arg> {
    command.find_subcommand(AGENT).into_iter().flat_map(Command::get_arguments)
}

/// Those that can be settings.
pub fn settings_of(command: &Command) -> impl Iterator<Item = (&Arg, &str)> {
    arguments_of(command)
        .filter(|arg| !ARGUMENT_ONLY.contains(&arg.get_id().as_str()))
        .filter_map(|arg| Some((arg, arg.get_long()?)))
}

/// Whether `arg` is given or not, and has no value.
pub fn is_flag(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

/// Whether `arg` may be repeated.
pub fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// What may be repeated may also be written once, with commas: a variable has one value.
pub fn takes_lists(arg: Arg) -> Arg {
    if is_list(&arg) { arg.value_delimiter(',') } else { arg }
}

/// What the names of all variables begin with.
pub const PREFIX: &str = "TCPCLOSE_";

/// `TCPCLOSE_STUCK_AFTER` for `stuck-after`.
pub fn variable_of(long: &str) -> String {
    format!("{PREFIX}{}", long.to_uppercase().replace('-', "_"))
}

/// `arg` with its variable's name in its help.
pub fn named_in_help(arg: Arg) -> Arg {
    let variable =
        arg.get_long().filter(|_| !ARGUMENT_ONLY.contains(&arg.get_id().as_str())).map(variable_of);
    match (variable, arg.get_help().map(ToString::to_string)) {
        (Some(variable), Some(help)) => arg.help(format!("{help} [{variable}]")),
        _ => arg,
    }
}
