//! `cargo xtask bench`: what tcpclose costs, side by side with the floor under it and with what people use now.
//!
//! The measuring is done by a benchmark target of tcpclose-userspace (benches/bench); this builds it and the floors,
//! runs it as root, and keeps what it wrote.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::setup::{self, Purpose};
use crate::{build, sh, test};
use tcpclose_common::toolchain::{self, Machine};

/// Measure what tcpclose costs, and save the results in target/bench
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask bench --only rate idle\n  cargo xtask bench --write")]
pub struct Arguments {
    /// Only these figures: rate, closers, program, stacks, idle, stuck, owners, dump, memory, scrape, throughput, growth, long (takes
    /// 30 minutes, and runs only if named)
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<OsString>,
    /// Runs per contender [default: 15]
    #[arg(long, value_name = "N")]
    pairs: Option<u32>,
    /// Seconds per run, for figures that are rates [default: 1; long: 1800]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Also write the measured sections to docs/src/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// The object of tcpclose-ebpf with the floors.
const FLOOR: &str = "floor";

const DOCUMENT: &str = "docs/src/benchmarks.md";
/// The document's text before its sections.
const INTRODUCTION: &str = include_str!("bench.md");

/// The sections of the document, in its order: files of the results' folder.
const SECTIONS: &[&str] = &[
    "rate",
    "closers",
    "program",
    "stacks",
    "idle",
    "stuck",
    "owners",
    "dump",
    "memory",
    "scrape",
    "throughput",
    "growth",
    "long",
];

/// Runs the command.
pub fn command(arguments: &Arguments) -> Result<()> {
    for name in &arguments.only {
        let known = name.to_str().is_some_and(|name| SECTIONS.contains(&name));
        if !known {
            bail!("unknown figure {} (see `cargo xtask bench --help`)", name.display());
        }
    }
    setup::ready(Purpose::Bench)?;
    let target = build::target_folder()?;
    let floor = build_floor(&target)?;
    let results = target.join("bench");
    // Made here, so that it is the user's; those of an earlier run would pass for this one's.
    fs::create_dir_all(&results).with_context(|| format!("cannot make {}", results.display()))?;
    let fresh = Results::of(&results);

    let Some(mut command) = test::with_root()? else {
        bail!("the measurements need root (run as root, or install sudo)")
    };
    command.args(["bench", "--package", "tcpclose", "--bench", "bench", "--"]);
    command.arg("--out").arg(&results).arg("--floor").arg(&floor);
    if !arguments.only.is_empty() {
        command.arg("--only").args(&arguments.only);
    }
    if let Some(pairs) = arguments.pairs {
        command.arg("--pairs").arg(pairs.to_string());
    }
    if let Some(seconds) = arguments.seconds {
        command.arg("--seconds").arg(seconds.to_string());
    }
    sh::run(&mut command)?;
    eprintln!("results: {}", results.display());
    if arguments.write {
        write(&fresh.written_since()?)?;
    }
    Ok(())
}

/// Builds the object with the floors beside the probe's. No other build has it.
fn build_floor(target: &Path) -> Result<PathBuf> {
    let machine =
        Machine { big_endian: cfg!(target_endian = "big"), arch: std::env::consts::ARCH.to_owned() };
    let folder = target.join("ebpf");
    let toolchain = toolchain::find()?;
    sh::run(&mut toolchain.build_probe(&sh::workspace(), &folder, &machine, FLOOR))?;
    Ok(machine.object(&folder, FLOOR))
}

/// The results' folder as it was before a run.
struct Results {
    folder: PathBuf,
    before: Vec<(&'static str, Option<std::time::SystemTime>)>,
}

impl Results {
    fn of(folder: &Path) -> Self {
        let before = SECTIONS.iter().map(|name| (*name, written(folder, name))).collect();
        Self { folder: folder.to_path_buf(), before }
    }

    /// The sections that were written since, in the document's order.
    fn written_since(&self) -> Result<Vec<String>> {
        let fresh = self.before.iter().filter(|(name, before)| written(&self.folder, name) != *before);
        fresh.map(|(name, _)| Ok(fs::read_to_string(file(&self.folder, name))?)).collect()
    }
}

fn file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.md"))
}

fn written(folder: &Path, name: &str) -> Option<std::time::SystemTime> {
    fs::metadata(file(folder, name)).and_then(|file| file.modified()).ok()
}

/// Writes these sections to the document, in place of older ones with the same title.
fn write(sections: &[String]) -> Result<()> {
    let path = sh::workspace().join(DOCUMENT);
    let old = fs::read_to_string(&path).unwrap_or_default();
    fs::write(&path, document(&old, sections)).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("{DOCUMENT} is written");
    Ok(())
}

fn document(old: &str, fresh: &[String]) -> String {
    let mut sections: Vec<String> = old.split("\n## ").skip(1).map(|text| format!("## {text}")).collect();
    let title = |section: &str| section.lines().next().unwrap_or_default().to_owned();
    for section in fresh {
        match sections.iter_mut().find(|old| title(old) == title(section)) {
            Some(old) => old.clone_from(section),
            None => sections.push(section.clone()),
        }
    }
    let mut text = INTRODUCTION.trim_end().to_owned() + "\n";
    for section in sections {
        text.push_str(&format!("\n{}\n", section.trim()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_where_it_stands() {
        let section = |title: &str, body: &str| format!("## {title}\n\n{body}\n");
        let one = document("", &[section("Rate", "old"), section("Idle", "i")]);
        let two = document(&one, &[section("Rate", "new"), section("Growth", "g")]);
        assert!(two.starts_with(INTRODUCTION.trim_end()));
        assert!(two.ends_with("\n\n## Rate\n\nnew\n\n## Idle\n\ni\n\n## Growth\n\ng\n"), "{two}");
        assert_eq!(document(&two, &[]), two);
    }
}
