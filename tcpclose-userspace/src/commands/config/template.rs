//! The file that packages install: every setting commented out, with its meaning and its default.

use std::fmt::Write;

use clap::{Arg, Command};

use crate::commands::config::settings::{CONFIG, DEFAULT_FILE, is_flag, is_list, settings_of};
use crate::commands::config::show;
use crate::ui::table;

const WIDTH: u16 = 96;

/// The file's text, made from the arguments of `command`.
pub fn template(command: &Command) -> String {
    let mut text = String::new();
    let _ = write!(
        text,
        "# Settings of the tcpclose agent.\n\
         #\n\
         # Each is commented out with its default; to change one, remove the # before its name.\n\
         # The variable in [brackets] overrides this file, an argument overrides both.\n\
         #\n\
         #   tcpclose agent --config {DEFAULT_FILE} --check-config\n\
         #\n\
         # reports errors in this file, or prints the settings in force. At SIGHUP the agent reads it\n\
         # again, applies what can change at run time, and logs which changes need a restart.\n"
    );
    for (arg, long) in settings_of(command).filter(|(arg, _)| arg.get_id() != CONFIG) {
        text.push('\n');
        comment(&mut text, &arg.get_help().map(ToString::to_string).unwrap_or_default());
        for choice in arg.get_possible_values().iter().filter(|choice| choice.get_help().is_some()) {
            let meaning = choice.get_help().map(ToString::to_string).unwrap_or_default();
            comment(&mut text, &format!("  {}: {meaning}", choice.get_name()));
        }
        let _ = writeln!(text, "#{long} = {}", default(arg));
    }
    text
}

/// The default of `arg` in TOML, or a placeholder where it has none.
fn default(arg: &Arg) -> String {
    if is_flag(arg) {
        return "false".to_owned();
    }
    let defaults = arg.get_default_values();
    if !defaults.is_empty() {
        return show::written(arg, defaults.iter().map(|value| value.as_os_str()));
    }
    let names = arg.get_value_names().unwrap_or_default();
    let name = names.first().map(|name| name.as_str()).unwrap_or_default();
    if is_list(arg) { format!("[{name}, …]  # not set") } else { format!("\"{name}\"  # not set") }
}

fn comment(text: &mut String, words: &str) {
    for line in table::wrap(words, Some(WIDTH)).lines() {
        text.push_str("# ");
        text.push_str(line);
        text.push('\n');
    }
}
