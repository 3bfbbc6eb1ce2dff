//! `cargo xtask demo`: the agent over servers and clients of its own.
//!
//! Their processes (demo/stage.rs) are in a network namespace without a name or a file, which ends with the last of them. The
//! kernel ends each process with the one that started it (setpriv), so that even a killed demo leaves nothing behind.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{build, sh};

pub mod stage;

/// Show the agent at work: a server that leaks, one that does not, a client that runs out of ports
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo --for 300")]
pub struct Arguments {
    /// Seconds to run; Ctrl-C ends it sooner
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Address of the agent's metrics; port 0 for a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: String,
    /// Agent binary to show (default: build it)
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
}

/// The demo's `--stuck-after`, short enough for a demo.
const STUCK_AFTER: &str = "3s";
/// Time of the first output: by then something is stuck, and ports run short.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// Limit for the agent to get ready, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Interval at which signals are checked.
const PULSE: Duration = Duration::from_millis(50);

/// The commands to show, if the agent's binary has them.
const LOOKS: [&[&str]; 3] = [&["stuck", "--older-than", STUCK_AFTER], &["ports"], &["exhaustion"]];

/// Runs the command.
pub fn command(arguments: &Arguments) -> Result<()> {
    for program in ["setpriv", "unshare", "ip"] {
        if sh::find(program).is_none() {
            bail!("{program} is missing (install util-linux and iproute2)");
        }
    }
    let binary = match &arguments.agent {
        Some(binary) => binary.clone(),
        None => build::release()?,
    };
    if !sh::is_root() {
        return Err(again_as_root(arguments, &binary)?);
    }
    // Before there is anything to clean up.
    let ending = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ending)).context("cannot handle signals")?;
    }
    show(&binary, arguments, ending)
}

/// In place of this process; returns only if that fails.
fn again_as_root(arguments: &Arguments, binary: &Path) -> Result<anyhow::Error> {
    let xtask = std::env::current_exe().context("cannot find the path of xtask itself")?;
    let mut command = sh::as_root(xtask, &[]);
    command.args(["demo", "--for", &arguments.seconds.to_string(), "--listen", &arguments.listen]);
    command.arg("--agent").arg(binary);
    sh::show(&command);
    Ok(anyhow!(command.exec()).context(format!("cannot start {}", command.get_program().display())))
}

/// The end of the demo: a time, or a signal.
struct Until {
    end: Instant,
    ending: Arc<AtomicBool>,
}

impl Until {
    /// Waits for `pause`, but not longer than the demo lasts. True if it goes on.
    fn pause(&self, pause: Duration) -> bool {
        let until = (Instant::now() + pause).min(self.end);
        while Instant::now() < until && !self.reported() {
            sleep(PULSE.min(until.saturating_duration_since(Instant::now())));
        }
        Instant::now() < self.end && !self.reported()
    }

    fn reported(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }
}

fn show(binary: &Path, arguments: &Arguments, ending: Arc<AtomicBool>) -> Result<()> {
    let folder = Folder::make()?;
    let socket = folder.0.join("tcpclose.sock");
    let mut agent = Agent::start(binary, &arguments.listen, &folder.0, &socket)?;
    let Some(address) = agent.address(&ending)? else { return agent.part.end() };
    let mut stage = Part { what: "the stage", child: stage::start(&folder.0)? };
    let players = stage.child.stdout.take();
    say(&format!("\n{}\n  look at it    {address}/\n", stage::WORDS));
    let until = &Until { end: Instant::now() + Duration::from_secs(arguments.seconds), ending };
    let looks: Vec<&&[&str]> = LOOKS.iter().filter(|look| has(binary, look)).collect();

    let half = until.end.saturating_duration_since(Instant::now()) / 2;
    if until.pause(FIRST_LOOK.min(half)) {
        look(binary, &looks, &socket)?;
        let left = until.end.saturating_duration_since(Instant::now()).as_secs();
        say(&format!("\n{address}/ is there for {left} s; Ctrl-C ends it sooner.\n"));
        while until.pause(Duration::from_secs(1)) {
            agent.part.still_there()?;
        }
        if !until.reported() {
            say("\nState at the end:\n");
            look(binary, &looks, &socket)?;
        }
    }
    stage.end()?;
    // The players are killed with the stage, and this is open until the last of them has gone.
    drop(players.map(|mut players| players.read_to_end(&mut Vec::new())));
    agent.part.end()?;
    say("\nThe demo has ended; everything is removed.\n");
    Ok(())
}

