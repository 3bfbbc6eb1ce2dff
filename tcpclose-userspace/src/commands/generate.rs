//! `tcpclose generate`: man pages, completions and a commented configuration for packages, from the list of arguments.
//!
//! A command of this binary, as in ripgrep: a build script would compile the command line twice, and xtask cannot depend on
//! a library that needs the eBPF toolchain. Hidden, since only `cargo xtask package` uses it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_complete::aot::{Shell, generate_to};
use clap_mangen::Man;

use crate::commands::config::settings::DEFAULT_FILE;
use crate::failure::Failure;

/// Write man pages, completions and a commented configuration into a folder.
#[derive(Debug, clap::Args)]
#[command(hide = true, after_help = "Example: tcpclose generate ./made")]
pub struct Generate {
    /// The folder, created if it does not exist
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

impl Generate {
    /// Writes them all.
    ///
    /// # Errors
    /// Where one of them cannot be written.
    pub fn run(self, command: &Command, config: &str) -> Result<ExitCode, Failure> {
        let written = self.write(command, config);
        written.map(|()| ExitCode::SUCCESS).map_err(|why| {
            Failure::new(
                format!("writing to {}", self.folder.display()),
                why,
                "name a folder that can be written",
            )
        })
    }

    fn write(&self, command: &Command, config: &str) -> io::Result<()> {
        let manual = self.folder.join("man");
        fs::create_dir_all(&manual)?;
        pages(command, &manual)?;
        let completions = self.folder.join("completions");
        fs::create_dir_all(&completions)?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = generate_to(shell, &mut command.clone(), command.get_name(), &completions)?;
            let text = fs::read_to_string(&script)?;
            fs::write(&script, with_pids(shell, &text))?;
        }
        fs::write(self.folder.join("tcpclose.toml"), config)
    }
}

/// A script of clap_complete, which knows no values of `--pid`, with those of the running processes.
fn with_pids(shell: Shell, script: &str) -> String {
    const INDENT: &str = "                ";
    match shell {
        Shell::Bash => script.replace(
            &format!("{INDENT}--pid)\n{INDENT}    COMPREPLY=(\"${{cur}}\")"),
            &format!(
                "{INDENT}--pid)\n{INDENT}    COMPREPLY=($(compgen -W \"$(cd /proc && echo [0-9]*)\" -- \"${{cur}}\"))"
            ),
        ),
        Shell::Zsh => script.replace(":PID:'", ":PID:_pids'"),
        _ => {
            let lines = script.lines().map(|line| match line.contains(" -l pid ") {
                true => format!("{line} -a '(__fish_complete_pids)'\n"),
                false => format!("{line}\n"),
            });
            lines.collect()
        }
    }
}

/// A page for the command and one for each subcommand.
fn pages(command: &Command, folder: &Path) -> io::Result<()> {
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    let mut names: Vec<String> =
        std::iter::once(&command).chain(command.get_subcommands()).map(name).collect();
    names.sort();
    for command in std::iter::once(&command).chain(command.get_subcommands()) {
        let name = name(command);
        let others: Vec<&str> = names.iter().map(String::as_str).filter(|other| *other != name).collect();
        fs::write(folder.join(format!("{name}.1")), page(command, &others)?)?;
    }
    Ok(())
}

/// The name of its page: `tcpclose-stuck`.
fn name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

