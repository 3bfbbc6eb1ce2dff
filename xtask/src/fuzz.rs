//! `cargo xtask fuzz`: what reads bytes that others wrote, under libFuzzer.
//!
//! libFuzzer comes with a crate that builds it, and the coverage that guides it is a pass of LLVM that any rustc has; so
//! this takes no nightly. The targets are in `fuzz/`; there is one program for all of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Purpose};
use crate::{build, sh, test};
use tcpclose_common::progress::Ticker;

/// Fuzz the readers of untrusted input, a minute each
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask fuzz\n  cargo xtask fuzz records --seconds 600\n  cargo xtask fuzz state --input target/fuzz/state/crash-0123456789abcdef"
)]
pub struct Arguments {
    /// Only this target: a folder of fuzz/corpus
    target: Option<String>,
    /// Seconds per target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Run this input only
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
    /// Also add new coverage to fuzz/corpus, with as few inputs as possible
    #[arg(long)]
    keep: bool,
}

impl Arguments {
    /// All targets, for the default time.
    pub const fn usual() -> Self {
        Self { target: None, seconds: 60, input: None, keep: false }
    }
}

/// Flags for edge coverage, as in cargo-fuzz, without sanitizers: the targets have next to no unsafe code.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Ccodegen-units=1",
];

/// Longer inputs take longer and find no more. The corpus has shorter ones.
const LONGEST: u32 = 4096;
const LONGEST_KEPT: u32 = 512;

