//! A `tcpclose watch` at work.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tcpclose::names::Flow;

use super::apart::PATIENCE;
use super::{Agent, BINARY};

/// Ended, and waited for, when dropped.
pub struct Reader {
    pub child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    printed: Arc<Mutex<String>>,
}

impl Reader {
    /// Watches through `agent`.
    pub fn json(agent: &Agent, arguments: &[&str]) -> Self {
        Self::at(&agent.socket(), &[&["--json"], arguments].concat())
    }

    /// Watches by way of the socket at `path`, or without an agent where nobody is there.
    pub fn at(path: &Path, arguments: &[&str]) -> Self {
        let mut reader = Self::begin(path, arguments);
        reader.until_it_watches();
        reader
    }

    fn begin(path: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(BINARY)
            .arg("watch")
            .env("TCPCLOSE_SOCKET", path)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, printed) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(String::new())));
        let (stdout, heard) = (child.stdout.take().unwrap(), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                heard.lock().unwrap().push(line);
            }
        });
        let (stderr, heard) = (child.stderr.take().unwrap(), Arc::clone(&printed));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                heard.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        Self { child, lines, printed }
    }

    fn until_it_watches(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.printed().contains("watching ") {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "it does not watch: {}", self.printed());
            sleep(Duration::from_millis(5));
        }
    }

    pub fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// All that it has printed.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Returns when `done` holds for what it has printed.
    pub fn when(&mut self, patience: Duration, what: &str, done: impl Fn(&[String]) -> bool) {
        let until = Instant::now() + patience;
        while !done(&self.lines()) {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.printed());
            assert!(Instant::now() < until, "not within {patience:?}: {what}\n{}", self.lines().join("\n"));
            sleep(Duration::from_millis(20));
        }
    }

    /// The first step for which `is` holds, once it is printed.
    pub fn step_when(&mut self, patience: Duration, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        self.nth_when(patience, what, 0, is)
    }

    /// As [`Self::step_when`], after `before` such steps.
    pub fn nth_when(
        &mut self,
        patience: Duration,
        what: &str,
        before: usize,
        is: impl Fn(&Value) -> bool,
    ) -> Value {
        let of = |lines: &[String]| steps_in(lines).into_iter().filter(&is).nth(before);
        self.when(patience, what, |lines| of(lines).is_some());
        of(&self.lines()).unwrap()
    }

    /// The steps of one socket, once `done` holds for them.
    pub fn steps_when(
        &mut self,
        patience: Duration,
        flow: &Flow,
        done: impl Fn(&[Value]) -> bool,
    ) -> Vec<Value> {
        let of = |lines: &[String]| -> Vec<Value> {
            steps_in(lines).into_iter().filter(|line| is_of(line, flow)).collect()
        };
        self.when(patience, &format!("the steps of {flow:?}"), |lines| done(&of(lines)));
        of(&self.lines())
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // Its last words may still be on their way.
                sleep(Duration::from_millis(100));
                return status;
            }
            assert!(Instant::now() < until, "it goes on");
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// Without what it says of lost ones.
fn steps_in(lines: &[String]) -> Vec<Value> {
    let lines = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line.get("lost").is_none()).collect()
}

fn is_of(line: &Value, flow: &Flow) -> bool {
    line["local"] == flow.local().to_string() && line["peer"] == flow.remote().to_string()
}

/// `from→to` of each line.
pub fn steps_of(lines: &[Value]) -> Vec<String> {
    let step = |line: &Value| format!("{}→{}", line["from"].as_str().unwrap(), line["to"].as_str().unwrap());
    lines.iter().map(step).collect()
}

/// What a watch says that fails, with status 2.
pub fn refused(path: &Path, arguments: &[&str]) -> String {
    let mut reader = Reader::begin(path, arguments);
    assert_eq!(reader.end().code(), Some(2));
    reader.printed()
}
