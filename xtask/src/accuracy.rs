//! `cargo xtask accuracy`: measures how exact the agent's durations are, for docs/src/accuracy.md.

use std::fs;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::archive::Architecture;
use crate::setup::{self, Purpose};
use crate::sh;
use crate::vm::{self, kit::Kernel, programs};

/// Measure how exact durations are, on this kernel or in guests, and write docs/src/accuracy.md
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask accuracy\n  cargo xtask accuracy --kernel 6.12")]
pub struct Arguments {
    /// Kernel to boot and measure on (default: this machine's); can be repeated
    #[arg(long = "kernel", value_name = "KERNEL", value_enum)]
    kernels: Vec<Kernel>,
}

/// Arguments of the live tests: the measurement alone.
const WORDS: [&str; 4] =
    ["--include-ignored", "--nocapture", "--exact", "accuracy::measure_durations_against_the_segments"];

/// The marks around the section that the program prints.
const BEGIN: &str = "<!-- accuracy begins -->";
const END: &str = "<!-- accuracy ends -->";

const DOCUMENT: &str = "docs/src/accuracy.md";
/// The document's text before its sections: the method.
const METHOD: &str = include_str!("accuracy.md");

/// Runs the command.
pub fn command(arguments: &Arguments) -> Result<()> {
    if arguments.kernels.is_empty() {
        let output = here()?;
        return keep("The host", body(&output)?);
    }
    for kernel in &arguments.kernels {
        let output = vm::output(*kernel, &WORDS)?;
        let lines = output.lines().map(|line| line.trim_end_matches('\r')).collect::<Vec<_>>().join("\n");
        // A busy host stops the guest's processors between a segment's stamp and the event that it makes.
        let section = format!("{}\n\nThe host's load average was {} at the end.", body(&lines)?, load());
        keep(&format!("Emulated guest, Linux {}", kernel.name()), &section)?;
    }
    Ok(())
}

/// Measures on this machine.
fn here() -> Result<String> {
    setup::ready(Purpose::Build)?;
    let mut command = sh::as_root(programs::build(Architecture::host()?)?.live, &[]);
    command.args(WORDS).stderr(Stdio::inherit());
    sh::show(&command);
    let output = command.output().context("cannot start the live tests")?;
    if !output.status.success() {
        bail!("the measurement failed: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// This machine's, over the last minute.
fn load() -> String {
    let loads = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    loads.split(' ').next().unwrap_or_default().to_owned()
}

/// Prints the section, and makes it the document's section of this title.
fn keep(title: &str, body: &str) -> Result<()> {
    println!("## {title}\n\n{body}");
    let file = sh::workspace().join(DOCUMENT);
    let old = fs::read_to_string(&file).unwrap_or_default();
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(&file, document(&old, title, body))
        .with_context(|| format!("cannot write {}", file.display()))?;
    eprintln!("{DOCUMENT} is written");
    Ok(())
}

/// What lies between the two marks.
fn body(output: &str) -> Result<&str> {
    let between = output.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    Ok(between.context("the measurement printed no table")?.0.trim())
}

/// The document with the section `title` replaced or added. The host comes first, then the
/// guests.
fn document(old: &str, title: &str, body: &str) -> String {
    let sections = old.split("\n## ").skip(1).filter_map(|section| section.split_once('\n'));
    let mut sections: Vec<(&str, &str)> = sections.filter(|(other, _)| *other != title).collect();
    sections.push((title, body));
    sections.sort_by_key(|(title, _)| (title.len(), *title));
    let mut text = METHOD.trim_end().to_owned() + "\n";
    for (title, body) in sections {
        text.push_str(&format!("\n## {title}\n\n{}\n", body.trim()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_what_lies_between_the_marks() {
        assert_eq!(body(&format!("test x ... {BEGIN}\n| a |\n{END}\nok")).unwrap(), "| a |");
        assert!(body("| a |").is_err());
    }

    #[test]
    fn a_section_is_replaced_and_the_others_are_kept() {
        let one = document("", "Emulated guest, Linux 6.12", "old");
        let two = document(&one, "The host", "| h |");
        let three = document(&two, "Emulated guest, Linux 6.1", "| g |");
        let four = document(&three, "Emulated guest, Linux 6.12", "| new |");
        assert!(four.starts_with(METHOD.trim_end()));
        let sections = "\n\n## The host\n\n| h |\n\n## Emulated guest, Linux 6.1\n\n| g |\n\n\
                        ## Emulated guest, Linux 6.12\n\n| new |\n";
        assert!(four.ends_with(sections), "{four}");
        assert_eq!(document(&four, "The host", "| h |"), four);
    }
}