/// Runs the command.
pub fn command(arguments: &Arguments) -> Result<()> {
    let names = targets()?;
    let chosen: Vec<&String> =
        names.iter().filter(|name| arguments.target.as_ref().is_none_or(|target| target == *name)).collect();
    if chosen.is_empty() {
        bail!("unknown target (choose one of {})", names.join(", "));
    }
    setup::ready(Purpose::Fuzz)?;
    let fuzzer = Fuzzer::build()?;
    if let (Some(input), [target]) = (&arguments.input, &chosen[..]) {
        let input = fs::canonicalize(input).with_context(|| format!("no {}", input.display()))?;
        return sh::run(fuzzer.on(target)?.arg(input));
    }
    let mut failed = Vec::new();
    for target in chosen {
        if arguments.keep {
            fuzzer.keep(target)?;
        }
        match fuzzer.run(target, arguments.seconds) {
            Ok(line) => println!("{line}"),
            Err(why) => {
                println!("{target:<10} FAILED: {why:#}");
                failed.push(target.as_str());
            }
        }
        if arguments.keep {
            fuzzer.keep(target)?;
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("crashing inputs found for {}", failed.join(", ")) }
}

/// The corpus, as it is kept.
fn corpus() -> PathBuf {
    sh::workspace().join("fuzz/corpus")
}

fn targets() -> Result<Vec<String>> {
    let folders = fs::read_dir(corpus()).context("no fuzz/corpus")?;
    let names = folders.map(|folder| Ok(folder?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

/// The program.
struct Fuzzer {
    program: PathBuf,
    /// Its working folder, with a folder per target.
    folder: PathBuf,
}

impl Fuzzer {
    fn build() -> Result<Self> {
        let host = test::host()?;
        let mut flags = std::env::var("RUSTFLAGS").map_or_else(|_| String::new(), |flags| flags + " ");
        flags.push_str(&COVERAGE.join(" "));
        // For a target by name, so that what runs while building is not counted along.
        sh::run(
            sh::cargo()
                .env("RUSTFLAGS", flags)
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .args(["build", "--profile", "fuzz", "--package", "tcpclose-fuzz", "--features", "libfuzzer"])
                .args(["--bin", "fuzz", "--target", &host]),
        )?;
        let target = build::target_folder()?;
        Ok(Self { program: target.join(host).join("fuzz/fuzz"), folder: target.join("fuzz") })
    }

    /// The working folder of `target`.
    fn folder(&self, target: &str) -> Result<PathBuf> {
        let folder = self.folder.join(target);
        fs::create_dir_all(folder.join("corpus"))
            .with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// The program, set up for `target`.
    fn on(&self, target: &str) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.env("TCPCLOSE_FUZZ_TARGET", target).current_dir(self.folder(target)?);
        command.args(["-timeout=10", "-rss_limit_mb=1024"]);
        Ok(command)
    }

    /// Fuzzes `target` for so long. Returns a line with the result.
    fn run(&self, target: &str, seconds: u32) -> Result<String> {
        let folder = self.folder(target)?;
        let printed = folder.join("said");
        let mut command = self.on(target)?;
        command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={LONGEST}"));
        command.args(["-print_final_stats=1", "-artifact_prefix=./"]);
        // It writes into the first and only reads the others.
        command.arg(folder.join("corpus")).arg(corpus().join(target));
        sh::show(&command);
        let begun = Instant::now();
        let status = {
            let _ticker = Ticker::start(format!("{target}, for {seconds} s"));
            command.stderr(File::create(&printed)?).status().context("cannot start the fuzzer")?
        };
        let printed = fs::read_to_string(&printed)?;
        if status.success() {
            return Ok(summary(target, &Figures::read(&printed), begun.elapsed().as_secs()));
        }
        let last: Vec<&str> = printed.lines().filter(|line| line.contains("panicked at")).collect();
        let Some(input) = artifact(&printed) else {
            bail!("the fuzzer failed: {status} (see {})", folder.join("said").display());
        };
        let path = folder.join(input);
        eprintln!(
            "{}",
            printed
                .lines()
                .rev()
                .take(40)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect::<Vec<_>>()
                .join("\n")
        );
        bail!(
            "{}; play it again: cargo xtask fuzz {target} --input {}",
            last.last().copied().unwrap_or("no panic, but see what the fuzzer says above"),
            sh::quote(&path.display().to_string())
        )
    }

    /// Reduces the corpus to the fewest inputs with the coverage of all of it and of what was found since.
    fn keep(&self, target: &str) -> Result<()> {
        let folder = self.folder(target)?;
        let kept = corpus().join(target);
        let new = folder.join("merged");
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        fs::create_dir(&new)?;
        let mut command = self.on(target)?;
        // Edges alone count: an input for each number of rounds through a loop would be ten times as many.
        command.args(["-set_cover_merge=1", "-use_counters=0"]).arg(format!("-max_len={LONGEST_KEPT}"));
        command.arg(&new).arg(&kept).arg(folder.join("corpus"));
        sh::show(&command);
        let status = command.stderr(File::create(folder.join("merge"))?).status()?;
        if !status.success() {
            bail!("cannot merge the corpus: {status} (see {})", folder.join("merge").display());
        }
        replace(&kept, &new)
    }
}

/// Replaces the files of `kept` by those of `new`, except seeds, which are hand-written or recorded.
fn replace(kept: &Path, new: &Path) -> Result<()> {
    for file in fs::read_dir(kept)? {
        let file = file?;
        let is_seed = |name: &str| name.starts_with("seed-") || name.starts_with("real-");
        if !file.file_name().to_str().is_some_and(is_seed) {
            fs::remove_file(file.path())?;
        }
    }
    for file in fs::read_dir(new)? {
        let file = file?;
        fs::copy(file.path(), kept.join(file.file_name()))?;
    }
    Ok(())
}

/// LibFuzzer's summary of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    executions: u64,
    edges: u64,
    inputs: u64,
    /// As it writes it: `312b`, `45Kb`.
    size: String,
}

impl Figures {
    fn read(printed: &str) -> Self {
        let mut figures = Self::default();
        for line in printed.lines() {
            if let Some(n) = line.strip_prefix("stat::number_of_executed_units:") {
                figures.executions = n.trim().parse().unwrap_or(0);
            }
            let mut words = line.split_whitespace();
            while let Some(word) = words.next() {
                let value = match word {
                    "cov:" | "corp:" => words.next().unwrap_or_default(),
                    _ => continue,
                };
                if word == "cov:" {
                    figures.edges = value.parse().unwrap_or(0);
                } else if let Some((inputs, size)) = value.split_once('/') {
                    (figures.inputs, figures.size) = (inputs.parse().unwrap_or(0), size.to_owned());
                }
            }
        }
        figures
    }
}

fn summary(target: &str, figures: &Figures, seconds: u64) -> String {
    let Figures { executions, edges, inputs, size } = figures;
    format!(
        "{target:<10} {executions:>9} executions in {seconds} s, {edges} edges, {inputs} inputs of {size}"
    )
}

/// The file with the crashing input.
fn artifact(printed: &str) -> Option<&str> {
    printed.lines().find_map(|line| line.rsplit_once("Test unit written to ./")).map(|(_, name)| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_the_fuzzer_says() {
        let printed = "#2\tINITED cov: 310 ft: 402 corp: 9/1200b exec/s: 0 rss: 40Mb\n\
                    #91\tREDUCE cov: 355 ft: 512 corp: 12/3Kb lim: 4 exec/s: 0 rss: 41Mb L: 7/300 MS: 1 EraseBytes-\n\
                    Done 12345 runs in 2 second(s)\nstat::number_of_executed_units: 12345\n";
        let figures = Figures::read(printed);
        assert_eq!(
            summary("state", &figures, 2),
            "state          12345 executions in 2 s, 355 edges, 12 inputs of 3Kb"
        );
        assert_eq!(artifact(printed), None);
        let crash = "artifact_prefix='./'; Test unit written to ./crash-00ff\nBase64: AA==\n";
        assert_eq!(artifact(crash), Some("crash-00ff"));
    }

    #[test]
    fn every_folder_of_the_corpus_is_a_target() {
        let lib = fs::read_to_string(sh::workspace().join("fuzz/src/lib.rs")).unwrap();
        let names = targets().unwrap();
        assert!(names.len() >= 5);
        assert!(names.iter().all(|name| lib.contains(&format!("(\"{name}\", "))), "{names:?}");
    }
}
