//! docs/src/configuration.md: every setting, from the file that `tcpclose generate` writes.

use std::fmt::Write as _;
use std::process::Command;

use super::document;
use crate::common::BINARY;

#[test]
fn every_setting_is_documented() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Command::new(BINARY).arg("generate").arg(folder.path()).status().unwrap().success());
    let template = std::fs::read_to_string(folder.path().join("tcpclose.toml")).unwrap();
    // The first paragraph is about the file itself.
    let settings: Vec<String> = template.split("\n\n").skip(1).map(setting).collect();
    assert!(settings.len() > 20, "{template}");
    document::is_current("configuration.md", "settings", &settings.join("\n"));
}

/// A paragraph of the file as a section: its name, variable and default, what it does, and its values.
fn setting(paragraph: &str) -> String {
    let (comment, line) = paragraph.trim_end().rsplit_once("\n#").unwrap_or_else(|| panic!("{paragraph}"));
    let (name, default) = line.split_once(" = ").unwrap_or_else(|| panic!("{line}"));
    let lines = comment.lines().map(|line| line.strip_prefix("# ").unwrap_or_else(|| panic!("{line}")));
    let (mut help, mut values) = (String::new(), Vec::new());
    for line in lines {
        match line.strip_prefix("  ").map(|value| (value, value.split_once(": "))) {
            // The help comes first, and its lines end with the variable in brackets.
            Some((_, Some((value, meaning)))) if help.ends_with(']') && !value.contains(' ') => {
                values.push(format!("* `{value}`: {meaning}"));
            }
            Some((more, _)) if !values.is_empty() => {
                let last = values.last_mut().unwrap();
                let _ = write!(last, " {}", more.trim());
            }
            _ => {
                let _ = write!(help, " {}", line.trim());
            }
        }
    }
    let (help, variable) = help.trim().rsplit_once(" [").unwrap_or_else(|| panic!("no variable: {help}"));
    let mut text = format!("### {name}\n\n{}.\n\n", help.trim_end_matches('.'));
    for value in &values {
        let _ = writeln!(text, "{value}");
    }
    let blank = if values.is_empty() { "" } else { "\n" };
    let variable = variable.trim_end_matches(']');
    let default = match default.strip_suffix("  # not set") {
        Some(_) => "not set".to_owned(),
        None => format!("`{default}`"),
    };
    let _ = writeln!(text, "{blank}`--{name}`, `{variable}`; default: {default}");
    text
}
