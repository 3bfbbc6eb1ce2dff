//! One run of one guest: QEMU without KVM, the guest's output, and its end.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::kit;
use crate::archive::Architecture;
use crate::live::skipped;
use crate::sh;
use tcpclose_common::progress::{self, Ticker};

/// The mark before init.sh's messages to xtask, also within a line.
const MARK: char = '\x1e';

/// A message of init.sh.
#[derive(Debug, PartialEq)]
enum Word {
    /// It is ready, with this kernel.
    Up(String),
    /// A job ended, with this status, after so many seconds by the guest's clock.
    Ran(String, u8, f64),
    /// The set-up failed.
    Broken(String),
    /// The end.
    Down,
}

impl Word {
    fn parse(text: &str) -> Option<Self> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match word {
            "up" => Some(Self::Up(rest.to_owned())),
            "ran" => {
                let (rest, seconds) = rest.rsplit_once(' ')?;
                let (name, status) = rest.rsplit_once(' ')?;
                Some(Self::Ran(name.to_owned(), status.parse().ok()?, seconds.parse().ok()?))
            }
            "broken" => Some(Self::Broken(rest.to_owned())),
            "down" => Some(Self::Down),
            _ => None,
        }
    }
}

/// A guest to be run.
pub struct Guest {
    /// The prefix of its lines.
    pub name: String,
    pub architecture: Architecture,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// The log of its programs.
    pub log: PathBuf,
    /// The log of its kernel.
    pub console: PathBuf,
    /// MiB.
    pub memory: u32,
    /// More words for its kernel's command line.
    pub append: String,
    /// Time limit.
    pub patience: Duration,
}

/// The result of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// The kernel's release, and how long it took to be ready.
    pub up: Option<(String, Duration)>,
    /// The jobs that ended: name, status, how long it took.
    pub ran: Vec<(String, u8, Duration)>,
    /// What its programs have skipped.
    pub skipped: Vec<String>,
    /// The reason of an early end.
    pub trouble: Option<String>,
    pub took: Duration,
}