/// clap_mangen's page, with examples line by line, which it would run together under EXTRA.
fn page(command: &Command, others: &[&str]) -> io::Result<Vec<u8>> {
    // With the program's version, which only its own page would have.
    let man = Man::new(command.clone()).source(concat!("tcpclose ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    // Without hyphenation and justification, so that names can be copied.
    writeln!(page, ".nh\n.ad l")?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(examples) = command.get_after_help() {
        let examples = examples.to_string();
        let examples = examples.strip_prefix("Examples:\n").or_else(|| examples.strip_prefix("Example: "));
        writeln!(page, ".SH EXAMPLES\n.nf")?;
        for line in examples.unwrap_or_default().lines() {
            writeln!(page, "{}", verbatim(line.trim_start()))?;
        }
        writeln!(page, ".fi")?;
    }
    writeln!(page, ".SH \"EXIT STATUS\"\n0 for success, 1 if a check found something, 2 for a failure.")?;
    if name(command) == "tcpclose-agent" {
        writeln!(page, ".SH FILES\n.TP\n.I {}", DEFAULT_FILE)?;
        writeln!(page, "Settings by the names of the options, without the leading hyphens.")?;
    }
    writeln!(page, ".SH \"SEE ALSO\"")?;
    let others = others.iter().map(|other| format!(".BR {} (1)", verbatim(other)));
    writeln!(page, "{}", others.collect::<Vec<_>>().join(",\n"))?;
    Ok(page)
}

/// `line` as roff prints it unchanged: with hyphens that can be copied, without escapes and requests.
fn verbatim(line: &str) -> String {
    let line = line.replace('\\', r"\e").replace('-', r"\-");
    if line.starts_with(['.', '\'']) { format!(r"\&{line}") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::config;

    fn run(folder: &Path) -> Result<ExitCode, Failure> {
        Generate { folder: folder.to_owned() }.run(&config::documented(), &config::template())
    }

    fn made() -> (tempfile::TempDir, impl Fn(&str) -> String) {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path()).unwrap();
        let path = folder.path().to_owned();
        (folder, move |file: &str| {
            fs::read_to_string(path.join(file)).unwrap_or_else(|why| panic!("{file}: {why}"))
        })
    }

    #[test]
    fn every_command_has_a_page_with_its_options_and_examples() {
        let (_folder, read) = made();
        let mut command = config::documented();
        command.build();
        let mut options = 0;
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let page = read(&format!("man/tcpclose-{}.1", sub.get_name()));
            assert!(page.contains(".SH EXAMPLES\n.nf\ntcpclose "), "{page}");
            for long in sub.get_arguments().filter_map(clap::Arg::get_long) {
                let shown = format!(r"\-\-{}", long.replace('-', r"\-"));
                assert!(page.contains(&shown), "{}: no {shown}", sub.get_name());
                options += 1;
            }
        }
        assert!(options > 40, "{options}");
        let agent = read("man/tcpclose-agent.1");
        assert!(agent.contains("TCPCLOSE_STUCK_AFTER") && agent.contains(".SH FILES"), "{agent}");
        let root = read("man/tcpclose.1");
        assert!(root.contains(r"tcpclose\-stuck(1)") && !root.contains("generate"), "{root}");
    }

    #[test]
    fn completions_offer_what_help_lists() {
        let (_folder, read) = made();
        for file in ["tcpclose.bash", "_tcpclose", "tcpclose.fish"] {
            let script = read(&format!("completions/{file}"));
            assert!(script.contains("exhaustion") && script.contains("stuck-after"), "{file}: {script}");
            assert!(!script.contains("generate"), "{file}: {script}");
        }
    }

    #[test]
    fn completions_offer_the_running_processes() {
        let (folder, read) = made();
        for (file, offer, commands) in
            [("_tcpclose", ":PID:_pids'", 4), ("tcpclose.fish", "(__fish_complete_pids)", 4)]
        {
            assert_eq!(read(&format!("completions/{file}")).matches(offer).count(), commands, "{file}");
        }
        let complete = "source \"$1\"; COMP_WORDS=(tcpclose stuck --pid ''); COMP_CWORD=3; _tcpclose tcpclose '' --pid; \
                        echo \"${COMPREPLY[@]}\"";
        let script = folder.path().join("completions/tcpclose.bash");
        let offered = std::process::Command::new("bash").args(["-c", complete, "bash"]).arg(&script).output();
        let offered = String::from_utf8(offered.unwrap().stdout).unwrap();
        let own = std::process::id().to_string();
        assert!(offered.split_whitespace().any(|pid| pid == own), "{offered}");
    }

    #[test]
    fn lines_pass_through_roff_unchanged() {
        assert_eq!(verbatim(r"a\b --c"), r"a\eb \-\-c");
        assert_eq!(verbatim(".x"), r"\&.x");
    }

    #[test]
    fn a_folder_that_cannot_be_is_one_line() {
        let failure = run(Path::new("/dev/null/x")).unwrap_err().to_string();
        assert!(failure.starts_with("tcpclose: writing to /dev/null/x: Not a directory"), "{failure}");
    }
}
