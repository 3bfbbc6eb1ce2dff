//! `cargo xtask demo` shows what it says, and leaves nothing behind, however it ends.

use crate::common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::BINARY;
use rustix::process::Signal;
use tcpclose::linux::netns::{Descriptors, find, with_visitor};

/// Building xtask, which `cargo xtask test` has done already, is in it.
const PATIENCE: Duration = Duration::from_secs(300);

/// A demo that runs, and what it has said.
struct Demo {
    /// Cargo, and from a certain point on xtask in its place.
    process: Child,
    lines: Receiver<String>,
    printed: String,
}

/// What a demo has made.
#[derive(Debug)]
struct Made {
    folder: PathBuf,
    address: String,
    pids: Vec<u32>,
    /// The namespace of its stage.
    netns: u32,
}

impl Demo {
    fn start(seconds: u32) -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut command = Command::new(cargo);
        command.current_dir(workspace).args(["run", "--quiet", "--package", "xtask", "--", "demo"]);
        command.args(["--for", &seconds.to_string(), "--agent", BINARY]);
        // What cargo tells a test about its package is none of another build's business.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(name);
            }
        }
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = process.stdout.take().unwrap();
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                println!("demo: {line}");
                let _ = tell.send(line);
            }
        });
        Self { process, lines, printed: String::new() }
    }

    /// Reads on until a line has `text`, and returns that line.
    fn line_with(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let line = self.lines.recv_timeout(until.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|why| panic!("no {text:?} ({why}): {}", self.printed));
            self.printed.push_str(&line);
            if line.contains(text) {
                return line;
            }
        }
    }

    /// What there is, once its stage is set.
    fn made(&mut self) -> Made {
        let socket = self.line_with("  queries ");
        let folder = Path::new(socket.split_whitespace().last().unwrap()).parent().unwrap().to_owned();
        let line = self.line_with("look at it");
        let address = line.split("http://").nth(1).unwrap().trim_end_matches('/').to_owned();
        let until = Instant::now() + PATIENCE;
        // The agent, the stage and its five players.
        while processes_of(&folder).len() < 7 {
            assert!(Instant::now() < until, "{:?}", processes_of(&folder));
            std::thread::sleep(Duration::from_millis(50));
        }
        let pids = processes_of(&folder);
        let inums: BTreeSet<u32> =
            pids.iter().filter_map(|pid| inum(*pid)).filter(|inum| Some(*inum) != own()).collect();
        let inum = inums.first().copied().unwrap();
        let netns = namespaces().into_iter().find(|(at, _)| *at == inum).unwrap().1;
        Made { folder, address, pids, netns }
    }

    fn end(mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the demo does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.process), signal).unwrap();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal(Signal::TERM);
            let _ = self.process.wait();
        }
    }
}

/// Processes that were started with the demo's folder among their arguments.
fn processes_of(folder: &Path) -> Vec<u32> {
    let folder = folder.to_str().unwrap();
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let its = |pid: &u32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // A look by the demo itself comes and goes.
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        arguments.contains(folder) && (arguments.contains("demo-player") || arguments.contains("--state-dir"))
    };
    pids.filter(its).collect()
}

fn inum(pid: u32) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|meta| meta.ino() as u32)
}

fn own() -> Option<u32> {
    inum(std::process::id())
}

/// Every network namespace's inode, and what no later one has again.
fn namespaces() -> Vec<(u32, u32)> {
    let places = find(&Descriptors::All).unwrap().places;
    let ids = with_visitor(|visitor| {
        let ids =
            places.iter().filter_map(|place| visitor.enter(place).ok().map(|netns| (place.inum, netns.id)));
        ids.collect::<Vec<_>>()
    });
    ids.unwrap()
}

fn nothing_is_left(made: &Made) {
    assert_eq!(processes_of(&made.folder), Vec::<u32>::new(), "{made:?}");
    let of_its = |pid: &&u32| {
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.contains(made.folder.to_str().unwrap())
    };
    assert_eq!(made.pids.iter().filter(of_its).count(), 0, "{made:?}");
    assert!(!made.folder.exists(), "{made:?}");
    assert!(TcpStream::connect(&made.address).is_err(), "somebody listens: {made:?}");
    let left = namespaces();
    assert!(left.iter().all(|(_, id)| *id != made.netns), "{made:?}: {left:?}");
}

#[test]
#[ignore = "needs root"]
fn the_demo_shows_the_leak_and_leaves_nothing_behind_however_it_ends() {
    println!("-- by its time");
    let mut demo = Demo::start(16);
    let made = demo.made();
    assert!(made.pids.iter().any(|pid| inum(*pid) == own()), "the agent is where its page can be looked at");
    demo.line_with("$ tcpclose stuck ");
    // One a while after the other: the first is older than the bound at the first look or at the last.
    let leak = demo.line_with("leaky-api[");
    assert!(leak.contains("server") && leak.contains("8080"), "{leak}");
    demo.line_with("$ tcpclose ports ");
    demo.line_with("$ tcpclose exhaustion ");
    demo.line_with("port-eater[");
    demo.line_with("The demo has ended; everything is removed.");
    assert!(demo.end().success());
    nothing_is_left(&made);

    for signal in [Signal::INT, Signal::TERM] {
        println!("-- by {signal:?}");
        let mut demo = Demo::start(600);
        let made = demo.made();
        demo.signal(signal);
        assert!(demo.end().success());
        nothing_is_left(&made);
    }
}