impl Guest {
    /// Boots it and waits until it is down, out of patience or dead. The calling thread must live as long as the guest:
    /// the guest is killed when that thread ends.
    pub fn run(&self) -> Result<Report> {
        let start = Instant::now();
        let mut log =
            File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = self.qemu()?;
        sh::show(&command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut machine = Machine(command.spawn().context("cannot start setpriv")?);
        let lines = machine.lines();

        let mut report = Report::default();
        let mut since = start;
        let most = self.patience.as_secs();
        let _ticker = Ticker::start(format!("a guest with Linux {} (at most {most} s)", self.name));
        loop {
            let left = self.patience.saturating_sub(start.elapsed());
            let line = match lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    report.trouble = Some(format!("not done after {} s", self.patience.as_secs()));
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    report.trouble = Some("the machine ended before its programs did".to_owned());
                    break;
                }
            };
            // The log is the record, the terminal a courtesy: one that is gone stops nothing.
            writeln!(log, "{line}").with_context(|| format!("cannot write {}", self.log.display()))?;
            let (output, word) = match line.split_once(MARK) {
                Some((output, word)) => (output, Word::parse(word)),
                None => (line.as_str(), None),
            };
            report.skipped.extend(skipped(output));
            if word.is_none() || !output.is_empty() {
                progress::clear();
                // Not println!, which panics if the pipe is closed.
                let _ = writeln!(io::stdout(), "{:<20} | {output}", self.name);
            }
            match word {
                None => continue,
                Some(Word::Up(release)) => report.up = Some((release, since.elapsed())),
                Some(Word::Ran(name, status, seconds)) => {
                    report.trouble = clock_trouble(seconds, since.elapsed()).or(report.trouble);
                    report.ran.push((name, status, since.elapsed()));
                }
                Some(Word::Broken(why)) => report.trouble = Some(why),
                Some(Word::Down) => break,
            }
            since = Instant::now();
        }
        drop(machine);
        report.took = start.elapsed();
        // What the kernel itself has to say explains all the rest.
        let console = fs::read(&self.console).unwrap_or_default();
        report.trouble = complaint(&String::from_utf8_lossy(&console)).or(report.trouble);
        Ok(report)
    }

    /// In emulation, since a nested /dev/kvm may exist and not work. setpriv ends the machine with xtask.
    fn qemu(&self) -> Result<Command> {
        let console = |file: &Path| format!("file:{}", file.display());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(kit::qemu(self.architecture)?);
        let (machine, line, clock) = match self.architecture {
            // A busy host makes a guest's processors stand still, and they cannot measure their own counter then: a
            // clock by it ran seven times too fast. The HPET's rate is given.
            Architecture::Amd64 => (["-M", "pc", "-cpu", "max"], "ttyS0", " clocksource=hpet tsc=unstable"),
            // Its counter's rate is given, too. The real algorithm of pointer authentication takes most of the time.
            Architecture::Arm64 => (["-M", "virt", "-cpu", "max,pauth-impdef=on"], "ttyAMA0", ""),
        };
        command.args(["-accel", "tcg,thread=multi", "-smp", "2"]).args(machine);
        command.args(["-m", &self.memory.to_string()]);
        // Two serial lines, for the kernel and the programs, and nothing else: no screen, no disk, no network.
        command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        command.args(["-serial", &console(&self.console), "-serial", "stdio"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        // A kernel in trouble ends at once, and -no-reboot the machine with it. A processor that stands still is no
        // lockup. Level 5 is all from warnings up.
        command.arg("-append");
        let append = &self.append;
        command.arg(format!("console={line} loglevel=5 panic=-1 oops=panic nosoftlockup{clock} {append}"));
        Ok(command)
    }
}

/// QEMU, killed and waited for when dropped: it has no disk.
struct Machine(Child);

impl Machine {
    /// Its lines, from the second serial line; what QEMU itself complains about comes among them.
    fn lines(&mut self) -> mpsc::Receiver<String> {
        let (sender, lines) = mpsc::channel();
        let complaints = sender.clone();
        if let Some(output) = self.0.stdout.take() {
            std::thread::spawn(move || pass_on(output, &sender));
        }
        if let Some(output) = self.0.stderr.take() {
            std::thread::spawn(move || pass_on(output, &complaints));
        }
        lines
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pass_on(output: impl Read, lines: &mpsc::Sender<String>) {
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        if lines.send(line.trim_end_matches('\r').to_owned()).is_err() {
            break;
        }
    }
}

/// A note if a job took another time by the guest's clock than by the host's: its measured times are then wrong.
fn clock_trouble(guest: f64, host: Duration) -> Option<String> {
    // The job's end is heard a little later than it is said.
    let host = host.as_secs_f64();
    let apart = (guest - host).abs();
    (apart > 2.0 && apart > 0.05 * host)
        .then(|| format!("its clock is wrong: {guest:.1} s passed for it, {host:.1} s in truth"))
}

/// The first line of a kernel's log that reports a defect.
fn complaint(console: &str) -> Option<String> {
    const SIGNS: &[&str] =
        &["Kernel panic", "BUG: ", "WARNING: ", "Oops: ", "Out of memory", "invoked oom-killer"];
    let line = console.lines().find(|line| SIGNS.iter().any(|sign| line.contains(sign)))?;
    Some(format!("its kernel says: {}", line.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_words_are_understood() {
        assert_eq!(Word::parse("up 6.1.0-56"), Some(Word::Up("6.1.0-56".to_owned())));
        assert_eq!(Word::parse("ran closes 101 9.25"), Some(Word::Ran("closes".to_owned(), 101, 9.25)));
        assert_eq!(Word::parse("broken no veth"), Some(Word::Broken("no veth".to_owned())));
        assert_eq!(Word::parse("down"), Some(Word::Down));
    }

    #[test]
    fn garbage_is_no_word() {
        for text in
            ["", "Down", "ran closes", "ran closes 0", "ran closes x 1", "ran closes 256 1", "ran closes 0 x"]
        {
            assert_eq!(Word::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_clock_of_another_rate_is_noticed() {
        assert!(
            clock_trouble(127.1, Duration::from_secs(18)).is_some_and(|why| why.contains("127.1 s passed"))
        );
        assert_eq!(clock_trouble(71.9, Duration::from_millis(72_400)), None);
        assert_eq!(clock_trouble(0.0, Duration::from_millis(1_900)), None);
    }

    #[test]
    fn a_kernel_in_trouble_is_heard() {
        let console =
            "[    0.1] tsc: Fast TSC calibration failed\r\n[    1.0] Kernel panic - not syncing: x\r\n";
        assert_eq!(complaint(console).unwrap(), "its kernel says: [    1.0] Kernel panic - not syncing: x");
        assert_eq!(complaint("[    0.1] all is well\n"), None);
    }
}