/// Whether the binary knows a command.
fn has(binary: &Path, look: &[&str]) -> bool {
    let command = look.first().copied().unwrap_or_default();
    sh::ask(Command::new(binary).args([command, "--help"])).is_some()
}

fn look(binary: &Path, looks: &[&&[&str]], socket: &Path) -> Result<()> {
    for look in looks {
        let mut command = Command::new(binary);
        command.args(**look).arg("--socket").arg(socket).stdin(Stdio::null());
        // A signal at the terminal is ours to hear: it is no news to a table.
        command.process_group(0);
        say(&format!("\n$ tcpclose {} --socket {}\n", look.join(" "), socket.display()));
        let output = command.output().context("cannot start tcpclose")?;
        say(&String::from_utf8_lossy(&output.stdout));
        say(&String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Ignores a closed pipe: the demo must clean up anyway.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// The demo's folder, for the agent's socket and state; removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("tcpclose-demo-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(why) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {why}", self.0.display());
        }
    }
}

/// A process of the demo; ended and waited for when dropped.
struct Part {
    what: &'static str,
    child: Child,
}

impl Part {
    fn still_there(&mut self) -> Result<()> {
        match self.child.try_wait().context("cannot wait for a child process")? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself ({status})", self.what),
        }
    }

    /// Waits for its end; prints how it ended unless that was requested.
    fn end(mut self) -> Result<()> {
        self.still_there()?;
        self.stop()
    }

    fn stop(&mut self) -> Result<()> {
        // By the shell's own kill, for the standard library knows SIGKILL only.
        sh::ask(Command::new("kill").args(["-TERM", &self.child.id().to_string()]));
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait().context("cannot wait for a child process")?.is_none() {
            if Instant::now() >= until {
                self.child.kill().context("cannot kill a child process")?;
            }
            sleep(PULSE);
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none())
            && let Err(why) = self.stop()
        {
            eprintln!("cannot end {}: {why:#}", self.what);
        }
    }
}

/// The agent, and its output.
struct Agent {
    part: Part,
    printed: Receiver<String>,
}

impl Agent {
    fn start(binary: &Path, listen: &str, folder: &Path, socket: &Path) -> Result<Self> {
        let mut command = with_parent("TERM", binary);
        command.args(["agent", "--listen", listen, "--stuck-after", STUCK_AFTER, "--owner-interval", "2s"]);
        command.arg("--socket").arg(socket).arg("--state-dir").arg(folder.join("state"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start the agent")?;
        let stderr = child.stderr.take();
        let (tell, printed) = channel();
        std::thread::spawn(move || {
            for line in
                stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).lines()).map_while(Result::ok)
            {
                say(&format!("{line}\n"));
                // Nobody listens any more once the address is known.
                let _ = tell.send(line);
            }
        });
        Ok(Self { part: Part { what: "the agent", child }, printed })
    }

    /// Its address once it is ready; `None` if the demo is over before.
    fn address(&mut self, ending: &AtomicBool) -> Result<Option<String>> {
        let patience = Instant::now() + PATIENCE;
        let mut found = None;
        while !ending.load(Ordering::Relaxed) {
            match self.printed.recv_timeout(PULSE) {
                Ok(line) => {
                    let address =
                        line.split_once("http://").and_then(|(_, rest)| rest.split_once("/metrics"));
                    found = found.or(address.map(|(address, _)| format!("http://{address}")));
                    // The summary's last lines.
                    if line.trim_start().starts_with("try ") && found.is_some() {
                        return Ok(found);
                    }
                }
                Err(_) => self.part.still_there()?,
            }
            if Instant::now() >= patience {
                bail!("the agent is not ready after {} s", PATIENCE.as_secs());
            }
        }
        Ok(None)
    }
}

/// A program that gets this signal when this process ends, and no signals of the terminal.
fn with_parent(signal: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal, "--"]).arg(program).process_group(0);
    command
}
